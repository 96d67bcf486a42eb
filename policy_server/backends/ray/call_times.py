"""How long calls usually take, by their size, and how many of them may be asked twice."""

from __future__ import annotations

__all__ = ["DuplicateBudget", "UsualTimes"]

# A call is late when it takes so many times the longest that is usual, and at least so long.
_LATE_FACTOR = 2.0
_LATE_AT_LEAST_S = 0.01
# A call whose like has never been seen.
_LATE_UNKNOWN_S = 1.0
# Jacobson's estimate of a round trip, as TCP has it (RFC 6298): mean and mean deviation, whose
# newest share is 1/8 and 1/4; the longest usual time is the mean and four deviations.
_MEAN_SHARE = 1 / 8
_DEVIATION_SHARE = 1 / 4
_DEVIATIONS = 4
# One call in twenty may be asked twice, and after a calm time a few more.
_DUPLICATES_A_CALL = 0.05
_MOST_DUPLICATES = 16.0


class UsualTimes:
    """The times of calls: apart for calls of 1, 2 to 3, 4 to 7 rows, and so on."""

    def __init__(self) -> None:
        """Own the estimates, of which there are none at first."""
        self._usual: dict[int, tuple[float, float]] = {}
        self._late: dict[int, float] = {}

    def late_after(self, rows: int) -> float:
        """Return after how many seconds a call is late.

        Args:
            rows: how many rows it has.
        """
        size = rows.bit_length()
        late_s = self._late.get(size)
        return self._guess(size) if late_s is None else late_s

    def observe(self, rows: int, seconds: float) -> None:
        """Add the time of a call to the estimates.

        Args:
            rows: how many rows it had.
            seconds: how long it took.
        """
        size = rows.bit_length()
        mean, deviation = self._usual.get(size, (seconds, seconds / 2))
        deviation += _DEVIATION_SHARE * (abs(seconds - mean) - deviation)
        mean += _MEAN_SHARE * (seconds - mean)
        self._usual[size] = mean, deviation
        longest = mean + _DEVIATIONS * deviation
        self._late[size] = max(_LATE_FACTOR * longest, _LATE_AT_LEAST_S)

    def _guess(self, size: int) -> float:
        """Return the time for a size that has not been seen, by the nearest smaller one."""
        smaller = max((known for known in self._late if known < size), default=None)
        if smaller is None:
            return max(self._late.values(), default=_LATE_UNKNOWN_S)
        return self._late[smaller] * 2.0 ** (size - smaller)


class DuplicateBudget:
    """How many calls may be asked twice: where all replicas are busy, that would be more work."""

    def __init__(self) -> None:
        """Own the number, which calls raise and duplicates lower."""
        self._left = _MOST_DUPLICATES

    def count_call(self) -> None:
        """Take note of a call."""
        if self._left < _MOST_DUPLICATES:
            self._left += _DUPLICATES_A_CALL

    def take(self) -> bool:
        """Return whether a call may be asked twice now, and count it if so."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
