"""Requests byte for byte, answered in three ways: in the protocol, over ASGI, and by FastAPI alone.

Status, headers and bytes have to be the same, and no request may be answered by a fault of ours.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson

from tests.fuzz.watching import without_complaints
from tests.support.connections import Server, answers_in
from tests.support.hot_bytes import cut, mutated, own_lines, shown
from tests.support.web import KEY, OBSERVATION, build, running

__all__ = [
    "BODY",
    "CHUNKS",
    "FRAMINGS",
    "TOLD",
    "both",
    "compare_mutants",
    "compare_requests",
    "request_of",
]

BODY = orjson.dumps(OBSERVATION)
# What a client may be told: the server has no fault, and is never full here.
TOLD = frozenset({100, 200, 400, 401, 404, 405, 406, 408, 409, 413, 415, 422, 426, 431, 501})
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
    b"x-episode-id: e\r\n",
    b"x-policy-version: nobody\r\n",
    b"x-state: abc\r\n",
    b"x-state:\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: close\r\n",
    b"Connection: x, Close\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Upgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"Expect: other\r\n",
    b"Origin: https://a.example\r\n",
    b"X-Forwarded-For: 10.1.2.3\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Odd : x\r\n",
    b"Host: other\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b" folded\r\n",
    b"x: a\rb\r\n",
    b"x: \xff\xfe\r\n",
    b"x: a\x00b\r\n",
    b"x\x00: a\r\n",
    b"x: a\n",
    b"x: a\n\r\n",
    b"x: a\r\n\tContent-Length: 1\r\n",
    b": nameless\r\n",
    b"Content-Length\r\n",
    b"Host: another\r\n",
    b"Trailer: access-token\r\n",
    b"TE: trailers\r\n",
    b"Sec-WebSocket-Key: AAAA\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
    b"HTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n",
]
# Ways to say where a body ends, most of which HTTP forbids: proxies read them in two ways.
FRAMINGS = [
    b"Content-Length: %(size)d\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: %(size)d\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: identity, chunked\r\n",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n",
    b"X: y\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: CHUNKED\r\n",
    b'Transfer-Encoding: "chunked"\r\n',
    b"Transfer-Encoding: chunked\x00\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: +%(size)d\r\n",
    b"Content-Length: 0x%(size)x\r\n",
    b"Content-Length: %(size)d, %(size)d\r\n",
    b"Content-Length: %(size)d\r\nContent-Length: %(size)d\r\n",
    b"Content-Length: %(size)d\r\nContent-Length: 0\r\n",
    b"Content-Length: 99999999999999999999999\r\n",
    b"Content-Length: 9223372036854775807\r\n",
    b"Content-Length: \r\n",
    b"Content-Length: 1 2\r\n",
    b"Content-Length : %(size)d\r\n",
    b"Content_Length: %(size)d\r\n",
    b"",
]
CHUNKS = [
    b"%(size)x\r\n%(body)b\r\n0\r\n\r\n",
    b"%(size)X;name=value\r\n%(body)b\r\n0;last\r\n\r\n",
    b'%(size)x;a="\r\n"\r\n%(body)b\r\n0\r\n\r\n',
    b"%(size)x \r\n%(body)b\r\n0\r\n\r\n",
    b"%(size)x\n%(body)b\n0\n\n",
    b"%(size)x;\n%(body)b\r\n0\r\n\r\n",
    b"%(size)x\r%(body)b\r\n0\r\n\r\n",
    b"0x%(size)x\r\n%(body)b\r\n0\r\n\r\n",
    b"-%(size)x\r\n%(body)b\r\n0\r\n\r\n",
    b"+%(size)x\r\n%(body)b\r\n0\r\n\r\n",
    b"000000000000000000000%(size)x\r\n%(body)b\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\n%(body)b\r\n0\r\n\r\n",
    b"fffffffffffffffff\r\n%(body)b\r\n0\r\n\r\n",
    b"\r\n%(body)b\r\n0\r\n\r\n",
    b"%(size)x\r\n%(body)bXX0\r\n\r\n",
    b"%(size)x\r\n%(body)b\r\n0\r\naccess-token: wrong\r\ncontent-length: 3\r\n\r\n",
    b"%(size)x\r\n%(body)b\r\n0\r\n folded\r\nno colon\r\n\r\n",
    b"%(size)x\r\n%(body)b\r\n00\r\n\r\n",
    b"%(body)b",
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
        own_lines(choose),
        choose.choice([b"Content-Length: ", b"content-length:"]) + length + b"\r\n",
        choose.choice(_MORE),
    ]
    if choose.random() < 0.05:
        lines.append(b"Content-Length: %d\r\n" % choose.choice([len(body), 3]))
    if choose.random() < 0.15:
        known = {b"size": len(body), b"body": body}
        lines[4] = choose.choice([b"Transfer-Encoding: chunked\r\n", *FRAMINGS]) % known
        if b"chunked" in lines[4].lower():
            body = choose.choice([CHUNKS[0], *CHUNKS]) % known
    if choose.random() < 0.3:
        lines[2:] = choose.sample(lines[2:], k=len(lines) - 2)
    return b"".join(lines) + b"\r\n" + body


@asynccontextmanager
async def both(**options: object) -> AsyncIterator[tuple[Server, Server]]:
    """Serve one application by ASGI, and on the hot path."""
    app = build(**options)  # type: ignore[arg-type]  # what `build` takes
    async with running(app):
        yield Server(app), Server(app, is_hot=True)


async def compare_requests(cases: int, seed: int) -> Counter[int]:
    """Hold connections of one to three requests three ways against each other.

    Returns:
        How often each status was answered.
    """
    choose = random.Random(seed)  # noqa: S311 -- reproducible requests, no secret
    slow = build(has_fast_path=False)
    statuses: Counter[int] = Counter()
    with without_complaints():
        async with both() as (plain, hot), running(slow):
            for number in range(cases):
                data = b"".join(request_of(choose) for _ in range(choose.choice([1, 1, 1, 2, 3])))
                segments = cut(data, choose)

                sent = [await server.exchange(segments) for server in (plain, hot, Server(slow))]

                ours, fast, fastapis = (answers_in(transport.written) for transport in sent)
                where = (seed, number, segments)
                assert shown(ours, data) == shown(fast, data), where
                assert shown(ours, data) == shown(fastapis, data), where
                assert len({transport.is_gone for transport in sent}) == 1, where
                assert all(answer.status in TOLD for answer in ours), where
                statuses.update(answer.status for answer in ours)
            assert hot.heads is not None
            assert len(hot.heads) > min(20, cases // 200)
    return statuses


async def compare_mutants(cases: int, seed: int) -> Counter[int]:
    """Hold connections with changed bytes three ways against each other.

    Returns:
        How often each status was answered.
    """
    choose = random.Random(seed)  # noqa: S311 -- reproducible bytes, no secret
    whole = b"POST %b HTTP/1.1\r\nHost: a\r\naccess-token: %b\r\n%bContent-Length: %d\r\n\r\n%b"
    own = b"x-request-timeout-ms: 60000\r\nx-observation-stamp: 7\r\nx-request-id: r\r\n"
    plain_requests = [
        whole % (path, KEY.encode(), lines, len(body), body)
        for path in (b"/predict_deterministic", b"/distribution_raw")
        for body in (BODY, b'{"obs": [1, 2]}')
        for lines in (b"", own)
    ]
    slow = build(has_fast_path=False)
    statuses: Counter[int] = Counter()
    with without_complaints():
        async with both() as (plain, hot), running(slow):
            for number in range(cases):
                data = b"".join(choose.choices(plain_requests, k=choose.choice([1, 2, 3])))
                segments = cut(mutated(data, choose), choose)

                sent = [await server.exchange(segments) for server in (plain, hot, Server(slow))]

                found, fast, fastapis = (answers_in(transport.written) for transport in sent)
                where = (seed, number, segments)
                assert shown(found, b"") == shown(fast, b""), where
                assert shown(found, b"") == shown(fastapis, b""), where
                assert len({transport.is_gone for transport in sent}) == 1, where
                assert all(answer.status in TOLD for answer in found), where
                statuses.update(answer.status for answer in found)
    return statuses
