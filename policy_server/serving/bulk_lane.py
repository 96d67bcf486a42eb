"""The calls of batches in front of a backend, and how long a batch waits for its first one."""

from __future__ import annotations

import time
from collections import OrderedDict, deque

from policy_server.serving.questions import BulkAnswer, BulkCall
from policy_server.serving.wait_bound import WaitBound

__all__ = ["BulkLane"]


class BulkLane:
    """The calls of batches that wait, in the order in which they were asked for.

    For example, behind calls of 50 rows in all that take 2 ms a row a batch waits for 100 ms: its
    first call begins then, and how long its own rows take is no wait.
    """

    def __init__(self, bound: WaitBound) -> None:
        """Own the calls until they are taken.

        Args:
            bound: of the wait; it learns from the calls.
        """
        self._bound = bound
        self._calls: OrderedDict[BulkAnswer, deque[BulkCall]] = OrderedDict()
        self._waiting_rows = 0
        # Those that were sent: the backend computes as many as it can at once, and then the others.
        self._sent: list[BulkCall] = []
        self._behind: deque[BulkCall] = deque()
        # Since when the first of those that were sent is computed.
        self._since = 0.0

    def __bool__(self) -> bool:
        """Return whether calls wait."""
        return bool(self._calls)

    @property
    def rows(self) -> int:
        """Return how many rows wait or are computed."""
        return self._waiting_rows + sum(map(len, self._sent))

    @property
    def patience_s(self) -> float:
        """Return how much longer than for these rows a new batch may wait, in seconds."""
        return self._bound.accepted_s - self._expected_s()

    def has_time(self, asked: float) -> bool:
        """Return whether a batch can be expected to begin within the bound.

        Args:
            asked: since when it waits, by `time.perf_counter`; 0 for one that has just come. One
                that was accepted before, and has waited, is given the whole bound.
        """
        if not self._calls and not self._sent:
            return True
        expected_s = self._expected_s()
        if not asked:
            return expected_s <= self._bound.accepted_s
        expected_s += time.perf_counter() - asked
        if self._bound.is_late(expected_s):
            self._bound.learn(expected_s)
            return False
        return True

    def add(self, call: BulkCall) -> None:
        """Put a call behind the others; those of one answer follow each other."""
        self._calls.setdefault(call.answer, deque()).append(call)
        self._waiting_rows += len(call)

    def oldest(self) -> BulkCall:
        """Return the call that is taken next; there has to be one."""
        return next(iter(self._calls.values()))[0]

    def take(self) -> BulkCall:
        """Take the oldest call out; there has to be one."""
        answer, calls = next(iter(self._calls.items()))
        call = calls.popleft()
        if not calls:
            del self._calls[answer]
        self._waiting_rows -= len(call)
        return call

    def forget(self, answer: BulkAnswer) -> None:
        """Drop the calls of an answer that nobody waits for any more."""
        for call in self._calls.pop(answer, ()):
            self._waiting_rows -= len(call)

    def begin(self, call: BulkCall, *, capacity: int) -> None:
        """Note that a call was sent.

        Args:
            call: one that was taken.
            capacity: how many the backend computes at once.
        """
        if not self._sent:
            self._since = time.perf_counter()
        self._sent.append(call)
        if len(self._sent) > capacity:
            self._behind.append(call)
        else:
            self._learn(call)

    def end(self, call: BulkCall) -> None:
        """Note that a call that was sent is answered, or has failed."""
        self._sent.remove(call)
        self._since = time.perf_counter()
        if call in self._behind:
            self._behind.remove(call)
        elif self._behind:
            self._learn(self._behind.popleft())

    def measure(self, rows: int, *, started: float, ended: float) -> None:
        """Learn how long rows take; see `WaitBound.measure`."""
        self._bound.measure(rows, started=started, ended=ended)

    def _learn(self, call: BulkCall) -> None:
        """Learn how long a batch has waited whose first call begins."""
        if not call.first:
            self._bound.learn(time.perf_counter() - call.asked)

    def _expected_s(self) -> float:
        """Return how long the rows here are expected to take, but for what is done by now."""
        expected_s = self._bound.expected_s(self.rows)
        if not self._sent:
            return expected_s
        # A call that hangs is no nearer to its end for the time that it took.
        oldest_s = self._bound.expected_s(len(self._sent[0]))
        return expected_s - min(time.perf_counter() - self._since, oldest_s)
