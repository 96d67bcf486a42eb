"""The time that a row takes where others wait too, measured between the ends of calls."""

from __future__ import annotations

from collections import deque

__all__ = ["ServiceRate"]

_NEWEST_CALLS = 16
# The first call may have waited for a replica's start.
_FEWEST_CALLS = 2


class ServiceRate:
    """How fast a backend answers rows, by its newest calls.

    For example, a replica whose calls of 10 rows end each 20 ms takes 2 ms a row, though each call
    waits 20 ms for the one before it; two such replicas take 1 ms a row.
    """

    def __init__(self) -> None:
        """Own the newest calls; the rate is unknown at first."""
        self._calls: deque[tuple[float, int]] = deque(maxlen=_NEWEST_CALLS)
        self._last_end = 0.0
        self._seconds: float | None = 0.0

    @property
    def seconds_a_row(self) -> float:
        """Return the seconds that a row takes; 0 while too few calls have ended."""
        if self._seconds is None:
            self._seconds = self._measured()
        return self._seconds

    def observe(self, rows: int, *, started: float, ended: float) -> None:
        """Add a call.

        Args:
            rows: how many it had.
            started: when it was sent, in seconds.
            ended: when it was answered, by the same clock.
        """
        self._calls.append((ended - max(started, self._last_end), rows))
        self._last_end = ended
        self._seconds = None

    def _measured(self) -> float:
        if len(self._calls) < _FEWEST_CALLS:
            return 0.0
        # A replica that stood still for seconds once says nothing of the next rows.
        longest = max(self._calls, key=lambda call: call[0] / call[1])
        seconds = sum(taken for taken, _ in self._calls) - longest[0]
        rows = sum(rows for _, rows in self._calls) - longest[1]
        return seconds / rows if rows else 0.0
