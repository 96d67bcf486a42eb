"""The steps of a team's session over HTTP: each agent that is there makes the next step."""

from __future__ import annotations

from policy_server.observations import parse_agents
from policy_server.serving import SessionTurn
from policy_server.serving.team_sessions import TeamSessions
from policy_server.serving.team_steps import TeamMemory
from policy_server.web.route_table import AnswerRoute
from policy_server.web.session_answering import SessionStep, digest_of
from policy_server.web.team_answering import (
    StepRequest,
    TeamAnswering,
    TeamStep,
    version_headers,
)

__all__ = ["TeamSessionAnswering"]


class TeamSessionAnswering:
    """The answers of a team to the steps of its sessions.

    Attributes:
        sessions: the team's.
    """

    def __init__(self, team: TeamAnswering, sessions: TeamSessions) -> None:
        """Own nothing: the sessions are the store's.

        Args:
            team: answers the team's steps.
            sessions: the team's.
        """
        self._team = team
        self.sessions = sessions

    async def answer(
        self, route: AnswerRoute, body: bytes, step: SessionStep
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Answer the observations in a request's body by a step of its session.

        Args:
            route: the route that is asked.
            body: the JSON of the observations by agent.
            step: the request.

        Returns:
            The JSON of the answers by agent, and the headers that tell of them.

        Raises:
            PolicyServerError: as the session, its turn and the policies raise it.
        """
        async with self.sessions.turn(step.session_id, deadline=step.deadline) as turn:
            step.note_turn()

            async def make() -> bytes:
                return await self.next_step(route, body, step, turn).fetch()

            text, number = await turn.answer(step.number, self.digest(route, body, step), make)
        return text, self.headers(turn, number)

    def digest(self, route: AnswerRoute, body: bytes, step: SessionStep) -> bytes:
        """Return the digest of a request; see `digest_of`."""
        return digest_of([route.kind, route.form, step.seed], body)

    def next_step(
        self, route: AnswerRoute, body: bytes, step: SessionStep, turn: SessionTurn[TeamMemory]
    ) -> TeamStep:
        """Return the next step of a session, which is not asked for yet.

        Args:
            route: the route that is asked.
            body: the JSON of the observations by agent.
            step: the request.
            turn: the session's.

        Raises:
            PolicyServerError: as `TeamAnswering.step` raises it.
        """
        memory, seed = turn.memory, step.seed
        if seed is None and route.kind == "predict":
            seed = memory.step_seed
        asked = StepRequest(route, seed=seed, request_id=step.request_id, deadline=step.deadline)
        made = self._team.step(parse_agents(body), asked, versions=memory.versions, memory=memory)
        step.charge(made.agents - 1)
        return made

    def headers(self, turn: SessionTurn[TeamMemory], number: int) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell of an answer.

        Args:
            turn: the session's.
            number: of the step.
        """
        versions = version_headers(turn.memory.versions, has_memory=True)
        return [*versions, (b"x-step", b"%d" % number)]
