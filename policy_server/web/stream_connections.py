"""One open stream: the frames that are not answered yet, and their answers in order.

`DirectStream` listens to the frames of this project's own protocol: a frame is asked when it comes,
and its answer is written when it is there, without a task and without a queue. `AsgiStream` serves
under any other server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.types import Message, Receive, Send

from policy_server.errors import TooManyRequestsError
from policy_server.http_server import FrameConnection
from policy_server.metrics import Metrics
from policy_server.telemetry import ACCESS_LOGGER
from policy_server.web.frame_admission import FrameAdmission
from policy_server.web.frame_questions import FrameQuestion, FrameQuestions
from policy_server.web.frame_timing import stamped
from policy_server.web.frames import answer_payload, error_answer
from policy_server.web.route_table import AnswerRoute

__all__ = ["MOST_IN_FLIGHT", "AsgiStream", "DirectStream", "Stream", "StreamEnds"]

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


class StreamEnds:
    """The two ends of a stream: the route with its questions, and ASGI's connection.

    Attributes:
        questions: turns frames into questions.
        receive: ASGI's.
        send: ASGI's.
        metrics: where connections and frames are counted.
        admission: lets its frames in.
    """

    def __init__(
        self,
        route: AnswerRoute,
        asked: Mapping[str, Any],
        questions: FrameQuestions,
        receive: Receive,
        send: Send,
        metrics: Metrics,
    ) -> None:
        """Own the count of errors.

        Args:
            route: the stream's.
            asked: the gate's state of the handshake: the client, its key, and the admission of its
                frames.
            questions: see the class.
            receive: see the class.
            send: see the class.
            metrics: see the class.
        """
        self.questions = questions
        self.receive = receive
        self.send = send
        self.metrics = metrics
        self._route = route
        self._client: str | None = asked["client"]
        self._key: str | None = asked["key"]
        self.admission: FrameAdmission = asked["admission"]
        self._observe_answer = metrics.request_recorder(
            route.policy, route.label, _OK, key=self._key
        )
        self._errors = 0

    def ask(self, message: Message) -> FrameQuestion:
        """Ask the question in a frame, unless the client has asked too much already."""
        received = time.perf_counter()
        try:
            share = self.admission.begin()
        except TooManyRequestsError as error:
            is_text = message.get("text") is not None
            return FrameQuestion(is_text, received, self.questions.failure(error))
        question = self.questions.ask(message)
        question.share = share
        share.charge(question.observations - 1)
        return question

    def outcome(
        self, question: FrameQuestion, answer: bytes | tuple[int, object]
    ) -> tuple[int, bytes]:
        """Return the status and the JSON of the answer to a frame, or of an error."""
        status, text = (_OK, answer) if isinstance(answer, bytes) else _refusal(answer)
        if question.stamp is not None:
            text = stamped(text, question.stamp, question.received)
        return status, text

    def note_answer(self, question: FrameQuestion, status: int) -> None:
        """Count a frame whose answer is written."""
        seconds = time.perf_counter() - question.received
        if status == _OK:
            self._observe_answer(seconds)
            return
        self._errors += 1
        route = self._route
        self.metrics.observe_request(route.policy, route.label, status, seconds, key=self._key)

    def note_end(self, code: int, seconds: float) -> None:
        """Log the connection."""
        if access.isEnabledFor(logging.INFO):
            fields = {
                "request_id": self.questions.request_id,
                "client": self._client,
                "route": self._route.label,
                "frames": self.questions.asked,
                "errors": self._errors,
                "code": code,
                "duration_ms": round(seconds * 1000, 3),
                "model_version": self.metrics.model_version(self._route.policy),
                "key": self._key,
            }
            access.info("stream", extra=fields)

    async def close(self, code: int) -> None:
        """Close the connection, if the client is still there."""
        with suppress(*_CLOSED):
            await self.send({"type": "websocket.close", "code": code})


class Stream(ABC):
    """One open connection, until either side ends it."""

    def __init__(self, ends: StreamEnds) -> None:
        """Own the frames that are not answered yet.

        Args:
            ends: the connection and the questions.
        """
        self._ends = ends
        self._in_flight: deque[FrameQuestion] = deque()

    async def run(self) -> None:
        """Answer until either side ends the connection."""
        ends = self._ends
        await ends.receive()
        await ends.send({"type": "websocket.accept"})
        started = time.perf_counter()
        ends.metrics.count_stream(1)
        code = _INTERNAL_ERROR
        try:
            code = await self._serve()
        finally:
            self._stop()
            ends.questions.end_episode()
            # All at once: a step that is cancelled alone makes room for the next one.
            for question in self._in_flight:
                question.share.end()
                if not isinstance(question.answer, bytes | tuple):
                    question.answer.abandon()
            ends.metrics.count_stream(-1)
            ends.note_end(code, time.perf_counter() - started)

    @abstractmethod
    async def _serve(self) -> int:
        """Answer frames until the connection ends; return the code that it ended with."""

    @abstractmethod
    def _stop(self) -> None:
        """Write no more answers."""


class AsgiStream(Stream):
    """A stream whose frames come by ASGI: a reader, a writer, and the questions between them."""

    def __init__(self, ends: StreamEnds) -> None:
        """Own the frames that are not answered yet; see `Stream`."""
        super().__init__(ends)
        self._arrived = asyncio.Event()
        self._moved = asyncio.Event()

    async def _serve(self) -> int:
        writer = asyncio.create_task(self._write())
        writer.add_done_callback(lambda _: self._moved.set())
        try:
            return await self._read(writer)
        finally:
            writer.cancel()
            await asyncio.wait([writer])

    def _stop(self) -> None:
        """Leave it: the writer has ended with `_serve`."""

    async def _read(self, writer: asyncio.Task[None]) -> int:
        """Read frames until the connection ends; return the code that it ended with."""
        ends = self._ends
        while not writer.done():
            message = await ends.receive()
            if message["type"] == "websocket.disconnect":
                code: int = message.get("code", _NO_CODE)
                if code == _SERVICE_RESTART:
                    await self._until_in_flight(0, writer)
                    await ends.close(code)
                return code
            if not ends.admission.is_admitted():
                await self._until_in_flight(0, writer)
                await ends.close(_POLICY_VIOLATION)
                return _POLICY_VIOLATION
            self._in_flight.append(ends.ask(message))
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
            status, text = await self._answer(question)
            payload = answer_payload(text, is_text=question.is_text)
            frame: dict[str, Any] = {"type": "websocket.send"}
            frame |= {"text": payload.decode()} if question.is_text else {"bytes": payload}
            try:
                await self._ends.send(frame)
            except _CLOSED:
                # The reader hears of it too.
                return
            self._in_flight.popleft().share.end()
            self._moved.set()
            self._ends.note_answer(question, status)

    async def _answer(self, question: FrameQuestion) -> tuple[int, bytes]:
        answer = question.answer
        if not isinstance(answer, bytes | tuple):
            try:
                answer = await answer.fetch()
            except Exception as error:
                answer = self._ends.questions.failure(error)
        return self._ends.outcome(question, answer)


class DirectStream(Stream):
    """A stream that listens to its frames: each is asked, and answered, by a call."""

    def __init__(self, ends: StreamEnds, connection: FrameConnection) -> None:
        """Own the frames that are not answered yet; see `Stream`.

        Args:
            ends: the connection and the questions.
            connection: hands the frames over, and writes the answers.
        """
        super().__init__(ends)
        self._connection = connection
        # Frames that wait for room: the rest of a segment that was read.
        self._held: deque[Message] = deque()
        self._is_ending = False
        self._is_scheduled = False
        self._refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moved = asyncio.Event()

    def take(self, message: Message) -> None:
        """Ask the question in a frame; see `FrameListener`."""
        if self._is_ending:
            return
        if self._held or len(self._in_flight) >= MOST_IN_FLIGHT:
            self._held.append(message)
            self._connection.pause_frames()
            return
        self._ask(message)
        if len(self._in_flight) == 1:
            self.go_on()

    def go_on(self) -> None:
        """Write the answers that are there; see `FrameListener`."""
        self._is_scheduled = False
        while self._in_flight and self._connection.is_writable:
            written = self._write_ready()
            self._ask_held()
            if not written:
                break
        self._moved.set()

    async def _serve(self) -> int:
        ends = self._ends
        self._connection.listen(self)
        received = asyncio.ensure_future(ends.receive())
        try:
            endings: list[asyncio.Future[Any]] = [received, self._refused]
            await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
            code: int = _POLICY_VIOLATION
            if not self._refused.done():
                code = received.result().get("code", _NO_CODE)
                if code != _SERVICE_RESTART:
                    return code
                received = asyncio.ensure_future(ends.receive())
            received.add_done_callback(lambda _: self._moved.set())
            while (self._in_flight or self._held) and not received.done():
                self._moved.clear()
                await self._moved.wait()
            self._is_ending = True
            await ends.close(code)
            return code
        finally:
            received.cancel()

    def _stop(self) -> None:
        self._is_ending = True
        self._held.clear()

    def _write_ready(self) -> int:
        """Write the answers to the first frames that have one, and return how many."""
        ready: list[tuple[FrameQuestion, int]] = []
        frames: list[tuple[bytes, bool]] = []
        while self._in_flight and (answer := self._answer_of(self._in_flight[0])) is not None:
            question = self._in_flight.popleft()
            question.share.end()
            status, text = self._ends.outcome(question, answer)
            ready.append((question, status))
            frames.append((answer_payload(text, is_text=question.is_text), question.is_text))
        if frames:
            self._connection.write_frames(frames)
        for question, status in ready:
            self._ends.note_answer(question, status)
        return len(ready)

    def _answer_of(self, question: FrameQuestion) -> bytes | tuple[int, object] | None:
        """Return the answer to the first frame; None where it is still to come."""
        answer = question.answer
        if isinstance(answer, bytes | tuple):
            return answer
        try:
            return answer.finish() if answer.wait(self._take_answer) else None
        except Exception as error:
            return self._ends.questions.failure(error)

    def _take_answer(self) -> None:
        """Write the answer to the first frame, together with those that come in the same turn."""
        if len(self._in_flight) == 1:
            self.go_on()
        elif not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self.go_on)

    def _ask(self, message: Message) -> None:
        """Ask the question in a frame, or begin to end where the key is not valid any more."""
        if self._ends.admission.is_admitted():
            self._in_flight.append(self._ends.ask(message))
            return
        self._is_ending = True
        self._held.clear()
        if not self._refused.done():
            self._refused.set_result(None)

    def _ask_held(self) -> None:
        """Ask the frames that waited for room, and read others once there are none."""
        while self._held and len(self._in_flight) < MOST_IN_FLIGHT:
            self._ask(self._held.popleft())
        if not self._held:
            self._connection.resume_frames()


def _refusal(error: tuple[int, object]) -> tuple[int, bytes]:
    return error[0], error_answer(*error)
