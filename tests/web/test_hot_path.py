"""The hot path gives what ASGI gives: status, headers and bytes, whatever bytes a client sends."""

from __future__ import annotations

import gc
import weakref

import pytest

from policy_server.access_keys import AccessKey, KeyRing
from policy_server.metrics import Metrics
from policy_server.schema import parse_schema
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.fuzz.raw_requests import BODY, both, compare_mutants, compare_requests
from tests.support.connections import Server, answers_in
from tests.support.fakes import integer_backend, opened, registry_of
from tests.support.hot_bytes import shown
from tests.support.pages import rendered
from tests.support.waiting import until
from tests.support.web import KEY, SCHEMA, build, running

REQUESTS = 2000
MUTANTS = 2500


async def test_thousands_of_requests_get_the_same_bytes_three_ways() -> None:
    statuses = await compare_requests(REQUESTS, seed=15)

    assert set(statuses) >= {200, 400, 401, 404, 405, 409, 415, 422}


async def test_mutated_bytes_get_the_same_answers_three_ways() -> None:
    statuses = await compare_mutants(MUTANTS, seed=16)

    assert set(statuses) >= {200, 400, 401, 404, 422}


SEQUENCE = (
    b"POST /predict_deterministic HTTP/1.1\r\naccess-token: %b\r\nX-Request-Timeout-Ms: 60000\r\n"
    b"x-observation-stamp:7\r\nx-request-id: b\r\nContent-Length: %d\r\n\r\n%b"
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


async def test_white_space_around_a_header_is_no_part_of_it() -> None:
    request = (
        b"POST /predict_deterministic HTTP/1.1\r\naccess-token:\t %b \t\r\n"
        b"x-request-timeout-ms: 5000  \r\nContent-Length: %d \r\n\r\n%b"
    ) % (KEY.encode(), len(BODY), BODY)
    async with both() as servers:
        for server in servers:
            for _ in range(3):  # The hot path remembers a head that it has seen twice.
                [answer] = answers_in((await server.exchange([request])).written)
                assert answer.status == 200


async def test_requests_cut_at_every_byte_are_answered_in_order_three_ways() -> None:
    slow = build(has_fast_path=False)
    async with both() as (plain, hot), running(slow):
        expected = answers_in((await plain.exchange([SEQUENCE])).written)
        assert [answer.status for answer in expected] == [200, 200, 422, 200, 200]

        for end in range(1, len(SEQUENCE)):
            cut_once = [SEQUENCE[:end], SEQUENCE[end:]]
            for server in (plain, hot, Server(slow)):
                transport = await server.exchange(cut_once)
                found = answers_in(transport.written)
                assert shown(found, b"") == shown(expected, b""), end
                assert transport.is_gone


@pytest.mark.parametrize(
    "name", [b"x-step", b"x-previous-reward", b"x-observation-stamp", b"x-request-timeout-ms"]
)
@pytest.mark.parametrize("values", [(b"x y", b"7"), (b"7", b"x y"), (b"7", b"7")])
async def test_header_given_twice_is_refused_in_whichever_form(
    name: bytes, values: tuple[bytes, bytes]
) -> None:
    request = (
        b"POST /predict_deterministic HTTP/1.1\r\n%b: %b\r\n%b: %b\r\nx-request-id: a\r\n"
        b"access-token: %b\r\nContent-Length: %d\r\n\r\n%b"
    ) % (name, values[0], name, values[1], KEY.encode(), len(BODY), BODY)
    async with both() as servers:
        plain, hot = [answers_in((await one.exchange([request])).written) for one in servers]

    assert plain == hot
    assert [answer.status for answer in plain] == [422]
    assert b"header_repeated" in plain[0].body


@pytest.mark.parametrize(
    ("values", "is_echoed"),
    [
        ((b"first", b"second"), True),
        ((b"first", b"x y"), True),
        ((b"x y", b"second"), False),
        ((b"", b"second"), False),
    ],
)
async def test_first_request_id_counts_in_whichever_form(
    values: tuple[bytes, bytes], *, is_echoed: bool
) -> None:
    request = (
        b"POST /predict_deterministic HTTP/1.1\r\nx-request-id: %b\r\nx-request-id: %b\r\n"
        b"access-token: %b\r\nContent-Length: %d\r\n\r\n%b"
    ) % (*values, KEY.encode(), len(BODY), BODY)
    async with both() as servers:
        sent = [answers_in((await one.exchange([request])).written) for one in servers]

    ids = [dict(answer.headers)[b"x-request-id"] for [answer] in sent]
    assert not {*ids} & {b"second", b"x y", b""}
    assert [given == b"first" for given in ids] == [is_echoed] * 2


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


async def test_heads_keep_no_version_that_was_unloaded() -> None:
    registry = registry_of(integer_backend(), parse_schema(SCHEMA))
    app = create_app(registry, Settings(), api_key=KEY)
    request = (
        b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nx-robot: %d\r\ncontent-length: %d\r\n\r\n%b"
    )
    async with running(app):
        server = Server(app, is_hot=True)
        assert server.heads is not None
        protocol, transport = server.connect()
        # A head is remembered when it comes for the second time.
        for robot in (1, 2, 1, 2):
            protocol.data_received(request % (KEY.encode(), robot, len(BODY), BODY))
            await until(lambda: not server.state.tasks)
        known = len(server.heads)
        before = weakref.ref(registry.default.current())
        await registry.default.swap(lambda: opened(integer_backend(), digest="second"))
        # The other robot does not come back.
        protocol.data_received(request % (KEY.encode(), 1, len(BODY), BODY))
        await until(lambda: len(answers_in(bytes(transport.written))) == 5)
        gc.collect()
        protocol.connection_lost(None)

    assert known == 2
    assert before() is None
