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

__all__ = ["PartedResponse", "send_body"]

# As much as a connection takes before it waits for its client.
_PART_BYTES = 65_536


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 -- ASGI's
        """Answer."""
        start = {"type": "http.response.start", "status": self.status_code}
        with self._while_sent:
            await send({**start, "headers": self.raw_headers})
            await send_body(send, bytes(self.body))


async def send_body(send: Send, body: bytes) -> None:
    """Send the body of an answer that has begun; in parts where it is long.

    Args:
        send: the request's.
        body: all of it.
    """
    if len(body) <= _PART_BYTES:
        await send({"type": "http.response.body", "body": body})
        return
    for begin in range(0, len(body), _PART_BYTES):
        part = body[begin : begin + _PART_BYTES]
        await send({"type": "http.response.body", "body": part, "more_body": True})
    # It is sent once the last part has left, but for what a connection always takes.
    await send({"type": "http.response.body", "body": b""})
