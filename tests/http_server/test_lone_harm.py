"""What one client sends costs no other one anything, and its connection ends in order."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from starlette.types import Receive, Scope, Send

from policy_server.http_server import limited_protocol
from tests.support.connections import LIMITS, Server, answers_in
from tests.support.fakes import gated, hold, integer_backend
from tests.support.waiting import turns, until
from tests.support.web import KEY, OBSERVATION, build, running

BODY = orjson.dumps(OBSERVATION)
HEAD = b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nContent-Length: %d\r\n\r\n" % (
    KEY.encode(),
    len(BODY),
)
REQUEST = HEAD + BODY
# uvicorn finds no path in their addresses, and raises.
PATHLESS = pytest.mark.parametrize(
    "bad",
    [
        b"GET http://example.com HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
    ],
    ids=["no path", "CONNECT"],
)
IS_HOT = pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])


async def waiting_once(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer a few turns of the event loop later."""
    await turns(5)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def fail(*_: object) -> None:
    """Stand in for a part of a connection that has a fault."""
    raise RuntimeError("no")


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.exc_info]


@PATHLESS
async def test_address_without_a_path_is_refused(bad: bytes) -> None:
    server = Server(waiting_once)
    protocol, transport = server.connect()

    protocol.data_received(bad)

    assert [answer.status for answer in answers_in(transport.written)] == [400]
    assert transport.is_gone


@PATHLESS
@pytest.mark.parametrize("segments", [1, 2])
async def test_address_without_a_path_is_refused_behind_the_answers_before_it(
    bad: bytes, segments: int
) -> None:
    server = Server(waiting_once)
    protocol, transport = server.connect()

    good = b"GET / HTTP/1.1\r\n\r\n"
    for segment in [good, bad] if segments == 2 else [good + bad]:
        protocol.data_received(segment)
    await until(lambda: transport.is_gone)

    assert [answer.status for answer in answers_in(transport.written)] == [204, 400]


@PATHLESS
async def test_address_without_a_path_loses_no_answer_of_others(bad: bytes) -> None:
    backend = gated(integer_backend())
    app = build(backend)
    async with running(app):
        gate = hold(backend)
        server = Server(app, is_hot=True)
        # The calls until the gate opens, and others that wait for one call.
        before = [server.connect() for _ in range(4)]
        for protocol, _ in before:
            protocol.data_received(REQUEST)
            await turns(5)
        bad_protocol, bad_transport = server.connect()
        bad_protocol.data_received(REQUEST + bad)
        others = [server.connect() for _ in range(5)]
        for protocol, _ in others:
            protocol.data_received(REQUEST)
        await turns(5)
        gate.set()
        await until(lambda: all(transport.written for _, transport in others))
        await until(lambda: bad_transport.is_gone)

    assert [answer.status for answer in answers_in(bad_transport.written)] == [200, 400]
    for _, transport in [*before, *others]:
        assert [answer.status for answer in answers_in(transport.written)] == [200]
    assert not server.state.tasks


async def test_answer_that_cannot_be_written_ends_its_own_connection_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = gated(integer_backend())
    app = build(backend)
    async with running(app):
        gate = hold(backend)
        server = Server(app, is_hot=True)
        connections = [server.connect() for _ in range(6)]
        for protocol, _ in connections:
            protocol.data_received(REQUEST)
        broken, broken_transport = connections[2]
        monkeypatch.setattr(broken, "_write", fail)
        await turns(5)
        gate.set()
        await until(lambda: sum(bool(transport.written) for _, transport in connections) == 5)

    assert (broken_transport.written, broken_transport.is_gone) == (b"", True)
    assert not server.state.tasks
    assert _logged(caplog) == ["answer_not_taken"]


async def test_bytes_that_were_held_are_read_in_a_turn_of_their_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = gated(integer_backend())
    app = build(backend)
    async with running(app):
        gate = hold(backend)
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        protocol.data_received(REQUEST + b"GET /livez HTTP/1.1\r\n\r\n")
        monkeypatch.setattr(protocol, "_hand_over", fail)
        gate.set()
        await until(lambda: transport.is_gone)

    assert [answer.status for answer in answers_in(transport.written)] == [200]
    assert [record.message for record in caplog.records if record.exc_info] == ["connection_failed"]


@IS_HOT
async def test_look_that_fails_ends_its_own_connection_and_leaves_the_limits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, is_hot: bool
) -> None:
    app = build()
    async with running(app):
        limits = replace(LIMITS, header_timeout_s=0.1)
        server = Server(app, is_hot=is_hot, limits=limits, timeout_keep_alive=60)
        broken, broken_transport = server.connect()
        monkeypatch.setattr(broken, "phase", fail)
        await until(lambda: broken_transport.is_aborted)
        broken.connection_lost(None)
        slow, slow_transport = server.connect()
        slow.data_received(HEAD[:20])
        await until(lambda: slow_transport.written)

    assert [answer.status for answer in answers_in(slow_transport.written)] == [408]
    assert _logged(caplog) == ["connection_failed"]


@IS_HOT
async def test_shutdown_that_fails_ends_its_own_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, is_hot: bool
) -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=is_hot)
        broken, transport = server.connect()
        monkeypatch.setattr(broken, "phase", fail)
        broken.shutdown()

    assert transport.is_aborted
    assert _logged(caplog) == ["connection_failed"]


@IS_HOT
@pytest.mark.parametrize("come", [30, len(HEAD) - 2])
async def test_head_of_which_a_part_has_come_at_the_shutdown_has_its_rest_answered(
    come: int, *, is_hot: bool
) -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=is_hot)
        protocol, transport = server.connect()
        protocol.data_received(REQUEST[:come])
        protocol.shutdown()
        before = (transport.written, transport.is_gone)
        protocol.data_received(REQUEST[come:])
        await until(lambda: transport.is_gone)

    assert before == (b"", False)
    (answer,) = answers_in(transport.written)
    assert answer.status == 200
    assert (b"connection", b"close") in answer.headers


@IS_HOT
async def test_head_whose_rest_does_not_come_after_the_shutdown_is_refused(
    monkeypatch: pytest.MonkeyPatch, *, is_hot: bool
) -> None:
    monkeypatch.setattr(limited_protocol, "_REST_S", 0.2)
    app = build()
    async with running(app):
        server = Server(app, is_hot=is_hot, timeout_keep_alive=1)
        protocol, transport = server.connect()
        protocol.data_received(HEAD[:30])
        protocol.shutdown()
        await until(lambda: transport.is_gone)

    assert [answer.status for answer in answers_in(transport.written)] == [503]


async def test_last_answer_of_a_body_in_two_segments_says_that_the_connection_ends() -> None:
    backend = gated(integer_backend())
    app = build(backend)
    async with running(app):
        gate = hold(backend)
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        protocol.data_received(REQUEST[:-3])
        protocol.data_received(REQUEST[-3:] + REQUEST)
        protocol.shutdown()
        gate.set()
        await until(lambda: transport.is_gone)

    closing = (b"connection", b"close")
    assert [closing in item.headers for item in answers_in(transport.written)] == [False, True]
