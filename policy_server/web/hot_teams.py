"""Hot steps of teams, by themselves or in a session, without a coroutine."""

from __future__ import annotations

from policy_server.http_server import Connection, OwnParts
from policy_server.serving import NOTHING_STATED, Question, SessionTurn
from policy_server.serving.session_store import SessionPlace
from policy_server.serving.team import TeamVersions
from policy_server.serving.team_steps import TeamMemory
from policy_server.web.hot_answering import AdmittedHead, HotDecision, HotReply
from policy_server.web.hot_sessions import InTurn
from policy_server.web.session_answering import SessionStep
from policy_server.web.team_answering import (
    StepRequest,
    TeamAnswering,
    TeamStep,
    version_headers,
)
from policy_server.web.team_session_answering import TeamSessionAnswering

__all__ = ["HotTeam", "HotTeamSession"]

# Each agent has a question of its own.
_NO_QUESTION = Question([], "predict")


class HotTeam(HotDecision):
    """The answers to all steps of a team that belong to no episode; see `HotRoute`."""

    def __init__(self, admitted: AdmittedHead, team: TeamAnswering) -> None:
        """Own the decision; see `HotDecision`.

        Args:
            admitted: see `HotDecision`.
            team: answers.
        """
        super().__init__(admitted)
        self._team = team

    def ask(self, body: bytes, connection: Connection, own: OwnParts) -> None:
        """Begin a request, and finish it now or later; see `HotRoute.ask`."""
        request = _TeamRequest(self, connection, own, body)
        if self.begin(request):
            request.read_body()

    def step(
        self, body: bytes, request_id: str, deadline: float | None
    ) -> tuple[TeamStep, TeamVersions]:
        """Return the step in a body; see `TeamAnswering.lone_step`."""
        step = StepRequest(
            self.route,
            content_type=self.content_type,
            request_id=request_id,
            episode=self.episode,
            wanted=self.wanted,
            deadline=deadline,
        )
        return self._team.lone_step(body, step)


class _TeamRequest(HotReply):
    """One step of a team, from its body to its answer."""

    question = _NO_QUESTION
    _decision: HotTeam
    # None where the request is refused before its step.
    _step: TeamStep | None = None
    _versions: TeamVersions

    def read_body(self) -> None:
        try:
            step, versions = self._decision.step(self.body, self.request_id, self.own_deadline)
            self._step, self._versions = step, versions
            self.charge(step.agents - 1)
            if step.wait(self._answered):
                self._answered()
        except Exception as error:
            self.end(error)

    def give_up(self) -> None:
        self.is_done = True
        if self._step is not None:
            self._step.abandon()

    def _answered(self) -> None:
        if self.is_done or self._step is None:
            return
        self.is_done = True
        try:
            text = self._step.finish()
        except Exception as error:
            self.end(error)
        else:
            self.succeed(text, version_headers(self._versions, has_memory=False))


class HotTeamSession(HotDecision):
    """The answers to all steps of a team's sessions with one head; see `HotRoute`."""

    def __init__(self, admitted: AdmittedHead, answering: TeamSessionAnswering) -> None:
        """Own the decision; see `HotDecision`.

        Args:
            admitted: see `HotDecision`.
            answering: answers the steps.
        """
        super().__init__(admitted)
        self.answering = answering

    def ask(self, body: bytes, connection: Connection, own: OwnParts) -> None:
        """Begin a request, and finish it now or later; see `HotRoute.ask`."""
        step = _Step(self, connection, own, body)
        if self.begin(step):
            step.read_body()


class _Step(InTurn):
    """One step of a team's session."""

    question = _NO_QUESTION
    _turn: SessionTurn[TeamMemory]
    _step: TeamStep | None = None
    _digest = b""

    def __init__(
        self, session: HotTeamSession, connection: Connection, own: OwnParts, body: bytes
    ) -> None:
        super().__init__(session, connection, own, body)
        self._session = session
        self._asked = SessionStep(
            own.session_id,
            own.step,
            None,
            NOTHING_STATED,
            session.content_type,
            self.request_id,
            self.own_deadline,
            self.charge,
            self.note_turn,
        )

    def read_body(self) -> None:
        self.queue(self._session.answering.sessions, self._own.session_id)

    def step(self, place: SessionPlace) -> None:
        session, asked, body = self._session, self._asked, self.body
        answering, route = session.answering, session.route
        turn = answering.sessions.turn_of(place.held)
        if turn is None:
            self.ask_by_coroutine()
            return
        self._turn, self._digest = turn, answering.digest(route, body, asked)
        text = turn.repeated(asked.number, self._digest)
        if text is not None:
            self._tell(text, turn.memory.steps - 1)
            return
        self._step = answering.next_step(route, body, asked, turn)
        if self._step.wait(self._answered):
            self._answered()

    async def answer(self) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return await self._session.answering.answer(self._session.route, self.body, self._asked)

    def stop(self) -> None:
        self.is_done = True
        if self._step is not None:
            self._step.abandon()

    def _answered(self) -> None:
        if self.is_done:
            return
        place, number = self._place, self._turn.memory.steps
        assert place is not None, "it has the session"
        assert self._step is not None, "it was asked"
        try:
            text = self._step.finish()
            place.keep(self._turn.record_after(self._digest, text))
        except Exception as error:
            self.end(error)
        else:
            self._tell(text, number)

    def _tell(self, text: bytes, number: int) -> None:
        self.is_done = True
        self.succeed(text, self._session.answering.headers(self._turn, number))
