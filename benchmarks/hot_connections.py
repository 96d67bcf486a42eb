"""Connections without a network: bytes go to the server's own protocol, which writes to a count."""

from __future__ import annotations

import asyncio
import json

import uvicorn
from uvicorn.server import ServerState

from benchmarks.failures import BenchmarkError
from benchmarks.floor import Floor
from benchmarks.subjects import KEY, OBSERVATION
from policy_server.http_server import ConnectionLimits, ConnectionWatch, HotRoute
from policy_server.http_server.hot_heads import HotHeads, KnownHead, parse_head
from policy_server.http_server.hot_protocol import HotHttpProtocol
from policy_server.observations import ObservationSpace
from policy_server.schema import ServerSchema
from policy_server.settings import Settings
from policy_server.web import Application
from policy_server.web.hot_answering import HotAnswering

__all__ = ["BODY", "HEAD", "FloorConnections", "HotConnections"]

BODY = json.dumps(OBSERVATION).encode()
# As wrk writes it.
HEAD = (
    b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:8000\r\naccess-token: %b\r\n"
    b"content-type: application/json\r\nContent-Length: %d\r\n\r\n"
) % (KEY.encode(), len(BODY))
_REQUEST = HEAD + BODY
_END_OF_HEAD = b"\r\n\r\n"
_RIGHT = b"HTTP/1.1 200 "
# The first time that a head is seen it is not remembered yet.
_TIMES_TO_KNOW = 3
_LONGEST_WAIT_S = 5.0


class HotConnections:
    """Some connections of a uvicorn that listens nowhere, each with one request at a time.

    Attributes:
        route: answers the requests; their head is known.
    """

    def __init__(self, app: Application, count: int) -> None:
        """Own the connections; called on the event loop, in the application's lifespan.

        Args:
            app: the application.
            count: how many connections are open.
        """
        assert app.hot_routes is not None, "it was not built without them"
        config = uvicorn.Config(app, log_config=None, lifespan="off")
        config.load()
        state = ServerState()
        state.default_headers = [(b"server", b"uvicorn")]
        watch = ConnectionWatch(ConnectionLimits.of(Settings()))
        self._routes = app.hot_routes
        self._heads = HotHeads(app.hot_routes, root_path=config.root_path)
        self._transports = [_Transport() for _ in range(count)]
        self._protocols: list[HotHttpProtocol] = []
        for transport in self._transports:
            protocol = HotHttpProtocol(config, state, {}, watch=watch, heads=self._heads)
            protocol.connection_made(transport)
            self._protocols.append(protocol)
        known = None
        for _ in range(_TIMES_TO_KNOW):
            known = self.find_head()
        if known is None or not isinstance(known.route, HotAnswering):
            raise BenchmarkError("POST /predict: is not answered by the protocol itself")
        self.route: HotAnswering = known.route

    async def ask(self) -> None:
        """Send a request on each connection, and wait for the last one's answer."""
        last = self._transports[-1]
        before = last.answers
        for protocol in self._protocols:
            protocol.data_received(_REQUEST)
        while last.answers == before:
            await asyncio.sleep(0)

    async def check(self) -> None:
        """Ask once, and hold that every connection has its answer.

        Raises:
            BenchmarkError: if one has another, or none within five seconds.
        """
        before = [transport.answers for transport in self._transports]
        try:
            await asyncio.wait_for(self.ask(), _LONGEST_WAIT_S)
        except TimeoutError:
            raise BenchmarkError("POST /predict: no answer") from None
        for transport, answers in zip(self._transports, before, strict=True):
            if transport.answers != answers + 1 or not transport.written.startswith(_RIGHT):
                raise BenchmarkError(f"POST /predict: answered {transport.written[:200]!r}")

    def find_head(self) -> KnownHead | None:
        """Return the decision about the requests' head, as the protocol finds it."""
        end = _REQUEST.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        return self._heads.find(_REQUEST[:end])

    def decide_head(self) -> HotRoute | None:
        """Return a new decision about the requests' head, as if it had never come before."""
        head = parse_head(HEAD)
        return None if head is None else self._routes.find(head)

    def close(self) -> None:
        """End the connections."""
        for protocol in self._protocols:
            protocol.connection_lost(None)


class FloorConnections:
    """Some connections of the floor, each with one request at a time."""

    def __init__(self, schema: ServerSchema, count: int) -> None:
        """Own the connections.

        Args:
            schema: validates observations.
            count: how many connections are open.
        """
        space = ObservationSpace(schema.observations)
        self._floors = [Floor(space) for _ in range(count)]
        for floor in self._floors:
            floor.connection_made(_Transport())

    def ask(self) -> None:
        """Send a request on each connection, which is answered at once."""
        for floor in self._floors:
            floor.data_received(_REQUEST)


class _Transport(asyncio.Transport):
    """Keeps the last answer, and counts all.

    Attributes:
        written: what was written last.
        answers: how many were written.
    """

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.answers = 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """Leave it: nothing is open."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written = bytes(data)
        self.answers += 1
