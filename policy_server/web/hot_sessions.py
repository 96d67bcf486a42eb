"""Hot steps of sessions: those of this process' wait for turn and answer without a coroutine.

Steps of sessions that another store keeps are made by the coroutine that ASGI's are made by. A step
goes on when its client has gone, as ASGI's does: the client may ask for its answer again.
"""

from __future__ import annotations

import asyncio
import time

from policy_server.http_server import Connection, OwnParts
from policy_server.serving import (
    NOTHING_STATED,
    Answer,
    AnsweredCall,
    PolicyVersion,
    Question,
    SessionTurn,
    StatedStep,
)
from policy_server.serving.memory import EpisodeMemory
from policy_server.serving.session_refusals import missed_turn
from policy_server.serving.session_store import SessionPlace
from policy_server.serving.sessions import Sessions
from policy_server.serving.team_sessions import TeamSessions
from policy_server.web.hot_answering import AdmittedHead, HotDecision, HotReply
from policy_server.web.media_types import is_npy
from policy_server.web.session_answering import SessionAnswering, SessionStep, step_seed

__all__ = ["HotSession", "InTurn"]


class HotSession(HotDecision):
    """The answers to all steps of a policy's sessions with one head; see `HotRoute`."""

    def __init__(self, admitted: AdmittedHead, answering: SessionAnswering) -> None:
        """Own the decision; see `HotDecision`.

        Args:
            admitted: see `HotDecision`.
            answering: answers the steps.
        """
        super().__init__(admitted)
        self.answering = answering
        self._is_npy = is_npy(self.content_type)

    def ask(self, body: bytes, connection: Connection, own: OwnParts) -> None:
        """Begin a request, and finish it now or later; see `HotRoute.ask`."""
        step = _Step(self, connection, own, body)
        if self.begin(step):
            step.read_body()

    def read(self, version: PolicyVersion, body: bytes, seed: int | None) -> Question:
        """Return the question in a body; see `PolicyAnswering.read`."""
        route = self.route
        return self.answering.policy.read(
            version, route.kind, body, is_raw=route.is_raw, is_npy=self._is_npy, seed=seed
        )


class InTurn(HotReply):
    """A request that has its session for itself from the beginning of its step to its answer."""

    _sessions: Sessions | TeamSessions
    _place: SessionPlace | None = None
    _timer: asyncio.TimerHandle | None = None
    _task: asyncio.Task[None] | None = None
    # Of the coroutine: until then its step has not begun.
    _has_turn = False

    def queue(self, sessions: Sessions | TeamSessions, session_id: str) -> None:
        """Make the step once all requests that came before have had the session.

        A store that is not this process' has an order of its own.

        Args:
            sessions: those of the policy or of the team.
            session_id: the session's name.
        """
        self._sessions = sessions
        if not sessions.is_immediate:
            self.ask_by_coroutine()
            return
        try:
            place = self._place = sessions.queue(session_id)
        except Exception as error:
            self.end(error)
            return
        if place.wait is None:
            self._go()
        else:
            place.wait.add_done_callback(self._go)
            wait_s, deadline, is_own = place.patience_s, self.own_deadline, False
            if deadline is not None:
                left_s = max(deadline - time.perf_counter(), 0.0)
                wait_s, is_own = min(wait_s, left_s), left_s < wait_s
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._miss, is_own)

    def step(self, place: SessionPlace) -> None:
        """Make the step, whose answer may come later.

        Args:
            place: has the session.

        Raises:
            PolicyServerError: if the session, its turn or the policy refuses it.
        """
        raise NotImplementedError

    async def answer(self) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Return the JSON of the answer and its headers, as ASGI does."""
        raise NotImplementedError

    def ask_by_coroutine(self) -> None:
        """Make the step as ASGI does: something has to be waited for before it begins."""
        self._leave()
        self._task = asyncio.get_running_loop().create_task(self._answer())

    def note_turn(self) -> None:
        """Note that the coroutine has the session: its step is made, with or without the client."""
        self._has_turn = True

    def disconnect(self) -> None:
        """Go on without the client, unless the step has not begun."""
        if self._is_waiting and not self.is_done:
            self.is_done = True
            self._leave()
            if self._task is not None:
                self._task.cancel()
            super().disconnect()

    def abort(self) -> None:
        """End the step, and the connection; see `HotRequest`."""
        self.share.end()
        self.stop()
        self._leave()
        if self._task is not None:
            self._task.cancel()
        super().abort()

    def stop(self) -> None:
        """Give up what has been asked, if anything was; nothing is answered any more."""
        if self.asked:
            self.give_up()
        self.is_done = True

    @property
    def _is_waiting(self) -> bool:
        if self.is_unread:
            return True
        if self._task is not None:
            return not self._has_turn
        place = self._place
        return place is not None and place.wait is not None and not place.wait.done()

    async def _answer(self) -> None:
        try:
            text, headers = await self.answer()
        except Exception as error:
            self.end(error)
        else:
            self.is_done = True
            self.succeed(text, headers)

    def _go(self, _wait: object = None) -> None:
        place = self._place
        if place is None:
            # It has been given up meanwhile.
            return
        if self._timer is not None:
            self._timer.cancel()
        try:
            self.step(place)
        except Exception as error:
            self.end(error)

    def _miss(self, is_own: bool) -> None:  # noqa: FBT001 -- timers give no names
        """End the wait: by the client's own deadline, or by the server's patience."""
        if not self._is_waiting:
            return
        assert self._place is not None, "it waits"
        if is_own:
            self.end(self._sessions.refuse_late())
        else:
            self.end(missed_turn(self._place.patience_s))

    def _leave(self) -> None:
        place, self._place = self._place, None
        if self._timer is not None:
            self._timer.cancel()
        if place is not None:
            place.leave()

    def finish(self, status: int, lines: bytes, body: bytes) -> None:
        """Let the next request have the session, and finish; see `HotReply`."""
        self._leave()
        super().finish(status, lines, body)


class _Step(InTurn):
    """One step of a policy's session."""

    # Until its body is read.
    question = Question([], "predict")
    _turn: SessionTurn[EpisodeMemory]
    _asked: SessionStep
    _digest = b""

    def __init__(
        self, session: HotSession, connection: Connection, own: OwnParts, body: bytes
    ) -> None:
        super().__init__(session, connection, own, body)
        self._session = session

    def read_body(self) -> None:
        session, own = self._session, self._own
        try:
            stated = _stated_in(own)
        except Exception as error:
            self.end(error)
            return
        self._asked = SessionStep(
            own.session_id,
            own.step,
            None,
            stated,
            session.content_type,
            self.request_id,
            self.own_deadline,
            note_turn=self.note_turn,
        )
        self.queue(session.answering.sessions, own.session_id)

    def step(self, place: SessionPlace) -> None:
        session, asked = self._session, self._asked
        route = session.route
        turn = session.answering.sessions.turn_of(place.held)
        if turn is None:
            self.ask_by_coroutine()
            return
        self._turn, self._digest = turn, asked.digest(route, self.body)
        text = turn.repeated(asked.number, self._digest)
        if text is not None:
            self.is_done = True
            self._tell(text, turn.memory.steps - 1)
            return
        memory = turn.memory
        started = time.perf_counter()
        self.question = session.read(memory.version, self.body, step_seed(route, None, turn))
        metrics = session.answering.policy.slot.metrics
        metrics.observe_stage("validate", time.perf_counter() - started)
        self.question.deadline = asked.deadline
        memory.prepare(self.question, asked.stated)
        memory.version.scheduler.put(self)

    async def answer(self) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return await self._session.answering.answer(self._session.route, self.body, self._asked)

    def take(self, call: AnsweredCall, index: int) -> None:
        memory, place = self._turn.memory, self._place
        assert place is not None, "it has the session"
        number = memory.steps
        try:
            policy = self._session.answering.policy
            memory.advance(self.question, Answer(call, index))
            text = policy.render(memory.version, self.question, call, index, self.request_id)
            place.keep(self._turn.record_after(self._digest, text))
        except Exception as error:
            self.end(error)
        else:
            self._tell(text, number)

    def _tell(self, text: bytes, number: int) -> None:
        self.succeed(text, [self._turn.memory.version.header, (b"x-step", b"%d" % number)])


def _stated_in(own: OwnParts) -> StatedStep:
    if own.previous_reward is None and own.previous_action is None:
        return NOTHING_STATED
    given = {
        "x-previous-reward": own.previous_reward,
        "x-previous-action": own.previous_action,
    }
    return StatedStep.of({name: text for name, text in given.items() if text is not None})
