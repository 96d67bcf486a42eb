"""The hot path gives what ASGI gives: status, headers and bytes, whatever bytes a client sends."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
import pytest

from policy_server.access_keys import AccessKey, KeyRing
from policy_server.metrics import Metrics
from tests.support.connections import Server, answers_in
from tests.support.fakes import integer_backend
from tests.support.hot_bytes import cut, mutated, shown
from tests.support.pages import rendered
from tests.support.waiting import until
from tests.support.web import KEY, OBSERVATION, build, running

BODY = orjson.dumps(OBSERVATION)
REQUESTS = 2000
MUTANTS = 2500
_BODIES = [
    BODY,
    BODY,
    BODY,
    b'{"obs": [1, 2.5]}',
    b'{"cat": 0, "mouse": 11}',
    b'{"cat": 0}',
    b"{",
    b"\xff",
    b"null",
    b'{"cat": 0, "mouse": 1, "x": 1}',
    b'\xef\xbb\xbf{"cat": 1, "mouse": 0.5}',
]
_PATHS = [
    b"/predict_deterministic",
    b"/predict_deterministic/",
    b"/predict_deterministic_raw",
    b"/distribution",
    b"/distribution_raw",
    b"/predict",
]
_ODD_PATHS = [
    b"/predict_deterministic?seed=1",
    b"/predict?seed=7",
    b"/predict_deterministic?",
    b"/predict%5Fdeterministic",
    b"//predict_deterministic",
    b"/predict_deterministic#a",
    b"http://host/predict_deterministic",
    b"/livez",
    b"/nowhere",
    b"/predict_deterministic/batch",
    b"*",
]
_METHODS = [b"POST"] * 12 + [b"GET", b"PUT", b"OPTIONS", b"post"]
_VERSIONS = [b"1.1"] * 12 + [b"1.0", b"2.0", b"1.2"]
_KEYS = [b"access-token: " + KEY.encode()] * 12 + [
    b"access-token: wrong",
    b"Authorization: Bearer " + KEY.encode(),
    b"Authorization: " + KEY.encode(),
    b"access-token: wrong\r\naccess-token: " + KEY.encode(),
    b"access-token: " + KEY.encode() + b"\r\naccess-token: wrong",
    b"x: y",
]
_MORE = [b""] * 10 + [
    b"Content-Type: application/json\r\n",
    b"content-type: text/plain\r\n",
    b"content-type: application/x-npy\r\n",
    b"Content-Encoding: gzip\r\n",
    b"content-encoding: identity\r\n",
    b"x-request-id: bad id\r\n",
    b"X-Request-Id: a:b.c\r\nx-request-id: second\r\n",
    b"x-episode-id: e\r\n",
    b"x-policy-version: nobody\r\n",
    b"x-state: abc\r\n",
    b"x-state:\r\n",
    b"X-Request-Timeout-Ms: 3600000\r\n",
    b"x-request-timeout-ms: 0\r\n",
    b"x-request-timeout-ms: 5.0\r\nx-request-timeout-ms: 5000\r\n",
    b"x-observation-stamp: 7\r\nx-observation-stamp: 8\r\n",
    b"X-Observation-Stamp:  two:spaces+1\r\n",
    b"x-observation-stamp: a b\r\n",
    b"x-observation-stamp:\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: close\r\n",
    b"Connection: x, Close\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Upgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"Expect: other\r\n",
    b"Origin: https://a.example\r\n",
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
    b"X-Forwarded-For: 10.1.2.3\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Odd : x\r\n",
    b" folded\r\n",
    b"x: a\rb\r\n",
    b"x: \xff\xfe\r\n",
]


def request_of(choose: random.Random) -> bytes:
    """Return a request: mostly a plain one, often nearly, sometimes none."""
    body = choose.choice(_BODIES)
    length = choose.choice([b"%d" % len(body)] * 12 + [b"0%d" % len(body), b"%d " % len(body)])
    path = choose.choice(_PATHS) if choose.random() < 0.8 else choose.choice(_ODD_PATHS)
    method, version = choose.choice(_METHODS), choose.choice(_VERSIONS)
    lines = [
        b"%b %b HTTP/%b\r\n" % (method, path, version),
        b"Host: server\r\n",
        choose.choice(_KEYS) + b"\r\n",
        choose.choice([b"", b"", b"", b"x-request-id: r%d\r\n" % choose.randrange(9)]),
        choose.choice([b"", b"", b"x-observation-stamp: %d\r\n" % choose.randrange(9)]),
        choose.choice([b"Content-Length: ", b"content-length:"]) + length + b"\r\n",
        choose.choice(_MORE),
    ]
    if choose.random() < 0.05:
        lines.append(b"Content-Length: %d\r\n" % choose.choice([len(body), 3]))
    if choose.random() < 0.05:
        lines[5] = choose.choice([b"", b"Transfer-Encoding: chunked\r\n"])
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if lines[5] else body
    return b"".join(lines) + b"\r\n" + body


@asynccontextmanager
async def both(**options: object) -> AsyncIterator[tuple[Server, Server]]:
    """Serve one application by ASGI, and on the hot path."""
    app = build(**options)  # type: ignore[arg-type]  # what `build` takes
    async with running(app):
        yield Server(app), Server(app, is_hot=True)


async def test_thousands_of_requests_get_the_same_bytes_three_ways() -> None:
    choose = random.Random(15)  # noqa: S311 -- reproducible requests, no secret
    slow = build(has_fast_path=False)
    statuses = set()
    async with both() as (plain, hot), running(slow):
        for _ in range(REQUESTS):
            data = b"".join(request_of(choose) for _ in range(choose.choice([1, 1, 1, 2, 3])))
            segments = cut(data, choose)

            sent = [await server.exchange(segments) for server in (plain, hot, Server(slow))]

            ours, fast, fastapis = (answers_in(transport.written) for transport in sent)
            assert shown(ours, data) == shown(fast, data), segments
            assert shown(ours, data) == shown(fastapis, data), segments
            assert len({transport.is_gone for transport in sent}) == 1, segments
            statuses |= {answer.status for answer in ours}
        assert hot.heads is not None
        assert len(hot.heads) > 20

    assert statuses >= {200, 400, 401, 404, 405, 409, 415, 422}


async def test_mutated_bytes_get_the_same_answers() -> None:
    choose = random.Random(16)  # noqa: S311 -- reproducible bytes, no secret
    whole = b"POST %b HTTP/1.1\r\nHost: a\r\naccess-token: %b\r\nContent-Length: %d\r\n\r\n%b"
    plain_requests = [
        whole % (path, KEY.encode(), len(body), body)
        for path in (b"/predict_deterministic", b"/distribution_raw")
        for body in (BODY, b'{"obs": [1, 2]}')
    ]
    statuses: set[int] = set()
    async with both() as (plain, hot):
        for _ in range(MUTANTS):
            data = b"".join(choose.choices(plain_requests, k=choose.choice([1, 2, 3])))
            segments = cut(mutated(data, choose), choose)

            ours, theirs = [await server.exchange(segments) for server in (hot, plain)]

            found, expected = answers_in(ours.written), answers_in(theirs.written)
            assert shown(found, b"") == shown(expected, b""), segments
            assert ours.is_gone == theirs.is_gone, segments
            statuses |= {answer.status for answer in found}

    assert statuses >= {200, 400, 401, 404, 422}


SEQUENCE = (
    b"POST /predict_deterministic HTTP/1.1\r\naccess-token: %b\r\nContent-Length: %d\r\n\r\n%b"
    b"GET /livez HTTP/1.1\r\nx-request-id: a\r\n\r\n"
    b"POST /distribution HTTP/1.1\r\naccess-token: %b\r\ncontent-length: 2\r\n\r\n{}"
    b"POST /distribution/ HTTP/1.1\r\naccess-token: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\n\r\n"
    b"POST /predict_deterministic HTTP/1.1\r\naccess-token: %b\r\nContent-Length: %d\r\n"
    b"connection: close\r\n\r\n%b"
) % (
    *(KEY.encode(), len(BODY), BODY),
    *(KEY.encode(), KEY.encode(), len(BODY), BODY),
    *(KEY.encode(), len(BODY), BODY),
)


async def test_requests_cut_at_every_byte_are_answered_in_order() -> None:
    async with both() as (plain, hot):
        expected = answers_in((await plain.exchange([SEQUENCE])).written)
        assert [answer.status for answer in expected] == [200, 200, 422, 200, 200]

        for end in range(1, len(SEQUENCE)):
            cut_once = [SEQUENCE[:end], SEQUENCE[end:]]
            transport = await hot.exchange(cut_once)
            found = answers_in(transport.written)
            assert shown(found, b"") == shown(expected, b""), end
            assert transport.is_gone


@pytest.mark.parametrize("length", [1, 2, 7, 1000])
async def test_requests_in_segments_of_any_length_are_answered_in_order(length: int) -> None:
    segments = [SEQUENCE[at : at + length] for at in range(0, len(SEQUENCE), length)]
    async with both() as (plain, hot):
        expected = answers_in((await plain.exchange([SEQUENCE])).written)

        transport = await hot.exchange(segments, turns_between=0)

        assert shown(answers_in(transport.written), b"") == shown(expected, b"")


async def test_hot_requests_of_one_segment_ride_in_one_call() -> None:
    backend = integer_backend()
    request = b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nContent-Length: %d\r\n\r\n%b"
    app = build(backend)
    async with running(app):
        before = len(backend.batches)
        server = Server(app, is_hot=True)
        transport = await server.exchange([request % (KEY.encode(), len(BODY), BODY) * 10])

    assert [answer.status for answer in answers_in(transport.written)] == [200] * 10
    assert backend.batches[before:] == [10]
    assert server.state.total_requests == 10


async def test_head_with_a_removed_key_is_hot_no_more() -> None:
    old, new = AccessKey.of("old", KEY), AccessKey.of("new", "another")
    keys = KeyRing([old])
    metrics = Metrics()
    app = build(keys=keys, metrics=metrics)
    request = b"POST /predict HTTP/1.1\r\naccess-token: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        KEY.encode(),
        len(BODY),
        BODY,
    )
    async with running(app):
        server = Server(app, is_hot=True)
        assert server.heads is not None
        protocol, transport = server.connect()
        for _ in range(3):
            protocol.data_received(request)
            await until(lambda: not server.state.tasks)
        known = len(server.heads)
        keys.replace([old, new])
        protocol.data_received(request)
        await until(lambda: not server.state.tasks)
        keys.replace([new])
        protocol.data_received(request)
        await until(lambda: len(answers_in(bytes(transport.written))) == 5)
        protocol.connection_lost(None)

    answers = answers_in(bytes(transport.written))
    assert known == 1
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 401]
    assert rendered(metrics)["key_requests_total key=old"] == 4
