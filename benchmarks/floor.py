"""The floor: what one process of Python can serve at best: `python -m benchmarks.floor PORT`.

A bare `asyncio.Protocol` on uvloop finds the end of the head, validates the observation of
mouse_and_cheese with the model that the server validates with, and answers a constant. It reads no
header but the length, checks no key, counts nothing and logs nothing.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

from benchmarks.subjects import ROOT
from policy_server.observations import ObservationSpace
from policy_server.schema import read_schema

__all__ = ["Floor", "main"]

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"
_BODY = b'{"actions":[0],"probability":0.70287585,"log_probability":-0.3525751}'
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)


class Floor(asyncio.Protocol):
    """One connection, whose requests come whole: each in one segment, as wrk sends them."""

    def __init__(self, space: ObservationSpace) -> None:
        """Own the connection.

        Args:
            space: validates observations.
        """
        self._space = space

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream
        """Begin."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer the requests of a segment.

        Raises:
            ObservationError: if an observation is none.
        """
        start = 0
        while start < len(data):
            end = data.index(_END_OF_HEAD, start) + len(_END_OF_HEAD)
            head = data[start:end].lower()
            found = head.index(_LENGTH) + len(_LENGTH)
            start = end + int(head[found : head.index(b"\r", found)])
            self._space.parse_named(data[end:start])
            self._transport.write(_ANSWER)


async def _serve(port: int) -> None:
    space = ObservationSpace(
        read_schema(ROOT / "examples" / "mouse_and_cheese" / "schema.yaml").observations
    )
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Floor(space), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve on the port that is named, until a signal ends it."""
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        sys.exit("expected one port: python -m benchmarks.floor PORT")
    uvloop.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
