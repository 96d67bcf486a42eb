"""The memory of an episode: the state that a recurrent policy keeps between two steps."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from policy_server.errors import PolicyFailedError, PolicyServerError, SessionConflictError
from policy_server.policy import LARGEST_SEED, Float32Array
from policy_server.serving.previous_step import NOTHING_STATED, StatedStep
from policy_server.serving.questions import Answer, AnsweredCall, Question, Waiting
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
            ObservationError: if the policy takes more of the step before than is known, or what is
                stated is no action or reward.
        """
        previous = self.version.previous_step
        if stated is not NOTHING_STATED:
            previous.check(stated)
        if not self.state.size:
            return
        if previous.is_taken and (self.steps or stated != NOTHING_STATED):
            question.state = previous.write(self.state, stated, has_action=self.has_action)
        else:
            question.state = self.state

    def advance(self, question: Question, answer: Answer) -> None:
        """Take the state after a step, once its question is answered.

        Args:
            question: the question.
            answer: its answer.

        Raises:
            PolicyFailedError: if the state has a NaN or an infinity; the memory is as it was.
        """
        if answer.state is not None and not np.isfinite(answer.state).all():
            # No later step would recover from it, and no token may carry it.
            raise PolicyFailedError(
                "the policy's memory is no longer finite after this step, so the step is not made"
            )
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


class _Step(Waiting):
    """A step of an episode: the memory has moved before its answer is handed over."""

    def __init__(self, asked: Waiting, stated: StatedStep, steps: EpisodeSteps) -> None:
        super().__init__(asked.question)
        self.stated = stated
        self._asked = asked
        self._steps = steps

    def take(self, call: AnsweredCall, index: int) -> None:
        try:
            self._steps.memory.advance(self.question, Answer(call, index))
        except PolicyServerError as error:
            self._asked.take_error(error)
        else:
            self._asked.take(call, index)
        self._steps.go_on(self)

    def take_error(self, error: PolicyServerError) -> None:
        self._asked.take_error(error)
        self._steps.go_on(self)

    def give_up(self) -> None:
        super().give_up()
        self._steps.go_on(self)

    def abort(self) -> None:
        self._steps.go_on(self)
        self._asked.abort()


@dataclass(eq=False, slots=True)
class EpisodeSteps:
    """The steps of one episode in the order in which they are asked, one at a time.

    A question that fails leaves the memory as it was, and the next one is asked.

    Attributes:
        memory: what each step starts from.
        asked: the step that the scheduler has been asked for; None while there is none.
    """

    memory: EpisodeMemory
    asked: _Step | None = None
    _waiting: deque[_Step] = field(default_factory=deque)
    # Holds the scheduler open while steps wait: their version may be unloaded meanwhile.
    _hold: ExitStack = field(default_factory=ExitStack)

    def ask(self, asked: Waiting, stated: StatedStep = NOTHING_STATED) -> Waiting:
        """Ask for the answer of the next step; see `Scheduler.put`.

        Args:
            asked: takes the answer or the error. The state of its question is set when the steps
                before it are answered.
            stated: what the client states of the step before.

        Returns:
            The step, which can be given up unless it is answered.

        Raises:
            ObservationError: if the policy takes more of the step before than is known.
            NotReadyError: if the version is being unloaded.
            PolicyServerError: as the scheduler raised it.
        """
        step = _Step(asked, stated, self)
        scheduler = self.memory.version.scheduler
        if self.asked is None:
            self._ask(step)
            return step
        # Steps that come now would keep a version that is unloaded for as long as they come.
        scheduler.check_open()
        if not self._waiting:
            self._hold.enter_context(scheduler.held())
        self._waiting.append(step)
        return step

    def go_on(self, ended: _Step) -> None:
        """Ask for the next step, if the one that was asked for has ended.

        Args:
            ended: a step that is answered, has failed or was given up.
        """
        if ended is not self.asked:
            return
        self.asked = None
        if not self._waiting:
            return
        while self._waiting and self.asked is None:
            step = self._waiting.popleft()
            if step.is_done:
                continue
            try:
                self._ask(step, was_accepted=True)
            except Exception as error:
                step.fail(PolicyFailedError.of(error))
        if not self._waiting:
            self._hold.close()

    def _ask(self, step: _Step, *, was_accepted: bool = False) -> None:
        self.memory.prepare(step.question, step.stated)
        self.memory.version.scheduler.put(step, was_accepted=was_accepted)
        self.asked = step
