"""Hot steps of sessions give what ASGI gives, keep their order, and outlive their clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest

from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.serving import PolicyRegistry
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.fuzz.session_steps import (
    begin,
    compare_session_mutants,
    compare_sessions,
    step_of,
    steps_of,
)
from tests.support.connections import Answer, Server, answers_in
from tests.support.fakes import (
    FakeBackend,
    gated,
    hold,
    opened,
    previous_backend,
    slot_of,
    summing_backend,
)
from tests.support.pages import rendered
from tests.support.waiting import turns, until
from tests.support.web import KEY, SCHEMA, build, running

REQUESTS = 700
MUTANTS = 700


def statuses(written: bytes) -> list[int]:
    return [answer.status for answer in answers_in(written)]


def steps_in(answers: Sequence[Answer]) -> list[str]:
    return [dict(answer.headers)[b"x-step"].decode() for answer in answers]


@pytest.mark.parametrize("backend", [summing_backend, previous_backend])
async def test_thousands_of_steps_get_the_same_bytes_three_ways(
    backend: Callable[[], FakeBackend],
) -> None:
    statuses = await compare_sessions(REQUESTS, seed=25, backend=backend)

    assert set(statuses) >= {200, 204, 400, 401, 404, 405, 409, 415, 422}


async def test_mutated_steps_get_the_same_answers_three_ways() -> None:
    statuses = await compare_session_mutants(MUTANTS, seed=26)

    assert set(statuses) >= {200, 400, 401, 404, 409, 422}


async def test_steps_of_many_requests_are_made_in_their_order() -> None:
    backend = gated(summing_backend())
    app = build(backend)
    async with running(app):
        server = Server(app, is_hot=True)
        session = await begin(server)
        gate = hold(backend)
        (one, first), (two, second) = server.connect(), server.connect()
        one.data_received(step_of(session, 0) + step_of(session, 1))
        two.data_received(step_of(session))
        one.data_received(step_of(session))
        await turns(20)
        before = first.written + second.written
        gate.set()
        await until(lambda: len(answers_in(first.written)) == 3 and bool(second.written))

    assert before == b""
    assert steps_in(answers_in(first.written)) == ["0", "1", "3"]
    assert steps_in(answers_in(second.written)) == ["2"]


async def test_step_is_made_without_its_client_and_answered_to_it_again() -> None:
    backend = gated(summing_backend())
    metrics = Metrics()
    app = build(backend, metrics=metrics)
    async with running(app):
        server = Server(app, is_hot=True)
        session = await begin(server)
        gate = hold(backend)
        protocol, gone = server.connect()
        protocol.data_received(step_of(session, 0) + step_of(session, 1))
        await turns(20)
        protocol.connection_lost(None)
        tasks = len(server.state.tasks)
        gate.set()
        await until(lambda: not server.state.tasks)
        again = await server.exchange([step_of(session, 0) + step_of(session, 1)])

    assert gone.written == b""
    assert tasks == 1
    assert steps_in(answers_in(again.written)) == ["0", "1"]
    route = "/sessions/{session_id}/predict_deterministic"
    assert rendered(metrics)[f"requests_total policy=default route={route} status=200"] == 3


async def test_shutdown_that_takes_too_long_leaves_the_session_as_it_was() -> None:
    backend = gated(summing_backend())
    app = build(backend)
    async with running(app):
        server = Server(app, is_hot=True)
        session = await begin(server)
        gate = hold(backend)
        protocol, cut_off = server.connect()
        protocol.data_received(step_of(session, 0) + step_of(session, 1))
        await turns(20)
        # As uvicorn does: it goes through the set itself.
        for task in server.state.tasks:
            task.cancel(msg="too long")
        await turns(2)
        left = len(server.state.tasks)
        gate.set()
        again = await server.exchange([step_of(session, 0)])

    assert (left, cut_off.written, cut_off.is_gone) == (0, b"", True)
    assert steps_in(answers_in(again.written)) == ["0"]


async def test_step_that_waits_too_long_for_those_before_it_is_refused() -> None:
    backend = gated(summing_backend())
    app = build(backend, request_timeout_s=0.2)
    async with running(app):
        server = Server(app, is_hot=True)
        session = await begin(server)
        gate = hold(backend)
        (one, first), (two, second) = server.connect(), server.connect()
        one.data_received(step_of(session))
        two.data_received(step_of(session))
        await until(lambda: bool(first.written) and bool(second.written))
        gate.set()
        again = await server.exchange([step_of(session)])

    assert statuses(first.written) == [503]
    assert statuses(second.written) == [503]
    # The first may have failed a moment before: then it was the second's turn, too late.
    reasons = (b"the requests before this one", b"no answer within 0.2 s")
    assert any(reason in second.written for reason in reasons)
    assert steps_in(answers_in(again.written)) == ["0"]


async def test_step_whose_deadline_passes_before_its_turn_is_not_made() -> None:
    backend = gated(summing_backend())
    metrics = Metrics()
    app = build(backend, metrics=metrics)
    async with running(app):
        server = Server(app, is_hot=True)
        session = await begin(server)
        gate = hold(backend)
        (one, first), (two, late) = server.connect(), server.connect()
        one.data_received(step_of(session))
        timed = b"x-request-timeout-ms: 20\r\naccess-token"
        two.data_received(step_of(session).replace(b"access-token", timed))
        await until(lambda: bool(late.written))
        gate.set()
        await until(lambda: bool(first.written))
        steps = await steps_of(server, session)

    assert (statuses(first.written), statuses(late.written), steps) == ([200], [504], 1)
    assert rendered(metrics)["rejected_total policy=default reason=deadline"] == 1


async def test_wait_for_a_turn_is_bounded_by_the_deadline_that_began_with_the_head() -> None:
    backend = gated(summing_backend())
    app = build(backend)
    async with running(app):
        server = Server(app, is_hot=True)
        session = await begin(server)
        gate = hold(backend)
        (one, first), (two, late) = server.connect(), server.connect()
        one.data_received(step_of(session))
        step = step_of(session).replace(
            b"access-token", b"x-request-timeout-ms: 50\r\naccess-token"
        )
        two.data_received(step[:-1])
        came = time.perf_counter()
        await until(lambda: time.perf_counter() > came + 0.05)
        two.data_received(step[-1:])
        await turns()
        written = late.written
        gate.set()
        await until(lambda: bool(first.written))

    assert statuses(written) == [504]


async def test_step_of_a_version_that_is_not_loaded_any_more_is_refused() -> None:
    slot = slot_of(summing_backend(), parse_schema(SCHEMA))
    app = create_app(PolicyRegistry([slot]), Settings(), api_key=KEY)
    async with running(app):
        server = Server(app, is_hot=True)
        session = await begin(server)
        (first,) = answers_in((await server.exchange([step_of(session)])).written)
        await slot.add(lambda: opened(summing_backend()), name="v2")
        slot.route({"v2": 100.0})
        await slot.remove(dict(first.headers)[b"x-policy-version"].decode())
        transport = await server.exchange([step_of(session)])

    assert statuses(transport.written) == [409]
    assert b"is not loaded any more" in transport.written
    assert not server.state.tasks


async def test_steps_behind_one_that_closes_are_not_made() -> None:
    app = build(summing_backend())
    async with running(app):
        server = Server(app, is_hot=True)
        session = await begin(server)
        last = step_of(session).replace(b"access-token", b"connection: close\r\naccess-token")
        transport = await server.exchange([last + step_of(session)])
        steps = await steps_of(server, session)

    assert steps_in(answers_in(transport.written)) == ["0"]
    assert steps == 1
