"""A thread that computes a policy's calls, and is left to itself where one of them hangs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from policy_server.backends.call_limit import CallLimit
from policy_server.errors import OverloadedError, PolicyHangsError
from policy_server.policy import PolicyInputs, PolicyOutputs

__all__ = ["PolicyThread", "policy_executor"]

logger = logging.getLogger(__name__)

# Each takes a processor, and memory, for as long as its call lasts.
_MOST_LEFT = 4


@dataclass(eq=False)
class _Call:
    """A call that waits or is computed.

    Attributes:
        inputs: its observations.
        answer: what its caller waits for.
        work: its place in the thread's queue; None before it has one.
        done: ends with `work`, in the event loop.
        began: when the thread began with it, by the monotonic clock; None before.
        is_told: whether the log has it that this call hangs.
    """

    inputs: PolicyInputs
    answer: asyncio.Future[PolicyOutputs]
    work: Future[PolicyOutputs] | None = None
    done: asyncio.Future[PolicyOutputs] | None = None
    began: float | None = None
    is_told: bool = False


class PolicyThread:
    """Computes calls one after the other in a thread, which is left where one of them hangs.

    A thread can't be ended from outside. The call that hangs gets an error, and another thread
    computes what waits behind it. At most four threads are left at a time: where one more call
    hangs, all others are refused until one of them ends. Used from one event loop.
    """

    def __init__(
        self,
        infer: Callable[[PolicyInputs], PolicyOutputs],
        limit: CallLimit,
        on_hang: Callable[[PolicyInputs], None],
        *,
        look_every_s: float,
        share: float = 1.0,
    ) -> None:
        """Own the thread, until `close`.

        Args:
            infer: computes a call; several threads may call it at a time.
            limit: how long a call may take.
            on_hang: told of each call that has taken longer, whether or not anybody waits for it.
            share: of that, the part that a call in this thread may take.
            look_every_s: how much later than that it is left at most, in seconds.
        """
        self._infer = infer
        self._limit = limit
        self._on_hang = on_hang
        self._share = share
        self._look_every_s = look_every_s
        self._executor = policy_executor()
        self._calls: list[_Call] = []
        self._left: set[_Call] = set()
        self._is_looking = False
        self._looks_at = 0.0
        self._stuck_since: float | None = None

    async def compute(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations; see `PolicyBackend.infer`.

        Raises:
            PolicyHangsError: if the call hangs.
            OverloadedError: if so many calls hang that no thread is left for this one.
        """
        if self._is_stuck():
            raise _stuck()
        call = _Call(inputs, asyncio.get_running_loop().create_future())
        self._submit(call)
        if not self._is_looking:
            self._look_later()
        try:
            return await call.answer
        finally:
            if call.work is not None:
                # One that the thread has begun with goes on.
                call.work.cancel()

    def hangs(self) -> bool:
        """Return whether the call that is computed now has taken longer than it may."""
        return (call := self._computed()) is not None and self._hangs(call)

    def stuck_s(self) -> float:
        """Return for how many seconds no thread has been left for a call; 0 where one is."""
        if self._stuck_since is None or not self._is_stuck():
            return 0.0
        return time.monotonic() - self._stuck_since

    def close(self) -> None:
        """End the thread after its last call, without a wait; calls behind one that hangs go."""
        self._executor.shutdown(wait=False, cancel_futures=self.hangs())

    def _submit(self, call: _Call) -> None:
        call.work = self._executor.submit(self._run, call)
        call.done = asyncio.wrap_future(call.work)
        call.done.add_done_callback(partial(self._end, call))
        self._calls.append(call)

    def _run(self, call: _Call) -> PolicyOutputs:
        """Answer a call in the thread."""
        call.began = time.monotonic()
        return self._infer(call.inputs)

    def _end(self, call: _Call, done: asyncio.Future[PolicyOutputs]) -> None:
        """Hand the answer or the error of a call to its caller."""
        error = None if done.cancelled() else done.exception()
        self._left.discard(call)
        if done is not call.done or call not in self._calls:
            # It hangs, is another thread's by now, or nobody waits for it.
            return
        self._calls.remove(call)
        if call.answer.done() or done.cancelled():
            call.answer.cancel()
        elif error is not None:
            call.answer.set_exception(error)
        else:
            call.answer.set_result(done.result())
        if call.began is not None and error is None and not done.cancelled():
            self._limit.observe(len(call.inputs), time.monotonic() - call.began)

    def _look_later(self) -> None:
        self._is_looking = True
        self._looks_at = time.monotonic() + self._look_every_s
        asyncio.get_running_loop().call_later(self._look_every_s, self._look)

    def _look(self) -> None:
        """Leave the thread if its call hangs."""
        self._is_looking = False
        call = self._computed()
        # The time that the whole process stood still does not count.
        lost_s = max(0.0, time.monotonic() - self._looks_at)
        if call is not None and call.began is not None:
            call.began += lost_s
        if call is not None and self._hangs(call):
            if len(self._left) < _MOST_LEFT:
                self._leave(call)
            else:
                for other in self._calls:
                    if other.began is None and not other.answer.done():
                        other.answer.set_exception(_stuck())
            self._tell(call)
        self._note_stuck(lost_s)
        if self._calls:
            self._look_later()

    def _computed(self) -> _Call | None:
        """Return the call that the thread computes now."""
        for call in self._calls:
            if call.began is not None and call.work is not None and not call.work.done():
                return call
        return None

    def _hangs(self, call: _Call) -> bool:
        allowed_s = self._share * self._limit.allowed_s(len(call.inputs))
        return call.began is not None and time.monotonic() - call.began > allowed_s

    def _is_stuck(self) -> bool:
        return len(self._left) >= _MOST_LEFT and self.hangs()

    def _note_stuck(self, lost_s: float) -> None:
        if not self._is_stuck():
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = time.monotonic()
        else:
            self._stuck_since += lost_s

    def _leave(self, call: _Call) -> None:
        """Leave the thread to a call that hangs, and have another one compute those behind it."""
        self._left.add(call)
        if not call.answer.done():
            call.answer.set_exception(
                PolicyHangsError("the policy took too long, and was asked no further; try again")
            )
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = policy_executor()
        calls, self._calls = self._calls, []
        for other in calls:
            if other is call or other.answer.done():
                continue
            if other.work is None or not other.work.cancelled():
                # The thread has come to it just now.
                self._calls.append(other)
                continue
            try:
                self._submit(other)
            except RuntimeError as error:
                reason = f"no thread can be started for the policy: {error}; try again in a minute"
                other.answer.set_exception(OverloadedError(reason))

    def _tell(self, call: _Call) -> None:
        if not call.is_told and call.began is not None:
            call.is_told = True
            self._on_hang(call.inputs)
            seconds = round(time.monotonic() - call.began, 1)
            logger.error("policy_hangs", extra={"seconds": seconds, "left": len(self._left)})


def _stuck() -> OverloadedError:
    return OverloadedError(
        f"the policy takes too long for {_MOST_LEFT + 1} calls at a time; try again in a minute"
    )


def policy_executor() -> ThreadPoolExecutor:
    """Return a thread for what takes too long in the event loop; it starts with its first call."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
