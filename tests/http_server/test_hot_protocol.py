"""The protocol around hot requests: order, ends of connections, uvicorn's own counts and limits."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import orjson
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from policy_server.http_server.connection_limits import ConnectionWatch
from policy_server.http_server.hot_heads import HotHeads, KnownHead, parse_head
from policy_server.http_server.hot_protocol import HotHttpProtocol, protocol_for
from policy_server.http_server.hot_requests import RequestHead
from policy_server.http_server.limited_protocol import LimitedHttpProtocol
from policy_server.metrics import Metrics
from tests.support.connections import LIMITS, Server, answers_in
from tests.support.fakes import FakeBackend, gated, hold, integer_backend
from tests.support.waiting import turns, until
from tests.support.web import KEY, OBSERVATION, build, running

BODY = orjson.dumps(OBSERVATION)
HEAD = b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nContent-Length: %d\r\n\r\n" % (
    KEY.encode(),
    len(BODY),
)
REQUEST = HEAD + BODY
LIVEZ = b"GET /livez HTTP/1.1\r\n\r\n"


def held_backend() -> FakeBackend:
    """Return a backend that answers once its gate is opened."""
    return gated(integer_backend())


async def test_answers_keep_the_order_of_their_requests() -> None:
    backend = held_backend()
    app = build(backend)
    async with running(app):
        gate = hold(backend)
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        protocol.data_received(REQUEST)
        await until(lambda: len(backend.batches) == 4)
        # Refused at once, and the next one is uvicorn's: both wait for the first.
        protocol.data_received(REQUEST.replace(b'"cat"', b'"dog"') + LIVEZ + REQUEST)
        await turns(50)
        before, was_paused = transport.written, transport.is_paused
        gate.set()
        await until(lambda: len(answers_in(transport.written)) == 4)

    assert (before, was_paused) == (b"", True)
    assert [answer.status for answer in answers_in(transport.written)] == [200, 422, 200, 200]
    assert answers_in(transport.written)[2].body == b'"ok"'
    assert not transport.is_paused
    assert server.state.total_requests == 4


async def test_client_that_has_gone_frees_its_place(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "policy_server")
    backend = held_backend()
    app = build(backend, max_queue_size=2)
    async with running(app):
        gate = hold(backend)
        server = Server(app, is_hot=True)
        protocol, gone = server.connect()
        protocol.data_received(REQUEST * 2)
        await turns()
        protocol.connection_lost(None)
        tasks = len(server.state.tasks)
        protocol, transport = server.connect()
        protocol.data_received(REQUEST)
        await turns()
        gate.set()
        await until(lambda: transport.written)

    assert (gone.written, tasks) == (b"", 0)
    assert [answer.status for answer in answers_in(transport.written)] == [200]
    assert [item.message for item in caplog.records].count("client_disconnected") == 2


async def test_shutdown_answers_what_has_come_and_tells_the_client() -> None:
    backend = held_backend()
    app = build(backend)
    async with running(app):
        gate = hold(backend)
        server = Server(app, is_hot=True)
        (waiting, busy), (half, late), (idle, quiet) = (server.connect() for _ in range(3))
        waiting.data_received(REQUEST * 2)
        half.data_received(HEAD)
        for protocol in (waiting, half, idle):
            protocol.shutdown()
        was_open = not busy.is_gone and not late.is_gone and not quiet.is_gone
        half.data_received(BODY)
        await turns()
        gate.set()
        await until(lambda: busy.is_gone and late.is_gone and quiet.is_gone)

    assert was_open
    assert quiet.written == b""
    for transport, count in ((busy, 2), (late, 1)):
        answers = answers_in(transport.written)
        assert [answer.status for answer in answers] == [200] * count
        ends = [(b"connection", b"close") in answer.headers for answer in answers]
        assert ends == [False] * (count - 1) + [True]


async def test_shutdown_answers_requests_of_uvicorns_behind_hot_ones() -> None:
    backend = held_backend()
    app = build(backend)
    async with running(app):
        gate = hold(backend)
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        protocol.data_received(REQUEST + LIVEZ)
        protocol.shutdown()
        gate.set()
        await until(lambda: transport.is_gone)

    answers = answers_in(transport.written)
    assert [answer.status for answer in answers] == [200, 200]
    ends = [(b"connection", b"close") in answer.headers for answer in answers]
    assert ends == [False, True]


@pytest.mark.parametrize("request_", [REQUEST, LIVEZ], ids=["hot", "uvicorn's"])
async def test_request_that_comes_as_the_server_ends_is_answered(request_: bytes) -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        protocol.data_received(request_)
        await until(lambda: transport.written)
        protocol.shutdown()
        protocol.data_received(request_)
        await until(lambda: transport.is_gone)

    answers = answers_in(transport.written)
    assert [answer.status for answer in answers] == [200, 200]
    ends = [(b"connection", b"close") in answer.headers for answer in answers]
    assert ends == [False, True]


async def test_end_of_the_server_loses_no_request_of_a_segment_whose_first_is_refused() -> None:
    refused = b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nContent-Length: 2\r\n\r\n{}" % (
        KEY.encode()
    )
    app = build(integer_backend())
    async with running(app):
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        protocol.shutdown()
        protocol.data_received(refused + REQUEST + refused + REQUEST)
        await until(lambda: transport.is_gone)

    answers = answers_in(transport.written)
    assert [answer.status for answer in answers] == [422, 200, 422, 200]
    ends = [(b"connection", b"close") in answer.headers for answer in answers]
    assert ends == [False, False, False, True]


async def test_time_of_a_hot_body_is_that_of_its_own_bytes() -> None:
    app = build(integer_backend())
    async with running(app):
        server = Server(app, is_hot=True)
        await server.exchange([REQUEST])
        protocol, _ = server.connect()
        cold = b"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n"
        for segment in (cold, bytes(4_000_000), REQUEST[:-1]):
            protocol.data_received(segment)
            await turns(20)

    assert protocol._body_bytes < len(REQUEST)  # noqa: SLF001 -- the limit grows with it


async def test_shutdown_that_takes_too_long_cuts_hot_requests_off() -> None:
    backend = held_backend()
    app = build(backend)
    async with running(app):
        gate = hold(backend)
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        protocol.data_received(REQUEST * 3)
        # As uvicorn does: it goes through the set itself.
        for task in server.state.tasks:
            task.cancel(msg="too long")
        await turns(2)
        gate.set()

    assert transport.is_gone
    assert not server.state.tasks


@pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])
@pytest.mark.parametrize("before", [REQUEST, REQUEST + LIVEZ], ids=["one", "two"])
@pytest.mark.parametrize(
    "broken",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n{}",
        b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ],
    ids=["no request", "no header", "no framing", "no chunk"],
)
async def test_what_is_no_http_is_refused_behind_the_answers_before_it(
    before: bytes, broken: bytes, *, is_hot: bool
) -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=is_hot)
        transport = await server.exchange([before + broken])

    statuses = [answer.status for answer in answers_in(transport.written)]
    assert statuses == [200] * (len(statuses) - 1) + [400]
    assert len(statuses) == 2 + before.endswith(LIVEZ)
    assert transport.is_gone


@pytest.mark.parametrize("body", [BODY, b"nonsense"], ids=["answered", "refused"])
async def test_what_follows_a_request_that_closes_is_not_read(body: bytes) -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=True)
        last = (
            HEAD[:-2].replace(b"%d" % len(BODY), b"%d" % len(body)) + b"connection: close\r\n\r\n"
        )
        transport = await server.exchange([last + body + REQUEST + LIVEZ])

    assert [answer.status for answer in answers_in(transport.written)] in ([200], [422])
    assert transport.is_gone


@pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])
@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"Host: a\r\n", 200),
        (b"Host: [::1]:8000\r\n", 200),
        (b"Host: policy_server.local:80\r\n", 200),
        (b"", 200),
        (b"Host:\r\n", 400),
        (b"Host: a b\r\n", 400),
        (b"Host: a, b\r\n", 400),
        (b"Host: a/b\r\n", 400),
        (b"Host: a\r\nHost: a\r\n", 400),
        (b"Transfer-Encoding: gzip, chunked\r\n", 400),
        (b"Transfer-Encoding: chunked, chunked\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n", 400),
    ],
)
async def test_requests_for_no_one_host_or_of_unknown_framing_are_refused(
    lines: bytes, status: int, *, is_hot: bool
) -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=is_hot)
        data = REQUEST.replace(b"access-token", lines + b"access-token")
        if b"Transfer" in lines:
            data = data.replace(b"Content-Length: %d\r\n" % len(BODY), b"")
        transport = await server.exchange([data])

    assert [answer.status for answer in answers_in(transport.written)] == [status]


async def test_client_that_does_not_read_is_not_read_from() -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        protocol.pause_writing()
        protocol.data_received(REQUEST)
        await turns(50)
        before, was_paused = transport.written, transport.is_paused
        protocol.resume_writing()
        await until(lambda: transport.written)

    assert (before, was_paused, transport.is_paused) == (b"", True, False)


@pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])
async def test_limit_of_concurrency_is_uvicorns(*, is_hot: bool) -> None:
    backend = held_backend()
    app = build(backend)
    async with running(app):
        gate = hold(backend)
        server = Server(app, is_hot=is_hot, limit_concurrency=3)
        (first, _), (second, refused) = (server.connect() for _ in range(2))
        first.data_received(REQUEST)
        second.data_received(REQUEST)
        await turns()
        _, _ = server.connect()
        third, _ = server.connect()
        third.data_received(REQUEST)
        await turns()
        gate.set()
        await until(lambda: not server.state.tasks)

    assert [answer.status for answer in answers_in(refused.written)] == [200]
    assert third.transport.written.startswith(b"HTTP/1.1 503 ")  # type: ignore[attr-defined]  # a test's


@pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])
@pytest.mark.parametrize(
    ("header", "options", "client"),
    [
        (b"", {}, "127.0.0.1"),
        (b"X-Forwarded-For: 10.1.2.3\r\n", {}, "10.1.2.3"),
        (
            b"X-Forwarded-For: 10.1.2.3, 10.9.9.9\r\n",
            {"forwarded_allow_ips": "10.0.0.1"},
            "127.0.0.1",
        ),
        (b"X-Forwarded-For: 10.1.2.3\r\n", {"proxy_headers": False}, "127.0.0.1"),
        # As long as a head may be: each line, and what is kept of it, would be.
        (b"X-Forwarded-For: %b\r\n" % (b"a" * 60_000), {}, "a" * 64),
    ],
    ids=["direct", "proxy", "stranger", "off", "long name"],
)
async def test_log_names_the_client_that_a_proxy_forwards_for(
    header: bytes,
    options: dict[str, Any],
    client: str,
    caplog: pytest.LogCaptureFixture,
    *,
    is_hot: bool,
) -> None:
    caplog.set_level(logging.INFO, "policy_server.access")
    app = build()
    async with running(app):
        server = Server(app, is_hot=is_hot, **options)
        await server.exchange([REQUEST.replace(b"\r\nContent", b"\r\n" + header + b"Content")])

    lines = [vars(item) for item in caplog.records if item.name == "policy_server.access"]
    assert [line["client"] for line in lines] == [client]
    assert [(line["route"], line["method"], line["status"]) for line in lines] == [
        ("/predict", "POST", 200)
    ]


async def test_lines_and_times_of_pipelined_requests_are_those_of_their_turns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "policy_server.access")
    backend = held_backend()
    app = build(backend)
    stamped = HEAD.replace(b"\r\nContent", b"\r\nx-observation-stamp: 1\r\nContent") + BODY
    async with running(app):
        gate = hold(backend)
        protocol, transport = Server(app, is_hot=True).connect()
        # Refused at once, while the one before it waits.
        protocol.data_received(stamped + stamped.replace(b'"cat"', b'"dog"') + stamped)
        await asyncio.sleep(0.1)
        early = list(caplog.records)
        gate.set()
        await until(lambda: len(answers_in(transport.written)) == 3)

    lines = [vars(item) for item in caplog.records if item.name == "policy_server.access"]
    held_ms = [
        float(dict(answer.headers)[b"x-held-ms"]) for answer in answers_in(transport.written)
    ]
    assert [item for item in early if item.name == "policy_server.access"] == []
    assert [line["status"] for line in lines] == [200, 422, 200]
    assert min(held_ms) >= 99
    assert min(line["duration_ms"] for line in lines) >= 99


async def test_answer_that_waited_behind_others_has_a_line_though_its_client_has_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "policy_server.access")
    backend, metrics = held_backend(), Metrics()
    app = build(backend, metrics=metrics)
    async with running(app):
        hold(backend)
        protocol, _ = Server(app, is_hot=True).connect()
        protocol.data_received(REQUEST + REQUEST.replace(b'"cat"', b'"dog"'))
        await turns()
        protocol.connection_lost(None)
        await turns()

    lines = [vars(item) for item in caplog.records if item.name == "policy_server.access"]
    assert [line["status"] for line in lines] == [422]
    assert metrics.snapshot().numbers["requests"] == {("/predict", "422", "default"): 1.0}


async def test_hot_requests_are_counted_as_others_are() -> None:
    metrics = Metrics()
    app = build(metrics=metrics)
    async with running(app):
        await Server(app, is_hot=True).exchange([REQUEST * 2 + REQUEST.replace(b'"cat"', b'"dog"')])

    requests = metrics.snapshot().numbers["requests"]
    assert requests == {("/predict", "200", "default"): 2.0, ("/predict", "422", "default"): 1.0}


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["alone", "wrapped"])
@pytest.mark.parametrize("proxy_headers", [False, True])
async def test_requests_are_hot_only_where_nothing_stands_before_the_application(
    monkeypatch: pytest.MonkeyPatch, *, is_wrapped: bool, proxy_headers: bool
) -> None:
    monkeypatch.setattr(logging.Logger, "hasHandlers", lambda _: False)
    app = build()

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    config = uvicorn.Config(
        wrapped if is_wrapped else app, log_config=None, proxy_headers=proxy_headers
    )
    config.load()
    chosen: Any = protocol_for(config, ConnectionWatch(LIMITS), app, app.hot_routes)

    assert chosen.func is (LimitedHttpProtocol if is_wrapped else HotHttpProtocol)


class Routes:
    """Routes that are hot, whatever the head; it counts how often it is asked."""

    changes = 0

    def __init__(self) -> None:
        self.asked: list[RequestHead] = []

    def find(self, head: RequestHead) -> Any:  # noqa: ANN401 -- a route that nobody asks
        self.asked.append(head)
        return object()


def head_of(number: int, more: bytes = b"") -> bytes:
    """Return one of many heads."""
    return b"POST /%d HTTP/1.1\r\n%bContent-Length: 1\r\n\r\n" % (number, more)


def test_head_is_decided_once_when_it_is_seen_again() -> None:
    routes = Routes()
    heads = HotHeads(routes)

    found = [heads.find(head_of(1)) for _ in range(5)]

    assert len(routes.asked) == 2
    assert len({id(item) for item in found[1:]}) == 1
    routes.changes += 1
    heads.find(head_of(1))
    assert len(routes.asked) == 3


def test_heads_that_come_once_drive_out_no_others() -> None:
    heads = HotHeads(Routes())
    for _ in range(2):
        heads.find(head_of(0))
    for number in range(20_000):
        heads.find(head_of(number + 1))

    assert len(heads) == 1


def test_known_heads_are_few_and_short() -> None:
    heads = HotHeads(Routes())
    for number in range(3000):
        for _ in range(2):
            heads.find(head_of(number))
            heads.find(head_of(number, b"x: " + b"y" * 5000 + b"\r\n"))

    assert len(heads) == 1024


@pytest.mark.parametrize(
    ("lines", "request_id"),
    [
        (b"x-request-id: %b\r\n", True),
        (b"traceparent: 00-%b-01\r\nX-REQUEST-ID:%b\r\n", True),
        (b"x-b3-traceid: %b\r\nX-Amzn-Trace-Id: Root=%b\r\n", False),
    ],
)
def test_ids_that_differ_from_request_to_request_need_no_other_decision(
    lines: bytes, *, request_id: bool
) -> None:
    routes = Routes()
    heads = HotHeads(routes)

    for number in range(10):
        given = b"id-%d" % number
        found = heads.find(head_of(1, lines.replace(b"%b", given)))
        assert isinstance(found, KnownHead)
        assert found.own.request_id == (given.decode() if request_id else "")

    assert len(routes.asked) == 2


@pytest.mark.parametrize("given", [1, 20, 999_999, 1_000_000, 2_999_999, 3_599_999, 3_600_000])
def test_timeout_of_a_request_is_no_part_of_the_decision(given: int) -> None:
    routes = Routes()
    heads = HotHeads(routes)

    for timeout_ms in (1, 2, given):
        found = heads.find(head_of(1, b"X-Request-Timeout-MS:%d\r\n" % timeout_ms))
        assert isinstance(found, KnownHead)
        assert found.own.timeout_ms == timeout_ms

    assert len(routes.asked) == 2
    assert all(b"x-request-timeout-ms" not in dict(head.headers) for head in routes.asked)


def test_timeout_that_stays_the_same_is_remembered_with_its_head() -> None:
    heads = HotHeads(Routes())
    constant = head_of(1, b"x-request-timeout-ms: 50\r\n")

    found = [heads.find(constant) for _ in range(5)]

    assert found[3] is found[4]
    assert {item.own.timeout_ms for item in found if item is not None} == {50}
    # With an id of each request there is nothing to remember beyond what all have in common.
    known = len(heads)
    for number in range(100):
        for _ in range(2):
            heads.find(head_of(1, b"x-request-id: %d\r\nx-request-timeout-ms: 50\r\n" % number))
    assert len(heads) == known


@pytest.mark.parametrize("given", [b"0", b"007", b"3600001", b"3700000", b"-1", b"1.5", b" 7", b""])
def test_timeout_of_no_strict_form_stays_in_the_head(given: bytes) -> None:
    routes = Routes()

    HotHeads(routes).find(head_of(1, b"x-request-timeout-ms: %b\r\n" % given))

    assert dict(routes.asked[0].headers)[b"x-request-timeout-ms"] == given.strip()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /a HTTP/1.1\r\nContent-Length: 1\r\n\r\n",
        b"POST /a HTTP/1.0\r\nContent-Length: 1\r\n\r\n",
        b"POST /a HTTP/1.1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"POST /a?b HTTP/1.1\r\nContent-Length: 1\r\n\r\n",
        b"POST /%61 HTTP/1.1\r\nContent-Length: 1\r\n\r\n",
        b"POST http://a/b HTTP/1.1\r\nContent-Length: 1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 1\r\nUpgrade: h2c\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 1\r\nx: \x00\r\n\r\n",
        b"\r\nnonsense\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 1\r\n",
    ],
)
def test_head_that_is_no_plain_post_is_not_hot(head: bytes) -> None:
    assert parse_head(head) is None


def test_plain_head_is_as_asgi_has_it() -> None:
    found = parse_head(
        b"POST /a/b HTTP/1.1\r\nHost: c\r\nX-Forwarded-For: d\r\nConnection: close\r\n"
        b"CONTENT-length: 12\r\n\r\n",
        root_path="/root",
    )

    assert found is not None
    assert (found.path, found.root_path, found.length) == ("/root/a/b", "/root", 12)
    assert (found.is_kept_alive, found.is_forwarded) == (False, True)
    assert found.headers == (
        (b"host", b"c"),
        (b"x-forwarded-for", b"d"),
        (b"connection", b"close"),
        (b"content-length", b"12"),
    )
