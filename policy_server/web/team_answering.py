"""A team's step over HTTP: an observation by agent comes in, an answer by agent goes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from policy_server.client_limits import Charge, charge_nobody
from policy_server.errors import (
    BodyTooLargeError,
    ObservationError,
    PolicyServerError,
    UnsupportedEncodingError,
)
from policy_server.observations import parse_agents
from policy_server.serving import NOTHING_STATED, Answer
from policy_server.serving.team import Team, TeamVersions, agent_seed, naming_agent
from policy_server.serving.team_steps import AgentQuestion, AskedTeam, TeamMemory, refuse_crowds
from policy_server.settings import ENV_PREFIX, Settings
from policy_server.web.answering import PolicyAnswering, render_answer
from policy_server.web.frames import split_values
from policy_server.web.media_types import is_npy
from policy_server.web.pending import Pending
from policy_server.web.route_table import AnswerRoute

__all__ = ["StepRequest", "TeamAnswering", "TeamStep", "refuse_array", "version_headers"]

# As many mistakes as one observation's answer names.
_MOST_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class StepRequest:
    """A request for a step of a team, but for the observations.

    Attributes:
        route: the route that is asked: the kind of answer, and whether observations are raw.
        content_type: of the body that they are in.
        seed: makes the draws reproducible; see `agent_seed`.
        request_id: the name of the request in the logs.
        episode: of a step by itself, the id of its episode, which stays on one version of each
            policy.
        wanted: of a step by itself, the versions that are asked for; see `Team.wanted_versions`.
        deadline: the client's own, by `time.perf_counter`; None for none.
    """

    route: AnswerRoute
    content_type: str = ""
    seed: int | None = None
    request_id: str = ""
    episode: str = ""
    wanted: str = ""
    deadline: float | None = None


class TeamAnswering:
    """The answers of a team's policies."""

    def __init__(
        self, team: Team, policies: Mapping[str, PolicyAnswering], settings: Settings
    ) -> None:
        """Own nothing: each answer is a version's of a policy.

        Args:
            team: the policies of the agents.
            policies: answer observations, by the policies' names.
            settings: the most agents in a step, and observations in the queue of a policy.
        """
        self.team = team
        self._policies = policies
        self._max_agents = settings.max_agents
        self._max_queue_size = settings.max_queue_size

    async def answer(
        self, body: bytes, asked: StepRequest, *, charge: Charge = charge_nobody
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Answer a step that belongs to no episode, each agent from the zero state.

        Args:
            body: the JSON of the agents' observations.
            asked: the request.
            charge: counts the agents behind the first.

        Returns:
            The JSON of the answers by agent, and the headers that tell of them.

        Raises:
            UnsupportedEncodingError: if the body is an array.
            PolicyServerError: as `step` and `TeamStep.fetch` raise it.
        """
        step, versions = self.lone_step(body, asked)
        charge(step.agents - 1)
        return await step.fetch(), version_headers(versions, has_memory=False)

    def lone_step(self, body: bytes, asked: StepRequest) -> tuple[TeamStep, TeamVersions]:
        """Return a step that belongs to no episode, which is not asked for yet; see `answer`.

        Returns:
            The step, and the versions that answer it.
        """
        refuse_array(asked.content_type)
        versions = TeamVersions(asked.episode, self.team.wanted_versions(asked.wanted))
        return self.step(parse_agents(body), asked, versions=versions), versions

    def step(
        self,
        observations: Mapping[str, Any],
        asked: StepRequest,
        *,
        versions: TeamVersions,
        memory: TeamMemory | None = None,
    ) -> TeamStep:
        """Return the next step of a team, which is not asked for yet.

        Args:
            observations: the values of each agent's observation, by its id: named or raw; raw for a
                policy that takes no others. With a memory they may stand beside what is stated of
                the step before.
            asked: the request.
            versions: answer the agents, one of each policy.
            memory: the memories of the episode, which the step advances; None for the zero states.

        Raises:
            BodyTooLargeError: if there are too many agents, or more of one policy than its queue
                holds when it is empty.
            ObservationError: naming the agents that are none of the team's, or whose observation is
                not what schema.yaml describes.
            PolicyServerError: if the policy of an agent can't answer.
        """
        if len(observations) > self._max_agents:
            raise BodyTooLargeError(
                f"the team has {len(observations)} agents; at most {self._max_agents} are taken "
                f"({ENV_PREFIX}MAX_AGENTS)"
            )
        questions, problems = [], []
        for agent, values in observations.items():
            try:
                questions.append(
                    self._question(agent, values, asked, versions, has_memory=memory is not None)
                )
            except ObservationError as error:
                problems += error.problems
                if len(problems) >= _MOST_PROBLEMS:
                    break
        if problems:
            raise ObservationError(problems[:_MOST_PROBLEMS])
        refuse_crowds(questions, most=self._max_queue_size)
        for item in questions:
            item.question.deadline = asked.deadline
        return TeamStep(questions, memory, most=self._max_agents, request_id=asked.request_id)

    def _question(
        self,
        agent: str,
        values: Any,  # noqa: ANN401 -- what the client sent
        asked: StepRequest,
        versions: TeamVersions,
        *,
        has_memory: bool,
    ) -> AgentQuestion:
        slot = self.team.slot_of(agent)
        is_flat = asked.route.is_raw or slot.schema.observations is None
        stated = NOTHING_STATED
        try:
            version = versions.of(slot)
            if has_memory and version.previous_step.is_taken:
                values, stated = split_values(values)
            question = self._policies[slot.name].question(
                asked.route.kind,
                lambda space: space.parse_values(values, is_raw=is_flat),
                is_raw=is_flat,
                seed=None if asked.seed is None else agent_seed(asked.seed, agent),
                version=version,
            )
        except PolicyServerError as error:
            raise naming_agent(error, agent) from error
        return AgentQuestion(agent, slot, version, question, stated)


def refuse_array(content_type: str) -> None:
    """Refuse the body of a team's step that is an array.

    Args:
        content_type: of the body.

    Raises:
        UnsupportedEncodingError: if it is.
    """
    if is_npy(content_type):
        raise UnsupportedEncodingError("an array is one observation; send a team's as JSON")


def version_headers(versions: TeamVersions, *, has_memory: bool) -> list[tuple[bytes, bytes]]:
    """Return the headers that tell the versions of an answer, and whether it lacks a memory.

    Args:
        versions: those of the step or the episode.
        has_memory: whether memories belong to the answer.
    """
    names = [f"{policy}={name.label}" for policy, name in versions.names.items()]
    headers = [(b"x-policy-version", ", ".join(names).encode())] if names else []
    if not has_memory:
        lacking = (item.lone_headers[1:] for item in versions.chosen.values())
        headers += dict.fromkeys(header for found in lacking for header in found)
    return headers


class TeamStep(Pending):
    """One step of a team: all of its agents are answered, or none is."""

    def __init__(
        self,
        questions: list[AgentQuestion],
        memory: TeamMemory | None,
        *,
        most: int,
        request_id: str,
    ) -> None:
        """Own the questions until they are answered.

        Args:
            questions: one of each agent.
            memory: see `TeamAnswering.step`.
            most: how many agents may have a memory.
            request_id: the name of the request in the logs.
        """
        self._questions = questions
        self._memory = memory
        self._most = most
        self._request_id = request_id
        self._asked: AskedTeam | None = None

    @property
    def agents(self) -> int:
        """Return how many agents are answered."""
        return len(self._questions)

    @property
    def has_memory(self) -> bool:
        """Return whether an agent's answer depends on the steps before."""
        return any(item.version.signature.memory for item in self._questions)

    def ask(self) -> AskedTeam:
        """Ask for the answers before somebody waits for them.

        Raises:
            PolicyServerError: if the policy of an agent takes no question now; none is asked then.
        """
        if self._memory is not None:
            self._memory.prepare(self._questions, most=self._most)
        self._asked = AskedTeam(self._questions)
        self._asked.ask()
        return self._asked

    def wait(self, then: Callable[[], None]) -> bool:
        """Ask for the answers; see `Pending.wait`."""
        return (self._asked or self.ask()).tell(then)

    def finish(self) -> bytes:
        """Return the JSON of the answers by agent, in the order of the observations.

        The memories have made a step then; with an error they have not.

        Raises:
            PolicyServerError: if the policy of an agent can't answer, naming it.
        """
        assert self._asked is not None, "it was asked"
        answers = self._asked.outcome
        assert answers is not None, "it is finished when all answers are there"
        if isinstance(answers, Exception):
            raise answers
        texts = [self._render(*pair) for pair in zip(self._questions, answers, strict=True)]
        if self._memory is not None:
            self._memory.advance(self._questions, answers)
        for item, answer, text in zip(self._questions, answers, texts, strict=True):
            question = item.question
            item.slot.copy_to_shadows(item.version, question, answer)
            item.version.log.record(question.kind, question.row, text, request_id=self._request_id)
        parts = (
            orjson.dumps(item.agent) + b":" + text
            for item, text in zip(self._questions, texts, strict=True)
        )
        return b"{" + b",".join(parts) + b"}"

    def abandon(self) -> None:
        """Take the questions out of the queue; see `Pending.abandon`."""
        if self._asked is not None:
            self._asked.abandon()

    @staticmethod
    def _render(item: AgentQuestion, answer: Answer) -> bytes:
        try:
            return render_answer(item.version, item.question.kind, answer)
        except PolicyServerError as error:
            raise naming_agent(error, item.agent) from error
