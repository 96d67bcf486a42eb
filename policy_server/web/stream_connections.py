"""One open stream: the frames that are not answered yet, and their answers in order.

What both kinds have in common: `DirectStream` listens to this project's own protocol, `AsgiStream`
serves under any other server.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.types import Message, Receive, Send

from policy_server.errors import TooManyRequestsError
from policy_server.metrics import Metrics
from policy_server.telemetry import ACCESS_LOGGER
from policy_server.web.frame_admission import FrameAdmission
from policy_server.web.frame_questions import FrameQuestion, FrameQuestions
from policy_server.web.frame_timing import stamped
from policy_server.web.frames import error_answer
from policy_server.web.route_table import AnswerRoute

__all__ = [
    "CLOSED",
    "MOST_IN_FLIGHT",
    "NO_CODE",
    "POLICY_VIOLATION",
    "SERVICE_RESTART",
    "Stream",
    "StreamEnds",
]

access = logging.getLogger(ACCESS_LOGGER)

MOST_IN_FLIGHT = 256

# RFC 6455, section 7.4.1, and the registry that it opens.
SERVICE_RESTART = 1012
_INTERNAL_ERROR = 1011
# Its key is not valid any more.
POLICY_VIOLATION = 1008
NO_CODE = 1005
_OK = 200

# The errors of a server when a frame is sent to a client that has gone, or that it has left.
CLOSED = (OSError, RuntimeError)


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
            # A frame that is an error counts as well: the seeds of those behind it stay theirs.
            self.questions.asked += 1
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
        with suppress(*CLOSED):
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


def _refusal(error: tuple[int, object]) -> tuple[int, bytes]:
    return error[0], error_answer(*error)
