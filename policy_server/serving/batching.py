"""Many requests, one call: what arrives while the policy computes rides in its next call."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from policy_server.errors import (
    NotReadyError,
    OverloadedError,
    PolicyFailedError,
    PolicyServerError,
)
from policy_server.metrics import PolicyMetrics
from policy_server.policy import (
    Float32Array,
    Float64Array,
    PolicyBackend,
    PolicyInputs,
    PolicyOutputs,
)

__all__ = ["MicroBatcher"]

Answers = TypeVar("Answers")

# How late, as a share of the deadline, an observation that still waits may be told so.
_SWEEP_SHARE = 0.1
# So many abandoned observations may stay in the queue before they are looked for.
_FEWEST_FORGOTTEN = 64


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Answers]):
    row: Sequence[float]
    is_deterministic: bool
    seed: int
    asked: float
    deadline: float
    answer: asyncio.Future[tuple[Answers, int]]


class MicroBatcher(Generic[Answers]):
    """Wraps a backend: one observation a request, one call for all that wait.

    There is no delay: an idle backend is called at once. Used from one event loop.
    """

    def __init__(
        self,
        backend: PolicyBackend,
        finish: Callable[[PolicyOutputs], Answers],
        *,
        max_batch_size: int,
        max_queue_size: int,
        timeout_s: float,
        metrics: PolicyMetrics,
        max_calls_in_flight: int = 2,
    ) -> None:
        """Wrap a backend.

        Args:
            backend: what answers.
            finish: what is made of a call's outputs, once for all that rode in it.
            max_batch_size: the most observations in one call.
            max_queue_size: the most observations that wait or are being answered.
            timeout_s: the longest that one waits for its answer, in seconds.
            metrics: where calls, waits and refusals are counted.
            max_calls_in_flight: how many calls run at once.
        """
        self._backend = backend
        self._finish = finish
        self._max_batch_size = max_batch_size
        self._max_queue_size = max_queue_size
        self._timeout_s = timeout_s
        self._max_calls_in_flight = max_calls_in_flight
        self._metrics = metrics
        self._forget_queue = metrics.watch_queue(lambda: self._size)
        self._waiting: deque[_Waiting[Answers]] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._size = 0
        self._is_scheduled = False
        self._is_sweeping = False
        self._is_closed = False

    async def infer(
        self, row: Sequence[float], *, is_deterministic: bool, seed: int
    ) -> tuple[Answers, int]:
        """Answer one observation.

        Args:
            row: its numbers, as many as the policy takes.
            is_deterministic: whether the mode is asked for, instead of a draw.
            seed: the seed of the draw, or -1 for an independent one.

        Returns:
            What `finish` made of the call that it rode in, and its index in that.

        Raises:
            OverloadedError: if the queue is full, or no answer came in time.
            NotReadyError: if the server is shutting down.
            PolicyServerError: what the backend raised.
        """
        answer = self._enqueue(row, is_deterministic=is_deterministic, seed=seed)
        try:
            return await answer
        finally:
            self._size -= 1

    def submit(
        self, row: Sequence[float], *, is_deterministic: bool, seed: int
    ) -> asyncio.Future[tuple[Answers, int]]:
        """Ask for one observation's answer, and be told later; see `infer`.

        Returns:
            What `infer` returns or raises. Cancelling it frees the observation's place.
        """
        answer = self._enqueue(row, is_deterministic=is_deterministic, seed=seed)
        answer.add_done_callback(self._leave)
        return answer

    async def aclose(self) -> None:
        """Refuse new observations and answer those that wait."""
        self._is_closed = True
        while self._waiting or self._calls:
            self._start_calls()
            if self._calls:
                # From Python 3.12 on, gather gives nobody else a turn where all of them have ended.
                await asyncio.wait(self._calls)
        self._forget_queue()

    def _enqueue(
        self, row: Sequence[float], *, is_deterministic: bool, seed: int
    ) -> asyncio.Future[tuple[Answers, int]]:
        if self._is_closed:
            self._metrics.count_rejected("shutdown")
            raise NotReadyError("the server is shutting down; try another one")
        if self._size >= self._max_queue_size:
            self._metrics.count_rejected("queue_full")
            raise OverloadedError(
                f"{self._size} observations are waiting already; try again in a second"
            )
        loop = asyncio.get_running_loop()
        waiting = _Waiting[Answers](
            row,
            is_deterministic,
            seed,
            # The loop's own clock is too coarse for a stage: uvloop's has milliseconds.
            asked=time.perf_counter(),
            deadline=loop.time() + self._timeout_s,
            answer=loop.create_future(),
        )
        if len(self._waiting) > 2 * self._size + _FEWEST_FORGOTTEN:
            self._forget_abandoned()
        self._waiting.append(waiting)
        self._size += 1
        if not self._is_sweeping:
            self._is_sweeping = True
            loop.call_later(self._timeout_s * _SWEEP_SHARE, self._sweep)
        if not self._is_scheduled:
            # What else arrives in this turn of the event loop rides along.
            self._is_scheduled = True
            loop.call_soon(self._start_calls)
        return waiting.answer

    def _forget_abandoned(self) -> None:
        """Drop the observations that nobody waits for: a call that hangs takes none of them out."""
        self._waiting = deque(item for item in self._waiting if not item.answer.done())

    def _leave(self, _answer: asyncio.Future[tuple[Answers, int]]) -> None:
        self._size -= 1

    def _sweep(self) -> None:
        """Tell those that waited for too long; one timer for all costs less than one for each."""
        loop = asyncio.get_running_loop()
        while self._waiting and self._waiting[0].deadline <= loop.time():
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                self._metrics.count_rejected("timeout")
                _fail([waiting], self._late())
        self._is_sweeping = bool(self._size)
        if self._is_sweeping:
            loop.call_later(self._timeout_s * _SWEEP_SHARE, self._sweep)

    def _start_calls(self) -> None:
        self._is_scheduled = False
        while self._waiting and len(self._calls) < self._max_calls_in_flight:
            batch = self._next_batch()
            if batch:
                call = asyncio.create_task(self._call(batch))
                self._calls.add(call)
                call.add_done_callback(self._end_call)

    def _end_call(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._start_calls()

    def _next_batch(self) -> list[_Waiting[Answers]]:
        batch: list[_Waiting[Answers]] = []
        while self._waiting and len(batch) < self._max_batch_size:
            if self._waiting[0].answer.done():
                # The request was cancelled: its place is free.
                self._waiting.popleft()
            elif batch and len(self._waiting[0].row) != len(batch[0].row):
                break
            else:
                batch.append(self._waiting.popleft())
        return batch

    async def _call(self, batch: list[_Waiting[Answers]]) -> None:
        """Answer a batch; where its call fails, ask each half again without the other.

        Whatever one observation made fail, the others are answered: for one of n, within
        2 * log2(n) more calls. Only when the backend as a whole gives no answer, or not in time, is
        nobody asked again.
        """
        error = await self._attempt(batch)
        if error is None:
            return
        if len(batch) == 1 or isinstance(error, (NotReadyError, OverloadedError)):
            _fail(batch, PolicyFailedError.translate(error))
            return
        # A backend may compute without a pause: others come in between.
        await asyncio.sleep(0)
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            # Who has given up meanwhile needs no answer.
            asking = [waiting for waiting in half if not waiting.answer.done()]
            if asking:
                await self._call(asking)

    async def _attempt(self, batch: list[_Waiting[Answers]]) -> Exception | None:
        """Answer a batch by one call, or return why that failed.

        It is returned and not raised: the errors of the halves would have it as their context, and
        the log would tell it again with each of them.
        """
        try:
            answers = self._finish(await self._infer(batch))
        except TimeoutError:
            self._metrics.count_rejected("timeout", len(batch))
            return self._late()
        except Exception as error:
            return error
        _succeed(batch, answers)
        return None

    def _late(self) -> OverloadedError:
        return OverloadedError(f"no answer within {self._timeout_s:g} s; try again in a second")

    async def _infer(self, batch: list[_Waiting[Answers]]) -> PolicyOutputs:
        rows: Float32Array | Float64Array = np.array(  # type: ignore[assignment]  # NumPy's stubs join the two types to a wider one
            [waiting.row for waiting in batch], self._backend.signature.row_dtype
        )
        started = time.perf_counter()
        self._metrics.observe_batch(len(batch))
        self._metrics.observe_stage("queue", started - batch[0].asked)
        # Nobody waits longer than this, so that a call which hangs must not keep its place.
        async with asyncio.timeout_at(batch[-1].deadline):
            outputs = await self._backend.infer(
                PolicyInputs(
                    rows,
                    np.array([waiting.is_deterministic for waiting in batch]),
                    np.array([waiting.seed for waiting in batch], np.int64),
                )
            )
        self._metrics.observe_stage("policy", time.perf_counter() - started)
        return outputs


def _succeed(batch: list[_Waiting[Answers]], answers: Answers) -> None:
    for index, waiting in enumerate(batch):
        if not waiting.answer.done():
            waiting.answer.set_result((answers, index))


def _fail(batch: list[_Waiting[Answers]], error: PolicyServerError) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
