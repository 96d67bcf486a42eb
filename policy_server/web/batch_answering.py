"""Batches: read as they arrive, asked in parts, answered in columns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import numpy as np

from policy_server.client_limits import Charge, charge_nobody
from policy_server.errors import BodyTimeoutError, OverloadedError
from policy_server.observations import (
    BatchLayout,
    BatchReader,
    JsonBatchReader,
    Matrix,
    NpyBatchReader,
)
from policy_server.policy import NO_SEED, AnswerKind, PolicyInputs, PolicyOutputs, PolicySignature
from policy_server.serving import ROWS_PER_CALL, PolicySlot, PolicyVersion
from policy_server.serving.deadlines import within
from policy_server.settings import Settings
from policy_server.web.answering import AnswerBody
from policy_server.web.batch_places import BatchPlaces
from policy_server.web.rendering import BatchAnswers, RenderedAnswers
from policy_server.web.unread_answers import UnreadAnswers

__all__ = ["BatchAnswering", "BatchRequest"]

StartCall = Callable[[int, PolicyInputs], None]

_SEED_BITS = np.uint64(2**63 - 1)
# The bytes validated at once: some hundred microseconds of JSON.
_BYTES_AT_ONCE = 8192
# How many turns of the event loop a single observation takes from its socket and back.
_TURNS = 4
# A seeded row is computed by itself, in some twenty microseconds: twenty times a row without.
_SEEDED_ROWS_PER_CALL = ROWS_PER_CALL // 16


@dataclass(frozen=True)
class BatchRequest:
    """The options of a batch.

    Attributes:
        kind: the kind of answer.
        is_raw: whether its observations are flat ones.
        is_npy: whether the body is an array in npy format, instead of JSON.
        wants_npy: whether the answer shall be one.
        seed: row i is drawn with this plus i; None for independent draws.
        request_id: the id of the request in the logs.
        client: the name of the client, as `client_name` gives it.
        episode: the id of its episode, which stays on one version; empty for none.
        wanted: the name of the version that is asked for; empty leaves that to the traffic.
        has_log_probability: whether an array has it as its last column.
        deadline: the client's own, by `time.perf_counter`; None for none.
        charge: counts the observations behind the first.
    """

    kind: AnswerKind
    is_raw: bool
    is_npy: bool
    wants_npy: bool
    seed: int | None
    request_id: str
    client: str = ""
    episode: str = ""
    wanted: str = ""
    has_log_probability: bool = False
    deadline: float | None = None
    charge: Charge = charge_nobody


class BatchAnswering:
    """The answers to batches of one policy, whichever version of it answers."""

    def __init__(self, slot: PolicySlot, settings: Settings, unread: UnreadAnswers) -> None:
        """Own the places of batches; each answer is a version's of the slot.

        Args:
            slot: the policy's slot.
            settings: deadlines, and the most rows.
            unread: the answers to batches that wait to be read.
        """
        self._unread = unread
        self._slot = slot
        self._settings = settings
        self._places = BatchPlaces()

    async def answer(self, request: BatchRequest, body: AsyncIterator[bytes]) -> AnswerBody:
        """Answer a batch, all of it by one version.

        Args:
            request: the options.
            body: the observations, as they arrive.

        Returns:
            The body of the answer, and the version that gave it.

        Raises:
            ObservationError: naming row and field of the first mistake.
            BodyTimeoutError: if the body takes too long to arrive.
            DeadlineError: if it is not answered before the request's own deadline.
            OverloadedError: if other batches, of its client above all, have the places, or take too
                long, or their answers are not read.
            PolicyServerError: if the policy can't answer.
        """
        # The version may be another one once there is a place; only a held one stays open.
        self._slot.current().check_answers(request.kind)
        metrics = self._slot.metrics
        async with within(request.deadline, metrics), self._place(request.client) as since:
            self._check_unread(request.client)
            version = self._slot.choose(request.episode, wanted=request.wanted)
            with version.scheduler.held():
                text = await self._answer(version, request, body, since)
                return AnswerBody(text, version)

    async def _answer(
        self,
        version: PolicyVersion,
        request: BatchRequest,
        body: AsyncIterator[bytes],
        since: float,
    ) -> bytes:
        version.check_answers(request.kind)
        version.scheduler.check_rows_in_time(since)
        placed = time.perf_counter()
        answers = BatchAnswers(
            version.signature.action_outputs,
            version.distribution,
            kind=request.kind,
            is_npy=request.wants_npy,
            has_log_probability=request.has_log_probability,
        )
        answers.add(0, _no_outputs(version.signature))
        calls: list[asyncio.Task[None]] = []
        asked: list[asyncio.Future[PolicyOutputs]] = []

        def start_call(first: int, rows: PolicyInputs) -> None:
            # How long its body takes to arrive is its client's affair, and no wait.
            began = since and since + time.perf_counter() - placed
            outputs = version.scheduler.ask_rows(rows, first=first, asked=began)
            asked.append(outputs)
            request.charge(len(rows) - (first == 0))
            call = _call(version, request, first, rows, outputs, answers)
            calls.append(asyncio.create_task(call))

        try:
            await self._read(version, request, body, start_call)
            for call in calls:
                await call
        finally:
            # A task that has not begun would not cancel what it was to wait for.
            for outputs in asked:
                outputs.cancel()
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        return answers.finish()

    @asynccontextmanager
    async def _place(self, client: str) -> AsyncIterator[float]:
        """Have a place while the block runs.

        Yields:
            Since when the batch has waited for it, by `time.perf_counter`; 0 where it has not, or
            where waits have no bound of their own.
        """
        settings, places, came = self._settings, self._places, time.perf_counter()
        patience_s = accepted_s = settings.request_timeout_s
        if settings.max_wait_s:
            patience_s = min(patience_s, settings.max_wait_s)
            accepted_s = self._slot.current().scheduler.rows_patience_s
        has_place = places.has_one(client)
        if not has_place:
            self._check_wait(client, accepted_s)
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(places.one(client, patience_s=patience_s))
            except OverloadedError:
                self._slot.metrics.count_rejected("queue_full")
                raise
            yield 0.0 if has_place or not settings.max_wait_s else came

    def _check_unread(self, client: str) -> None:
        try:
            self._unread.check(client)
        except OverloadedError:
            self._slot.metrics.count_rejected("answers_unread")
            raise

    def _check_wait(self, client: str, accepted_s: float) -> None:
        """Refuse a batch that would have to wait for a place for too long."""
        waiting, limit = self._places.waiting, self._settings.max_queue_size
        reason = ""
        if waiting >= limit:
            reason = "queue_full"
        elif self._places.expected_s(client) > accepted_s:
            reason = "queue_slow"
        if reason:
            self._slot.metrics.count_rejected(reason)
            raise OverloadedError(
                f"{waiting} batches are waiting already for others to be answered; try again in a "
                "second"
            )

    async def _read(
        self,
        version: PolicyVersion,
        request: BatchRequest,
        body: AsyncIterator[bytes],
        start_call: StartCall,
    ) -> None:
        """Start the calls of a batch, each as soon as its rows are there."""
        reader = self._reader(version, request)
        cutter = _Cutter(request, version.signature, start_call)
        timeout_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                async for data in body:
                    for start in range(0, len(data), _BYTES_AT_ONCE):
                        for rows in reader.feed(data[start : start + _BYTES_AT_ONCE]):
                            cutter.add(rows)
                        await _let_others_in()
        except TimeoutError as error:
            raise BodyTimeoutError(
                f"the body did not arrive within {timeout_s:g} s; send the batch in parts"
            ) from error
        for rows in reader.close():
            cutter.add(rows)
            await _let_others_in()
        cutter.end()

    def _reader(self, version: PolicyVersion, request: BatchRequest) -> BatchReader:
        signature = version.signature
        layout = BatchLayout(
            version.space,
            request.is_raw,
            version.row_width,
            signature.row_dtype,
            self._settings.max_batch_rows,
        )
        return NpyBatchReader(layout) if request.is_npy else JsonBatchReader(layout)


async def _call(
    version: PolicyVersion,
    request: BatchRequest,
    first: int,
    rows: PolicyInputs,
    asked: asyncio.Future[PolicyOutputs],
    answers: BatchAnswers,
) -> None:
    """Take the answers to some rows of a batch, and record the share of them that is logged."""
    outputs = await asked
    answers.add(first, outputs)
    if version.log.is_on:
        layout = version.signature.action_outputs
        rendered = RenderedAnswers(outputs, layout, version.distribution)
        for index, row in enumerate(rows.rows.tolist()):
            answer = rendered.answer(request.kind, index)
            version.log.record(request.kind, row, answer, request_id=request.request_id)


def _no_outputs(signature: PolicySignature) -> PolicyOutputs:
    actions = sum(output.columns for output in signature.action_outputs)
    inputs = sum(part.inputs for part in signature.components or ())
    return PolicyOutputs(np.empty((0, actions)), np.empty(0), np.empty((0, inputs), np.float32))


async def _let_others_in() -> None:
    """Let single observations pass, which keep their latency while a batch is read."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


class _Cutter:
    """Cuts the rows of a batch, as they come, into calls."""

    def __init__(
        self, request: BatchRequest, signature: PolicySignature, start_call: StartCall
    ) -> None:
        self._request = request
        self._signature = signature
        self._start_call = start_call
        self._rows_per_call = ROWS_PER_CALL if request.seed is None else _SEEDED_ROWS_PER_CALL
        self._waiting: list[Matrix] = []
        self._size = 0
        self._first = 0

    def add(self, rows: Matrix) -> None:
        self._waiting.append(rows)
        self._size += len(rows)
        if self._size < self._rows_per_call:
            return
        whole = np.concatenate(self._waiting)
        complete = len(whole) - len(whole) % self._rows_per_call
        for start in range(0, complete, self._rows_per_call):
            self._start(whole[start : start + self._rows_per_call])
        self._waiting, self._size = [whole[complete:]], len(whole) - complete

    def end(self) -> None:
        if self._size:
            self._start(np.concatenate(self._waiting))

    def _start(self, rows: Matrix) -> None:
        index = np.arange(self._first, self._first + len(rows), dtype=np.uint64)
        seed = self._request.seed
        seeds = np.full(len(rows), NO_SEED, np.int64)
        if seed is not None:
            seeds = ((np.uint64(seed) + index) & _SEED_BITS).astype(np.int64)
        is_deterministic = self._request.kind != "predict"
        inputs = PolicyInputs.of_rows(
            rows,
            self._signature,
            is_deterministic=np.full(len(rows), is_deterministic),
            seeds=seeds,
            wants_distribution=self._request.kind == "distribution",
        )
        self._start_call(self._first, inputs)
        self._first += len(rows)
