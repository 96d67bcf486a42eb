"""Which protocols uvicorn serves with."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from policy_server.http_server.connection_limits import ConnectionWatch
from policy_server.http_server.http_protocol import HttpProtocol
from policy_server.http_server.limited_protocol import LimitedHttpProtocol as Limited
from policy_server.http_server.protocols import use_protocols
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from tests.support.connections import LIMITS
from tests.support.servers import CHUNKED, answer_lifespan, served_app, silent

WATCH = ConnectionWatch(LIMITS)


class Theirs(HttpToolsProtocol):
    """A protocol of somebody's own."""


async def chosen(**options: Any) -> tuple[type | None, type | None]:  # noqa: ANN401 -- uvicorn's own
    """Return the protocols that a uvicorn with these options serves by."""
    config = uvicorn.Config(silent, log_config=None, **options)
    config.load()
    use_protocols(config, WATCH)
    http: Any = config.http_protocol_class
    return getattr(http, "func", http), config.ws_protocol_class


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (Limited, WebSocketProtocol)),
        (
            {"http": "httptools", "ws": "websockets-sansio"},
            (Limited, WebSocketProtocol),
        ),
        ({"http": "h11"}, (H11Protocol, WebSocketProtocol)),
        ({"ws": "none"}, (Limited, None)),
        ({"ws": Theirs}, (Limited, Theirs)),
        ({"http": Theirs}, (Theirs, WebSocketProtocol)),
        ({"http": f"{__name__}:Theirs"}, (Theirs, WebSocketProtocol)),
        (
            {
                "http": "policy_server.http_server.http_protocol:HttpProtocol",
                "ws": "policy_server.http_server.web_socket_protocol:WebSocketProtocol",
            },
            (HttpProtocol, WebSocketProtocol),
        ),
    ],
    ids=[
        "auto",
        "named",
        "h11",
        "no web sockets",
        "class for web sockets",
        "class",
        "path",
        "ours by path",
    ],
)
async def test_only_uvicorns_own_choice_is_replaced(
    options: dict[str, Any],
    expected: tuple[type | None, type | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await chosen(**options) == expected
    assert "uvicorns_own_protocol" not in caplog.text


async def test_a_second_call_changes_nothing() -> None:
    config = uvicorn.Config(silent, log_config=None)
    config.load()
    use_protocols(config, WATCH)
    chosen_first = config.http_protocol_class

    use_protocols(config, WATCH)

    assert config.http_protocol_class is chosen_first


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (HttpToolsProtocol, "_should_upgrade", (HttpToolsProtocol, WebSocketProtocol)),
        (HttpToolsProtocol, "handle_websocket_upgrade", (HttpToolsProtocol, WebSocketProtocol)),
        (
            WebSocketsSansIOProtocol,
            "stop_keepalive",
            (Limited, WebSocketsSansIOProtocol),
        ),
    ],
    ids=lambda item: getattr(item, "__name__", str(item)),
)
async def test_protocol_whose_insides_have_moved_stays_uvicorns_own(
    kind: type,
    name: str,
    expected: tuple[type, type],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delattr(kind, name)

    assert await chosen() == expected
    lines = [record for record in caplog.records if record.message == "uvicorns_own_protocol"]
    assert [vars(record)["reason"] for record in lines] == [f"{kind.__name__} has no {name}"]
    assert lines[0].levelno == logging.WARNING


async def test_protocol_that_is_made_otherwise_stays_uvicorns_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def moved(_self: object, _context: object) -> None:
        """Take other arguments than today."""

    monkeypatch.setattr(HttpToolsProtocol, "__init__", moved)

    assert await chosen() == (HttpToolsProtocol, WebSocketProtocol)
    assert len([line for line in caplog.records if line.message == "uvicorns_own_protocol"]) == 1


async def test_uvicorn_without_httptools_serves_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("uvicorn.protocols.http.auto.AutoHTTPProtocol", H11Protocol)

    assert await chosen() == (H11Protocol, WebSocketProtocol)
    assert [vars(record)["reason"] for record in caplog.records] == ["uvicorn takes H11Protocol"]


def test_lifespan_puts_protocols_in_place_before_the_first_connection() -> None:
    async def echoing(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        if scope["type"] == "lifespan":
            await answer_lifespan(receive, send, lambda server: server.use_protocols(WATCH))
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    with (
        served_app(echoing, lifespan="on") as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as client,
    ):
        client.sendall(CHUNKED)
        answer = client.recv(65536)

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"abcPOST / HTTP/1.1" in answer
