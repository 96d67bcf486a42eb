"""One served policy: what its routes are built from, and the way of a request through it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, get_args

import orjson

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import (
    DistributionError,
    NotReadyError,
    ObservationError,
    PolicyFailedError,
    UnsupportedAnswerError,
)
from policy_server.metrics import PolicyMetrics
from policy_server.observations import ObservationSpace
from policy_server.policy import PolicyBackend, PolicyOutputs, PolicySignature
from policy_server.prediction_log import PredictionLog
from policy_server.schema import ServerSchema, fit_lists, number_range
from policy_server.serving.batching import MicroBatcher
from policy_server.settings import Settings
from policy_server.web.batches import NO_SEED, BatchAnswering, BatchRequest, count_actions
from policy_server.web.rendering import AnswerKind, RenderedAnswers

__all__ = ["AnswerKind", "BackendOpener", "PendingAnswer", "ServedPolicy"]

logger = logging.getLogger(__name__)

BackendOpener = Callable[[], AbstractAsyncContextManager[PolicyBackend]]


class ServedPolicy:
    """A policy with its schema, its observation space and, while the server runs, its backend."""

    def __init__(
        self,
        schema: ServerSchema,
        settings: Settings,
        open_backend: BackendOpener,
        metrics: PolicyMetrics,
    ) -> None:
        """Keep the parts; nothing is started.

        Args:
            schema: what schema.yaml says.
            settings: how the server is deployed.
            open_backend: starts what answers, and ends it again.
            metrics: where the stages of a request are counted.
        """
        self.schema = schema
        self.space = ObservationSpace(schema.observations)
        self._settings = settings
        self._open_backend = open_backend
        self._metrics = metrics
        self.examples: dict[str, Any] = {}
        self._running: _Running | None = None

    @property
    def signature(self) -> PolicySignature | None:
        """Return the policy's signature; None before it is loaded."""
        return None if self._running is None else self._running.backend.signature

    @property
    def width(self) -> int | None:
        """Return how many numbers an observation has; None where that is open or not known yet."""
        return self.signature.observation_width if self.signature is not None else self.schema.width

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Start the backend and answer until the block ends; then finish what is in flight."""
        async with self._open_backend() as backend:
            signature = backend.signature
            fields = fit_lists(self.schema.observations, signature.observation_width)
            self.space = ObservationSpace(fields, number_range(signature.observation_dtype))
            self._running = _Running(backend, self.space, self._settings, self._metrics)
            try:
                self.examples = await self._real_examples()
                yield
            finally:
                batcher, self._running.is_draining = self._running.batcher, True
                await batcher.aclose()
                self._running.log.close()
                self._running = None

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now."""
        running = self._running
        return running is not None and not running.is_draining and await running.backend.is_ready()

    async def answer(
        self,
        kind: AnswerKind,
        body: bytes,
        *,
        is_raw: bool,
        seed: int | None = None,
        request_id: str = "",
    ) -> bytes:
        """Answer the observation in a request's body.

        Args:
            kind: what is asked.
            body: the JSON of an observation, named or raw.
            is_raw: whether it is `{"obs": [...]}`.
            seed: makes the draw reproducible.
            request_id: what the logs name the request by.

        Returns:
            The JSON of the answer.

        Raises:
            ObservationError: if the body is not what schema.yaml describes.
            PolicyServerError: if the policy can't answer.
        """
        running = self._answering(kind)
        parse = self.space.parse_raw if is_raw else self.space.parse_named
        row = self._validated(running, lambda: parse(body), is_raw=is_raw)
        answers, index = await running.batcher.infer(
            row, is_deterministic=kind != "predict", seed=NO_SEED if seed is None else seed
        )
        answer = answers.answer(kind, index)
        if request_id:
            running.log.record(kind, row, answer, request_id=request_id)
        return answer

    def ask(
        self,
        kind: AnswerKind,
        parse: Callable[[ObservationSpace], list[float]],
        *,
        is_raw: bool,
        seed: int | None,
        request_id: str,
    ) -> PendingAnswer:
        """Ask for an answer that is fetched later; see `answer`.

        Args:
            kind: what is asked.
            parse: gives the observation's row.
            is_raw: whether it was `{"obs": [...]}`.
            seed: makes the draw reproducible.
            request_id: what the logs name the request by.

        Returns:
            What will hold the answer.

        Raises:
            ObservationError: if the observation is not what schema.yaml describes.
            PolicyServerError: if the policy can't answer.
        """
        running = self._answering(kind)
        row = self._validated(running, lambda: parse(self.space), is_raw=is_raw)
        future = running.batcher.submit(
            row, is_deterministic=kind != "predict", seed=NO_SEED if seed is None else seed
        )
        return PendingAnswer(running.log, kind, row, request_id, future)

    async def answer_batch(self, request: BatchRequest, body: AsyncIterator[bytes]) -> bytes:
        """Answer the observations in a request's body.

        Args:
            request: what is asked.
            body: the observations, as they arrive.

        Returns:
            The body of the answer: JSON, or an array in npy format.

        Raises:
            ObservationError: naming row and field of what schema.yaml does not describe.
            PolicyServerError: if the policy can't answer.
        """
        return await self._answering(request.kind).batches.answer(request, body)

    def _validated(
        self, running: _Running, parse: Callable[[], list[float]], *, is_raw: bool
    ) -> list[float]:
        """Return an observation's row, held against the policy's width."""
        started = time.perf_counter()
        row = parse()
        width = running.backend.signature.observation_width
        self.space.check_width(row, width, is_raw=is_raw)
        self._metrics.observe_stage("validate", time.perf_counter() - started)
        return row

    def _answering(self, kind: AnswerKind) -> _Running:
        """Return what answers, if it can answer that."""
        running = self._running
        if running is None:
            raise NotReadyError("the policy is not loaded yet; try again in a few seconds")
        if kind == "distribution" and running.distribution is None:
            raise UnsupportedAnswerError(
                "this policy's action distribution could not be proved, so it is not served; "
                "/predict draws from the model"
            )
        return running

    async def _real_examples(self) -> dict[str, Any]:
        """Warm the whole way of a request up, and keep the answers for the documentation."""
        assert self._running is not None, "called while the backend runs"
        # Only a draw of ours takes a seed.
        seed = None if self._running.distribution is None else 0
        body = orjson.dumps({"obs": self.space.raw_example(self.width)})
        examples = {}
        for kind in get_args(AnswerKind):
            try:
                examples[kind] = orjson.loads(await self.answer(kind, body, is_raw=True, seed=seed))
            except (ObservationError, UnsupportedAnswerError, DistributionError) as error:
                logger.info("no_example", extra={"kind": kind, "reason": error.message})
            except PolicyFailedError:
                logger.exception("warm_up_failed", extra={"kind": kind})
                raise
        return examples


@dataclass(eq=False, slots=True)
class PendingAnswer:
    """An answer that was asked for."""

    _log: PredictionLog
    _kind: AnswerKind
    _row: list[float]
    _request_id: str
    _future: asyncio.Future[tuple[RenderedAnswers, int]]

    async def fetch(self) -> bytes:
        """Wait for the JSON of the answer; a cancelled wait frees the observation's place.

        Raises:
            PolicyServerError: if the policy can't answer.
        """
        answers, index = await self._future
        answer = answers.answer(self._kind, index)
        self._log.record(self._kind, self._row, answer, request_id=self._request_id)
        return answer

    def abandon(self) -> None:
        """Free the observation's place, where nobody waits for its answer any more."""
        if not self._future.cancel() and not self._future.cancelled():
            # asyncio reports an error that nobody has looked at.
            self._future.exception()


class _Running:
    def __init__(
        self,
        backend: PolicyBackend,
        space: ObservationSpace,
        settings: Settings,
        metrics: PolicyMetrics,
    ) -> None:
        self.backend = backend
        self._metrics = metrics
        self.batcher: MicroBatcher[RenderedAnswers] = MicroBatcher(
            backend,
            self._render,
            max_batch_size=settings.max_batch_size,
            max_queue_size=settings.max_queue_size,
            timeout_s=settings.request_timeout_s,
            metrics=metrics,
        )
        signature = backend.signature
        self.distribution = (
            None
            if signature.components is None
            else ActionDistribution(signature.components, is_greedy=signature.is_value_based)
        )
        self.is_draining = False
        self.log = PredictionLog(
            rate=settings.prediction_log_rate,
            fluentd_host=settings.fluentd_host,
            fluentd_port=settings.fluentd_port,
        )
        self.batches = BatchAnswering(
            backend, space, self.distribution, settings, metrics, self.log
        )

    def _render(self, outputs: PolicyOutputs) -> RenderedAnswers:
        count_actions(outputs, self.backend.signature, self._metrics)
        return RenderedAnswers(outputs, self.backend.signature.action_outputs, self.distribution)
