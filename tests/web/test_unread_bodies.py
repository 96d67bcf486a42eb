"""Hot requests whose bodies wait to be read, are refused before, or have no client any more."""

from __future__ import annotations

import orjson
import pytest

from policy_server.errors import OverloadedError
from policy_server.metrics import Metrics
from policy_server.serving import BodyQueue
from policy_server.serving.body_queue import UnreadRequest
from policy_server.web import Application
from policy_server.web.gate import Gate
from tests.fuzz.session_steps import begin, step_of
from tests.support.connections import Server, answers_in
from tests.support.fakes import FakeBackend, integer_backend, summing_backend
from tests.support.waiting import turns, until
from tests.support.web import KEY, OBSERVATION, build, running

BODY = orjson.dumps(OBSERVATION)
REQUEST = b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nContent-Length: %d\r\n\r\n%b" % (
    KEY.encode(),
    len(BODY),
    BODY,
)


class BusyBodies(BodyQueue):
    """A queue that has no time to read: it refuses requests, or keeps them until `read`."""

    def __init__(self, *, refuses: bool = False, max_wait_s: float = 1e9) -> None:
        super().__init__(max_waiting=100, max_wait_s=max_wait_s)
        self.kept: list[UnreadRequest] = []
        self.forgotten: list[UnreadRequest] = []
        self.refuses = refuses

    def take(self, request: UnreadRequest) -> None:
        if self.refuses:
            request.refuse("queue_slow", OverloadedError("too slow"))
        else:
            request.is_unread = request.has_waited = True
            self.kept.append(request)

    def forget(self, request: UnreadRequest) -> None:
        request.is_unread = False
        self.forgotten.append(request)

    def read(self) -> None:
        for request in self.kept:
            if request.is_unread:
                request.is_unread = False
                request.read_body()
        self.kept.clear()


def busy(app: Application, *, refuses: bool = False, max_wait_s: float = 1e9) -> BusyBodies:
    """Give an application a queue that has no time."""
    gate = app.answer_http
    assert isinstance(gate, Gate)
    gate.bodies = bodies = BusyBodies(refuses=refuses, max_wait_s=max_wait_s)
    return bodies


async def test_refused_request_is_503_with_retry_after_and_counted() -> None:
    backend, metrics = integer_backend(), Metrics()
    app = build(backend, metrics=metrics)
    async with running(app):
        busy(app, refuses=True)
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        calls = len(backend.batches)
        protocol.data_received(REQUEST)
        await turns(3)

    (answer,) = answers_in(transport.written)
    assert answer.status == 503
    assert (b"retry-after", b"1") in answer.headers
    assert orjson.loads(answer.body) == {"detail": "too slow"}
    assert len(backend.batches) == calls
    assert metrics.snapshot().numbers["rejected"]["queue_slow", "default"] == 1


async def test_without_a_bound_each_body_is_read_when_it_comes() -> None:
    app = build(integer_backend())
    async with running(app):
        bodies = busy(app, max_wait_s=0.0)
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        protocol.data_received(REQUEST * 3)
        await until(lambda: len(answers_in(transport.written)) == 3)

    assert [answer.status for answer in answers_in(transport.written)] == [200] * 3
    assert bodies.kept == []


async def test_refused_step_of_a_session_is_not_made() -> None:
    app = build(summing_backend())
    async with running(app):
        bodies = busy(app)
        server = Server(app, is_hot=True)
        session = await begin(server)
        protocol, transport = server.connect()
        bodies.refuses = True
        protocol.data_received(step_of(session))
        await turns(3)
        bodies.refuses = False
        protocol.data_received(step_of(session))
        bodies.read()
        await until(lambda: len(answers_in(transport.written)) == 2)

    refused, made = answers_in(transport.written)
    assert (refused.status, made.status) == (503, 200)
    assert (b"x-step", b"0") in made.headers


@pytest.mark.parametrize("is_session", [False, True], ids=["single", "session"])
async def test_request_whose_client_has_gone_is_not_read(is_session: bool) -> None:  # noqa: FBT001 -- parametrised
    backend: FakeBackend = summing_backend() if is_session else integer_backend()
    app = build(backend)
    async with running(app):
        bodies = busy(app)
        server = Server(app, is_hot=True)
        request = step_of(await begin(server)) if is_session else REQUEST
        protocol, _ = server.connect()
        calls = len(backend.batches)
        protocol.data_received(request)
        protocol.connection_lost(None)
        tasks = len(server.state.tasks)
        bodies.read()
        await turns(5)

    assert len(bodies.forgotten) == 1
    assert tasks == 0
    assert len(backend.batches) == calls


async def test_answers_keep_their_order_behind_a_body_that_waits() -> None:
    app = build(integer_backend())
    async with running(app):
        bodies = busy(app)
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        protocol.data_received(REQUEST + b"GET /livez HTTP/1.1\r\n\r\n")
        await turns(5)
        before = transport.written
        bodies.read()
        await until(lambda: len(answers_in(transport.written)) == 2)

    assert before == b""
    assert [answer.body == b'"ok"' for answer in answers_in(transport.written)] == [False, True]
