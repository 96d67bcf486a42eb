"""Web sockets: one observation a frame, its answer back in order, many in flight.

Reading goes on while earlier frames are answered, so that waiting frames share the policy's next
call. The answers that a client has not fetched are bounded: beyond that the server stops reading,
and TCP makes the client wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from fastapi import APIRouter
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from policy_server.errors import (
    ObservationError,
    PolicyServerError,
    SessionConflictError,
    UpgradeRequiredError,
)
from policy_server.metrics import Metrics
from policy_server.observations import problem
from policy_server.serving import NOTHING_STATED, EpisodeMemory, EpisodeSteps, PolicyVersion
from policy_server.telemetry import ACCESS_LOGGER
from policy_server.web.answering import PendingAnswer, PolicyAnswering
from policy_server.web.frame_questions import FrameQuestion, FrameQuestions, FrameSeeds, Pending
from policy_server.web.frames import (
    answer_frame,
    error_frame,
    parse_frame,
    read_reset,
    split_frame,
)
from policy_server.web.problems import describe_error, send_error
from policy_server.web.query import check_query
from policy_server.web.route_table import AnswerRoute, RouteTable
from policy_server.web.routes import Seed
from policy_server.web.team_answering import TeamAnswering
from policy_server.web.team_stream import TeamQuestions

__all__ = ["MOST_IN_FLIGHT", "Streams", "stream_hints"]

logger = logging.getLogger(__name__)
access = logging.getLogger(ACCESS_LOGGER)

MOST_IN_FLIGHT = 256

# RFC 6455, section 7.4.1, and the registry that it opens.
_SERVICE_RESTART = 1012
_INTERNAL_ERROR = 1011
# Its key is not valid any more.
_POLICY_VIOLATION = 1008
_NO_CODE = 1005
_OK = 200

# The errors of a server when a frame is sent to a client that has gone, or that it has left.
_CLOSED = (OSError, RuntimeError)

_SEED = TypeAdapter[int | None](Seed)


def stream_hints(table: RouteTable) -> APIRouter:
    """Return routes that answer 426 to a request of a stream's address without a web socket.

    Args:
        table: the server's routes.
    """
    router = APIRouter()

    async def hint() -> None:
        raise UpgradeRequiredError(
            "a web socket is expected here; a proxy in between has to pass the header 'upgrade'"
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

    def _open(self, scope: Scope, receive: Receive, send: Send) -> _Stream:
        route = self._routes.get(scope["state"]["path"])
        if route is None:
            raise HTTPException(404)
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
        return _Stream(route, asked, questions, receive, send, self._metrics)

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
        self.request_id = request_id
        self.asked = 0

    def ask(self, message: Message) -> FrameQuestion:
        """Start to answer a frame; its mistakes wait for their turn like an answer."""
        received = time.perf_counter()
        is_text = message.get("text") is not None
        answer: Pending | bytes | tuple[int, object]
        try:
            answer = self._ask(message)
        except Exception as error:
            answer = self._reset(message, error) or self.failure(error)
        # Only a reset has been answered yet.
        self.asked += not isinstance(answer, bytes)
        return FrameQuestion(is_text, received, answer)

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

    def _ask(self, message: Message) -> PendingAnswer:
        steps, stated = self._steps, NOTHING_STATED
        version = self._chosen() if steps is None else self._kept(steps)
        if version.signature.memory:
            if steps is None:
                steps = self._begin_episode(version)
            if version.previous_step.is_taken:
                message, stated = split_frame(message)
        return self._policy.ask(
            self._kind,
            lambda space: parse_frame(
                message, space, is_raw=self._is_raw, max_bytes=self._max_frame_bytes
            ),
            is_raw=self._is_raw,
            seed=self._seeds.of(self.asked),
            request_id=self.request_id,
            version=version,
            steps=steps,
            stated=stated,
        )

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


class _Stream:
    """One open connection: a reader, a writer, and the questions between them."""

    def __init__(
        self,
        route: AnswerRoute,
        asked: Mapping[str, Any],
        questions: FrameQuestions,
        receive: Receive,
        send: Send,
        metrics: Metrics,
    ) -> None:
        self._route = route
        self._client: str | None = asked["client"]
        self._key: str | None = asked["key"]
        self._is_admitted: Callable[[], bool] = asked["is_admitted"]
        self._questions = questions
        self._receive = receive
        self._send = send
        self._metrics = metrics
        self._in_flight: deque[FrameQuestion] = deque()
        self._arrived = asyncio.Event()
        self._moved = asyncio.Event()
        self._errors = 0

    async def run(self) -> None:
        """Answer until either side ends the connection."""
        await self._receive()
        await self._send({"type": "websocket.accept"})
        started = time.perf_counter()
        self._metrics.count_stream(1)
        code = _INTERNAL_ERROR
        writer = asyncio.create_task(self._write())
        writer.add_done_callback(lambda _: self._moved.set())
        try:
            code = await self._read(writer)
        finally:
            self._questions.end_episode()
            # All at once: a step that is cancelled alone makes room for the next one.
            for question in self._in_flight:
                if not isinstance(question.answer, bytes | tuple):
                    question.answer.abandon()
            writer.cancel()
            await asyncio.wait([writer])
            self._metrics.count_stream(-1)
            self._note(code, time.perf_counter() - started)

    async def _read(self, writer: asyncio.Task[None]) -> int:
        """Read frames until the connection ends; return the code that it ended with."""
        while not writer.done():
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                code: int = message.get("code", _NO_CODE)
                if code == _SERVICE_RESTART:
                    await self._until_in_flight(0, writer)
                    await self._close(code)
                return code
            if not self._is_admitted():
                await self._until_in_flight(0, writer)
                await self._close(_POLICY_VIOLATION)
                return _POLICY_VIOLATION
            self._in_flight.append(self._questions.ask(message))
            self._arrived.set()
            if len(self._in_flight) >= MOST_IN_FLIGHT:
                await self._until_in_flight(MOST_IN_FLIGHT - 1, writer)
        return _NO_CODE

    async def _until_in_flight(self, count: int, writer: asyncio.Task[None]) -> None:
        while len(self._in_flight) > count and not writer.done():
            self._moved.clear()
            await self._moved.wait()

    async def _write(self) -> None:
        """Write the answers in the order of the frames."""
        while True:
            while not self._in_flight:
                self._arrived.clear()
                await self._arrived.wait()
            question = self._in_flight[0]
            status, frame = await self._answer(question)
            try:
                await self._send(frame)
            except _CLOSED:
                # The reader hears of it too.
                return
            self._in_flight.popleft()
            self._moved.set()
            self._errors += status != _OK
            seconds = time.perf_counter() - question.received
            route = self._route
            self._metrics.observe_request(route.policy, route.label, status, seconds, key=self._key)

    async def _answer(self, question: FrameQuestion) -> tuple[int, Message]:
        answer = question.answer
        if not isinstance(answer, bytes | tuple):
            try:
                answer = await answer.fetch()
            except Exception as error:
                answer = self._questions.failure(error)
        if isinstance(answer, bytes):
            return _OK, answer_frame(answer, is_text=question.is_text)
        status, detail = answer
        return status, error_frame(status, detail, is_text=question.is_text)

    async def _close(self, code: int) -> None:
        with suppress(*_CLOSED):
            await self._send({"type": "websocket.close", "code": code})

    def _note(self, code: int, seconds: float) -> None:
        if access.isEnabledFor(logging.INFO):
            fields = {
                "request_id": self._questions.request_id,
                "client": self._client,
                "route": self._route.label,
                "frames": self._questions.asked,
                "errors": self._errors,
                "code": code,
                "duration_ms": round(seconds * 1000, 3),
                "model_version": self._metrics.model_version(self._route.policy),
                "key": self._key,
            }
            access.info("stream", extra=fields)
