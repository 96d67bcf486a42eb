"""Web sockets whose clients read nothing: cut off in time, and of no memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

from policy_server.http_server import web_socket_ending, web_socket_protocol
from policy_server.http_server.connection_limits import ConnectionWatch
from policy_server.http_server.limited_protocol import LimitedHttpProtocol
from policy_server.http_server.stream_frames import FRAMES, FrameConnection
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from tests.support.connections import LIMITS
from tests.support.waiting import until

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\n\r\n"
)


class Flooding:
    """An application that answers each frame with six megabytes."""

    def __init__(self) -> None:
        self.ended: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        frames: FrameConnection = scope["extensions"][FRAMES]
        frames.listen(Answers(frames))
        self.ended.append(await receive())


class Answers:
    """Answers each frame with six megabytes."""

    def __init__(self, frames: FrameConnection) -> None:
        self._frames = frames

    def take(self, _message: Message) -> None:
        self._frames.write_frames([(bytes(60_000), False)] * 100)

    def go_on(self) -> None:
        """Answer nothing more."""


@asynccontextmanager
async def unread_socket(app: Any) -> AsyncIterator[tuple[ServerState, socket.socket]]:  # noqa: ANN401 -- any application
    """Open a web socket of an application, of which nothing but the handshake is read."""
    config = uvicorn.Config(app, ws=WebSocketProtocol, log_config=None, lifespan="off")
    config.load()
    state, watch = ServerState(), ConnectionWatch(replace(LIMITS, header_timeout_s=0.2))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: LimitedHttpProtocol(config, state, {}, watch=watch), "127.0.0.1", 0
    )
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0)
        await loop.sock_connect(client, server.sockets[0].getsockname())
        await loop.sock_sendall(client, HANDSHAKE)
        assert b"101" in await loop.sock_recv(client, 1024)
        yield state, client
    server.close()
    await until(lambda: not state.connections and not state.tasks)


@pytest.mark.parametrize(
    "last",
    [b"\x83\x81\0\0\0\0a", b"\x88\x82\0\0\0\0\x03\xe8", None],
    ids=["wrong frame", "close", "server ends"],
)
async def test_client_that_reads_nothing_is_cut_off_once_its_connection_ends(
    last: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_socket_protocol, "UNREAD_S", 0.2)
    monkeypatch.setattr(web_socket_ending, "_LINGER_S", 0.05)
    app = Flooding()
    async with unread_socket(app) as (state, client):
        await asyncio.get_running_loop().sock_sendall(client, b"\x82\x81\0\0\0\0a")
        await asyncio.sleep(0.05)
        if last is None:
            for connection in list(state.connections):
                connection.shutdown()
        else:
            await asyncio.get_running_loop().sock_sendall(client, last)
        await until(lambda: not state.connections and not state.tasks)

    assert [message["type"] for message in app.ended] == ["websocket.disconnect"]


async def test_pings_of_a_client_that_reads_nothing_take_no_memory() -> None:
    ping, loop = b"\x89\xfd\0\0\0\0" + bytes(125), asyncio.get_running_loop()
    async with unread_socket(Flooding()) as (state, client):
        for _ in range(60):
            with suppress(TimeoutError):
                await asyncio.wait_for(loop.sock_sendall(client, ping * 1000), 0.2)
            await asyncio.sleep(0)
        [connection] = state.connections
        assert isinstance(connection, WebSocketProtocol)
        unsent = connection.transport.get_write_buffer_size()

    assert unsent < 1_000_000
