"""A stream of a team: a frame has an observation for each agent, and is answered by agent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

import orjson
from starlette.types import Message

from policy_server.errors import ObservationError
from policy_server.observations import check_agents, problem
from policy_server.serving.team import TeamVersions
from policy_server.serving.team_steps import TeamMemory
from policy_server.web.frame_questions import FrameQuestion, FrameSeeds
from policy_server.web.frame_timing import timing_in
from policy_server.web.frames import parse_team_frame, reset_in
from policy_server.web.pending import Pending
from policy_server.web.problems import describe_error
from policy_server.web.route_table import AnswerRoute
from policy_server.web.team_answering import StepRequest, TeamAnswering

__all__ = ["TeamQuestions"]

_RESET = "reset"


class TeamQuestions:
    """Turns a connection's frames into the steps of a team.

    Attributes:
        request_id: the name of the connection in the logs.
        asked: how many frames there were that are no reset.
    """

    def __init__(
        self,
        answering: TeamAnswering,
        route: AnswerRoute,
        *,
        first_seed: int | None,
        request_id: str,
        episode: str,
        wanted: str,
        max_frame_bytes: int,
    ) -> None:
        """Own the memories of the connection's episode.

        Args:
            answering: answers the team's steps.
            route: the stream's.
            first_seed: frame i, from 0, is drawn with this plus i; None for independent draws.
            request_id: the name of the connection in the logs.
            episode: the id of the episode, which may choose its versions; empty for none.
            wanted: the versions that are asked for; see `Team.wanted_versions`.
            max_frame_bytes: the largest frame.

        Raises:
            DeploymentError: if the versions are not of that form.
        """
        self._answering = answering
        self._route = route
        self._seeds = FrameSeeds(route.kind, first_seed)
        self._max_frame_bytes = max_frame_bytes
        self._episode = episode
        self._wanted = answering.team.wanted_versions(wanted)
        self._memory = self._begin()
        self.request_id = request_id
        self.asked = 0

    def ask(self, message: Message) -> FrameQuestion:
        """Start to answer a frame; see `FrameQuestions.ask`."""
        received = time.perf_counter()
        is_text = message.get("text") is not None
        answer: Pending | bytes | tuple[int, object]
        is_reset, observations = False, 1
        try:
            values = parse_team_frame(message, max_bytes=self._max_frame_bytes)
            values, timing = timing_in(values)
            if timing.stamp is not None:
                _refuse_stamp()
            reset = self._reset(check_agents(values))
            is_reset = reset is not None
            if reset is None:
                answer, observations = self._step(values, timing.deadline(received)), len(values)
            else:
                answer = reset
        except Exception as error:
            answer = self.failure(error)
        self.asked += not is_reset
        return FrameQuestion(is_text, received, answer, observations=observations)

    def end_episode(self) -> None:
        """Forget the memories, and the versions that answer the episode."""
        for policy, version in self._memory.versions.chosen.items():
            self._answering.team.slots[policy].count_stream(version, -1)
        self._memory = self._begin()

    def failure(self, error: Exception) -> tuple[int, object]:
        """Return the status and the detail of the error about a frame."""
        status, detail, _ = describe_error(error, request_id=self.request_id)
        return status, detail

    def _begin(self) -> TeamMemory:
        return TeamMemory(TeamVersions(self._episode, self._wanted))

    def _reset(self, values: dict[str, Any]) -> Pending | bytes | None:
        """Return the answer to a frame that begins another episode, of all or of some agents."""
        reset = reset_in(values)
        if reset is not None:
            self.end_episode()
            self._seeds.begin(self.asked, reset.seed)
            return reset.answer
        agents = values[_RESET] if values.keys() == {_RESET} else None
        if not isinstance(agents, list):
            return None
        for number, agent in enumerate(agents):
            if not isinstance(agent, str):
                message = "Input should be an agent's id"
                raise ObservationError([problem("string_type", ["body", _RESET, number], message)])
            self._answering.team.slot_of(agent)
        return _AgentsReset(self._memory, agents)

    def _step(self, values: dict[str, Any], deadline: float | None) -> Pending:
        # A policy without memory may change its version from frame to frame.
        pinned = self._memory.versions.chosen
        versions = TeamVersions(self._episode, self._wanted, chosen=dict(pinned))
        asked = StepRequest(
            self._route,
            seed=self._seeds.of(self.asked),
            request_id=self.request_id,
            deadline=deadline,
        )
        step = self._answering.step(values, asked, versions=versions, memory=self._memory)
        for policy, version in versions.chosen.items():
            if version.signature.memory and policy not in pinned:
                pinned[policy] = version
                self._answering.team.slots[policy].count_stream(version, 1)
        if not step.has_memory:
            # It waits for no step before it, so that many frames ride in one call.
            step.ask()
        return step


def _refuse_stamp() -> NoReturn:
    message = "The answer has a key for each agent and none for a stamp; leave it out"
    raise ObservationError([problem("not_allowed", ["body", "stamp"], message)])


class _AgentsReset(Pending):
    """A reset of some agents, which waits for the answers to the frames before it."""

    def __init__(self, memory: TeamMemory, agents: list[str]) -> None:
        self._memory = memory
        self._agents = agents

    def wait(self, then: Callable[[], None]) -> bool:  # noqa: ARG002 -- it is there
        return True

    def finish(self) -> bytes:
        self._memory.forget(self._agents)
        return orjson.dumps({_RESET: self._agents})

    def abandon(self) -> None:
        """Leave nothing in a queue."""
