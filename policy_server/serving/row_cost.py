"""The cost of one more row in a call, estimated from the calls themselves."""

from __future__ import annotations

import math

__all__ = ["RowCost"]

# Calls of fewer rows tell little of a row's cost: most of their time is the call's own.
_FEWEST_ROWS = 8
_NEWEST_SHARE = 0.2
# A call of one row that always takes longer has a slow policy, not a slow way to a replica.
_SLOW_CALL_S = 1e-3


class RowCost:
    """The cost of a row of one backend, apart from the fixed cost of a call.

    For example, calls of 1 row that take 0.4 ms and of 101 rows that take 0.5 ms cost 1 us a row.
    """

    def __init__(self) -> None:
        """Own the estimate, which is unknown at first."""
        self._shortest_s = math.inf
        self._seconds_a_row: float | None = None

    @property
    def seconds(self) -> float:
        """Return the seconds that a row takes; 0 as long as calls show no such cost."""
        if self._seconds_a_row is not None:
            return self._seconds_a_row
        is_slow = _SLOW_CALL_S <= self._shortest_s < math.inf
        return self._shortest_s if is_slow else 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Add a call to the estimate.

        Args:
            rows: how many it had.
            seconds: how long it took.
        """
        self._shortest_s = min(self._shortest_s, seconds)
        if rows < _FEWEST_ROWS:
            return
        newest = (seconds - self._shortest_s) / rows
        known = newest if self._seconds_a_row is None else self._seconds_a_row
        self._seconds_a_row = known + _NEWEST_SHARE * (newest - known)
