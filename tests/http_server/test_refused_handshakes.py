"""Handshakes of web sockets that never come to the application: refused, and soon closed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from starlette.types import Receive, Scope, Send

from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from tests.support.connections import LIMITS, Server, Transport, answers_in
from tests.support.waiting import turns, until

HANDSHAKE = (
    b"GET /%b HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n%b\r\n"
)
REFUSED = pytest.mark.parametrize(
    ("handshake", "status"),
    [
        (HANDSHAKE % (b"", b"Cookie: %b\r\n" % (b"y" * 9000)), 431),
        (HANDSHAKE % (b"", b"a: b\r\n" * 130), 431),
        (HANDSHAKE % (b"p" * 9000, b""), 414),
    ],
    ids=["long header", "many headers", "long path"],
)


async def unasked(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Fail: the handshake is not for the application."""
    raise AssertionError("it is refused before")


def web_socket_of(transport: Transport) -> WebSocketProtocol:
    """Return the protocol to which a connection was handed on."""
    web_socket = transport.get_protocol()
    assert isinstance(web_socket, WebSocketProtocol)
    return web_socket


def opened(server: Server, handshake: bytes) -> Transport:
    """Send a handshake on a connection of its own."""
    protocol, transport = server.connect()
    protocol.data_received(handshake)
    return transport


@REFUSED
async def test_handshake_that_is_too_large_for_its_library_is_refused(
    handshake: bytes, status: int
) -> None:
    server = Server(unasked, ws=WebSocketProtocol)
    transport = opened(server, handshake)

    assert [answer.status for answer in answers_in(transport.written)] == [status]
    assert transport.is_gone
    web_socket_of(transport).connection_lost(None)
    assert not server.state.connections


@REFUSED
async def test_shutdown_of_a_refused_handshake_raises_nothing(
    handshake: bytes, status: int
) -> None:
    transport = opened(Server(unasked, ws=WebSocketProtocol), handshake)

    web_socket_of(transport).shutdown()

    assert [answer.status for answer in answers_in(transport.written)] == [status]


async def test_web_socket_without_a_handshake_ends_by_its_limit_or_the_shutdown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = replace(LIMITS, header_timeout_s=0.1)
    server = Server(unasked, ws=WebSocketProtocol, limits=limits)
    protocol, ended = server.connect()
    protocol.loop.call_soon(protocol.connection_lost, None)
    await turns(2)
    transports = [Transport(), Transport()]
    web_sockets = [WebSocketProtocol(server.config, server.state, {}) for _ in transports]
    for web_socket, transport in zip(web_sockets, transports, strict=True):
        web_socket.handshake_timeout_s = 0.1
        web_socket.connection_made(transport)
    web_sockets[1].shutdown()
    await until(lambda: transports[0].is_aborted)

    assert ended.is_gone
    assert (transports[1].is_gone, transports[1].written) == (True, b"")
    assert not caplog.records


async def test_shutdown_that_fails_ends_its_own_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def waiting(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive())["type"] != "websocket.disconnect":
            """Wait for the end."""

    def fail() -> None:
        raise AssertionError("no")

    server = Server(waiting, ws=WebSocketProtocol)
    transport = opened(server, HANDSHAKE % (b"", b""))
    await turns()
    web_socket = web_socket_of(transport)
    monkeypatch.setattr(web_socket, "send_500_response", fail)
    web_socket.shutdown()
    monkeypatch.undo()
    web_socket.connection_lost(None)
    await until(lambda: not server.state.tasks)

    assert transport.is_aborted
    assert [record.message for record in caplog.records if record.exc_info] == ["connection_failed"]
