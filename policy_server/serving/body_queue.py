"""Requests whose bodies wait to be read, where reading them is what a server is too slow for.

A request that waits in its socket can't be refused, and its client can't be seen to have gone. So
bodies are read for some milliseconds only. Those of the requests that have come besides wait here,
in their order, while others are received, until nothing else comes or as much time has passed: one
turn of the event loop may not be enough for that, since uvloop takes few new connections in each.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from policy_server.errors import DeadlineError, OverloadedError, PolicyServerError
from policy_server.serving.wait_bound import WaitBound

__all__ = ["BodyQueue", "UnreadRequest"]

# For how long bodies are read when they come, before those that have come besides wait.
_BUSY_S = 0.005
# While bodies wait: for how long they are read, while what has come to a socket waits; and for how
# long requests are received at the most, of which a server can refuse some ten times as many as it
# can read. A request that is refused when it comes waits for both.
_READING_S, _RECEIVING_S = 0.001, 0.002
# How fast bodies are read is measured for at least this share of the bound: within a few turns more
# or fewer requests come than on average.
_MEASURED_SHARE = 0.05
# So much of the bound is accepted at first and at the most. The rest is for a machine that gets
# slower meanwhile: all that wait by then would be refused when their turn comes, long after they
# have come.
_ACCEPTED_SHARE = 2 / 3
# A body that comes so long behind the last one has not waited for it in its socket.
_APART_S = 0.001
# A turn of the event loop that takes less has received nothing to speak of.
_QUIET_S = 2e-5
# A request takes some microseconds, whatever the length of its body.
_HEAD_BYTES = 512
# So many forgotten requests may stay in the queue before they are searched for.
_FEWEST_FORGOTTEN = 64


class UnreadRequest(Protocol):
    """A request that has come, and whose body is still to be read.

    Attributes:
        body: its body; empty once the queue has forgotten it.
        started: when it had come, by `time.perf_counter`.
        is_done: whether it was answered, or was given up.
        is_unread: whether it waits in the queue, which sets this.
        has_waited: whether it has ever waited there, which the queue sets too.
    """

    body: bytes
    started: float
    is_done: bool
    is_unread: bool
    has_waited: bool

    @property
    def own_deadline(self) -> float | None:
        """Return when its client has no use for the answer any more; None for never."""

    def read_body(self) -> None:
        """Read the body, and ask the policy; nothing is raised."""

    def refuse(self, reason: str, error: PolicyServerError) -> None:
        """Answer with an error; nothing is raised.

        Args:
            reason: by which it is counted.
            error: the answer.
        """


class BodyQueue:
    """The requests of a process whose bodies wait to be read.

    For example, observations that take 1 ms to read come 4,000 times a second: with a bound of
    100 ms some sixty of them wait here, and three of four requests are refused when they come.

    Attributes:
        is_bounded: whether bodies wait here. Where their wait has no bound, there is nothing to
            refuse, and whoever has a request reads its body at once.
    """

    def __init__(
        self,
        *,
        max_waiting: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Own the requests that wait.

        Args:
            max_waiting: the most requests.
            max_wait_s: the longest wait for an answer that a request is accepted for, in seconds;
                0 for any.
            clock: tells the time in seconds, as `UnreadRequest.started` does.
        """
        self.is_bounded = max_wait_s > 0
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._clock = clock
        # Its rows are bytes: a body takes the longer the longer it is.
        self._bound = WaitBound(max_wait_s, accepted_share=_ACCEPTED_SHARE)
        self._requests: deque[UnreadRequest] = deque()
        self._waiting = 0
        self._waiting_bytes = 0
        # Since when bodies are read when they come, and when the last one was.
        self._began = 0.0
        self._ended = 0.0
        # Whether requests wait. Meanwhile: when the last turn of the event loop ended, since when
        # others are received, and since when how many bytes were read.
        self._is_paused = False
        self._turned = 0.0
        self._paused = 0.0
        self._measured = 0.0
        self._read_bytes = 0
        self._slowest_s = 0.0

    def take(self, request: UnreadRequest) -> None:
        """Read the body of a request now, if this turn has the time, or later, or refuse it.

        Args:
            request: one that has come just now.
        """
        if not self._is_paused:
            if request.started - self._ended > _APART_S:
                self._began = request.started
            if request.started - self._began < _BUSY_S:
                request.read_body()
                self._ended = self._clock()
                return
            self._pause(request.started)
        self._put(request)

    def forget(self, request: UnreadRequest) -> None:
        """Give a request up whose client has gone.

        Args:
            request: one that waits.
        """
        self._leave(request)
        request.body = b""
        if len(self._requests) > 2 * self._waiting + _FEWEST_FORGOTTEN:
            kept = [item for item in self._requests if item.is_unread]
            # In place: one that is read may have others forgotten.
            self._requests.clear()
            self._requests.extend(kept)

    def note_answer(self, seconds: float) -> None:
        """Learn from the answer to a request that has waited.

        Args:
            seconds: from its arrival to its answer.
        """
        self._slowest_s = max(self._slowest_s, seconds)

    def _pause(self, now: float) -> None:
        """Begin to let requests wait, and to measure how fast bodies are read."""
        self._is_paused = True
        self._turned = self._paused = self._measured = now
        self._read_bytes = 0
        # It runs before the sockets are looked at again.
        asyncio.get_running_loop().call_soon(self._end_turn)

    def _put(self, request: UnreadRequest) -> None:
        waiting, size = self._waiting, _size(request)
        if waiting >= self._max_waiting:
            error = OverloadedError(
                f"{waiting} observations are waiting already; try again in a second"
            )
            request.refuse("queue_full", error)
        elif waiting and self._waiting_bytes + size > self._bound.fitting:
            self._refuse_slow(request)
        else:
            self._requests.append(request)
            self._waiting += 1
            self._waiting_bytes += size
            request.is_unread = request.has_waited = True

    def _refuse_slow(self, request: UnreadRequest) -> None:
        error = OverloadedError(
            f"{self._waiting} observations are waiting, and no answer is to be expected within "
            f"{self._max_wait_s:g} s; try again in a second"
        )
        request.refuse("queue_slow", error)

    def _leave(self, request: UnreadRequest) -> None:
        self._waiting -= 1
        self._waiting_bytes -= _size(request)
        request.is_unread = False

    def _end_turn(self) -> None:
        """Read bodies, or let the event loop look at its sockets once more before that."""
        now = self._clock()
        is_quiet = now - self._turned < _QUIET_S
        if is_quiet or now - self._paused >= _RECEIVING_S:
            self._learn(now)
            self._read_waiting(now)
            now = self._paused = self._clock()
        self._turned = now
        if self._requests:
            asyncio.get_running_loop().call_soon(self._end_turn)
        else:
            # The sockets have been looked at meanwhile.
            self._is_paused = False
            self._began = self._ended = now

    def _read_waiting(self, began: float) -> None:
        requests, now = self._requests, began
        while requests and now - began < _READING_S:
            request = requests.popleft()
            if not request.is_unread:
                continue
            self._leave(request)
            if not request.is_done:
                self._read(request, now)
                now = self._clock()

    def _learn(self, now: float) -> None:
        """Learn from the bodies that were read, and from those that were answered or refused."""
        if self._slowest_s:
            self._bound.learn(self._slowest_s)
            self._slowest_s = 0.0
        if self._read_bytes and now - self._measured >= _MEASURED_SHARE * self._max_wait_s:
            self._bound.measure(self._read_bytes, started=self._measured, ended=now)
            self._measured, self._read_bytes = now, 0

    def _read(self, request: UnreadRequest, now: float) -> None:
        size, deadline = _size(request), request.own_deadline
        if deadline is not None and deadline <= now:
            request.refuse("deadline", DeadlineError())
        elif self._bound.is_too_late(waited_s := now - request.started, size):
            self.note_answer(waited_s + self._bound.expected_s(size))
            self._refuse_slow(request)
        else:
            self._read_bytes += size
            request.read_body()


def _size(request: UnreadRequest) -> int:
    return _HEAD_BYTES + len(request.body)
