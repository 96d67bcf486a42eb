"""From an observation's bytes to the answer's, for requests and web sockets alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from policy_server.errors import DistributionError
from policy_server.observations import ObservationSpace
from policy_server.policy import ANSWER_KINDS, NO_SEED, AnswerKind, PolicyOutputs
from policy_server.serving import Answer, PolicySlot, PolicyVersion, Question
from policy_server.web.rendering import RenderedAnswers

__all__ = ["PendingAnswer", "PolicyAnswering", "render_examples"]


class PolicyAnswering:
    """The answers of one policy, whichever version of it is live."""

    def __init__(self, slot: PolicySlot) -> None:
        """Own nothing: each answer is the live version's.

        Args:
            slot: the policy's slot.
        """
        self.slot = slot

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
            kind: the kind of answer.
            body: the JSON of an observation, named or raw.
            is_raw: whether it is `{"obs": [...]}`.
            seed: makes the draw reproducible.
            request_id: the name of the request in the logs.

        Returns:
            The JSON of the answer.

        Raises:
            ObservationError: if the body is not what schema.yaml describes.
            PolicyServerError: if the policy can't answer.
        """
        version = self.slot.current()
        version.check_answers(kind)
        space = version.space
        parse = space.parse_raw if is_raw else space.parse_named
        row = self._validated(version, partial(parse, body), is_raw=is_raw)
        answer = await version.scheduler.answer(
            Question(row, kind, NO_SEED if seed is None else seed)
        )
        text = _render(version, kind, answer)
        version.log.record(kind, row, text, request_id=request_id)
        return text

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
            kind: the kind of answer.
            parse: gives the observation's row.
            is_raw: whether it was `{"obs": [...]}`.
            seed: makes the draw reproducible.
            request_id: the name of the request in the logs.

        Returns:
            The answer, which comes later.

        Raises:
            ObservationError: if the observation is not what schema.yaml describes.
            PolicyServerError: if the policy can't answer.
        """
        version = self.slot.current()
        version.check_answers(kind)
        row = self._validated(version, partial(parse, version.space), is_raw=is_raw)
        question = Question(row, kind, NO_SEED if seed is None else seed)
        return PendingAnswer(version, question, request_id, version.scheduler.ask(question))

    def _validated(
        self, version: PolicyVersion, parse: Callable[[], list[float]], *, is_raw: bool
    ) -> list[float]:
        """Return an observation's row; refuse one that is not of the policy's width."""
        started = time.perf_counter()
        row = parse()
        version.space.check_width(row, version.row_width, is_raw=is_raw)
        self.slot.metrics.observe_stage("validate", time.perf_counter() - started)
        return row


@dataclass(eq=False, slots=True)
class PendingAnswer:
    """An answer that was asked for, and comes later."""

    _version: PolicyVersion
    _question: Question
    _request_id: str
    _future: asyncio.Future[Answer]

    async def fetch(self) -> bytes:
        """Wait for the JSON of the answer; a cancelled wait takes the question out of the queue.

        Raises:
            PolicyServerError: if the policy can't answer.
        """
        answer, question = await self._future, self._question
        text = _render(self._version, question.kind, answer)
        self._version.log.record(question.kind, question.row, text, request_id=self._request_id)
        return text

    def abandon(self) -> None:
        """Take the question out of the queue: its answer is not wanted any more."""
        if not self._future.cancel() and not self._future.cancelled():
            # asyncio reports an error that no code has looked at.
            self._future.exception()


def _render(version: PolicyVersion, kind: AnswerKind, answer: Answer) -> bytes:
    def view(outputs: PolicyOutputs) -> RenderedAnswers:
        return RenderedAnswers(outputs, version.signature.action_outputs, version.distribution)

    return answer.call.view(view).answer(kind, answer.index)


def render_examples(slot: PolicySlot) -> dict[AnswerKind, Any]:
    """Return the live version's answers to its example, as JSON values by kind.

    Args:
        slot: the policy's slot; without a version, and for kinds that it can't answer, there is no
            example.
    """
    version = slot.live
    examples: dict[AnswerKind, Any] = {}
    for kind in ANSWER_KINDS if version is not None else ():
        assert version is not None, "there are no kinds without it"
        try:
            if kind in version.examples:
                text = _render(version, kind, version.examples[kind])
                examples[kind] = orjson.loads(text)
        except DistributionError:
            continue
    return examples
