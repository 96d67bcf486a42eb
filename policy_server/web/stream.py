"""Web sockets: one observation a frame, its answer back in order, many in flight.

Reading goes on while earlier frames are answered, so that waiting frames share the policy's next
call. The answers that a client has not fetched are bounded: beyond that the server stops reading,
and TCP makes the client wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from policy_server.errors import (
    NoStreamError,
    ObservationError,
    PolicyServerError,
    SessionConflictError,
    UpgradeRequiredError,
)
from policy_server.http_server import FRAMES, FrameConnection
from policy_server.metrics import Metrics
from policy_server.observations import Row, problem
from policy_server.serving import (
    NOTHING_STATED,
    EpisodeMemory,
    EpisodeSteps,
    PolicyVersion,
    Question,
)
from policy_server.web.answering import PolicyAnswering
from policy_server.web.asgi_stream import AsgiStream
from policy_server.web.direct_stream import DirectStream
from policy_server.web.frame_questions import FrameQuestion, FrameQuestions, FrameSeeds
from policy_server.web.frame_timing import NO_TIMING, gives_times, split_timing
from policy_server.web.frames import parse_frame, read_reset, split_frame
from policy_server.web.pending import Pending
from policy_server.web.pending_answer import PendingAnswer
from policy_server.web.problems import describe_error, send_error
from policy_server.web.query import check_query
from policy_server.web.route_table import AnswerRoute, RouteTable
from policy_server.web.routes import Seed
from policy_server.web.stream_connections import Stream, StreamEnds
from policy_server.web.team_answering import TeamAnswering
from policy_server.web.team_stream import TeamQuestions

__all__ = ["Streams", "stream_hints"]

_SEED = TypeAdapter[int | None](Seed)


def stream_hints(table: RouteTable) -> APIRouter:
    """Return routes that answer 426 to a request of a stream's address without a web socket.

    Args:
        table: the server's routes.
    """
    router = APIRouter()

    async def hint() -> None:
        raise UpgradeRequiredError(
            "a web socket is expected here; a proxy in between has to pass the header 'upgrade', "
            "and the handshake has to wait for the answers to the requests before it"
        )

    for route in table.answering("stream", "team_stream"):
        router.add_api_route(route.path, hint, include_in_schema=False)
    return router


class Streams:
    """ASGI application for web sockets, behind the gate, which has checked the key."""

    def __init__(
        self,
        table: RouteTable,
        policies: Mapping[str, PolicyAnswering],
        *,
        team: TeamAnswering | None,
        max_frame_bytes: int,
        metrics: Metrics,
    ) -> None:
        """Own the open web sockets of the table's stream routes.

        Args:
            table: the server's routes.
            policies: answer observations, by the policies' names.
            team: answers a team's steps; None where there is no team.
            max_frame_bytes: the largest frame.
            metrics: where connections and frames are counted.
        """
        self._table = table
        self._policies = policies
        self._team = team
        self._max_frame_bytes = max_frame_bytes
        self._metrics = metrics
        self._routes = {route.path: route for route in table.answering("stream", "team_stream")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a connection's frames until it ends, or refuse it."""
        try:
            stream = self._open(scope, receive, send)
        except (HTTPException, PolicyServerError) as error:
            await send_error(error, scope, receive, send)
            return
        await stream.run()

    def _open(self, scope: Scope, receive: Receive, send: Send) -> Stream:
        route = self._routes.get(scope["state"]["path"])
        if route is None:
            raise self._no_stream(scope)
        query = QueryParams(scope["query_string"])
        # uvicorn logs the address of each connection, and a query may hold anything.
        scope["query_string"] = b""
        asked = scope["state"]
        questions = self._questions(
            route,
            first_seed=_first_seed(query) if route.kind == "predict" else None,
            request_id=asked["request_id"],
            episode=asked["episode"],
            wanted=asked["version"],
            max_frame_bytes=self._max_frame_bytes,
        )
        stream = StreamEnds(route, asked, questions, receive, send, self._metrics)
        frames: FrameConnection | None = scope.get("extensions", {}).get(FRAMES)
        return AsgiStream(stream) if frames is None else DirectStream(stream, frames)

    def _no_stream(self, scope: Scope) -> Exception:
        route = self._table.find(scope["state"]["path"])
        if not isinstance(route, AnswerRoute):
            return HTTPException(404)
        transport = "team_stream" if route.transport in ("team", "team_session") else "stream"
        wanted = (transport, route.namespace, route.kind, route.form)
        address = next(
            stream.path
            for stream in self._routes.values()
            if (stream.transport, stream.namespace, stream.kind, stream.form) == wanted
        )
        return NoStreamError(
            f"this route opens no web socket; its stream is {scope['root_path']}{address}"
        )

    def _questions(self, route: AnswerRoute, **options: Any) -> FrameQuestions:  # noqa: ANN401 -- theirs
        if route.transport == "team_stream":
            assert self._team is not None, "its routes stand where there is a team"
            return TeamQuestions(self._team, route, **options)
        policy = self._policies[route.policy]
        # A policy that is not loaded refuses the handshake.
        policy.slot.current()
        return _Questions(policy, route, **options)


def _first_seed(query: QueryParams) -> int | None:
    check_query(query, ["seed"])
    try:
        return _SEED.validate_python(query.get("seed"))
    except ValidationError as error:
        raise ObservationError(
            [problem(item["type"], ["query", "seed"], item["msg"]) for item in error.errors()]
        ) from error


class _Questions:
    """Turns a connection's frames into questions to the policy."""

    def __init__(
        self,
        policy: PolicyAnswering,
        route: AnswerRoute,
        *,
        first_seed: int | None,
        request_id: str,
        episode: str,
        wanted: str,
        max_frame_bytes: int,
    ) -> None:
        self._policy = policy
        self._kind = route.kind
        self._is_raw = route.is_raw
        self._seeds = FrameSeeds(route.kind, first_seed)
        self._max_frame_bytes = max_frame_bytes
        self._episode = episode
        self._wanted = wanted
        self._steps: EpisodeSteps | None = None
        self._has_times = False
        self._observe_validation = policy.slot.metrics.stage_recorder("validate")
        # Reads frames for the version that was asked last.
        self._read_version: PolicyVersion | None = None
        self._read: Callable[[Message], Question]
        self.request_id = request_id
        self.asked = 0

    def ask(self, message: Message) -> FrameQuestion:
        """Start to answer a frame; its mistakes wait for their turn like an answer."""
        received = time.perf_counter()
        is_text = message.get("text") is not None
        answer: Pending | bytes | tuple[int, object]
        timing, deadline = NO_TIMING, None
        try:
            if self._has_times:
                message, timing = split_timing(message)
                deadline = timing.deadline(received)
            answer = self._ask(message, deadline)
        except Exception as error:
            if not self._has_times and gives_times(message):
                # No other frame is read for times that the stream has not had yet.
                self._has_times = True
                return self.ask(message)
            answer = self._reset(message, error) or self.failure(error)
        # Only a reset has been answered yet.
        self.asked += not isinstance(answer, bytes)
        return FrameQuestion(is_text, received, answer, timing.stamp)

    def end_episode(self) -> None:
        """Forget the memory of the episode, and the version that answers it."""
        if self._steps is not None:
            self._policy.slot.count_stream(self._steps.memory.version, -1)
            self._steps = None

    def _reset(self, message: Message, error: Exception) -> bytes | tuple[int, object] | None:
        """Begin another episode if a frame that failed asks for one.

        Returns:
            The answer to it, or its own mistake; None where it asks for none.
        """
        if not isinstance(error, ObservationError | SessionConflictError):
            return None
        try:
            reset = read_reset(message)
        except ObservationError as mistake:
            return self.failure(mistake)
        if reset is None:
            return None
        self.end_episode()
        self._seeds.begin(self.asked, reset.seed)
        return reset.answer

    def _ask(self, message: Message, deadline: float | None) -> PendingAnswer:
        steps, stated = self._steps, NOTHING_STATED
        version = self._chosen() if steps is None else self._kept(steps)
        if version.signature.memory:
            if steps is None:
                steps = self._begin_episode(version)
            if version.previous_step.is_taken:
                message, stated = split_frame(message)
        if version is not self._read_version:
            self._read = self._reader(version)
            self._read_version = version
        started = time.perf_counter()
        question = self._read(message)
        self._observe_validation(time.perf_counter() - started)
        question.deadline = deadline
        seed = self._seeds.of(self.asked)
        if seed is not None:
            question.seed = seed
        answer = PendingAnswer(self._policy, version, question, self.request_id)
        answer.ask(steps, stated)
        return answer

    def _reader(self, version: PolicyVersion) -> Callable[[Message], Question]:
        """Return the function that reads the questions in frames."""
        space, is_raw, max_bytes = version.space, self._is_raw, self._max_frame_bytes

        def parse(message: Message) -> Row:
            return parse_frame(message, space, is_raw=is_raw, max_bytes=max_bytes)

        return self._policy.asking(version, self._kind, parse, None, is_raw=is_raw)

    def _chosen(self) -> PolicyVersion:
        return self._policy.slot.choose(self._episode, wanted=self._wanted)

    def _begin_episode(self, version: PolicyVersion) -> EpisodeSteps:
        self._steps = EpisodeSteps(EpisodeMemory.begin(version))
        self._policy.slot.count_stream(version, 1)
        return self._steps

    def _kept(self, steps: EpisodeSteps) -> PolicyVersion:
        """Return the version that answers the running episode."""
        version = steps.memory.version
        if not self._policy.slot.has(version):
            raise SessionConflictError(
                f"this episode began with version {version.label}, which is not loaded any more; "
                'begin another one with the frame {"reset": true}'
            )
        return version

    def failure(self, error: Exception) -> tuple[int, object]:
        """Return the status and the detail of the error about a frame."""
        status, detail, _ = describe_error(error, request_id=self.request_id)
        return status, detail
