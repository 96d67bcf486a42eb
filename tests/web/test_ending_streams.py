"""Streams of a server that stops: what had come is answered, then 1012."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from websockets.http11 import Request

from policy_server.http_server import web_socket_ending
from policy_server.http_server.http_protocol import HttpProtocol
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.metrics import Metrics
from policy_server.web.stream_connections import MOST_IN_FLIGHT
from tests.fuzz.frames import FIN, TEXT, RawStream, frame
from tests.support.certificates import write_certificate
from tests.support.fakes import FakeBackend, gated, hold, integer_backend, summing_backend
from tests.support.servers import app_in_loop
from tests.support.streams import Served, served
from tests.support.teams import streamed_team, usual_backends
from tests.support.waiting import turns, until
from tests.support.web import build

RESTART = 1012
ONE = '{"cat": 1, "mouse": 1.0}'
DEPTHS = pytest.mark.parametrize("depth", [64, 1000])


@dataclass(frozen=True)
class Kind:
    """A kind of streams.

    Attributes:
        path: its address.
        text: a frame.
        serve: serves it, and gives the server and the policy.
    """

    path: str
    text: str
    serve: Callable[[], Any]


@asynccontextmanager
async def _one(backend: FakeBackend) -> AsyncIterator[tuple[Served, FakeBackend]]:
    async with served(gated(backend)) as server:
        backend.batches.clear()
        yield server, backend
        assert backend.gate is not None
        backend.gate.set()


class AsgiOnly(WebSocketProtocol):
    """This project's protocol, whose frames come by ASGI."""

    def handle_connect(self, event: Request) -> None:
        """Ask the application without offering it the frames."""
        super(WebSocketProtocol, self).handle_connect(event)


@asynccontextmanager
async def _by_asgi() -> AsyncIterator[tuple[Served, FakeBackend]]:
    backend = gated(integer_backend())
    async with served(backend, web_sockets=AsgiOnly) as server:
        backend.batches.clear()
        yield server, backend
        assert backend.gate is not None
        backend.gate.set()


@asynccontextmanager
async def _team() -> AsyncIterator[tuple[Served, FakeBackend]]:
    backends = usual_backends()
    backend = gated(backends["hunter"])
    async with streamed_team(backends) as (server, _):
        backend.batches.clear()
        yield server, backend
        assert backend.gate is not None
        backend.gate.set()


PLAIN = Kind("/predict_deterministic/stream", ONE, lambda: _one(integer_backend()))
KINDS = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(PLAIN, id="one policy"),
        pytest.param(Kind(PLAIN.path, ONE, _by_asgi), id="by ASGI"),
        pytest.param(
            Kind("/predict_deterministic/stream", ONE, lambda: _one(summing_backend())),
            id="a policy with memory",
        ),
        pytest.param(
            Kind("/predict_deterministic/stream/agents", f'{{"hunter_1": {ONE}}}', _team),
            id="a team",
        ),
    ],
)


def frames(kind: Kind, count: int) -> bytes:
    return frame(FIN | TEXT, kind.text.encode()) * count


async def connection_of(server: Served) -> WebSocketProtocol:
    (connection,) = server.server.server_state.connections
    assert isinstance(connection, WebSocketProtocol)
    return connection


async def rest_of(raw: RawStream) -> tuple[int, list[Any]]:
    code, answers = await asyncio.wait_for(raw.until_closed(), 60)
    return code, [json.loads(answer) for answer in answers]


def is_answer(answer: dict[str, Any]) -> bool:
    return "status" not in answer


@KINDS
@DEPTHS
async def test_frames_that_had_come_are_answered_and_none_behind_them(
    kind: Kind, depth: int
) -> None:
    async with kind.serve() as (server, backend):
        raw = await RawStream.open(server, path=kind.path)
        connection = await connection_of(server)
        gate = hold(backend)
        raw.writer.write(frames(kind, 64))
        await until(lambda: backend.batches)
        if depth > MOST_IN_FLIGHT:
            raw.writer.write(frames(kind, 300))
            await until(lambda: connection.read_paused)
            # These stay with the kernel, and yet have come.
            raw.writer.write(frames(kind, depth - 364))
            await raw.writer.drain()
        server.server.should_exit = True
        await until(lambda: connection.is_ending)
        raw.writer.write(frames(kind, 500))
        await raw.writer.drain()
        gate.set()
        code, answers = await rest_of(raw)
        await raw.close()

    assert code == RESTART
    assert [is_answer(answer) for answer in answers] == [True] * depth
    assert sum(backend.batches) == depth


@pytest.mark.parametrize("count", [0, 3, 1000])
async def test_frames_that_had_come_by_tls_are_answered(count: int, tmp_path: Path) -> None:
    certificate = tmp_path / "server.pem"
    write_certificate(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    backend, metrics = gated(integer_backend()), Metrics()
    app = build(backend, metrics=metrics)
    options = {"ws": WebSocketProtocol, "ssl_certfile": str(certificate)}
    async with app_in_loop(app, http=HttpProtocol, **options) as (url, running):
        server = Served(url, running, metrics)
        raw = await RawStream.open(server, path=PLAIN.path, tls=trusting)
        connection = await connection_of(server)
        gate = hold(backend)
        backend.batches.clear()
        raw.writer.write(frames(PLAIN, min(count, 300)))
        await until(lambda: not count or backend.batches)
        await until(lambda: count <= MOST_IN_FLIGHT or connection.read_paused)
        # Of these the kernel has some, and asyncio may have read others ahead.
        raw.writer.write(frames(PLAIN, max(count - 300, 0)))
        await raw.writer.drain()
        await turns()
        running.should_exit = True
        await until(lambda: connection.is_ending)
        gate.set()
        code, answers = await rest_of(raw)
        await raw.close()

    assert code == RESTART
    assert [is_answer(answer) for answer in answers] == [True] * count


@KINDS
async def test_client_that_refills_for_each_answer_is_told_1012(kind: Kind) -> None:
    sent = 64
    async with kind.serve() as (server, backend):
        raw = await RawStream.open(server, path=kind.path)
        connection = await connection_of(server)
        gate = hold(backend)
        raw.writer.write(frames(kind, sent))
        await until(lambda: backend.batches)
        server.server.should_exit = True
        await until(lambda: connection.is_ending)
        gate.set()
        answered = 0
        while (await raw.next())[0] == FIN | TEXT:
            answered += 1
            raw.writer.write(frames(kind, 1))
            # A server that takes them never comes to an end.
            assert answered <= sent
        await raw.close()

    assert answered == sent
    assert sum(backend.batches) == sent


@KINDS
async def test_flood_is_answered_as_far_as_it_was_read_and_ends_with_1012(kind: Kind) -> None:
    async with kind.serve() as (server, backend):
        raw = await RawStream.open(server, path=kind.path)
        connection = await connection_of(server)
        # Of these one read takes some hundred, not thousands, which would be a minute's work for
        # the policy with memory on a busy machine.
        many = frames(replace(kind, text=kind.text.ljust(400)), 100)

        async def flood() -> None:
            with suppress(ConnectionError):
                while True:
                    raw.writer.write(many)
                    await raw.writer.drain()

        flooding = asyncio.create_task(flood())
        await until(lambda: sum(backend.batches) > MOST_IN_FLIGHT)
        server.server.should_exit = True
        await until(lambda: connection.is_ending)
        code, answers = await rest_of(raw)
        flooding.cancel()
        await raw.close()

    assert code == RESTART
    assert all(is_answer(answer) for answer in answers)
    assert len(answers) == sum(backend.batches)


async def test_answers_that_do_not_come_in_time_end_with_1012_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web_socket_ending, "_LONGEST_DRAIN_S", 0.05)
    async with PLAIN.serve() as (server, backend):
        raw = await RawStream.open(server, path=PLAIN.path)
        hold(backend)
        raw.writer.write(frames(PLAIN, 3))
        await until(lambda: backend.batches)
        server.server.should_exit = True
        code, answers = await rest_of(raw)
        await raw.close()

    assert (code, answers) == (RESTART, [])


async def test_client_that_leaves_while_the_server_stops_is_waited_for_no_more() -> None:
    async with PLAIN.serve() as (server, backend):
        raw = await RawStream.open(server, path=PLAIN.path)
        connection = await connection_of(server)
        hold(backend)
        raw.writer.write(frames(PLAIN, 3))
        await until(lambda: backend.batches)
        server.server.should_exit = True
        await until(lambda: connection.is_ending)
        raw.writer.write(frame(FIN | 8, b"\x03\xe8"))
        code, answers = await rest_of(raw)
        await raw.close()
        await until(lambda: not server.server.server_state.connections)

    assert (code, answers) == (1000, [])
