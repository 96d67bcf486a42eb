"""From an observation's bytes to the answer's, for requests and web sockets alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import orjson

from policy_server.errors import DistributionError
from policy_server.observations import ObservationSpace, Row
from policy_server.policy import ANSWER_KINDS, NO_SEED, AnswerKind
from policy_server.serving import (
    NOTHING_STATED,
    Answer,
    AnsweredCall,
    EpisodeMemory,
    PolicySlot,
    PolicyVersion,
    Question,
    StatedStep,
)
from policy_server.web.rendering import RenderedAnswers

__all__ = ["AnswerBody", "PolicyAnswering", "render_answer", "render_examples"]

_Source = TypeVar("_Source")


class AnswerBody(NamedTuple):
    """The JSON of an answer, and the version that gave it."""

    text: bytes
    version: PolicyVersion


class PolicyAnswering:
    """The answers of one policy, whichever version of it answers a question."""

    def __init__(self, slot: PolicySlot) -> None:
        """Own nothing: each answer is a version's of the slot.

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
        is_npy: bool = False,
        seed: int | None = None,
        request_id: str = "",
        episode: str = "",
        wanted: str = "",
        memory: EpisodeMemory | None = None,
        stated: StatedStep = NOTHING_STATED,
        deadline: float | None = None,
    ) -> AnswerBody:
        """Answer the observation in a request's body.

        Args:
            kind: the kind of answer.
            body: the JSON of an observation, named or raw, or its array.
            is_raw: whether it is `{"obs": [...]}`.
            is_npy: whether it is an array in npy format instead.
            seed: makes the draw reproducible.
            request_id: the name of the request in the logs.
            episode: the id of its episode, which stays on one version; empty for none.
            wanted: the name of the version that is asked for; empty leaves that to the traffic.
            memory: the memory of its episode, which the answer steps; None for the zero state.
            stated: what the client states of the episode's step before.
            deadline: the client's own, by `time.perf_counter`; None for none.

        Returns:
            The JSON of the answer, and the version that gave it.

        Raises:
            ObservationError: if the body is not what schema.yaml describes.
            PolicyServerError: if the policy can't answer.
        """
        if memory is None:
            version = self.slot.choose(episode, wanted=wanted)
        else:
            version = memory.version
            self.slot.go_on(episode, version, wanted=wanted)
        started = time.perf_counter()
        question = self.read(version, kind, body, is_raw=is_raw, is_npy=is_npy, seed=seed)
        self.slot.metrics.observe_stage("validate", time.perf_counter() - started)
        question.deadline = deadline
        if memory is not None:
            memory.prepare(question, stated)
        answer = await version.scheduler.answer(question)
        if memory is not None:
            # Before it is recorded: a step whose memory is refused is not made.
            memory.advance(question, answer)
        text = self.render(version, question, answer.call, answer.index, request_id)
        return AnswerBody(text, version)

    def read(
        self,
        version: PolicyVersion,
        kind: AnswerKind,
        body: bytes,
        *,
        is_raw: bool,
        is_npy: bool = False,
        seed: int | None = None,
    ) -> Question:
        """Return the question in a request's body, whose time no stage has yet.

        Args:
            version: answers it.
            kind: the kind of answer.
            body: the JSON of an observation, named or raw, or its array.
            is_raw: whether it is `{"obs": [...]}`.
            is_npy: whether it is an array in npy format instead.
            seed: makes the draw reproducible.

        Raises:
            ObservationError: if the body is not what schema.yaml describes.
            UnsupportedAnswerError: if the version can't give that kind of answer.
        """
        return self.reader(version, kind, is_raw=is_raw, is_npy=is_npy, seed=seed)(body)

    def reader(
        self,
        version: PolicyVersion,
        kind: AnswerKind,
        *,
        is_raw: bool,
        is_npy: bool = False,
        seed: int | None = None,
    ) -> Callable[[bytes], Question]:
        """Return the function that reads questions of one kind from bodies; see `read`.

        Raises:
            UnsupportedAnswerError: if the version can't give that kind of answer.
        """
        space = version.space
        parse: Callable[[bytes], Row] = space.parse_raw if is_raw else space.parse_named
        if is_npy:
            width = version.signature.observation_width
            parse = partial(space.arrays.parse, is_raw=is_raw, width=width)
        return self.asking(version, kind, parse, seed, is_raw=is_raw)

    def render(
        self,
        version: PolicyVersion,
        question: Question,
        call: AnsweredCall,
        index: int,
        request_id: str,
    ) -> bytes:
        """Return the JSON of an answer, which is logged and copied to shadows as settings say.

        Args:
            version: gave the answer.
            question: the question.
            call: the call that had the question.
            index: the question's row in it.
            request_id: the name of the request in the logs.

        Raises:
            DistributionError: if the policy's action is no number, or its distribution is none.
        """
        rendered: RenderedAnswers = call.rendered or _rendered(version, call)
        text = rendered.answer(question.kind, index)
        if self.slot.shadows:
            self.slot.copy_to_shadows(version, question, Answer(call, index))
        if version.log.is_on:
            version.log.record(question.kind, question.row, text, request_id=request_id)
        return text

    def question(
        self,
        kind: AnswerKind,
        parse: Callable[[ObservationSpace], Row],
        *,
        is_raw: bool,
        seed: int | None,
        version: PolicyVersion,
    ) -> Question:
        """Return the question about an observation.

        Args:
            kind: the kind of answer.
            parse: gives the observation's row.
            is_raw: whether it was `{"obs": [...]}`.
            seed: makes the draw reproducible.
            version: will give the answer.

        Raises:
            ObservationError: if the observation is not what schema.yaml describes.
            UnsupportedAnswerError: if the version gives no answers of that kind.
        """
        started = time.perf_counter()
        question = self.asking(version, kind, parse, seed, is_raw=is_raw)(version.space)
        self.slot.metrics.observe_stage("validate", time.perf_counter() - started)
        return question

    def asking(
        self,
        version: PolicyVersion,
        kind: AnswerKind,
        parse: Callable[[_Source], Row],
        seed: int | None,
        *,
        is_raw: bool,
    ) -> Callable[[_Source], Question]:
        """Return the function that makes questions of what a row is parsed from.

        It refuses a row that is not of the policy's width.

        Args:
            version: answers the questions.
            kind: the kind of answer.
            parse: gives an observation's row.
            seed: makes the draws reproducible.
            is_raw: whether the observations are `{"obs": [...]}`.

        Raises:
            UnsupportedAnswerError: if the version gives no answers of that kind.
        """
        version.check_answers(kind)
        slot, space, width = self.slot, version.space, version.row_width
        number = NO_SEED if seed is None else seed

        def ask(source: _Source) -> Question:
            row = parse(source)
            if width is not None and len(row) != width:
                space.check_width(row, width, is_raw=is_raw)
            return Question(row, kind, number, slot.wants_copies)

        return ask


def render_answer(version: PolicyVersion, kind: AnswerKind, answer: Answer) -> bytes:
    """Return the JSON of an answer.

    Args:
        version: gave the answer.
        kind: the kind of answer.
        answer: the answer.

    Raises:
        DistributionError: if its action holds NaN or infinity, or it is no distribution.
    """
    return _rendered(version, answer.call).answer(kind, answer.index)


def _rendered(version: PolicyVersion, call: AnsweredCall) -> RenderedAnswers:
    known: RenderedAnswers | None = call.rendered
    if known is None:
        layout = version.signature.action_outputs
        known = call.rendered = RenderedAnswers(call.outputs, layout, version.distribution)
    return known


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
                text = render_answer(version, kind, version.examples[kind])
                examples[kind] = orjson.loads(text)
        except DistributionError:
            continue
    return examples
