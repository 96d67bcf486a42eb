"""How long a call of a policy may take before it counts as one that hangs."""

from __future__ import annotations

__all__ = ["SHARE_APART", "SHARE_OF_DEADLINE", "CallLimit"]

# The share of a deadline that a call may take. In the rest another thread or replica answers those
# that wait behind one that hangs.
SHARE_OF_DEADLINE = 0.8
# The share of its time that an observation may take which is asked again, since a call with it has
# hung: those that are asked behind one at which the policy hangs again wait for it a second time.
SHARE_APART = 0.4
# A machine that is short of time may hold a process up for as long, and another one is no faster.
_SHORTEST_HANG_S = 5.0
# A call may take so many times as long as the slowest of late, or so many seconds.
_MOST_USUALS = 50.0
_UNUSUAL_S = 10.0
# What the slowest call counts after the next one. The first call of a process, or one that the
# machine held up, is forgotten after a hundred others.
_FADES = 0.95


class CallLimit:
    """Learns from the calls of a policy how long the next one may take.

    A call may take as long as fifty times what the slowest one of late has taken, in proportion
    to its rows if it has more, ten seconds at the least, and never longer than the longest that is
    allowed; as long as that while nothing is known.
    """

    def __init__(
        self,
        longest_s: float,
        *,
        usual_s: float = 0.0,
        shortest_s: float = _SHORTEST_HANG_S,
        unusual_s: float = _UNUSUAL_S,
    ) -> None:
        """Begin without a call.

        Args:
            longest_s: the longest that a call may take, in seconds.
            usual_s: how long one observation usually takes, in seconds; 0 if nobody knows.
            shortest_s: the least that a call may take, in seconds, whatever is said.
            unusual_s: the least that a call may take whose rows usually take far less.
        """
        self._longest_s = max(longest_s, shortest_s)
        self._unusual_s = min(unusual_s, self._longest_s)
        self._slowest_s, self._rows = usual_s, 1.0

    @property
    def least_s(self) -> float:
        """Return how long a call may take whatever its rows, in seconds."""
        return self._unusual_s if self._slowest_s else self._longest_s

    def allowed_s(self, rows: int) -> float:
        """Return how long a call may take, in seconds.

        Args:
            rows: how many observations it has.
        """
        return min(max(_MOST_USUALS * self._usual_s(rows), self.least_s), self._longest_s)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a call that was answered.

        Args:
            rows: how many observations it had.
            seconds: how long it took.
        """
        self._slowest_s *= _FADES
        # As fast, so that many short calls don't make a long one of many rows seem shorter.
        self._rows = max(1.0, _FADES * self._rows)
        if rows and seconds > self._usual_s(rows):
            self._slowest_s, self._rows = seconds, float(rows)

    def _usual_s(self, rows: int) -> float:
        return self._slowest_s * max(1.0, rows / self._rows)
