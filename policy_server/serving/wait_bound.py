"""The longest wait that a question is accepted for, kept by what the answers took.

How long a question will wait is known only on average: the next calls may take longer than the
last ones. So the questions that are accepted are held to a share of the bound, which falls with
each call that is answered too late and rises again with the others, until about one call in a
hundred is late.
"""

from __future__ import annotations

import math

from policy_server.serving.service_rate import ServiceRate

__all__ = ["WHOLE_SHARE", "WaitBound"]

# An answer is late from this share of the bound on: the rest is for the way from and to the client.
WHOLE_SHARE = 0.9
# One call in so many may be late.
_CALLS_FOR_ONE_LATE = 100
_FALL = 0.08
_RISE = _FALL / (_CALLS_FOR_ONE_LATE - 1)
# Calls that take longer than the bound by themselves would end with nobody accepted.
_LEAST_SHARE = 0.1
# A question that has waited less than this share of the bound is never too late.
_OLD_SHARE = 0.5


class WaitBound:
    """How many questions may be in front of another one.

    For example, with a bound of 100 ms and calls that take 2 ms a row, a question is accepted
    behind at most 44 others, and behind fewer where such calls were answered after 90 ms.
    """

    def __init__(
        self,
        longest_s: float,
        *,
        whole_share: float = WHOLE_SHARE,
        accepted_share: float = 1.0,
    ) -> None:
        """Own the measured times; nothing is known at first, and every question is accepted.

        Args:
            longest_s: the longest wait for an answer, in seconds.
            whole_share: the share of it from which on an answer is late.
            accepted_share: the largest share of it that a question is expected to wait for when it
                is accepted; no more than `whole_share` in any case.
        """
        self._late_s = whole_share * longest_s
        self._longest_s = longest_s
        self._old_s = _OLD_SHARE * longest_s
        self._rate = ServiceRate()
        self._most_share = self._share = min(whole_share, accepted_share)

    @property
    def accepted_s(self) -> float:
        """Return the longest expected wait that is accepted, in seconds."""
        return self._longest_s * self._share

    @property
    def fitting(self) -> float:
        """Return how many questions may wait, the last accepted one among them."""
        seconds_a_row = self._rate.seconds_a_row
        return self.accepted_s / seconds_a_row if seconds_a_row > 0 else math.inf

    def expected_s(self, rows: int) -> float:
        """Return how long so many rows are expected to take, in seconds."""
        return rows * self._rate.seconds_a_row

    def observe(self, rows: int, *, asked: float, started: float, ended: float) -> None:
        """Learn from a call.

        Args:
            rows: how many it had.
            asked: when its longest-waiting question was asked, in seconds.
            started: when it was sent, by the same clock.
            ended: when it was answered.
        """
        self.measure(rows, started=started, ended=ended)
        self.learn(ended - asked)

    def measure(self, rows: int, *, started: float, ended: float) -> None:
        """Learn how long rows take; see `observe`."""
        self._rate.observe(rows, started=started, ended=ended)

    def learn(self, waited_s: float) -> None:
        """Learn whether what was accepted is answered in time.

        Args:
            waited_s: how long the longest-waiting of some that were answered together had waited
                for its answer, in seconds.
        """
        if self.is_late(waited_s):
            self._share = max(self._share - _FALL, _LEAST_SHARE)
        elif self._share < self._most_share:
            self._share = min(self._share + _RISE, self._most_share)

    def is_late(self, waited_s: float) -> bool:
        """Return whether an answer is late.

        Args:
            waited_s: how long it is waited for, in seconds.
        """
        return waited_s > self._late_s

    def is_old(self, waited_s: float) -> bool:
        """Return whether a question has waited so long that it may be too late.

        Args:
            waited_s: how long it has waited, in seconds.
        """
        return waited_s >= self._old_s

    def is_too_late(self, waited_s: float, rows: int) -> bool:
        """Return whether a question that waits can't be answered in time any more.

        Args:
            waited_s: how long it has waited, in seconds.
            rows: how many are computed until its answer is there.
        """
        return self.is_old(waited_s) and self.is_late(waited_s + self.expected_s(rows))
