"""A client that has gone frees its place in the queue, by every way to the policy."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import orjson
import pytest

from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.serving import PolicyRegistry
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.support.connections import Server, answers_in
from tests.support.fakes import gated, hold, integer_backend, slot_of
from tests.support.teams import build_team, usual_backends
from tests.support.waiting import turns, until
from tests.support.web import KEY, OBSERVATION, SCHEMA, running

BODY = orjson.dumps(OBSERVATION)
TEAM = orjson.dumps({"prey": {"distance": 1.0, "is_seen": True}})


def request_of(path: str, body: bytes = BODY, *, is_chunked: bool = False) -> bytes:
    """Return a request, of known length or in one chunk."""
    framed = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    if is_chunked:
        framed = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    lines = f"POST {path} HTTP/1.1\r\naccess-token: {KEY}\r\n"
    return lines.encode() + framed


@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast path", "FastAPI"])
@pytest.mark.parametrize(
    "request_bytes",
    [
        request_of("/predict"),
        request_of("/predict", is_chunked=True),
        request_of("/predict?seed=7"),
        request_of("/distribution"),
    ],
    ids=["plain", "chunked", "seed", "distribution"],
)
async def test_observation_of_a_client_that_has_gone_leaves_the_queue(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture, *, has_fast_path: bool
) -> None:
    caplog.set_level(logging.INFO, "policy_server")
    backend = gated(integer_backend())
    slot = slot_of(backend, parse_schema(SCHEMA))
    registry, settings = PolicyRegistry([slot]), Settings()
    app = create_app(registry, settings, api_key=KEY, has_fast_path=has_fast_path)
    async with running(app):
        gate, server = hold(backend), Server(app)
        protocol, transport = server.connect()
        protocol.data_received(request_bytes)
        await until(lambda: slot.current().scheduler.waiting == 1)
        protocol.connection_lost(None)
        await until(lambda: not server.state.tasks)
        waiting = slot.current().scheduler.waiting
        gate.set()

    assert waiting == 0
    assert transport.written == b""
    assert [item.message for item in caplog.records].count("client_disconnected") == 1


@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast path", "FastAPI"])
async def test_team_of_a_client_that_has_gone_leaves_the_queue(*, has_fast_path: bool) -> None:
    backends = usual_backends()
    backends["prey"] = gated(backends["prey"])
    app, slots, _ = build_team(backends, has_fast_path=has_fast_path)
    async with running(app):
        gate, server = hold(backends["prey"]), Server(app)
        protocol, _ = server.connect()
        protocol.data_received(request_of("/predict/agents", TEAM))
        await until(lambda: slots["prey"].current().scheduler.waiting == 1)
        protocol.connection_lost(None)
        await until(lambda: not server.state.tasks)
        waiting = slots["prey"].current().scheduler.waiting
        gate.set()

    assert waiting == 0


async def test_requests_behind_each_other_on_one_connection_are_all_answered() -> None:
    backend = gated(integer_backend())
    slot = slot_of(backend, parse_schema(SCHEMA))
    app = create_app(PolicyRegistry([slot]), Settings(), api_key=KEY)
    async with running(app):
        gate, server = hold(backend), Server(app)
        protocol, transport = server.connect()
        protocol.data_received(request_of("/predict?seed=7") * 3)
        await turns(50)
        gate.set()
        await until(lambda: not server.state.tasks)

    assert [answer.status for answer in answers_in(transport.written)] == [200] * 3


@pytest.mark.parametrize("more", ["nothing", "error", "body"])
async def test_server_that_tells_nothing_of_its_clients_answers_all_the_same(more: str) -> None:
    backend, metrics = gated(integer_backend()), Metrics()
    slot = slot_of(backend, parse_schema(SCHEMA), metrics=metrics)
    app = create_app(PolicyRegistry([slot]), Settings(), api_key=KEY, metrics=metrics)
    sent: list[dict[str, Any]] = []
    given = [{"type": "http.request", "body": BODY}]

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        if more == "error":
            raise RuntimeError("the body has been read")
        if more == "nothing":
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:  # noqa: ANN401 -- an ASGI message
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"access-token", KEY.encode())],
    }
    async with running(app):
        gate = hold(backend)
        answering = asyncio.create_task(app(scope, receive, send))
        await until(lambda: slot.current().scheduler.waiting == 1)
        await turns()
        gate.set()
        await answering

    assert sent[0]["status"] == 200
