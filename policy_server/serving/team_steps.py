"""The steps of a team: each agent's observation is a question of its own, asked with the others.

The questions of one policy are asked in one turn of the event loop, so that they ride in one call
of it, beside those of other requests. All of them are answered, or the step is not made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from policy_server.errors import PolicyServerError, SessionConflictError
from policy_server.policy import LARGEST_SEED
from policy_server.serving.memory import EpisodeMemory
from policy_server.serving.previous_step import StatedStep
from policy_server.serving.questions import Answer, Question
from policy_server.serving.session_store import SessionRecord
from policy_server.serving.slot import PolicySlot
from policy_server.serving.team import TeamVersions, naming_agent
from policy_server.serving.team_record import AgentRecord, TeamRecord
from policy_server.serving.version import PolicyVersion
from policy_server.settings import ENV_PREFIX

__all__ = ["AgentQuestion", "TeamMemory", "abandon", "answers_of", "ask_team"]


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
        """
        changed = {}
        for item, answer in zip(questions, answers, strict=True):
            memory = item.memory
            if memory is not None:
                memory.advance(item.question, answer)
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


def ask_team(questions: Sequence[AgentQuestion]) -> list[asyncio.Future[Answer]]:
    """Ask for the answers of all agents, which come later; all are asked, or none is.

    Args:
        questions: the questions.

    Returns:
        A future of each answer; see `Scheduler.ask`.

    Raises:
        PolicyServerError: as the scheduler raised it, naming the agent.
    """
    asked: list[asyncio.Future[Answer]] = []
    for item in questions:
        try:
            asked.append(item.version.scheduler.ask(item.question))
        except PolicyServerError as error:
            # They are still in the queue, and are taken out of it.
            abandon(asked)
            raise naming_agent(error, item.agent) from error
    return asked


async def answers_of(
    questions: Sequence[AgentQuestion], asked: Sequence[asyncio.Future[Answer]]
) -> list[Answer]:
    """Wait for the answers of all agents; a cancelled wait takes the questions out of the queue.

    Args:
        questions: the questions.
        asked: as `ask_team` returned them.

    Raises:
        PolicyServerError: if the policy of an agent can't answer, naming the agent.
    """
    answers = []
    try:
        for item, future in zip(questions, asked, strict=True):
            try:
                answers.append(await future)
            except PolicyServerError as error:
                raise naming_agent(error, item.agent) from error
    finally:
        if len(answers) < len(asked):
            abandon(asked)
    return answers


def abandon(asked: Iterable[asyncio.Future[Answer]]) -> None:
    """Take questions out of the queue: their answers are not wanted any more.

    Args:
        asked: as `ask_team` returned them.
    """
    for future in asked:
        if not future.cancel() and not future.cancelled():
            # asyncio reports an error that no code has looked at.
            future.exception()
