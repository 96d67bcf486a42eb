"""A batch's way through one policy: read as it arrives, called in parts, answered in columns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import BodyTimeoutError, OverloadedError
from policy_server.metrics import PolicyMetrics
from policy_server.observations import (
    BatchLayout,
    BatchReader,
    JsonBatchReader,
    Matrix,
    NpyBatchReader,
    ObservationSpace,
)
from policy_server.policy import PolicyBackend, PolicyOutputs, PolicySignature
from policy_server.prediction_log import PredictionLog
from policy_server.serving.bulk_calls import ROWS_PER_CALL, BulkCalls, BulkRows
from policy_server.settings import Settings
from policy_server.web.rendering import AnswerKind, BatchAnswers, RenderedAnswers

__all__ = ["MOST_AT_ONCE", "NO_SEED", "BatchAnswering", "BatchRequest", "count_actions"]

NO_SEED = -1
_SEED_BITS = np.uint64(2**63 - 1)
# What is validated at once: some hundred microseconds of JSON.
_BYTES_AT_ONCE = 16384
# How many turns of the event loop a single observation takes from its socket and back.
_TURNS = 4
# More batches than these wait with their bodies unread, so that memory stays bounded.
MOST_AT_ONCE = 32
# A seeded row is computed by itself, in some twenty microseconds: twenty times a row without.
_SEEDED_ROWS_PER_CALL = ROWS_PER_CALL // 16


@dataclass(frozen=True)
class BatchRequest:
    """What is asked of a batch.

    Attributes:
        kind: what is asked.
        is_raw: whether its observations are flat ones.
        is_npy: whether the body is an array in npy format, instead of JSON.
        wants_npy: whether the answer shall be one.
        seed: row i is drawn with this plus i; None for independent draws.
        request_id: what the logs name the request by.
        has_log_probability: whether an array has it as its last column.
    """

    kind: AnswerKind
    is_raw: bool
    is_npy: bool
    wants_npy: bool
    seed: int | None
    request_id: str
    has_log_probability: bool = False


def count_actions(
    outputs: PolicyOutputs, signature: PolicySignature, metrics: PolicyMetrics
) -> None:
    """Count the integer actions of a call.

    Args:
        outputs: its answers.
        signature: says which columns are integer components.
        metrics: where they are counted.
    """
    counted = []
    for index, part in enumerate(signature.components or ()):
        if part.kind == "categorical":
            chosen = outputs.actions[:, part.first_column].astype(np.int64)
            counts = np.bincount(chosen, minlength=part.size).tolist()
            counted.append((part.name or str(index), counts))
    # All or none: where a row is to blame, the others are answered again.
    for name, counts in counted:
        metrics.count_actions(name, counts)


class BatchAnswering:
    """Answers batches by one backend."""

    def __init__(
        self,
        backend: PolicyBackend,
        space: ObservationSpace,
        distribution: ActionDistribution | None,
        settings: Settings,
        metrics: PolicyMetrics,
        log: PredictionLog,
    ) -> None:
        """Keep the parts.

        Args:
            backend: what answers.
            space: the observations of schema.yaml.
            distribution: what reads the distribution's inputs; None where the family is unknown.
            settings: deadlines, and the most rows.
            metrics: where calls and refusals are counted.
            log: where predictions are recorded.
        """
        self._backend = backend
        self._space = space
        self._distribution = distribution
        self._settings = settings
        self._metrics = metrics
        self._log = log
        self._calls = BulkCalls(backend, timeout_s=settings.request_timeout_s, metrics=metrics)
        self._places = asyncio.Semaphore(MOST_AT_ONCE)

    async def answer(self, request: BatchRequest, body: AsyncIterator[bytes]) -> bytes:
        """Answer a batch.

        Args:
            request: what is asked.
            body: the observations, as they arrive.

        Returns:
            The body of the answer.

        Raises:
            ObservationError: naming row and field of what schema.yaml does not describe.
            BodyTimeoutError: if the body takes too long to arrive.
            PolicyServerError: if the policy can't answer.
        """
        answers = BatchAnswers(
            self._backend.signature.action_outputs,
            self._distribution,
            kind=request.kind,
            is_npy=request.wants_npy,
            has_log_probability=request.has_log_probability,
        )
        answers.add(0, self._no_outputs())
        calls: list[asyncio.Task[None]] = []
        async with self._place():

            def start_call(rows: BulkRows) -> None:
                calls.append(asyncio.create_task(self._call(request, rows, answers)))

            try:
                await self._read(request, body, start_call)
                for call in calls:
                    await call
            finally:
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
        return answers.finish()

    def _no_outputs(self) -> PolicyOutputs:
        signature = self._backend.signature
        actions = sum(output.columns for output in signature.action_outputs)
        inputs = sum(part.inputs for part in signature.components or ())
        return PolicyOutputs(np.empty((0, actions)), np.empty(0), np.empty((0, inputs), np.float32))

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        timeout_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._places.acquire()
        except TimeoutError as error:
            self._metrics.count_rejected("queue_full")
            raise OverloadedError(
                f"{MOST_AT_ONCE} batches are being answered already; try again in a second"
            ) from error
        try:
            yield
        finally:
            self._places.release()

    async def _read(
        self,
        request: BatchRequest,
        body: AsyncIterator[bytes],
        start_call: Callable[[BulkRows], None],
    ) -> None:
        """Start the calls of a batch, each as soon as its rows are there."""
        reader, cutter = self._reader(request), _Cutter(request, start_call)
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

    def _reader(self, request: BatchRequest) -> BatchReader:
        signature = self._backend.signature
        layout = BatchLayout(
            self._space,
            request.is_raw,
            signature.observation_width,
            signature.row_dtype,
            self._settings.max_batch_rows,
        )
        return NpyBatchReader(layout) if request.is_npy else JsonBatchReader(layout)

    async def _call(self, request: BatchRequest, rows: BulkRows, answers: BatchAnswers) -> None:
        outputs = await self._calls.infer(rows)
        answers.add(rows.first, outputs)
        count_actions(outputs, self._backend.signature, self._metrics)
        if self._log.is_on:
            layout = self._backend.signature.action_outputs
            rendered = RenderedAnswers(outputs, layout, self._distribution)
            for index, row in enumerate(rows.observations.tolist()):
                answer = rendered.answer(request.kind, index)
                self._log.record(request.kind, row, answer, request_id=request.request_id)


async def _let_others_in() -> None:
    """Let single observations pass, which keep their latency while a batch is read."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


class _Cutter:
    """Cuts the rows of a batch, as they come, into calls."""

    def __init__(self, request: BatchRequest, start_call: Callable[[BulkRows], None]) -> None:
        self._request = request
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
        self._start_call(BulkRows(rows, self._first, is_deterministic, seeds))
        self._first += len(rows)
