"""The memory of an episode: the state that a recurrent policy keeps between two steps."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from policy_server.errors import SessionConflictError
from policy_server.policy import LARGEST_SEED, Float32Array
from policy_server.serving.previous_step import NOTHING_STATED, StatedStep
from policy_server.serving.questions import Answer, Question
from policy_server.serving.session_store import SessionRecord
from policy_server.serving.version import PolicyVersion

__all__ = ["EpisodeMemory", "EpisodeSteps"]


@dataclass(eq=False, slots=True)
class EpisodeMemory:
    """The memory of one episode, which each answered question steps.

    Attributes:
        version: answers the episode from its beginning to its end.
        state: float32[memory_width], the numbers of the policy's state tensors one after another;
            of width 0 for a policy without memory.
        steps: how many questions of the episode have been answered.
        seed: the seed of the first step's draw, step i being drawn with seed + i; None for
            independent draws.
        has_action: whether the memory has the last step's action, where the policy takes it: not
            after a step that answered a distribution.
    """

    version: PolicyVersion
    state: Float32Array
    steps: int = 0
    seed: int | None = None
    has_action: bool = True

    @classmethod
    def begin(cls, version: PolicyVersion, *, seed: int | None = None) -> EpisodeMemory:
        """Return the memory of an episode that begins: the zero state.

        Args:
            version: answers the episode.
            seed: see the class.
        """
        return cls(version, np.zeros(version.signature.memory_width, np.float32), 0, seed)

    @classmethod
    def resume(
        cls,
        version: PolicyVersion,
        state: Float32Array,
        steps: int,
        seed: int | None = None,
        *,
        has_action: bool,
    ) -> EpisodeMemory:
        """Return the memory of an episode that goes on from its record.

        Args:
            version: answers the episode.
            state: see the class.
            steps: see the class.
            seed: see the class.
            has_action: see the class.

        Raises:
            SessionConflictError: if the version has a memory of another size.
        """
        width = version.signature.memory_width
        if state.size != width:
            raise SessionConflictError(
                f"the record of this session holds {state.size} numbers of memory, the policy has "
                f"{width}; begin another session"
            )
        return cls(version, state, steps, seed, has_action)

    @property
    def step_seed(self) -> int | None:
        """Return the seed of the next step's draw; None for an independent one."""
        return None if self.seed is None else (self.seed + self.steps) % (LARGEST_SEED + 1)

    def prepare(self, question: Question, stated: StatedStep) -> None:
        """Give the episode's next question its state.

        Args:
            question: the question; a policy without memory needs no state.
            stated: what the client states of the step before.

        Raises:
            ObservationError: if the policy takes more of the step before than is known.
        """
        if not self.state.size:
            return
        previous = self.version.previous_step
        if previous.is_taken and (self.steps or stated != NOTHING_STATED):
            question.state = previous.write(self.state, stated, has_action=self.has_action)
        else:
            question.state = self.state

    def advance(self, question: Question, answer: Answer) -> None:
        """Take the state after a step, once its question is answered.

        Args:
            question: the question.
            answer: its answer.
        """
        self.steps += 1
        if answer.state is None:
            return
        # The row alone: a view would keep the arrays of the whole call.
        self.state = answer.state.copy()
        self.has_action = question.kind != "distribution"
        if self.has_action:
            actions = answer.call.outputs.actions[answer.index]
            self.version.previous_step.note_action(self.state, actions)

    def kept_in(self, record: SessionRecord) -> SessionRecord:
        """Return a session's record with this memory.

        Args:
            record: the session's, before the step.
        """
        return replace(record, state=self.state, steps=self.steps, has_action=self.has_action)


@dataclass(eq=False, slots=True)
class _WaitingStep:
    """A step that waits for those before it."""

    question: Question
    stated: StatedStep
    answer: asyncio.Future[Answer]


@dataclass(eq=False, slots=True)
class EpisodeSteps:
    """The steps of one episode in the order in which they are asked, one at a time.

    A question that fails leaves the memory as it was, and the next one is asked.

    Attributes:
        memory: what each step starts from.
    """

    memory: EpisodeMemory
    _waiting: deque[_WaitingStep] = field(default_factory=deque)
    _is_asking: bool = False

    def ask(
        self, question: Question, stated: StatedStep = NOTHING_STATED
    ) -> asyncio.Future[Answer]:
        """Ask for the answer of the next step; see `Scheduler.ask`.

        Args:
            question: the observation, and the kind of its answer; its state is set when the steps
                before it are answered.
            stated: what the client states of the step before.

        Returns:
            A future of the answer. Cancelling it takes the step out of the episode, unless it is
            answered.

        Raises:
            ObservationError: if the policy takes more of the step before than is known.
            PolicyServerError: as the scheduler raised it.
        """
        if not self._is_asking:
            return self._ask(question, stated)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_WaitingStep(question, stated, answer))
        return answer

    def _ask(self, question: Question, stated: StatedStep) -> asyncio.Future[Answer]:
        self.memory.prepare(question, stated)
        answer = self.memory.version.scheduler.ask(question)
        self._is_asking = True
        # It comes before the callback of whoever waits: the memory has stepped by then.
        answer.add_done_callback(partial(self._end, question))
        return answer

    def _end(self, question: Question, answered: asyncio.Future[Answer]) -> None:
        self._is_asking = False
        if not answered.cancelled() and answered.exception() is None:
            self.memory.advance(question, answered.result())
        while self._waiting and not self._is_asking:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                self._ask_later(waiting)

    def _ask_later(self, waiting: _WaitingStep) -> None:
        answer = waiting.answer
        try:
            asked = self._ask(waiting.question, waiting.stated)
        except Exception as error:
            answer.set_exception(error)
            return

        def hand_over(found: asyncio.Future[Answer]) -> None:
            if answer.done():
                return
            if found.cancelled():
                answer.cancel()
            elif (error := found.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(found.result())

        asked.add_done_callback(hand_over)
        answer.add_done_callback(lambda left: asked.cancel() if left.cancelled() else None)
