"""The steps of a team: each agent's observation is a question of its own, asked with the others.

The questions of one policy are asked in one turn of the event loop, so that they ride in one call
of it, beside those of other requests. All of them are answered, or the step is not made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from policy_server.errors import BodyTooLargeError, PolicyServerError, SessionConflictError
from policy_server.policy import LARGEST_SEED
from policy_server.serving.memory import EpisodeMemory
from policy_server.serving.previous_step import StatedStep
from policy_server.serving.questions import Answer, AnsweredCall, Question, Waiting
from policy_server.serving.session_store import SessionRecord
from policy_server.serving.slot import PolicySlot
from policy_server.serving.team import TeamVersions, naming_agent
from policy_server.serving.team_record import AgentRecord, TeamRecord
from policy_server.serving.version import PolicyVersion
from policy_server.settings import ENV_PREFIX

__all__ = ["AgentQuestion", "AskedTeam", "TeamMemory", "refuse_crowds"]


@dataclass(eq=False, slots=True)
class AgentQuestion:
    """The question of one agent in a team's step.

    Attributes:
        agent: its id.
        slot: the slot of its policy.
        version: answers it.
        question: the question.
        stated: the statements of its step before.
        memory: the memory of its episode; None for the zero state.
    """

    agent: str
    slot: PolicySlot
    version: PolicyVersion
    question: Question
    stated: StatedStep
    memory: EpisodeMemory | None = None


@dataclass(eq=False, slots=True)
class TeamMemory:
    """The memories of the agents of one episode, which each answered step advances together.

    An agent that is not in a step keeps its memory; one that is there for the first time begins
    with the zero state.

    Attributes:
        versions: answer the episode from its beginning to its end.
        agents: the memories by agent; those of policies without memory have none.
        steps: how many steps of the team have been answered.
        seed: the seed of the first step, step i having seed + i; None for independent draws.
    """

    versions: TeamVersions
    agents: Mapping[str, AgentRecord] = field(default_factory=dict)
    steps: int = 0
    seed: int | None = None

    @property
    def step_seed(self) -> int | None:
        """Return the seed of the next step; None for independent draws."""
        return None if self.seed is None else (self.seed + self.steps) % (LARGEST_SEED + 1)

    def prepare(self, questions: Sequence[AgentQuestion], *, most: int) -> None:
        """Give the questions of the next step their states.

        Args:
            questions: the questions.
            most: how many agents may have a memory.

        Raises:
            ObservationError: if a policy takes more of the step before than is known.
            SessionConflictError: if more agents would have a memory.
        """
        recurrent = [item for item in questions if item.version.signature.memory]
        if len(self.agents.keys() | {item.agent for item in recurrent}) > most:
            raise SessionConflictError(
                f"this episode keeps the memories of {len(self.agents)} agents already, of at most "
                f"{most} ({ENV_PREFIX}MAX_AGENTS); reset those that have left"
            )
        for item in recurrent:
            item.memory = memory = self._memory_of(item)
            try:
                memory.prepare(item.question, item.stated)
            except PolicyServerError as error:
                raise naming_agent(error, item.agent) from error

    def advance(self, questions: Sequence[AgentQuestion], answers: Sequence[Answer]) -> None:
        """Take the states after a step, once all its questions are answered.

        Args:
            questions: the questions, as `prepare` left them.
            answers: their answers.

        Raises:
            PolicyFailedError: if an agent's state has a NaN or an infinity; the memories are as
                they were.
        """
        changed = {}
        for item, answer in zip(questions, answers, strict=True):
            memory = item.memory
            if memory is not None:
                try:
                    memory.advance(item.question, answer)
                except PolicyServerError as error:
                    raise naming_agent(error, item.agent) from error
                changed[item.agent] = AgentRecord(
                    item.slot.name, memory.state, memory.steps, memory.has_action
                )
        self.agents = {**self.agents, **changed}
        self.steps += 1

    def forget(self, agents: Iterable[str]) -> None:
        """Forget the memories of agents, which then begin with the zero state again.

        Args:
            agents: their ids; those without a memory are passed over.
        """
        left: Collection[str] = frozenset(agents)
        self.agents = {name: kept for name, kept in self.agents.items() if name not in left}

    def kept_in(self, record: SessionRecord) -> SessionRecord:
        """Return a session's record with these memories.

        Args:
            record: the session's, before the step.
        """
        return replace(record, steps=self.steps, team=TeamRecord(self.versions.names, self.agents))

    def _memory_of(self, item: AgentQuestion) -> EpisodeMemory:
        kept = self.agents.get(item.agent)
        if kept is None:
            return EpisodeMemory.begin(item.version)
        if kept.policy != item.slot.name:
            raise SessionConflictError(
                f"agent {item.agent!r} began this episode with the policy {kept.policy}, and has "
                f"{item.slot.name} now; reset it"
            )
        return EpisodeMemory.resume(
            item.version, kept.state, kept.steps, has_action=kept.has_action
        )


class AskedTeam:
    """The questions of a team's step, which are asked together: all are answered, or none is.

    Attributes:
        outcome: the answers in the order of the questions, or the error of the first agent in it
            that has one; None before.
    """

    def __init__(self, questions: Sequence[AgentQuestion]) -> None:
        """Own the questions until they are answered, and ask none yet.

        Args:
            questions: one of each agent.
        """
        self.outcome: list[Answer] | Exception | None = None
        self._waiting = [_AgentWaiting(item, self) for item in questions]
        self._then: Callable[[], None] | None = None
        self._answered = 0

    def ask(self) -> None:
        """Ask for all answers, which come later.

        Raises:
            PolicyServerError: as a scheduler raised it, naming the agent; none is asked then.
        """
        for number, waiting in enumerate(self._waiting):
            try:
                waiting.agent.version.scheduler.put(waiting)
            except PolicyServerError as error:
                # The others are still in the queue, and are taken out of it.
                del self._waiting[number:]
                self.abandon()
                raise naming_agent(error, waiting.agent.agent) from error
        if not self._waiting:
            self._end([])

    def tell(self, then: Callable[[], None]) -> bool:
        """Return whether the outcome is there; if not, call a function once when it is.

        Args:
            then: the function; it raises nothing.
        """
        self._then = then
        return self.outcome is not None

    def abandon(self) -> None:
        """Take the questions out of the queue: their answers are not wanted any more."""
        for waiting in self._waiting:
            waiting.give_up()

    def go_on(self) -> None:
        """Look at the answers in their order, as far as they have come."""
        while self._answered < len(self._waiting):
            waiting = self._waiting[self._answered]
            if waiting.error is not None:
                self.abandon()
                self._end(naming_agent(waiting.error, waiting.agent.agent))
                return
            if waiting.answer is None:
                return
            self._answered += 1
        self._end([item.answer for item in self._waiting if item.answer is not None])

    def _end(self, outcome: list[Answer] | Exception) -> None:
        if self.outcome is not None:
            return
        self.outcome = outcome
        if self._then is not None:
            self._then()


class _AgentWaiting(Waiting):
    """The question of one agent, which tells its team's step of its answer."""

    def __init__(self, agent: AgentQuestion, asked: AskedTeam) -> None:
        super().__init__(agent.question)
        self.agent = agent
        self.answer: Answer | None = None
        self.error: PolicyServerError | None = None
        self._asked = asked

    def take(self, call: AnsweredCall, index: int) -> None:
        self.answer = Answer(call, index)
        self._asked.go_on()

    def take_error(self, error: PolicyServerError) -> None:
        self.error = error
        self._asked.go_on()


def refuse_crowds(questions: Sequence[AgentQuestion], *, most: int) -> None:
    """Refuse a step that the queue of a policy never has room for: trying again is no help.

    Args:
        questions: those of the step.
        most: how many observations the queue of a policy holds.

    Raises:
        BodyTooLargeError: if one policy has more agents.
    """
    if len(questions) <= most:
        return
    for policy, agents in Counter(item.slot.name for item in questions).items():
        if agents > most:
            raise BodyTooLargeError(
                f"the team has {agents} agents of the policy {policy}; its queue holds at most "
                f"{most} ({ENV_PREFIX}MAX_QUEUE_SIZE)"
            )
