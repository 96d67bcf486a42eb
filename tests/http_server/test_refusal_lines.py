"""Requests that the protocol refuses, of which the application never hears: a line for each."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import orjson
import pytest

from policy_server.http_server.connection_limits import ConnectionLimits
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.metrics import Metrics
from policy_server.telemetry import ACCESS_LOGGER, HoldingHandler, new_formatter
from tests.support.connections import LIMITS, Server, answers_in
from tests.support.waiting import until
from tests.support.web import KEY, OBSERVATION, build, running

SHORT = replace(LIMITS, header_timeout_s=0.1, body_timeout_s=0.1, max_header_bytes=2048)
BODY = orjson.dumps(OBSERVATION)
HEAD = b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nContent-Length: %d\r\n\r\n" % (
    KEY.encode(),
    len(BODY),
)
_PIECE_BYTES = 1500
SESSION = "0123456789abcdef" * 2
FIELDS = {
    "request_id",
    "client",
    "method",
    "route",
    "status",
    "duration_ms",
    "model_version",
    "key",
}
IS_HOT = pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])


def lines_of(caplog: pytest.LogCaptureFixture) -> list[tuple[Any, ...]]:
    """Return method, route, status, client and key of each request in the log."""
    found = [vars(item) for item in caplog.records if item.getMessage() == "request"]
    assert all(line.keys() >= FIELDS for line in found)
    return [
        tuple(line[name] for name in ("method", "route", "status", "client", "key"))
        for line in found
    ]


async def lines_after(
    segment: bytes,
    caplog: pytest.LogCaptureFixture,
    *,
    is_hot: bool,
    limits: ConnectionLimits = SHORT,
    metrics: Metrics | None = None,
) -> list[tuple[Any, ...]]:
    """Send bytes on a connection until it is closed, and return the requests in the log."""
    caplog.set_level(logging.INFO, ACCESS_LOGGER)
    app = build()
    async with running(app):
        server = Server(
            app,
            is_hot=is_hot,
            limits=limits,
            metrics=metrics,
            timeout_keep_alive=0.2,
            ws=WebSocketProtocol,
        )
        protocol, transport = server.connect()
        for start in range(0, len(segment), _PIECE_BYTES):
            protocol.data_received(segment[start : start + _PIECE_BYTES])
        await until(lambda: transport.is_ended or transport.is_gone)
        (transport.successor or protocol).connection_lost(None)
        await until(lambda: not server.state.tasks)
    return lines_of(caplog)


@IS_HOT
@pytest.mark.parametrize(
    ("segment", "method", "route", "status"),
    [
        (b"\x16\x03\x01\x00\xee\x01\x00" + KEY.encode(), "-", "-", 400),
        (KEY.encode() + b" / HTTP/1.1\r\n\r\n", "-", "-", 400),
        (b"GET /\x1b[31m" + KEY.encode() + b" HTTP/1.1\r\n\r\n", "-", "-", 400),
        (b"GET /livez HTTP/9.9\r\n\r\n", "GET", "/livez", 400),
        (
            b"POST /predict/?access-token=" + KEY.encode() + b" HTTP/1.1\r\nHost: a\r\n"
            b"Host: b\r\n\r\n",
            "POST",
            "/predict",
            400,
        ),
        (
            f"POST /sessions/{SESSION}/predict HTTP/1.1\r\nTransfer-Encoding: x\r\n\r\n".encode(),
            "POST",
            "/sessions/{session_id}/predict",
            400,
        ),
        (b"GET /" + KEY.encode() + b" HTTP/1.1\r\nHost: a b\r\n\r\n", "GET", "other", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a b\r\n\r\n", "CONNECT", "-", 400),
        (b"GET /livez HTTP/1.1\r\nx: " + b"y" * 4096, "GET", "/livez", 431),
        (b"GET /" + KEY.encode() + b"z" * 4096, "GET", "other", 431),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n", "GET", "/livez", 408),
        (HEAD + BODY[:5], "POST", "/predict", 408),
        (
            b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1;" % KEY.encode() + b"z" * 4096,
            "POST",
            "/predict",
            431,
        ),
        (
            b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"no size\r\n" % KEY.encode(),
            "POST",
            "/predict",
            400,
        ),
        (
            b"GET /predict/stream HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 1\r\nSec-WebSocket-Key: x\r\n\r\n",
            "GET",
            "/predict/stream",
            400,
        ),
        (
            b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            + b"x: y\r\n" * 200
            + b"\r\n",
            "GET",
            "/livez",
            431,
        ),
    ],
    ids=[
        "TLS",
        "no method",
        "control character",
        "version",
        "two hosts",
        "session",
        "unknown path",
        "CONNECT",
        "head",
        "address",
        "slow head",
        "slow body",
        "chunk extension",
        "chunk",
        "web socket",
        "web socket's headers",
    ],
)
async def test_refused_request_has_one_line_without_its_bytes(
    segment: bytes,
    method: str,
    route: str,
    status: int,
    caplog: pytest.LogCaptureFixture,
    *,
    is_hot: bool,
) -> None:
    metrics = Metrics()
    lines = await lines_after(segment, caplog, is_hot=is_hot, metrics=metrics)

    assert lines == [(method, route, status, "127.0.0.1", None)]
    assert sum(metrics.snapshot().numbers["requests"].values()) == 1
    assert KEY not in caplog.text


@IS_HOT
async def test_refused_request_has_its_line_behind_those_before_it(
    caplog: pytest.LogCaptureFixture, *, is_hot: bool
) -> None:
    lines = await lines_after(HEAD + BODY + b"GET\r\n\r\n", caplog, is_hot=is_hot)

    assert lines == [
        ("POST", "/predict", 200, "127.0.0.1", "api_key"),
        ("-", "-", 400, "127.0.0.1", None),
    ]


async def test_connection_that_is_refused_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, ACCESS_LOGGER)
    app = build()
    async with running(app):
        server = Server(app, limits=replace(LIMITS, max_connections=1))
        connections = [server.connect()[0] for _ in range(2)]
        for connection in connections:
            connection.connection_lost(None)

    assert lines_of(caplog) == [("-", "-", 503, "127.0.0.1", None)]


@IS_HOT
async def test_flood_of_refused_requests_writes_no_more_than_one_of_good_ones(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_hot: bool,
) -> None:
    caplog.set_level(logging.INFO, ACCESS_LOGGER)
    logger, handler = logging.getLogger("policy_server"), HoldingHandler(None)
    handler.setFormatter(new_formatter("json"))
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    sizes = []
    app = build()
    async with running(app):
        server = Server(app, is_hot=is_hot, limits=SHORT)
        for segment in (HEAD + BODY, b"GET /\x1b\xff" + b"\n" * 500, b"GET /x HTTP/7.1\r\n\r\n"):
            capsys.readouterr()
            for _ in range(20):
                await server.exchange([segment])
            handler.flush()
            lines = [line for line in capsys.readouterr().err.splitlines() if '"request"' in line]
            assert len(lines) == 20
            sizes.append(max(map(len, lines)))

    assert max(sizes[1:]) <= sizes[0]


@IS_HOT
async def test_refused_request_has_no_line_where_requests_have_none(
    caplog: pytest.LogCaptureFixture, *, is_hot: bool
) -> None:
    app = build()
    caplog.set_level(logging.WARNING, ACCESS_LOGGER)
    async with running(app):
        server = Server(app, is_hot=is_hot)
        transport = await server.exchange([b"GET\r\n\r\n"])

    assert [answer.status for answer in answers_in(transport.written)] == [400]
    assert lines_of(caplog) == []
