"""A stream whose frames come by ASGI, under any server."""

from __future__ import annotations

import asyncio
from typing import Any

from policy_server.web.frame_questions import FrameQuestion
from policy_server.web.frames import answer_payload
from policy_server.web.stream_connections import (
    CLOSED,
    MOST_IN_FLIGHT,
    NO_CODE,
    POLICY_VIOLATION,
    SERVICE_RESTART,
    Stream,
    StreamEnds,
)

__all__ = ["AsgiStream"]


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
                code: int = message.get("code", NO_CODE)
                if code == SERVICE_RESTART:
                    await self._until_in_flight(0, writer)
                    await ends.close(code)
                return code
            if not ends.admission.is_admitted():
                await self._until_in_flight(0, writer)
                await ends.close(POLICY_VIOLATION)
                return POLICY_VIOLATION
            self._in_flight.append(ends.ask(message))
            self._arrived.set()
            if len(self._in_flight) >= MOST_IN_FLIGHT:
                await self._until_in_flight(MOST_IN_FLIGHT - 1, writer)
        return NO_CODE

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
            except CLOSED:
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
