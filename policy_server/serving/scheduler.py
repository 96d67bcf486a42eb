"""Many questions, few calls: a question that arrives during a call goes into the next one.

Questions of single requests and the rows of batches have a lane each, so that a batch of 100,000
rows delays no single question: calls of both share one budget, of which no lane gets all.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from policy_server.errors import (
    DeadlineError,
    NotReadyError,
    OverloadedError,
    PolicyFailedError,
)
from policy_server.metrics import PolicyMetrics
from policy_server.policy import (
    ImmediateBackend,
    PolicyBackend,
    PolicyInputs,
    PolicyOutputs,
    PolicySignature,
    SendingBackend,
)
from policy_server.serving.bulk_lane import BulkLane
from policy_server.serving.deadlines import Deadlines
from policy_server.serving.questions import (
    Answer,
    BulkAnswer,
    BulkCall,
    Call,
    FutureWaiting,
    Places,
    Question,
    SingleCall,
    Waiting,
)
from policy_server.serving.row_cost import RowCost
from policy_server.serving.wait_bound import WHOLE_SHARE, WaitBound

__all__ = ["ROWS_PER_CALL", "Limits", "Scheduler"]

_Call = TypeVar("_Call", SingleCall, BulkCall)

# A call of so many rows is short enough for single questions to come in between.
ROWS_PER_CALL = 1024
# For each call that the backend computes: while one is computed, the next is on its way. The third
# call is for the other lane.
_CALLS_A_LANE = 2
_CALLS_IN_ALL = 3
# Replicas share the waiting questions evenly, but not in calls too short to be worth sending.
_SHORTEST_CALL_S = 1e-3
# How late, as a share of the deadline, a question that still waits may get its error.
_SWEEP_SHARE = 0.1
# So many abandoned questions may stay in the queue before they are searched for.
_FEWEST_FORGOTTEN = 64


@dataclass(frozen=True)
class Limits:
    """The limits of a scheduler.

    Attributes:
        max_batch_size: the most questions in one call.
        max_queue_size: the most questions that wait or are being answered.
        timeout_s: the longest that a question waits for its answer, in seconds.
        max_wait_s: the longest that a question is expected to wait, in seconds; one that would
            wait longer is refused at once.
    """

    max_batch_size: int
    max_queue_size: int
    timeout_s: float
    max_wait_s: float


class Scheduler:
    """A `PolicyBackend` that gathers questions into calls of another one.

    There is no delay: an idle backend is called at once. Made in the event loop that uses it.
    """

    def __init__(
        self, backend: PolicyBackend, limits: Limits, metrics: PolicyMetrics, *, label: str = ""
    ) -> None:
        """Own the queue in front of a backend, until `aclose`.

        Args:
            backend: computes the policy.
            limits: how much may wait, and for how long.
            metrics: counts calls, waits and refusals.
            label: the name of the policy version, for errors; empty for none.
        """
        self._label = label
        self._backend = backend
        # Python 3.11 asks the kernel for the process's id with each look for the running loop.
        self._loop = asyncio.get_running_loop()
        self._immediate = backend if isinstance(backend, ImmediateBackend) else None
        self._sending = backend if isinstance(backend, SendingBackend) else None
        self._limits = limits
        self._metrics = metrics
        self._observe_queue = metrics.stage_recorder("queue")
        self._observe_policy = metrics.stage_recorder("policy")
        self._stop_watching = metrics.watch_queue(lambda: self.waiting)
        self._waiting: deque[Waiting] = deque()
        # A batch whose wait has no bound but the timeout is refused where it can only time out.
        has_bound = limits.max_wait_s < limits.timeout_s
        self._bulk = BulkLane(
            WaitBound(limits.max_wait_s, whole_share=WHOLE_SHARE if has_bound else 1.0)
        )
        # By what is done when they have ended: a task, or a future of a call that was sent.
        self._single_calls: dict[asyncio.Future[None], SingleCall] = {}
        self._bulk_calls: dict[asyncio.Future[None], BulkCall] = {}
        self._places = Places()
        self._holders = 0
        self._is_released = asyncio.Event()
        self._row_cost = RowCost()
        self._bound = WaitBound(limits.max_wait_s)
        self._deadlines = Deadlines(metrics)
        # With so many questions in the queue the next one is looked at: with one behind each call,
        # whose time may change the rate.
        self._room = 1
        self._is_scheduled = False
        self._is_sweeping = False
        self._is_closed = False

    @property
    def signature(self) -> PolicySignature:
        """Return the signature of the policy that is served."""
        return self._backend.signature

    @property
    def capacity(self) -> int:
        """Return how many calls the backend computes at the same time."""
        return self._backend.capacity

    @property
    def waiting(self) -> int:
        """Return how many observations wait or are being answered."""
        return self._places.taken

    async def is_ready(self) -> bool:
        """Return whether a question would be answered now."""
        return not self._is_closed and await self._backend.is_ready()

    async def answer(self, question: Question) -> Answer:
        """Answer one observation; a cancelled wait takes the question out of the queue.

        Args:
            question: the observation, and the kind of its answer.

        Raises:
            OverloadedError: if the queue is full, or no answer came in time.
            DeadlineError: if no answer came before the question's own deadline.
            NotReadyError: if the scheduler is closed.
            PolicyServerError: as the backend raised it.
        """
        return await self.ask(question)

    def ask(self, question: Question) -> asyncio.Future[Answer]:
        """Ask for one observation's answer, which comes later; see `answer`.

        Args:
            question: the observation, and the kind of its answer.

        Returns:
            A future with the result of `answer`. Cancelling it takes the question out of the queue.

        Raises:
            OverloadedError: if the queue is full.
            DeadlineError: if the question's own deadline has passed.
            NotReadyError: if the scheduler is closed.
        """
        waiting = FutureWaiting(question)
        self.put(waiting)
        return waiting.future

    def check_open(self) -> None:
        """Refuse a question that would have to wait for others before it is put into the queue.

        Raises:
            NotReadyError: if the scheduler is closed.
        """
        if self._is_closed:
            self._refuse_closed()

    def put(self, waiting: Waiting, *, was_accepted: bool = False) -> None:
        """Put a question into the queue; what waits is told of its answer or its error.

        Args:
            waiting: the question, which is asked for the first time.
            was_accepted: whether it was accepted before, by somebody who holds the scheduler open.

        Raises:
            OverloadedError: if the queue is full, or too slow for the wait that is allowed.
            DeadlineError: if the question's own deadline has passed.
            NotReadyError: if the scheduler is closed.
        """
        if self._is_closed and not was_accepted:
            self._refuse_closed()
        places = self._places
        if places.taken >= self._room:
            self._check_room(places.taken)
        # The loop's own clock is too coarse for a stage: uvloop's has milliseconds.
        waiting.asked = time.perf_counter()
        waiting.deadline = self._loop.time() + self._limits.timeout_s
        if waiting.question.deadline is not None:
            self._watch(waiting, waiting.question.deadline)
        if len(self._waiting) > 2 * places.taken + _FEWEST_FORGOTTEN:
            self._forget_abandoned()
        self._waiting.append(waiting)
        places.taken += 1
        waiting.places = places
        if not self._is_scheduled or not self._is_sweeping:
            self._schedule()

    async def infer(self, inputs: PolicyInputs, *, first: int = 0) -> PolicyOutputs:
        """Answer many rows of one request, by as many calls as they need.

        Args:
            inputs: the rows, with the options of each.
            first: the index of the first of them in the request, which errors name.

        Returns:
            The answers in the rows' order.

        Raises:
            OverloadedError: if they are not answered in time, or would wait too long.
            NotReadyError: if the scheduler is closed, and not held open.
            PolicyServerError: as the backend raised it; if one row is to blame, it is named.
        """
        return await self.ask_rows(inputs, first=first)

    def ask_rows(
        self, inputs: PolicyInputs, *, first: int = 0, asked: float = 0.0
    ) -> asyncio.Future[PolicyOutputs]:
        """Ask for the answers to many rows of one request, which come later; see `infer`.

        Args:
            inputs: the rows, with the options of each.
            first: the index of the first of them in the request. Where it is 0, the request may
                have to wait too long; those behind it belong to one that was accepted.
            asked: since when the request waits, by `time.perf_counter`; 0 where it has just come.

        Returns:
            A future with the result of `infer`. Cancelling it takes the rows out of the queue.

        Raises:
            OverloadedError: if other rows take too long for the wait that is allowed.
            NotReadyError: if the scheduler is closed, and not held open.
        """
        if self._is_closed and not self._holders:
            self._refuse_closed()
        if not first:
            self.check_rows_in_time(asked)
        answer = BulkAnswer(len(inputs))
        asked = asked or time.perf_counter()
        deadline = self._loop.time() + self._limits.timeout_s
        # Inputs without a row are a call too: the backend knows the columns of its outputs.
        for start in range(0, max(len(inputs), 1), ROWS_PER_CALL):
            rows = inputs.part(start, start + ROWS_PER_CALL)
            self._bulk.add(BulkCall(rows, first + start, answer, asked, deadline))
        answer.outputs.add_done_callback(lambda _: self._bulk.forget(answer))
        self._schedule()
        return answer.outputs

    @property
    def rows_patience_s(self) -> float:
        """Return how long a batch may wait before its rows are asked, in seconds.

        It is the longest accepted wait, without the time that the rows of other batches take.
        """
        return self._bulk.patience_s

    def check_rows_in_time(self, asked: float = 0.0) -> None:
        """Refuse a batch that would wait too long for its first call.

        Args:
            asked: since when it waits, by `time.perf_counter`; 0 where it has just come.

        Raises:
            OverloadedError: if others take too long.
        """
        if not self._bulk.has_time(asked):
            self._metrics.count_rejected("queue_slow")
            raise OverloadedError(
                f"{self._bulk.rows} observations of batches are waiting, and this batch is not to "
                f"be expected to begin within {self._limits.max_wait_s:g} s; try again in a second"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the scheduler open for what was accepted and comes later.

        Such as the calls of a batch whose body is still read, or an episode's steps that wait for
        those before them.
        """
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            self._is_released.set()

    async def aclose(self) -> None:
        """Refuse new questions, and answer those that wait."""
        self._is_closed = True
        while self._waiting or self._bulk or self._calls or self._holders:
            self._start_calls()
            if self._calls:
                # From Python 3.12 on, gather gives no other task a turn where all have ended.
                await asyncio.wait(self._calls)
            elif self._waiting:
                # A call was computed at once, and others wait: let other tasks run in between.
                await asyncio.sleep(0)
            elif self._holders:
                self._is_released.clear()
                await self._is_released.wait()
        self._stop_watching()

    def _check_room(self, taken: int) -> None:
        """Refuse a question that has no place, or would wait too long behind the others."""
        limits, fitting = self._limits, self._bound.fitting
        if taken >= limits.max_queue_size:
            self._metrics.count_rejected("queue_full")
            raise OverloadedError(
                f"{taken} observations are waiting already; try again in a second"
            )
        if taken + 1 > fitting:
            raise self._too_slow()
        self._room = int(min(limits.max_queue_size, fitting))

    def _too_slow(self) -> OverloadedError:
        """Count a question that can't be answered in time, and return the error for it."""
        self._metrics.count_rejected("queue_slow")
        return OverloadedError(
            f"{self.waiting} observations are waiting, and no answer is to be expected within "
            f"{self._limits.max_wait_s:g} s; try again in a second"
        )

    def _watch(self, waiting: Waiting, deadline: float) -> None:
        """Keep a question's own deadline, unless the scheduler's ends its wait before."""
        if deadline <= waiting.asked:
            self._metrics.count_rejected("deadline")
            raise DeadlineError
        if deadline < waiting.asked + self._limits.timeout_s:
            self._deadlines.add(waiting, deadline)

    def _refuse_closed(self) -> NoReturn:
        self._metrics.count_rejected("shutdown")
        if not self._label:
            raise NotReadyError("the server is shutting down; try another one")
        raise NotReadyError(
            f"version {self._label} is being unloaded, or the server is shutting down; try again"
        )

    @property
    def _calls(self) -> set[asyncio.Future[None]]:
        return {*self._single_calls, *self._bulk_calls}

    def _schedule(self) -> None:
        loop = self._loop
        if not self._is_sweeping:
            self._is_sweeping = True
            loop.call_later(self._limits.timeout_s * _SWEEP_SHARE, self._sweep)
        if not self._is_scheduled:
            # Questions that arrive in this turn of the event loop join the call.
            self._is_scheduled = True
            loop.call_soon(self._start_calls)

    def _forget_abandoned(self) -> None:
        """Drop the questions whose requests have gone: a call that hangs takes none of them out."""
        kept = [item for item in self._waiting if item.is_wanted()]
        # In place: whoever takes questions out may have one fail, which another one follows.
        self._waiting.clear()
        self._waiting.extend(kept)

    def _sweep(self) -> None:
        """Fail the questions that waited too long; one timer for all is cheaper than one each."""
        now = self._loop.time()
        while self._waiting and self._waiting[0].deadline <= now:
            self._give_up(SingleCall([self._waiting.popleft()]))
        while self._bulk and self._bulk.oldest().deadline <= now:
            self._give_up(self._bulk.take())
        for call in self._single_calls.values():
            # A call lasts as long as its youngest question waits.
            if expired := call.expire(now, self._late()):
                self._metrics.count_rejected("timeout", expired)
        self._is_sweeping = bool(self._places.taken or self._bulk)
        if self._is_sweeping:
            self._loop.call_later(self._limits.timeout_s * _SWEEP_SHARE, self._sweep)

    def _give_up(self, call: Call) -> None:
        if call.is_wanted():
            self._metrics.count_rejected("timeout", call.waiting())
            call.fail(self._late())

    def _late(self) -> OverloadedError:
        timeout_s = self._limits.timeout_s
        return OverloadedError(f"no answer within {timeout_s:g} s; try again in a second")

    def _start_calls(self) -> None:
        self._is_scheduled = False
        if self._deadlines.waiting:
            self._deadlines.expire()
        capacity = max(self._backend.capacity, 1)
        most = self._rows_of_a_share(capacity)
        # A call that is computed at once ends this turn of the single questions.
        has_turn = True
        while len(self._single_calls) + len(self._bulk_calls) < _CALLS_IN_ALL * capacity:
            if has_turn and self._waiting and len(self._single_calls) < _CALLS_A_LANE * capacity:
                if (call := self._next_singles(most)) is not None:
                    has_turn = not self._is_answered_at_once(call)
            elif self._bulk and len(self._bulk_calls) < _CALLS_A_LANE * capacity:
                self._start_bulk(self._bulk.take(), capacity)
            else:
                break
        if self._waiting and not has_turn:
            self._schedule()

    def _start_bulk(self, call: BulkCall, capacity: int) -> None:
        """Start a call of a batch, unless nobody waits for it any more."""
        if call.deadline <= self._loop.time():
            self._give_up(call)
        elif call.is_wanted():
            self._bulk.begin(call, capacity=capacity)
            self._start(call, self._bulk_calls)

    def _is_answered_at_once(self, call: SingleCall) -> bool:
        """Answer a short call here and now; send or start any other one, and return False."""
        if self._immediate is None or not self._immediate.is_immediate(len(call)):
            if not self._is_sent(call):
                self._start(call, self._single_calls)
            return False
        try:
            inputs = call.inputs(self._backend.signature)
            started = self._note_start(call, len(inputs))
            outputs = self._immediate.infer_at_once(inputs)
            self._note_end(outputs, call, started)
        except Exception as error:
            self._start(call, self._single_calls, error)
        else:
            call.succeed(outputs)
        return True

    def _is_sent(self, call: SingleCall) -> bool:
        """Send a call to a backend that tells of its answer; return whether that was possible."""
        if self._sending is None:
            return False
        ended: asyncio.Future[None] = self._loop.create_future()
        started, rows = 0.0, len(call)

        def answered(outcome: PolicyOutputs | Exception | None) -> None:
            del self._single_calls[ended]
            ended.set_result(None)
            self._take(call, outcome, started)

        within_s = call.deadline - self._loop.time()
        try:
            inputs = call.inputs(self._backend.signature)
            if not self._sending.send(inputs, answered, within_s=within_s):
                return False
        except Exception as error:
            self._start(call, self._single_calls, error)
            return True
        started = self._note_start(call, rows)
        self._single_calls[ended] = call
        return True

    def _take(
        self, call: SingleCall, outcome: PolicyOutputs | Exception | None, started: float
    ) -> None:
        """Take the outcome of a call that was sent; one that was lost or failed becomes a task."""
        if isinstance(outcome, PolicyOutputs):
            try:
                self._note_end(outcome, call, started)
            except PolicyFailedError as error:
                outcome = error
            else:
                call.succeed(outcome)
                if self._waiting or self._bulk:
                    self._schedule()
                return
        if isinstance(outcome, OverloadedError):
            self._metrics.count_rejected("timeout", call.waiting())
        self._start(call, self._single_calls, outcome)

    def _rows_of_a_share(self, capacity: int) -> int:
        """Return how many of the waiting questions go into one call.

        For example, 1,024 questions are 128 for each of eight replicas. Where a row takes
        microseconds, few questions stay together.
        """
        share = math.ceil(len(self._waiting) / capacity)
        most = self._limits.max_batch_size
        if capacity > 1:
            seconds = self._row_cost.seconds
            share = max(share, math.ceil(_SHORTEST_CALL_S / seconds) if seconds > 0 else most)
        return min(share, most)

    def _next_singles(self, most: int) -> SingleCall | None:
        batch: list[Waiting] = []
        waiting, width = self._waiting, -1
        if waiting and self._bound.is_old(time.perf_counter() - waiting[0].asked):
            self._refuse_late(most)
        while waiting and len(batch) < most:
            item = waiting.popleft()
            if not item.is_wanted():
                # The request was cancelled.
                continue
            if width != (width := len(item.question.row)) and batch:
                waiting.appendleft(item)
                break
            batch.append(item)
        return SingleCall(batch) if batch else None

    def _refuse_late(self, most: int) -> None:
        """Refuse the questions at the front that the next call would answer too late."""
        waiting, now = self._waiting, time.perf_counter()
        before = sum(map(len, self._single_calls.values()))
        while waiting:
            item, rows = waiting[0], before + min(len(waiting), most)
            if not self._bound.is_too_late(now - item.asked, rows):
                return
            waiting.popleft()
            if item.is_wanted():
                item.fail(self._too_slow())

    def _start(
        self,
        call: _Call,
        lane: dict[asyncio.Future[None], _Call],
        error: Exception | None = None,
    ) -> None:
        task = asyncio.create_task(self._answer(call, error))
        lane[task] = call

        def end(ended: asyncio.Future[None]) -> None:
            del lane[ended]
            self._leave_lane(call)
            if ended.cancelled():
                # A backend's own task was cancelled, or the event loop ends: no answer will come.
                call.fail(NotReadyError("the call of the policy was cancelled; try again"))
            self._start_calls()

        task.add_done_callback(end)

    def _leave_lane(self, call: Call) -> None:
        if isinstance(call, BulkCall):
            self._bulk.end(call)

    async def _answer(self, call: Call, error: Exception | None = None) -> None:
        """Answer a call; where it fails, ask each half again without the other.

        If one of n rows makes the call fail, the others are answered within 2 * log2(n) more calls.
        Only where the backend as a whole gives no answer, or not in time, no half is asked again.

        Args:
            call: the call.
            error: the error of the call, where it has failed already.
        """
        if error is None:
            error = await self._attempt(call)
        if error is None:
            return
        if len(call) == 1 or isinstance(error, call.of_the_whole):
            call.fail(error)
            return
        # A backend may compute without a pause: let other tasks run in between.
        await asyncio.sleep(0)
        for half in call.halves():
            # A request that was given up meanwhile needs no answer.
            if half.is_wanted():
                await self._answer(half)

    async def _attempt(self, call: Call) -> Exception | None:
        """Answer a call, or return why it failed.

        The error is returned and not raised: the errors of the halves would have it as their
        context, and the log would tell it again with each of them.
        """
        try:
            outputs = await self._infer(call)
        except TimeoutError:
            self._metrics.count_rejected("timeout", call.waiting())
            return self._late()
        except Exception as error:
            return error
        call.succeed(outputs)
        return None

    async def _infer(self, call: Call) -> PolicyOutputs:
        inputs = call.inputs(self._backend.signature)
        started = self._note_start(call, len(inputs))
        # No question waits longer than this: a call that hangs must not occupy the backend.
        async with asyncio.timeout_at(call.deadline):
            outputs = await self._backend.infer(inputs)
        self._note_end(outputs, call, started)
        return outputs

    def _note_start(self, call: Call, rows: int) -> float:
        started = time.perf_counter()
        self._metrics.observe_batch(rows)
        self._observe_queue(started - call.asked)
        return started

    def _note_end(self, outputs: PolicyOutputs, call: Call, started: float) -> None:
        rows = len(call)
        if len(outputs) != rows:
            raise PolicyFailedError(f"expected {rows} answers of the policy, got {len(outputs)}")
        if self._deadlines.waiting:
            # An event loop that was busy has not run their timer.
            self._deadlines.expire()
        ended = time.perf_counter()
        seconds = ended - started
        if isinstance(call, SingleCall):
            self._bound.observe(rows, asked=call.asked, started=started, ended=ended)
            self._room = 1
        elif rows:
            self._bulk.measure(rows, started=started, ended=ended)
        self._observe_policy(seconds)
        self._row_cost.observe(rows, seconds)
