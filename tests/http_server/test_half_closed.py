"""Connections whose clients end their side behind a request: it is answered, then they close."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import orjson
import pytest

from policy_server.http_server import limited_protocol
from policy_server.http_server.connection_limits import ConnectionWatch
from policy_server.http_server.hot_heads import HotHeads
from policy_server.http_server.hot_protocol import HotHttpProtocol
from policy_server.http_server.limited_protocol import LimitedHttpProtocol
from policy_server.web import Application
from tests.support.connections import LIMITS, Server, answers_in
from tests.support.fakes import FakeBackend, gated, hold
from tests.support.servers import app_in_loop
from tests.support.teams import build_team, usual_backends
from tests.support.waiting import turns, until
from tests.support.web import KEY, running

HUNTER = {"cat": 1, "mouse": 1.5}
IS_HOT = pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])
ROUTES = {
    "one": ("/policies/hunter/predict", HUNTER),
    "seeded": ("/policies/hunter/predict?seed=7", HUNTER),
    "batch": ("/policies/hunter/predict/batch", [HUNTER] * 3),
    "session": ("/policies/hunter/sessions/{session}/predict", HUNTER),
    "team": ("/predict/agents", {"hunter_1": HUNTER}),
    "team's session": ("/sessions/{team}/predict/agents", {"hunter_1": HUNTER}),
}


def request_to(path: str, document: object) -> bytes:
    """Return a request."""
    body = orjson.dumps(document)
    head = f"POST {path} HTTP/1.1\r\naccess-token: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def begun(server: Server, path: str) -> str:
    """Begin a session, and return its name."""
    (answer,) = answers_in((await server.exchange([request_to(path, {})])).written)
    return str(orjson.loads(answer.body)["session_id"])


async def request_of(server: Server, route: str) -> bytes:
    """Return a request to a route, whose session has begun."""
    path, document = ROUTES[route]
    names = {}
    if "{session}" in path:
        names["session"] = await begun(server, "/policies/hunter/sessions")
    if "{team}" in path:
        names["team"] = await begun(server, "/sessions/agents")
    return request_to(path.format(**names), document)


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Application, FakeBackend]]:
    """Serve a team, of which one backend has a gate."""
    backends = usual_backends()
    app, _, _ = build_team({**backends, "hunter": gated(backends["hunter"])})
    async with running(app):
        yield app, backends["hunter"]


@IS_HOT
@pytest.mark.parametrize("route", ROUTES)
async def test_request_of_a_client_that_sends_no_more_is_answered(
    route: str, *, is_hot: bool
) -> None:
    async with served() as (app, backend):
        server = Server(app, is_hot=is_hot)
        request = await request_of(server, route)
        gate = hold(backend)
        protocol, transport = server.connect()
        protocol.data_received(request * 2)
        await turns(20)
        stays_open = protocol.eof_received()
        await turns(20)
        before = (transport.written, transport.is_gone)
        gate.set()
        await until(lambda: transport.is_gone)

    assert (stays_open, before) == (True, (b"", False))
    assert [answer.status for answer in answers_in(transport.written)] == [200, 200]


@IS_HOT
@pytest.mark.parametrize(
    "rest",
    [b"", b"POST /predict/agents HTTP/1.1\r\n", request_to("/predict/agents", {})[:-1]],
    ids=["nothing", "head", "body"],
)
async def test_request_that_came_in_part_is_not_waited_for(rest: bytes, *, is_hot: bool) -> None:
    async with served() as (app, backend):
        server = Server(app, is_hot=is_hot)
        gate = hold(backend)
        protocol, transport = server.connect()
        protocol.data_received(request_to("/policies/hunter/predict", HUNTER) + rest)
        await turns(20)
        stays_open = protocol.eof_received()
        gate.set()
        await until(lambda: transport.is_gone)
        alone, quiet = server.connect()
        if rest:
            alone.data_received(rest)
            await turns(20)
        stays_open_alone = alone.eof_received()
        protocol.connection_lost(None)
        alone.connection_lost(None)
        await until(lambda: not server.state.tasks)

    assert (stays_open, stays_open_alone) == (True, False)
    assert [answer.status for answer in answers_in(transport.written)] == [200]
    assert quiet.written == b""


def ended_two_seconds_later(protocol: LimitedHttpProtocol, monkeypatch: pytest.MonkeyPatch) -> bool:
    """End a client's side, and return whether its connection stays open."""
    now = time.perf_counter()
    with monkeypatch.context() as later:
        later.setattr(time, "perf_counter", lambda: now + 2)
        return protocol.eof_received()


@IS_HOT
async def test_client_that_ended_its_side_at_once_is_answered_by_a_process_that_reads_it_late(
    monkeypatch: pytest.MonkeyPatch, *, is_hot: bool
) -> None:
    async with served() as (app, backend):
        server = Server(app, is_hot=is_hot)
        gate = hold(backend)
        protocol, transport = server.connect()
        protocol.data_received(request_to("/policies/hunter/predict", HUNTER))
        await turns(20)
        # The kernel knows when both have come.
        monkeypatch.setattr(limited_protocol, "ended_behind_s", lambda _: 0.001)
        stays_open = ended_two_seconds_later(protocol, monkeypatch)
        gate.set()
        await until(lambda: transport.is_gone)

    assert stays_open
    assert [answer.status for answer in answers_in(transport.written)] == [200]


@IS_HOT
async def test_client_that_ends_its_side_late_has_gone(
    monkeypatch: pytest.MonkeyPatch, *, is_hot: bool
) -> None:
    async with served() as (app, backend):
        server = Server(app, is_hot=is_hot)
        gate = hold(backend)
        protocol, _ = server.connect()
        protocol.data_received(request_to("/policies/hunter/predict", HUNTER))
        await turns(20)
        stays_open = ended_two_seconds_later(protocol, monkeypatch)
        gate.set()
        protocol.connection_lost(None)
        await until(lambda: not server.state.tasks)

    assert not stays_open


@IS_HOT
async def test_client_of_a_real_socket_gets_its_answer(*, is_hot: bool) -> None:
    backends = usual_backends()
    app, _, _ = build_team({**backends, "hunter": gated(backends["hunter"])})
    watch = ConnectionWatch(LIMITS)
    protocol: Callable[..., LimitedHttpProtocol] = partial(LimitedHttpProtocol, watch=watch)
    if is_hot:
        assert app.hot_routes is not None
        protocol = partial(HotHttpProtocol, watch=watch, heads=HotHeads(app.hot_routes))
    async with app_in_loop(app, http=protocol) as (url, _):
        gate = hold(backends["hunter"])
        host, _, port = url.rpartition("/")[2].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request_to("/policies/hunter/predict/batch", [HUNTER] * 2))
        writer.write_eof()
        await turns(50)
        gate.set()
        written = await reader.read()
        writer.close()

    assert [answer.status for answer in answers_in(written)] == [200]
