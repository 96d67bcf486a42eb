"""Hot steps of sessions give what ASGI gives, keep their order, and outlive their clients."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import orjson
import pytest

from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.serving import PolicyRegistry
from policy_server.settings import Settings
from policy_server.web import create_app
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
from tests.support.hot_bytes import cut, mutated, shown
from tests.support.pages import rendered
from tests.support.waiting import turns, until
from tests.support.web import KEY, SCHEMA, build, running

REQUESTS = 700
MUTANTS = 700
SESSIONS = 3
_PLACE = b"<session>"
_PATHS = [
    b"/predict",
    b"/predict/",
    b"/predict_raw",
    b"/predict_deterministic",
    b"/predict_deterministic_raw",
    b"/distribution",
]
_ODD_PATHS = [
    b"/predict?seed=3",
    b"/predict?sed=3",
    b"/predict/batch",
    b"/nothing",
    b"",
    b"/reset",
    b"//predict",
    b"/../predict",
    b"/sessions/00000000000000000000000000000000/predict",
]
_ODD_SESSIONS = [
    b"0" * 32,
    b"0" * 31,
    b"",
    b"*",
    b"%20",
    b"A" * 32,
    _PLACE + b"0",
    b"sessions/" + _PLACE,
    _PLACE + b"/sessions/" + _PLACE,
]
_BODIES = [
    b'{"cat": 1, "mouse": 1.5}',
    b'{"cat": 2, "mouse": 0.5}',
    b'{"obs": [1, 2.5]}',
    b"{",
    b'{"cat": 1}',
]
_MORE = [b""] * 8 + [
    b"Content-Type: application/json\r\n",
    b"content-type: application/x-npy\r\n",
    b"x-policy-version: v1\r\n",
    b"x-state: new\r\n",
    b"x-state:\r\n",
    b"x-episode-id: e\r\n",
    b"x-request-id: a:b.c\r\n",
    b"x-observation-stamp: 7\r\n",
    b"x-observation-stamp: a b\r\n",
    b"x-request-timeout-ms: 60000\r\n",
    b"x-request-timeout-ms: 6_0\r\n",
    b"x-request-id: a\r\n folded\r\n",
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
    b"access-token: wrong\r\n",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
]
_ODD_STEPS = [
    b"x-step: 1_0",
    b"x-step: -1",
    b"x-step: +0",
    b"x-step: x",
    b"x-step: 0.0",
    b"x-step:",
    b"x-step:  0",
    b"x-step: 0 ",
    b"X-STEP:0",
    b"x-step: 00",
    b"x-step: 0\r\n 1",
    b"x-step: 0\r\nx-step: 0",
    b"x-step: 0\r\nx-step: 1",
    b"x-step: 0\r\nx-step: y",
    b"x-step: 99999999999999999999",
    b"x-step: \xd9\xa3",
    b"x-previous-reward: 1.5",
    b"x-previous-reward: 1e400",
    b"x-previous-reward: nan",
    b"x-previous-reward: {}",
    b"x-previous-reward: 1_0",
    b"x-previous-reward: 1\r\nx-previous-reward: 2",
    b"x-previous-action: [2]",
    b"x-previous-action: [ 1 ]",
    b"x-previous-action: [9]",
    b"x-previous-action: {",
    b'x-previous-action: "\xe9"',
    b"x-previous-reward: -2.5e0\r\nx-previous-action: [0]",
]


def request_of(choose: random.Random, step: int) -> bytes:
    """Return a request for a step: mostly a plain one, often nearly, sometimes none."""
    body = choose.choice(_BODIES[:3]) if choose.random() < 0.8 else choose.choice(_BODIES)
    path = choose.choice(_PATHS) if choose.random() < 0.9 else choose.choice(_ODD_PATHS)
    session = _PLACE if choose.random() < 0.9 else choose.choice(_ODD_SESSIONS)
    method = choose.choice([b"POST"] * 15 + [b"GET", b"DELETE"])
    numbered = [b""] * 4 + [b"x-step: %d\r\n" % (step + change) for change in (-1, 0, 0, 0, 1)]
    given = choose.choice(numbered)
    if choose.random() < 0.2:
        given += choose.choice(_ODD_STEPS) + b"\r\n"
    lines = [
        b"%b /sessions/%b%b HTTP/1.1\r\n" % (method, session, path),
        b"Host: server\r\naccess-token: %b\r\n" % choose.choice([KEY.encode()] * 15 + [b"x"]),
        given,
        b"Content-Length: %d\r\n" % len(body),
        choose.choice(_MORE),
    ]
    if choose.random() < 0.3:
        choose.shuffle(lines[2:])
    return b"".join(lines) + b"\r\n" + body


async def begin(server: Server, **start: object) -> bytes:
    """Begin a session, and return its name."""
    body = orjson.dumps(start)
    request = b"POST /sessions HTTP/1.1\r\naccess-token: %b\r\nContent-Length: %d\r\n\r\n%b"
    transport = await server.exchange([request % (KEY.encode(), len(body), body)])
    (answer,) = answers_in(transport.written)
    assert answer.status == 201, answer
    return bytes(orjson.loads(answer.body)["session_id"].encode())


def step_of(session: bytes, step: int | None = None, *, cat: int = 1) -> bytes:
    """Return a plain request for a step."""
    body = b'{"cat": %d, "mouse": 1.0}' % cat
    number = b"" if step is None else b"x-step: %d\r\n" % step
    return (
        b"POST /sessions/%b/predict_deterministic HTTP/1.1\r\n%b"
        b"access-token: %b\r\nContent-Length: %d\r\n\r\n%b"
    ) % (session, number, KEY.encode(), len(body), body)


def statuses(written: bytes) -> list[int]:
    return [answer.status for answer in answers_in(written)]


def steps_in(answers: Sequence[Answer]) -> list[str]:
    return [dict(answer.headers)[b"x-step"].decode() for answer in answers]


@pytest.mark.parametrize("backend", [summing_backend, previous_backend])
async def test_thousands_of_steps_get_the_same_bytes_three_ways(
    backend: Callable[[], FakeBackend],
) -> None:
    choose = random.Random(25)  # noqa: S311 -- reproducible requests, no secret
    app, slow = build(backend()), build(backend(), has_fast_path=False)
    seen: set[int] = set()
    async with running(app), running(slow):
        plain, hot, fastapis = servers = (Server(app), Server(app, is_hot=True), Server(slow))
        sessions = [[await begin(server, seed=7) for server in servers] for _ in range(SESSIONS)]
        steps = [0] * SESSIONS
        for number in range(REQUESTS):
            at = number % SESSIONS
            requests = [request_of(choose, steps[at]) for _ in range(choose.choice([1, 1, 2, 3]))]
            segments = cut(b"".join(requests).replace(_PLACE, b"0" * 32), choose)
            sent = [
                await server.exchange(_named(segments, b"".join(requests), name))
                for server, name in zip(servers, sessions[at], strict=True)
            ]

            found = [
                shown(answers_in(transport.written.replace(name, b"0" * 32)), b"")
                for transport, name in zip(sent, sessions[at], strict=True)
            ]
            assert found[0] == found[1], (requests, number)
            assert found[0] == found[2], (requests, number)
            assert len({transport.is_gone for transport in sent}) == 1, requests
            seen |= {status for status, _, _ in found[0]}
            if b"DELETE" in b"".join(requests):
                sessions[at] = [await begin(server, seed=number) for server in servers]
            steps[at] = await _steps_of(plain, sessions[at][0])
        assert hot.heads is not None
        assert len(hot.heads) > 20
        assert fastapis.heads is None

    assert seen >= {200, 204, 400, 401, 404, 405, 409, 415, 422}


def _named(segments: list[bytes], whole: bytes, name: bytes) -> list[bytes]:
    """Return the bytes with a session's name, cut as the segments are."""
    text, ends, at = whole.replace(_PLACE, name), [], 0
    for segment in segments:
        at += len(segment)
        ends.append(at)
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


async def _steps_of(server: Server, session: bytes) -> int:
    request = b"GET /sessions/%b HTTP/1.1\r\naccess-token: %b\r\n\r\n" % (session, KEY.encode())
    (answer,) = answers_in((await server.exchange([request])).written)
    return int(orjson.loads(answer.body)["steps"])


async def test_mutated_steps_get_the_same_answers() -> None:
    choose = random.Random(26)  # noqa: S311 -- reproducible bytes, no secret
    app = build(summing_backend())
    seen: set[int] = set()
    async with running(app):
        servers = (Server(app), Server(app, is_hot=True))
        for number in range(MUTANTS):
            if number % 50 == 0:
                names = [await begin(server) for server in servers]
            data = b"".join(step_of(b"0" * 32, choose.choice([None, 0, 1])) for _ in range(2))
            changed = mutated(data, choose)

            sent = [
                await server.exchange([changed.replace(b"0" * 32, name)])
                for server, name in zip(servers, names, strict=True)
            ]

            plain, hot = (
                shown(answers_in(transport.written.replace(name, b"0" * 32)), b"")
                for transport, name in zip(sent, names, strict=True)
            )
            assert plain == hot, changed
            assert sent[0].is_gone == sent[1].is_gone, changed
            seen |= {status for status, _, _ in plain}

    assert seen >= {200, 400, 401, 404, 409, 422}


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
        # As uvicorn does.
        for task in list(server.state.tasks):
            task.cancel(msg="too long")
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
    assert b"the requests before this one" in second.written
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
        steps = await _steps_of(server, session)

    assert (statuses(first.written), statuses(late.written), steps) == ([200], [504], 1)
    assert rendered(metrics)["rejected_total policy=default reason=deadline"] == 1


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
        steps = await _steps_of(server, session)

    assert steps_in(answers_in(transport.written)) == ["0"]
    assert steps == 1
