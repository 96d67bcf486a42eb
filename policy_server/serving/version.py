"""One version of a policy, with everything that belongs to it."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import (
    DistributionError,
    ObservationError,
    PolicyFailedError,
    UnsupportedAnswerError,
)
from policy_server.metrics import PolicyMetrics
from policy_server.observation_fit import fit_observations
from policy_server.observations import ActionMask, ObservationSpace
from policy_server.policy import (
    ANSWER_KINDS,
    NO_SEED,
    AnswerKind,
    LosableBackend,
    PolicyBackend,
    PolicySignature,
)
from policy_server.prediction_log import PredictionLog
from policy_server.schema import ServerSchema, number_range, schema_digest
from policy_server.serving.counted_backend import VersionRecord, counted
from policy_server.serving.previous_step import PreviousStep
from policy_server.serving.questions import Answer, Question
from policy_server.serving.scheduler import Limits, Scheduler
from policy_server.serving.team_record import VersionName
from policy_server.settings import Settings

__all__ = ["OpenedPolicy", "PolicyVersion"]

logger = logging.getLogger(__name__)

_EXAMPLE_SEED = 0
_WITHOUT_MEMORY = (b"x-policy-memory", b"none")


@dataclass(frozen=True, eq=False)
class OpenedPolicy:
    """A policy that was loaded, and computes.

    Attributes:
        backend: computes it.
        digest: the start of the digest of the model's files.
        schema: the schema.yaml that came with the model; None for the slot's.
    """

    backend: PolicyBackend
    digest: str = ""
    schema: ServerSchema | None = None


@dataclass(frozen=True, eq=False)
class PolicyVersion:
    """A loaded policy with all that its answers depend on; it never changes.

    Attributes:
        name: the policy's name.
        label: the version's own name.
        digest: the start of the digest of the model's files.
        schema: its schema.yaml.
        space: the observations that schema and signature allow.
        signature: its inputs, outputs and distribution.
        row_width: the signature's, which each request asks for.
        backend: computes it.
        scheduler: takes questions, and asks the backend few of them at a time.
        distribution: reads `PolicyOutputs.distribution`; None where the family is unknown.
        log: records a share of the predictions.
        record: how it has answered so far.
        examples: the answers to an example of an observation, by kind, for the documentation.
    """

    name: str
    label: str
    digest: str
    schema: ServerSchema
    space: ObservationSpace
    signature: PolicySignature
    row_width: int | None
    backend: PolicyBackend
    scheduler: Scheduler
    distribution: ActionDistribution | None
    log: PredictionLog
    record: VersionRecord
    examples: Mapping[AnswerKind, Answer] = field(default_factory=dict)

    @functools.cached_property
    def header(self) -> tuple[bytes, bytes]:
        """Return `x-policy-version` with the version's name, as ASGI has headers."""
        return (b"x-policy-version", self.label.encode())

    @functools.cached_property
    def version_name(self) -> VersionName:
        """Return the name by which the episodes that it answers know it."""
        return VersionName(self.label, self.digest, schema_digest(self.schema))

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """Return 16 bytes that no other version has: a digest of names, model and schema."""
        about = json.dumps([self.name, *self.version_name, self.signature.memory_width])
        return blake2b(about.encode(), digest_size=16).digest()

    @functools.cached_property
    def previous_step(self) -> PreviousStep:
        """Return the places of the previous action and reward in the policy's memory."""
        return PreviousStep(self.signature)

    @functools.cached_property
    def lone_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers of an answer that no memory belongs to.

        Those of a policy with memory say so: it was answered from the zero state.
        """
        return (self.header, _WITHOUT_MEMORY) if self.signature.memory else (self.header,)

    @classmethod
    async def prepare(
        cls,
        name: str,
        opened: OpenedPolicy,
        schema: ServerSchema,
        settings: Settings,
        metrics: PolicyMetrics,
        *,
        label: str,
    ) -> PolicyVersion:
        """Return a version that has answered every kind of question once.

        Args:
            name: the policy's name.
            opened: the loaded policy.
            schema: its schema.yaml.
            settings: limits, and the prediction log.
            metrics: counts its calls, refusals and actions.
            label: the version's own name.

        Raises:
            PolicyFailedError: if the policy fails on the example.
        """
        signature = opened.backend.signature
        mask = ActionMask.beside(schema.observations or (), signature)
        limits = Limits(
            settings.max_batch_size,
            settings.max_queue_size,
            settings.request_timeout_s,
            settings.longest_wait_s,
        )
        record = VersionRecord()
        backend = counted(opened.backend, metrics, label, record)
        version = cls(
            name=name,
            label=label,
            digest=opened.digest,
            schema=schema,
            space=ObservationSpace(
                fit_observations(schema, signature),
                number_range(signature.observation_dtype, signature.observation_columns),
                mask,
                shape=signature.observation_shape,
            ),
            signature=signature,
            row_width=signature.row_width,
            backend=opened.backend,
            scheduler=Scheduler(backend, limits, metrics, label=label),
            distribution=(
                None
                if signature.components is None
                else ActionDistribution(signature.components, is_greedy=signature.is_value_based)
            ),
            log=PredictionLog(
                rate=settings.prediction_log_rate,
                fluentd_host=settings.fluentd_host,
                fluentd_port=settings.fluentd_port,
                mask_name=signature.mask_name,
                mask_width=sum(signature.mask_sizes),
            ),
            record=record,
        )
        try:
            return replace(version, examples=await version._warm_up())
        except BaseException:
            await version.aclose()
            raise

    def is_lost(self) -> bool:
        """Return whether nothing but another process would answer; see `LosableBackend`."""
        return isinstance(self.backend, LosableBackend) and self.backend.is_lost()

    def check_answers(self, kind: AnswerKind) -> None:
        """Refuse a kind of answer that the policy's family does not allow.

        Args:
            kind: the kind of answer.

        Raises:
            UnsupportedAnswerError: if this version can't give it.
        """
        if kind == "distribution" and self.distribution is None:
            raise UnsupportedAnswerError(
                "this policy's action distribution could not be proved, so it is not served; "
                "/predict draws from the model"
            )

    async def aclose(self) -> None:
        """Answer the questions that wait, refuse others, and end the prediction log."""
        await self.scheduler.aclose()
        # A collector that does not answer is waited for.
        await asyncio.to_thread(self.log.close)

    async def _warm_up(self) -> dict[AnswerKind, Answer]:
        """Ask for an answer of each kind, so that the first request is as fast as later ones."""
        width = self.signature.observation_width
        row = self.space.example_row(width)
        # Only a draw of ours takes a seed.
        seed = NO_SEED if self.distribution is None else _EXAMPLE_SEED
        examples: dict[AnswerKind, Answer] = {}
        for kind in ANSWER_KINDS:
            try:
                self.space.check_width(row, self.row_width, is_raw=True)
                self.check_answers(kind)
                asked = Question(row, kind, seed if kind == "predict" else NO_SEED)
                examples[kind] = await self.scheduler.answer(asked)
            except (ObservationError, UnsupportedAnswerError, DistributionError) as error:
                logger.info("no_example", extra={"kind": kind, "reason": error.message})
            except PolicyFailedError:
                logger.exception("warm_up_failed", extra={"kind": kind})
                raise
        return examples
