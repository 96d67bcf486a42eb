"""Batches beyond what a policy can do: which are refused when they come, and which are computed."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.serving import PolicyRegistry, PolicySlot
from policy_server.settings import Settings
from policy_server.web import Application, create_app
from policy_server.web.batch_places import MOST_AT_ONCE
from tests.support.connections import Server, answers_in
from tests.support.fakes import FakeBackend, gated, hold, integer_backend, slot_of
from tests.support.waiting import turns, until
from tests.support.web import KEY, OBSERVATION, SCHEMA, running

# All the places that one client may have.
SHARE = MOST_AT_ONCE // 2


def npy_of(values: NDArray[Any]) -> bytes:
    """Return an array in npy format."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


BODIES = {
    "rows": (orjson.dumps([OBSERVATION] * 3), "application/json"),
    "columns": (
        orjson.dumps({name: [value] * 3 for name, value in OBSERVATION.items()}),
        "application/json",
    ),
    "npy": (npy_of(np.ones((3, 2))), "application/x-npy"),
}
SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/predict/batch",
    "query_string": b"",
    "headers": [(b"access-token", KEY.encode())],
}


def request_of(form: str = "rows", *, is_whole: bool = True) -> bytes:
    """Return a batch, or all of it but its last byte."""
    body, content_type = BODIES[form]
    head = (
        f"POST /predict/batch HTTP/1.1\r\naccess-token: {KEY}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + (body if is_whole else body[:-1])


@dataclass
class Held:
    """A server whose policy computes nothing until its gate opens."""

    app: Application
    backend: FakeBackend
    slot: PolicySlot
    metrics: Metrics
    gate: asyncio.Event

    def rejected(self) -> dict[str, float]:
        numbers = self.metrics.snapshot().numbers["rejected"]
        return {reason: count for (reason, _), count in numbers.items()}


@asynccontextmanager
async def held(**settings: Any) -> AsyncIterator[Held]:  # noqa: ANN401 -- any setting
    """Run a server whose policy knows its rate, 10 ms a row, and then stands still."""
    backend, metrics = gated(integer_backend()), Metrics()
    slot = slot_of(backend, parse_schema(SCHEMA), metrics=metrics, settings=Settings(**settings))
    app = create_app(PolicyRegistry([slot]), Settings(**settings), api_key=KEY, metrics=metrics)
    async with running(app):
        lane = slot.current().scheduler._bulk  # noqa: SLF001 -- the time is the test's own
        for call in range(10):
            lane.measure(10, started=call, ended=call + 0.1)
        backend.batches.clear()
        gate = hold(backend)
        try:
            yield Held(app, backend, slot, metrics, gate)
        finally:
            gate.set()


@pytest.mark.parametrize("form", BODIES)
async def test_batch_that_would_wait_too_long_is_503_before_its_body_is_read(form: str) -> None:
    async with held(max_wait_s=0.11) as known:
        server = Server(known.app)
        # Three rows of each take 30 ms; those in the first call may be done.
        connections = [server.connect() for _ in range(8)]
        for protocol, _ in connections:
            protocol.data_received(request_of(form))
            await turns(50)
            await asyncio.sleep(0.04)
        last, transport = server.connect()
        # The end of its body would never come.
        last.data_received(request_of(form, is_whole=False))
        await until(lambda: transport.written)
        known.gate.set()
        await until(lambda: all(one.written for _, one in connections))

    (refused,) = answers_in(transport.written)
    statuses = [answers_in(one.written)[0].status for _, one in connections]
    assert refused.status == 503
    assert b"retry-after: 1" in transport.written
    assert b"this batch is not to be expected to begin within 0.11 s" in transport.written
    assert statuses == [200] * 5 + [503] * 3
    assert known.rejected() == {"queue_slow": 4}
    assert known.backend.batches == [3] * 5


async def test_batch_behind_nobody_is_accepted_whatever_its_length() -> None:
    body = orjson.dumps([OBSERVATION] * 5000)
    head = f"POST /predict/batch HTTP/1.1\r\naccess-token: {KEY}\r\n"
    async with held(max_wait_s=0.001) as known:
        protocol, transport = Server(known.app).connect()
        protocol.data_received(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: known.backend.batches)
        known.gate.set()
        await until(lambda: transport.written)
        await until(lambda: answers_in(transport.written))

    assert answers_in(transport.written)[0].status == 200


async def test_batches_that_wait_for_a_place_are_refused_by_the_time_that_places_take() -> None:
    async with held(max_wait_s=0.7) as known:
        server = Server(known.app)
        connections = [server.connect() for _ in range(SHARE)]
        # Their bodies are never whole: they have their places, and no rows.
        for protocol, _ in connections:
            protocol.data_received(request_of(is_whole=False))
        await turns(50)
        began = time.perf_counter()
        waiting, transport = server.connect()
        waiting.data_received(request_of())
        await until(lambda: transport.written)
        waited_s = time.perf_counter() - began
        for protocol, _ in connections:
            protocol.connection_lost(None)

    assert answers_in(transport.written)[0].status == 503
    assert 0.5 < waited_s < 10


async def test_more_batches_than_the_queue_holds_are_refused_at_once() -> None:
    async with held(max_queue_size=5) as known:
        server = Server(known.app)
        connections = [server.connect() for _ in range(SHARE + 6)]
        for protocol, _ in connections:
            protocol.data_received(request_of())
            await turns()
        await until(lambda: connections[-1][1].written)
        answered = [index for index, (_, one) in enumerate(connections) if one.written]
        known.gate.set()
        await until(lambda: all(transport.written for _, transport in connections))

    assert answered == [SHARE + 5]
    statuses = [answers_in(transport.written)[0].status for _, transport in connections]
    assert statuses == [200] * (SHARE + 5) + [503]
    assert known.rejected() == {"queue_full": 1}


@pytest.mark.parametrize("form", BODIES)
async def test_batches_of_clients_that_have_gone_are_not_computed(form: str) -> None:
    async with held() as known:
        server = Server(known.app)
        connections = [server.connect() for _ in range(3 * SHARE)]
        for protocol, _ in connections:
            protocol.data_received(request_of(form))
        await until(lambda: len(known.backend.batches) == 2)
        await turns(50)
        for protocol, _ in connections:
            protocol.connection_lost(None)
        await until(lambda: not server.state.tasks)
        known.gate.set()
        again, transport = server.connect()
        again.data_received(request_of(form))
        await until(lambda: transport.written)

    # Two calls had begun.
    assert known.backend.batches == [3] * 3
    assert answers_in(transport.written)[0].status == 200


class Client:
    """A client of an ASGI server that hands over a body in parts, and can go."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self.has_gone = asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        for part in self._parts:
            is_last = part.endswith(b"]")
            return {"type": "http.request", "body": part, "more_body": not is_last}
        await self.has_gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:  # noqa: ANN401 -- an ASGI message
        self.sent.append(message)


async def test_batches_of_asgi_clients_that_have_gone_are_not_computed() -> None:
    body = BODIES["rows"][0]
    async with held() as known:
        clients = [
            Client(iter([body[start : start + 7] for start in range(0, len(body), 7)]))
            for _ in range(3 * SHARE)
        ]
        asked = [
            asyncio.create_task(known.app({**SCOPE}, one.receive, one.send)) for one in clients
        ]
        await until(lambda: len(known.backend.batches) == 2)
        await turns(50)
        for client in clients:
            client.has_gone.set()
        await asyncio.gather(*asked)
        known.gate.set()
        last = Client(iter([body]))
        await known.app({**SCOPE}, last.receive, last.send)

    assert known.backend.batches == [3] * 3
    assert not any(client.sent for client in clients)
    assert last.sent[0]["status"] == 200


async def test_body_that_waits_is_read_ahead_for_no_more_than_its_share() -> None:
    part, given = b" " * 10_000, 0

    def endless() -> Iterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield part

    async with held() as known:
        held_up = [Client(iter([b"["])) for _ in range(SHARE)]
        waiting = Client(endless())
        asked = [
            asyncio.create_task(known.app({**SCOPE}, one.receive, one.send)) for one in held_up
        ]
        await turns(50)
        asked.append(asyncio.create_task(known.app({**SCOPE}, waiting.receive, waiting.send)))
        await turns(200)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    assert given <= 8


async def test_batch_whose_deadline_has_passed_is_not_computed() -> None:
    async with held() as known:
        server = Server(known.app)
        connections = [server.connect() for _ in range(SHARE)]
        for protocol, _ in connections:
            protocol.data_received(
                request_of().replace(b"\r\n\r\n", b"\r\nx-request-timeout-ms: 300\r\n\r\n", 1)
            )
        await until(lambda: all(transport.written for _, transport in connections))
        known.gate.set()
        last, transport = server.connect()
        last.data_received(request_of())
        await until(lambda: transport.written)

    statuses = {answers_in(transport.written)[0].status for _, transport in connections}
    assert statuses == {504}
    assert known.backend.batches == [3] * 3
    assert known.rejected() == {"deadline": SHARE}
