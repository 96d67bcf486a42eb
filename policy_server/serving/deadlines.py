"""The deadlines that clients set: an answer that comes later is of no use to them."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from policy_server.errors import DeadlineError
from policy_server.metrics import PolicyMetrics
from policy_server.serving.questions import Waiting

__all__ = ["Deadlines", "within"]

# So many answered questions may be kept before they are searched for.
_FEWEST_FORGOTTEN = 64


class Deadlines:
    """The questions of a scheduler that have a deadline of their own.

    Attributes:
        waiting: deadline, order and question, as a heap; answered ones may be among them.
    """

    def __init__(self, metrics: PolicyMetrics) -> None:
        """Own the order of the deadlines, and a timer for the earliest.

        Args:
            metrics: counts the questions that were not answered in time.
        """
        self._metrics = metrics
        self.waiting: list[tuple[float, int, Waiting]] = []
        self._added = 0
        self._kept = _FEWEST_FORGOTTEN
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiting: Waiting, deadline: float) -> None:
        """Fail a question once its deadline passes.

        Args:
            waiting: the question, which was just asked.
            deadline: its deadline, by `time.perf_counter`.
        """
        if len(self.waiting) >= self._kept:
            # In place: a question that fails may be followed by another one.
            self.waiting[:] = [item for item in self.waiting if item[2].is_wanted()]
            heapq.heapify(self.waiting)
            self._kept = 2 * len(self.waiting) + _FEWEST_FORGOTTEN
        # Two that are due at once are told apart by their order.
        self._added += 1
        heapq.heappush(self.waiting, (deadline, self._added, waiting))
        if self.waiting[0][2] is waiting:
            self._set_timer()

    def expire(self) -> None:
        """Fail the questions whose deadline has passed, those that are being computed too."""
        now = time.perf_counter()
        waiting = self.waiting
        while waiting and (waiting[0][0] <= now or not waiting[0][2].is_wanted()):
            item = heapq.heappop(waiting)[2]
            if item.is_wanted():
                self._metrics.count_rejected("deadline")
                item.fail(DeadlineError())

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # uvloop counts whole milliseconds; half of the last one would be counted as none.
        delay_ms = math.ceil((self.waiting[0][0] - time.perf_counter()) * 1000)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(delay_ms, 1) / 1000, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.expire()
        if self.waiting:
            self._set_timer()


@asynccontextmanager
async def within(deadline: float | None, metrics: PolicyMetrics) -> AsyncIterator[None]:
    """Run a block that its deadline ends.

    Args:
        deadline: by `time.perf_counter`; None for none.
        metrics: counts a block that was not done in time.

    Raises:
        DeadlineError: if the deadline has passed, before the block or in it.
    """
    if deadline is None:
        yield
        return
    try:
        async with asyncio.timeout(deadline - time.perf_counter()) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
    if timeout.expired() or time.perf_counter() >= deadline:
        metrics.count_rejected("deadline")
        raise DeadlineError
