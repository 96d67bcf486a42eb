"""Requests for steps of sessions, answered in three ways: in the protocol, over ASGI, by FastAPI.

Each way has a session of its own, and all of them the same history.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import orjson

from policy_server.web import Application
from tests.fuzz.watching import without_complaints
from tests.support.connections import Server, answers_in
from tests.support.fakes import FakeBackend, previous_backend, summing_backend
from tests.support.hot_bytes import HALF_A_BYTE, cut, cut_alike, mutated, own_lines, shown
from tests.support.web import KEY, build, running

__all__ = ["begin", "compare_session_mutants", "compare_sessions", "step_of", "steps_of"]

_SESSIONS = 3
_ZEROS = b"0" * 32
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
    if method == b"DELETE" and choose.random() < 0.3:
        path = b""
    numbered = [b""] * 4 + [b"x-step: %d\r\n" % (step + change) for change in (-1, 0, 0, 0, 1)]
    given = choose.choice(numbered)
    if choose.random() < 0.2:
        given += choose.choice(_ODD_STEPS) + b"\r\n"
    lines = [
        b"%b /sessions/%b%b HTTP/1.1\r\n" % (method, session, path),
        b"Host: server\r\naccess-token: %b\r\n" % choose.choice([KEY.encode()] * 15 + [b"x"]),
        given,
        own_lines(choose),
        b"Content-Length: %d\r\n" % len(body),
        choose.choice(_MORE),
    ]
    if choose.random() < 0.3:
        lines[2:] = choose.sample(lines[2:], k=len(lines) - 2)
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


@asynccontextmanager
async def served(backend: FakeBackend, *, has_fast_path: bool) -> AsyncIterator[Application]:
    """Serve a policy whose sessions this process keeps."""
    app = build(backend, has_fast_path=has_fast_path)
    async with running(app):
        yield app


async def compare_sessions(
    cases: int,
    seed: int,
    *,
    backend: Callable[[], FakeBackend] | None = None,
    serve: Callable[..., AbstractAsyncContextManager[Application]] = served,
) -> Counter[int]:
    """Hold connections of one to three steps three ways against each other.

    Args:
        cases: how many connections.
        seed: of the draws.
        backend: makes the policy's backend; None for one with a memory, and then one whose
            memory is the previous step.
        serve: serves the backend; see `served`.

    Returns:
        How often each status was answered.
    """
    if backend is None:
        seen = await compare_sessions(cases - cases // 2, seed, backend=summing_backend)
        return seen + await compare_sessions(cases // 2, seed + 1, backend=previous_backend)
    choose = random.Random(seed)  # noqa: S311 -- reproducible requests, no secret
    statuses: Counter[int] = Counter()
    with without_complaints():
        async with (
            serve(backend(), has_fast_path=True) as app,
            serve(backend(), has_fast_path=False) as slow,
        ):
            plain, hot, fastapis = servers = (Server(app), Server(app, is_hot=True), Server(slow))
            sessions = [[await begin(one, seed=7) for one in servers] for _ in range(_SESSIONS)]
            steps = [0] * _SESSIONS
            for number in range(cases):
                at = number % _SESSIONS
                drawn = [request_of(choose, steps[at]) for _ in range(choose.choice([1, 1, 2, 3]))]
                whole = b"".join(drawn)
                segments = cut(whole.replace(_PLACE, _ZEROS), choose)
                sent = [
                    await server.exchange(cut_alike(segments, whole.replace(_PLACE, name)))
                    for server, name in zip(servers, sessions[at], strict=True)
                ]

                found = [
                    shown(answers_in(transport.written.replace(name, _ZEROS)), b"")
                    for transport, name in zip(sent, sessions[at], strict=True)
                ]
                where = (seed, number, drawn)
                assert found[0] == found[1], where
                assert found[0] == found[2], where
                assert len({transport.is_gone for transport in sent}) == 1, where
                statuses.update(status for status, _, _ in found[0])
                if b"DELETE" in whole:
                    sessions[at] = [await begin(server, seed=number) for server in servers]
                steps[at] = await steps_of(plain, sessions[at][0])
            assert hot.heads is not None
            assert len(hot.heads) > min(20, cases // 200)
            assert fastapis.heads is None
    return statuses


async def steps_of(server: Server, session: bytes) -> int:
    """Return how many steps a session has made."""
    request = b"GET /sessions/%b HTTP/1.1\r\naccess-token: %b\r\n\r\n" % (session, KEY.encode())
    (answer,) = answers_in((await server.exchange([request])).written)
    return int(orjson.loads(answer.body)["steps"])


async def compare_session_mutants(cases: int, seed: int) -> Counter[int]:
    """Hold connections of two steps with changed bytes three ways against each other.

    Args:
        cases: how many connections.
        seed: of the draws.

    Returns:
        How often each status was answered.
    """
    choose = random.Random(seed)  # noqa: S311 -- reproducible bytes, no secret
    app, slow = build(summing_backend()), build(summing_backend(), has_fast_path=False)
    statuses: Counter[int] = Counter()
    with without_complaints():
        async with running(app), running(slow):
            servers = (Server(app), Server(app, is_hot=True), Server(slow))
            for number in range(cases):
                if number % 50 == 0:
                    names = [await begin(server) for server in servers]
                data = b"".join(step_of(_ZEROS, choose.choice([None, 0, 1])) for _ in range(2))
                changed = mutated(data, choose)
                if HALF_A_BYTE in changed:
                    continue

                sent = [
                    await server.exchange([changed.replace(_ZEROS, name)])
                    for server, name in zip(servers, names, strict=True)
                ]

                plain, hot, fastapis = (
                    shown(answers_in(transport.written.replace(name, _ZEROS)), b"")
                    for transport, name in zip(sent, names, strict=True)
                )
                where = (seed, number, changed)
                assert plain == hot, where
                assert plain == fastapis, where
                assert len({transport.is_gone for transport in sent}) == 1, where
                statuses.update(status for status, _, _ in plain)
    return statuses
