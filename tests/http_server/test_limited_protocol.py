"""Limits of connections: silent, slow, too large or too many ones are closed in time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import orjson
import pytest
from starlette.types import Receive, Scope, Send

from policy_server.http_server import limited_protocol
from policy_server.http_server.connection_limits import ConnectionLimits
from policy_server.metrics import Metrics
from policy_server.settings import Settings
from tests.support.connections import LIMITS, Server, Transport, answers_in
from tests.support.waiting import until
from tests.support.web import KEY, OBSERVATION, build, running

SHORT = replace(LIMITS, header_timeout_s=0.1, body_timeout_s=0.1)
BODY = orjson.dumps(OBSERVATION)
HEAD = b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nContent-Length: %d\r\n\r\n" % (
    KEY.encode(),
    len(BODY),
)


async def reading(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer once the body has come; a path that ends with `early` is answered before."""
    is_early = scope["path"].endswith("early")
    while not is_early and (await receive()).get("more_body"):
        """Wait for the rest."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def refusal(transport: Transport) -> tuple[int, str]:
    """Return status and reason of a connection's last answer, after which it is closed."""
    answer = answers_in(transport.written)[-1]
    assert (b"connection", b"close") in answer.headers
    assert (b"content-type", b"application/json") in answer.headers
    assert transport.is_ended or transport.is_gone
    return answer.status, orjson.loads(answer.body)["detail"]


@pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])
async def test_thousands_of_silent_and_slow_connections_cost_others_nothing(
    *, is_hot: bool
) -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=is_hot, limits=SHORT, timeout_keep_alive=0.2)
        silent = [server.connect()[1] for _ in range(3000)]
        slow = [server.connect() for _ in range(500)]
        for protocol, _ in slow:
            protocol.data_received(HEAD[:20])

        answered = await server.exchange([HEAD + BODY])
        await until(lambda: all(transport.is_gone for transport in silent))
        await until(lambda: all(transport.is_ended for _, transport in slow))

    assert [answer.status for answer in answers_in(answered.written)] == [200]
    assert {transport.written for transport in silent} == {b""}
    assert {refusal(transport) for _, transport in slow} == {
        (408, "the request's head did not arrive within 0.1 s")
    }


async def test_head_that_drips_is_refused_all_the_same() -> None:
    server = Server(reading, limits=SHORT)
    protocol, transport = server.connect()

    for byte in b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 1000:
        protocol.data_received(bytes([byte]))
        await asyncio.sleep(0.001)
        if transport.written:
            break

    assert refusal(transport)[0] == 408


@pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])
async def test_body_that_does_not_come_is_refused(*, is_hot: bool) -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=is_hot, limits=SHORT)
        protocol, transport = server.connect()
        protocol.data_received(HEAD + BODY[:5])

        await until(lambda: transport.is_gone)
        protocol.connection_lost(None)
        await until(lambda: not server.state.tasks)

    assert refusal(transport) == (
        408,
        "the request's body did not arrive within 0.1 s, and one second for each 4096 bytes",
    )


@pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])
async def test_body_that_drips_while_the_server_ends_is_waited_for_for_seconds(
    *, is_hot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited_protocol, "_REST_S", 0.3)
    app = build()
    async with running(app):
        server = Server(app, is_hot=is_hot, limits=replace(LIMITS, body_timeout_s=600))
        (dripping, cut_off), (late, answered) = server.connect(), server.connect()
        for protocol in (dripping, late):
            protocol.data_received(HEAD + BODY[:5])
            protocol.shutdown()
        late.data_received(BODY[5:])
        for byte in BODY[5:-1]:
            dripping.data_received(bytes([byte]))
            await asyncio.sleep(0)
        await until(lambda: cut_off.is_gone and answered.is_gone)
        dripping.connection_lost(None)
        await until(lambda: not server.state.tasks)

    assert [answer.status for answer in answers_in(answered.written)] == [200]
    assert refusal(cut_off) == (
        503,
        "the server is shutting down, and the rest of the request did not arrive within 0.3 s; "
        "try another one",
    )
    assert (b"retry-after", b"1") in answers_in(cut_off.written)[-1].headers


async def test_body_has_a_second_more_for_each_4096_bytes() -> None:
    server = Server(reading, limits=SHORT)
    protocol, transport = server.connect()
    protocol.data_received(b"PUT / HTTP/1.1\r\nContent-Length: 40000\r\n\r\n" + b"x" * 30000)

    loop = asyncio.get_running_loop()
    started = loop.time()
    while loop.time() - started < 0.4:
        await asyncio.sleep(0.05)
    protocol.data_received(b"x" * 10000)
    await until(lambda: transport.written)

    assert [answer.status for answer in answers_in(transport.written)] == [204]


async def test_connection_whose_answer_was_early_is_closed_without_a_second_one() -> None:
    server = Server(reading, limits=SHORT)
    protocol, transport = server.connect()
    protocol.data_received(b"PUT /early HTTP/1.1\r\nContent-Length: 9\r\n\r\nx")

    await until(lambda: transport.is_gone)

    assert [answer.status for answer in answers_in(transport.written)] == [204]


@pytest.mark.parametrize(
    ("start", "filler", "end"),
    [
        (b"GET / HTTP/1.1\r\nx: ", b"y", b"\r\n\r\n"),
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n", b"\r\n"),
        (b"GET /", b"y", b" HTTP/1.1\r\n\r\n"),
        (HEAD[:-2] + b"x: ", b"y", b"\r\n\r\n" + BODY),
    ],
    ids=["one header", "many headers", "address", "hot"],
)
@pytest.mark.parametrize("size", [70_000, 1_000_000])
@pytest.mark.parametrize("length", [1024, 65_536, 262_144])
async def test_large_head_is_refused_without_being_kept(
    start: bytes, filler: bytes, end: bytes, size: int, length: int
) -> None:
    metrics = Metrics()
    data = start + filler * (size // len(filler)) + end
    app = build()
    async with running(app):
        server = Server(app, is_hot=True, metrics=metrics)
        protocol, transport = server.connect()
        read = 0
        while not transport.is_ended:
            assert read < len(data), "it was read whole"
            protocol.data_received(data[read : read + length])
            read += length

    assert refusal(transport) == (
        431,
        "the request's head is larger than 65536 bytes (POLICY_SERVER_MAX_HEADER_BYTES)",
    )
    assert read <= 65_536 + 2 * length
    assert metrics.snapshot().numbers["requests"] == {("other", "431", ""): 1.0}


async def test_what_is_no_http_is_counted() -> None:
    metrics = Metrics()
    app = build()
    async with running(app):
        protocol, transport = Server(app, is_hot=True, metrics=metrics).connect()
        protocol.data_received(b"FOO / HTTP/1.1\r\n\r\n")

    assert transport.written.startswith(b"HTTP/1.1 400")
    assert metrics.snapshot().numbers["requests"] == {("other", "400", ""): 1.0}


@pytest.mark.parametrize(
    ("start", "filler"),
    [(b"0\r\nx: ", b"y"), (b"0\r\n", b"x: y\r\n"), (b"1;", b"x=y;")],
    ids=["one trailer", "many trailers", "extension of a chunk"],
)
@pytest.mark.parametrize("path", [b"late", b"early"])
@pytest.mark.parametrize("length", [1024, 262_144])
async def test_large_chunk_extensions_and_trailers_are_refused_without_being_kept(
    start: bytes, filler: bytes, path: bytes, length: int
) -> None:
    head = b"PUT /%b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n" % path
    data = start + filler * (1_000_000 // len(filler))
    server = Server(reading)
    protocol, transport = server.connect()
    protocol.data_received(head)
    # What has an answer gets no second one.
    await until(lambda: path == b"late" or transport.written)
    read = 0
    while not transport.is_ended and not transport.is_gone:
        assert read < len(data), "it was read whole"
        protocol.data_received(data[read : read + length])
        read += length

    assert read <= 65_536 + 2 * length
    if path == b"late":
        assert refusal(transport) == (
            431,
            "the request's chunk extensions or trailers are larger than 65536 bytes "
            "(POLICY_SERVER_MAX_HEADER_BYTES)",
        )
    else:
        assert [answer.status for answer in answers_in(transport.written)] == [204]


async def test_body_in_many_small_chunks_is_no_large_head() -> None:
    chunks = b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    server = Server(reading)
    data = b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    segments = [data[at : at + 1000] for at in range(0, len(data), 1000)]

    transport = await server.exchange(segments, turns_between=2)

    assert [answer.status for answer in answers_in(transport.written)] == [204]


async def test_what_a_refused_client_still_sends_is_read_and_dropped_for_a_while() -> None:
    server = Server(reading, limits=replace(SHORT, max_header_bytes=256))
    protocol, transport = server.connect()
    for segment in (b"GET / HTTP/1.1\r\nx: ", b"y" * 300):
        protocol.data_received(segment)
    before = transport.written

    protocol.data_received(b"y" * 1000 + b"\r\n\r\nGET / HTTP/1.1\r\n\r\n")
    is_open = not transport.is_gone
    await until(lambda: transport.is_gone)

    assert refusal(transport)[0] == 431
    assert is_open
    assert transport.written == before


@pytest.mark.parametrize("is_ending", [False, True], ids=["serving", "ending"])
async def test_client_that_reads_nothing_of_its_answer_is_cut_off(*, is_ending: bool) -> None:
    server = Server(reading, limits=SHORT, timeout_keep_alive=0.3)
    protocol, transport = server.connect()
    protocol.data_received(b"GET /early HTTP/1.1\r\n\r\n")
    await until(lambda: transport.written != b"")
    transport.unsent = 1_000_000
    if is_ending:
        protocol.shutdown()
    # It reads some, and has as long again from then on.
    for unsent in range(900_000, 0, -100_000):
        await asyncio.sleep(0.1)
        transport.unsent = unsent
        assert not transport.is_aborted
    await until(lambda: transport.is_aborted)
    protocol.connection_lost(None)

    assert not server.state.connections


@pytest.mark.parametrize("path", [b"/early", b"/part"])
async def test_broken_body_of_an_answered_request_gets_no_second_answer(path: bytes) -> None:
    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/early":
            await reading(scope, receive, send)
            return
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            """Wait for the end."""

    server = Server(answering, limits=LIMITS)
    protocol, transport = server.connect()
    protocol.data_received(b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" % path)
    await until(lambda: transport.written != b"")
    protocol.data_received(b"zz\r\n")
    protocol.connection_lost(None)

    assert transport.written.count(b"HTTP/1.1") == 1
    assert transport.is_gone


async def test_connections_far_beyond_the_limit_are_not_waited_for() -> None:
    server = Server(reading, limits=replace(SHORT, max_connections=1))

    connections = [server.connect() for _ in range(200)]

    gone = [transport.is_gone for _, transport in connections]
    assert gone == [False] * 65 + [True] * 135
    assert {refusal(transport)[0] for _, transport in connections[1:]} == {503}
    for protocol, _ in connections:
        protocol.connection_lost(None)


async def test_connection_beyond_the_limit_is_refused() -> None:
    server = Server(reading, limits=replace(LIMITS, max_connections=2))
    first = [server.connect() for _ in range(2)]
    _, third = server.connect()
    first[0][0].connection_lost(None)
    for protocol in [*server.state.connections]:
        if protocol not in [item for item, _ in first]:
            protocol.connection_lost(None)

    again = await server.exchange([b"GET / HTTP/1.1\r\n\r\n"])

    assert refusal(third) == (
        503,
        "2 connections are open already; try again in a second (POLICY_SERVER_MAX_CONNECTIONS)",
    )
    assert [answer.status for answer in answers_in(again.written)] == [204]


async def test_requests_beyond_the_limit_of_a_connection_wait_unread() -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=True, limits=replace(LIMITS, max_pipelined=4))
        protocol, transport = server.connect()
        protocol.data_received((HEAD + BODY) * 10)
        at_once, is_paused = len(server.state.tasks), transport.is_paused
        await until(lambda: not server.state.tasks)

    assert (at_once, is_paused, transport.is_paused) == (4, True, False)
    assert [answer.status for answer in answers_in(transport.written)] == [200] * 10


def test_more_connections_than_files_are_none() -> None:
    limits = ConnectionLimits.of(Settings(max_connections=10**9))

    assert 1 <= limits.max_connections < 10**9
