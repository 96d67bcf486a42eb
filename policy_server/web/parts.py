"""Long answers, sent part by part as fast as the client reads.

Of an answer that is sent whole, all bytes wait in the connection while its client reads nothing,
and nobody knows of them: the request is answered. A request whose answer is sent in parts is being
answered until its client has read nearly all of it, for the limits of clients too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["PART_BYTES", "PartedResponse"]

PART_BYTES = 65_536
"""The length of a part: as much as a connection takes before it waits for its client."""


class PartedResponse(Response):
    """An answer that is sent in parts where it is long; the server waits before each."""

    def __init__(
        self,
        content: bytes,
        *,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        while_sent: AbstractContextManager[None] | None = None,
    ) -> None:
        """Own the bytes until they are sent.

        Args:
            content: the body.
            media_type: its header `content-type`.
            headers: further ones.
            while_sent: is entered before the body is sent, and left when it has been, or can't be.
        """
        super().__init__(content, headers=headers, media_type=media_type)
        self._while_sent = while_sent or nullcontext()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        with self._while_sent:
            if len(self.body) <= PART_BYTES:
                await super().__call__(scope, receive, send)
            else:
                await self._send_parts(send)

    async def _send_parts(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        for begin in range(0, len(self.body), PART_BYTES):
            part = self.body[begin : begin + PART_BYTES]
            await send({"type": "http.response.body", "body": part, "more_body": True})
        # It is sent once the last part has left, but for what a connection always takes.
        await send({"type": "http.response.body", "body": b""})
