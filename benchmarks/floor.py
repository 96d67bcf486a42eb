"""The floor: what one process of Python can serve at best: `python -m benchmarks.floor PORT`.

A bare `asyncio.Protocol` on uvloop finds the end of the head, validates the observation of
mouse_and_cheese with the model that the server validates with, and answers a constant. It reads no
header but the length, checks no key, counts nothing and logs nothing.

A web socket on the same port is answered by a constant for each frame, by the library that the
server uses, without validation: a bare echo.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgpack
import orjson
import uvloop
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from benchmarks.arguments import parser_of, port_number
from policy_server.observations import ObservationSpace
from policy_server.ports import reason_of
from policy_server.schema import read_schema

__all__ = ["CONSTANT_ACTION", "CONSTANT_BODY", "CONSTANT_PROBABILITY", "Echo", "Floor", "main"]

# The policy's own answer to the observation that the benchmarks send.
CONSTANT_ACTION, CONSTANT_PROBABILITY = 0, 0.70287585
CONSTANT_BODY = b'{"actions":[0],"probability":0.70287585,"log_probability":-0.352575}'
_PACKED_BODY = msgpack.packb(orjson.loads(CONSTANT_BODY))
_SCHEMA = Path(__file__).resolve().parents[1] / "examples" / "mouse_and_cheese" / "schema.yaml"
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n%b" % (
    len(CONSTANT_BODY),
    CONSTANT_BODY,
)


class Floor(asyncio.Protocol):
    """One connection."""

    def __init__(self, space: ObservationSpace) -> None:
        """Own the connection.

        Args:
            space: validates observations.
        """
        self._space = space
        self._rest = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream
        """Begin."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer the requests of a segment.

        Raises:
            ObservationError: if an observation is none.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        start = 0
        while start < len(data):
            head = data.find(_END_OF_HEAD, start) + len(_END_OF_HEAD)
            is_whole = head >= len(_END_OF_HEAD)
            if is_whole and data.startswith(b"GET ", start):
                self._transport.set_protocol(Echo(self._transport, data[start:]))
                return
            stop = head + _length(data[start:head]) if is_whole else len(data) + 1
            if stop > len(data):
                self._rest = data[start:]
                return
            self._space.parse_named(data[head:stop])
            self._transport.write(_ANSWER)
            start = stop


class Echo(asyncio.Protocol):
    """One web socket."""

    def __init__(self, transport: asyncio.Transport, data: bytes) -> None:
        """Shake hands.

        Args:
            transport: the connection.
            data: what has come of it.
        """
        self._transport = transport
        self._connection = ServerProtocol()
        self.data_received(data)

    def data_received(self, data: bytes) -> None:
        """Answer the frames of a segment."""
        connection = self._connection
        connection.receive_data(data)
        for event in connection.events_received():
            if isinstance(event, Request):
                connection.send_response(connection.accept(event))
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                connection.send_text(CONSTANT_BODY)
            elif isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                connection.send_binary(_PACKED_BODY)
        self._transport.write(b"".join(connection.data_to_send()))


def _length(head: bytes) -> int:
    """Return the length of the body behind a head."""
    head = head.lower()
    found = head.index(_LENGTH) + len(_LENGTH)
    return int(head[found : head.index(b"\r", found)])


async def _serve(port: int) -> None:
    space = ObservationSpace(read_schema(_SCHEMA).observations)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Floor(space), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve on the port that is named, until a signal ends it."""
    parser = parser_of("benchmarks.floor", __doc__)
    parser.add_argument("port", type=port_number, help="of 127.0.0.1")
    port = parser.parse_args().port
    try:
        uvloop.run(_serve(port))
    except OSError as error:
        sys.exit(f"benchmarks.floor: port {port} can't be used: {reason_of(error)}")


if __name__ == "__main__":
    main()
