"""A connection whose bytes are in hand: requests in pieces, cut off, slow, or many at once."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from benchmarks.soak.traffic import Outcome
from benchmarks.subjects import KEY

__all__ = ["Raw", "connected", "encode_request"]

_LINGER_NOT = struct.pack("ii", 1, 0)


def encode_request(
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return a request with the key.

    Args:
        path: with the query.
        body: its bytes.
        method: GET and so on.
        headers: beside the key and the length, in lower case; they win over these.
    """
    known = {"host": "soak", "access-token": KEY, "content-length": str(len(body))}
    lines = [f"{name}: {value}" for name, value in {**known, **(headers or {})}.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body


class Raw:
    """An open connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Own the connection until `connected` ends."""
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)
        await self._writer.drain()

    async def send_slowly(self, data: bytes, *, pieces: int, pause_s: float) -> None:
        """Send bytes in pieces.

        Args:
            data: all of them.
            pieces: how many.
            pause_s: seconds after each.
        """
        size = max(1, -(-len(data) // pieces))
        for start in range(0, len(data), size):
            await self.send(data[start : start + size])
            await asyncio.sleep(pause_s)

    async def receive(self, most: int) -> bytes:
        """Return some bytes that came, none at the end."""
        return await self._reader.read(most)

    async def answer(self) -> Outcome:
        """Read an answer.

        Raises:
            EOFError: if the connection ends in it.
        """
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")[:-2]
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return Outcome(int(first.split()[1]), headers, body)

    async def ended(self) -> bool:
        """Wait for the end of the connection; what comes before is passed over.

        Returns:
            True.
        """
        with suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass
        return True

    def half_close(self) -> None:
        """Tell that nothing more will be sent; answers still come."""
        self._writer.write_eof()

    def reset(self) -> None:
        """End the connection by RST, whatever is on its way."""
        link = self._writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self._writer.transport.abort()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Raw]:
    """Open a connection to a server on this machine until the block ends.

    Args:
        port: the server's.

    Yields:
        The connection.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
