"""How many connections are taken in one turn of the event loop, where several wait."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from policy_server.http_server import HttpServer
from policy_server.http_server.connection_limits import ConnectionWatch
from policy_server.http_server.many_accepts import accept_many_a_turn
from tests.support.certificates import write_certificate
from tests.support.connections import LIMITS
from tests.support.servers import answer_lifespan, served_app
from tests.support.waiting import wait_until

CLIENTS = 64
# Each turn of the event loop took one.
MOST_TURNS = CLIENTS // 4
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class TurnCounter:
    """An application that notes in which turn of the event loop each connection is taken."""

    def __init__(self) -> None:
        self.turn = 0
        self.taken: list[int] = []
        self._go_on = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if scope["type"] == "lifespan":
            await answer_lifespan(receive, send, self._watch_uvicorn)
        else:
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

    def _watch_uvicorn(self, server: HttpServer) -> None:
        server.use_protocols(ConnectionWatch(LIMITS))
        make = server.config.http_protocol_class

        def noted(**options: object) -> asyncio.Protocol:
            self.taken.append(self.turn)
            made: asyncio.Protocol = make(**options)
            return made

        server.config.http_protocol_class = noted  # type: ignore[assignment]  # uvicorn calls it
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._count)

    def _count(self) -> None:
        self.turn += 1
        self._loop.call_soon(self._count)

    def pause(self) -> None:
        """Keep the event loop from its sockets, until `go_on`."""
        paused = threading.Event()

        def wait() -> None:
            paused.set()
            self._go_on.wait()

        self._loop.call_soon_threadsafe(wait)
        paused.wait()

    def go_on(self) -> None:
        self._go_on.set()


def connected(address: tuple[str, int] | str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.settimeout(30)
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    return client


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("listener", ["port", "tls", "unix"])
def test_connections_that_wait_are_taken_several_a_turn(
    listener: str, loop: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"lifespan": "on", "loop": loop, "uds": tmp_path / "socket"}
    if listener == "tls":
        write_certificate(tmp_path / "server.pem")
        options["ssl_certfile"] = str(tmp_path / "server.pem")
    app = TurnCounter()

    with served_app(app, **options) as port, ExitStack() as clients:
        address = str(options["uds"]) if listener == "unix" else ("127.0.0.1", port)
        app.pause()
        for _ in range(CLIENTS):
            clients.enter_context(connected(address))
        app.go_on()
        wait_until(lambda: len(app.taken) == CLIENTS)

    assert max(app.taken) - min(app.taken) <= MOST_TURNS


@pytest.mark.parametrize("listener", ["port", "unix"])
def test_every_listener_ends_with_the_server(listener: str, tmp_path: Path) -> None:
    app, uds = TurnCounter(), tmp_path / "socket"

    with served_app(app, lifespan="on", loop="uvloop", uds=uds) as port:
        address = str(uds) if listener == "unix" else ("127.0.0.1", port)
        answers = []
        for _ in range(CLIENTS):
            with connected(address) as client:
                client.sendall(REQUEST)
                answers.append(client.recv(1000)[:12])

    assert answers == [b"HTTP/1.1 204"] * CLIENTS
    with pytest.raises(OSError, match=r"refused|No such file"), connected(address):
        pass


def test_loop_that_serves_again_listens_no_more_often() -> None:
    class Protocol(asyncio.Protocol):
        """Stands for uvicorn's."""

    Protocol.__module__ = "uvicorn.server"

    async def open_files() -> list[int]:
        found = []
        for _ in range(3):
            accept_many_a_turn()
            before = len(list(Path("/proc/self/fd").iterdir()))
            server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", 0)
            found.append(len(list(Path("/proc/self/fd").iterdir())) - before)
            server.close()
            await server.wait_closed()
        return found

    found = uvloop.run(open_files())

    # Of each listener, and one of the event loop's own at first.
    assert min(found) >= 8
    assert max(found) < 16
