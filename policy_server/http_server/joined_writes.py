"""One write a response: uvicorn writes head and body apart, each by a system call.

The bytes that are written to a connection within one turn of the event loop leave together at its
end: the two parts of a response, or the frames of a web socket that are answered together.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["JoinedWrites"]

# More than this is handed on at once, so that the transport can say when it is full.
_MOST_BYTES = 65536


class JoinedWrites:
    """A transport that holds written bytes back until the turn of the event loop ends."""

    def __init__(self, transport: asyncio.Transport) -> None:
        """Own the bytes written in this turn of the event loop; the transport outlives it.

        Args:
            transport: the connection, to which everything but writing is handed on.
        """
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Write at the end of this turn, or at once when much is held back.

        Args:
            data: the next bytes of the connection.
        """
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > _MOST_BYTES:
            self._flush()

    def write_whole(self, data: bytes) -> None:
        """Write an answer that nothing of this turn comes behind; at once, if nothing is before it.

        Args:
            data: the answer.
        """
        if self._parts:
            self.write(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Write the bytes that are held back, and close the connection."""
        self._flush()
        self._transport.close()

    def write_eof(self) -> None:
        """Write the bytes that are held back, and tell the client that no others will come."""
        self._flush()
        self._transport.write_eof()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- any member of the transport
        """Return the transport's own member of that name."""
        return getattr(self._transport, name)

    def _flush(self) -> None:
        # A client that has gone reads nothing more.
        if self._parts and not self._transport.is_closing():
            whole = b"".join(self._parts)
            self._transport.write(whole)
        self._parts.clear()
        self._size = 0
