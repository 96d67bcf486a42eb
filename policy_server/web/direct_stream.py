"""A stream that listens to the frames of this project's own protocol.

A frame is asked when it comes, and its answer is written when it is there, without a task and
without a queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from starlette.types import Message

from policy_server.http_server import FrameConnection
from policy_server.web.frame_questions import FrameQuestion
from policy_server.web.frames import answer_payload
from policy_server.web.stream_connections import (
    MOST_IN_FLIGHT,
    NO_CODE,
    POLICY_VIOLATION,
    SERVICE_RESTART,
    Stream,
    StreamEnds,
)

__all__ = ["DirectStream"]


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
            code: int = POLICY_VIOLATION
            if not self._refused.done():
                code = received.result().get("code", NO_CODE)
                if code != SERVICE_RESTART:
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
