"""Deadlines and stamps of requests: by every way to the policy, as its client gave them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx
import jsonschema  # type: ignore[import-untyped]  # its types are a package of their own
import orjson
import pytest

from policy_server.metrics import Metrics
from tests.support.connections import Server, answers_in
from tests.support.fakes import FakeBackend, integer_backend, summing_backend
from tests.support.pages import rendered
from tests.support.teams import served_team, usual_backends
from tests.support.waiting import until
from tests.support.web import (
    KEY,
    OBSERVATION,
    assert_error,
    assert_invalid,
    build,
    client_of,
    running,
    serve,
    serve_shared,
)

TIMEOUT, STAMP, HELD = "x-request-timeout-ms", "x-observation-stamp", "x-held-ms"
BODY = orjson.dumps(OBSERVATION)
COUNTED = "rejected_total policy=default reason=deadline"


@asynccontextmanager
async def stuck(backend: FakeBackend) -> AsyncIterator[None]:
    """Let a policy's calls wait until the block ends."""
    backend.gate = asyncio.Event()
    try:
        yield
    finally:
        backend.gate.set()
        backend.gate = None


@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast path", "FastAPI"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", BODY),
        ("/distribution_raw", b'{"obs": [1, 2]}'),
        ("/predict/batch", b"[" + b",".join([BODY] * 20) + b"]"),
    ],
    ids=["named", "raw", "batch"],
)
async def test_request_whose_deadline_passes_is_504(
    path: str, body: bytes, *, has_fast_path: bool
) -> None:
    backend, metrics = integer_backend(), Metrics()
    async with serve(backend, has_fast_path=has_fast_path, metrics=metrics) as client:
        async with stuck(backend):
            late = await client.post(path, content=body, headers={TIMEOUT: "10"})
            assert_error(late, 504, "deadline that this request set has passed", TIMEOUT)
        in_time = await client.post(path, content=body, headers={TIMEOUT: "60000"})

    assert in_time.status_code == 200
    assert rendered(metrics)[COUNTED] == 1


def is_computed(backend: FakeBackend, calls: int) -> bool:
    """Return whether a policy has had so many calls."""
    return len(backend.batches) == calls


async def test_hot_request_whose_deadline_passes_is_504_and_not_computed() -> None:
    backend, metrics = integer_backend(), Metrics()
    app = build(backend, metrics=metrics)
    lines = b"access-token: %b\r\nContent-Length: %d" % (KEY.encode(), len(BODY))
    plain = b"POST /predict HTTP/1.1\r\n%b\r\n\r\n%b" % (lines, BODY)
    timed = plain.replace(b"Content", b"X-Request-Timeout-Ms: 10\r\nContent", 1)
    async with running(app):
        server = Server(app, is_hot=True)
        assert server.heads is not None
        protocols = [server.connect() for _ in range(4)]
        before = len(backend.batches)
        async with stuck(backend):
            for index in (0, 1):
                protocols[index][0].data_received(plain)
                await until(partial(is_computed, backend, before + 1 + index))
            for index in (2, 3):
                protocols[index][0].data_received(timed)
            late = [protocols[index][1] for index in (2, 3)]
            await until(lambda: all(transport.written for transport in late))
        await until(lambda: not server.state.tasks)
        for protocol, _ in protocols:
            protocol.connection_lost(None)

    assert [answers_in(item.written)[0].status for item in late] == [504, 504]
    assert backend.batches[before:] == [1, 1]
    # The head that all of them share, and the whole one with the time that came twice.
    assert len(server.heads) == 2
    assert rendered(metrics)[COUNTED] == 2


@pytest.mark.parametrize("given", ["0", "-1", "5.5", "1e3", "", "soon", "3600001", "\u0665"])
async def test_timeout_that_is_no_number_of_milliseconds_is_refused(given: str) -> None:
    async with serve_shared() as client:
        answer = await client.post(
            "/predict", content=BODY, headers=[(TIMEOUT.encode(), given.encode())]
        )

    assert_invalid(answer, f"header.{TIMEOUT}")
    assert "whole number of milliseconds from 1 to 3600000" in answer.text


async def test_wrong_observation_stays_a_422_with_a_deadline() -> None:
    async with serve_shared() as client:
        answer = await client.post("/predict", content=b"{}", headers={TIMEOUT: "5000"})

    assert_invalid(answer, "body.cat", "body.mouse")


# Headers that client libraries leave out.
NOT_IN_CLIENTS = {"x-policy-version", "x-episode-id"}


async def test_document_has_the_headers_and_both_statuses() -> None:
    async with serve_shared(key=None) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]

    for path in ("/predict", "/predict_raw/batch", "/sessions/{session_id}/distribution"):
        operation = paths[path]["post"]
        assert {"503", "504"} <= operation["responses"].keys()
        # An optional one that came before another would change the order of arguments in Java.
        own = [given for given in operation["parameters"] if given["name"] not in NOT_IN_CLIENTS]
        last = own[-2:]
        assert [header["name"] for header in last] == [TIMEOUT, STAMP]
        assert all(header["in"] == "header" and not header["required"] for header in last)
        assert operation["responses"]["200"]["headers"].keys() >= {STAMP, HELD}
    assert "504" not in paths["/sessions"]["post"]["responses"]


async def test_step_whose_deadline_passes_was_never_asked() -> None:
    backend = summing_backend()
    async with serve(backend) as client:
        session = (await client.post("/sessions")).json()["session_id"]
        path = f"/sessions/{session}/predict_deterministic"
        observed = {"cat": 1, "mouse": 1.0}

        async def step(number: int, timeout_ms: int = 60000) -> httpx.Response:
            headers = {"x-step": str(number), TIMEOUT: str(timeout_ms)}
            return await client.post(path, json=observed, headers=headers)

        first = await step(0)
        async with stuck(backend):
            late = await step(1, 10)
            assert_error(late, 504, "has passed")
        again = await step(1)
        third = await step(2)

    assert [item.json()["actions"] for item in (first, again, third)] == [[1], [2], [0]]


async def test_step_that_waits_for_its_turn_ends_at_its_deadline() -> None:
    backend = summing_backend()
    async with serve(backend) as client:
        session = (await client.post("/sessions")).json()["session_id"]
        path = f"/sessions/{session}/predict_deterministic"
        observed = {"cat": 1, "mouse": 1.0}
        before = len(backend.batches)
        async with stuck(backend):
            first = asyncio.create_task(client.post(path, json=observed))
            await until(lambda: len(backend.batches) == before + 1)
            late = await client.post(path, json=observed, headers={TIMEOUT: "10"})
            assert_error(late, 504, "has passed")
            assert not first.done()
        assert (await first).json()["actions"] == [1]
        second = await client.post(path, json=observed)

    assert second.json()["actions"] == [2]


async def test_team_whose_deadline_passes_makes_no_step() -> None:
    backends = usual_backends()
    observed = {
        "hunter_1": {"cat": 1, "mouse": 1.0},
        "prey": {"distance": 1.0, "is_seen": True},
    }
    async with served_team(backends) as team:
        client = team.client
        session = (await client.post("/sessions/agents")).json()["session_id"]
        path = f"/sessions/{session}/predict_deterministic/agents"
        async with stuck(backends["prey"]):
            alone = await client.post("/predict/agents", json=observed, headers={TIMEOUT: "300"})
            late = await client.post(path, json=observed, headers={TIMEOUT: "300"})
        shown = await client.get(f"/sessions/{session}/agents")
        done = await client.post(path, json=observed, headers={TIMEOUT: "60000"})

    for answer in (alone, late):
        assert_error(answer, 504, "agent '", "has passed")
    assert shown.json()["steps"] == 0
    assert done.json()["hunter_1"]["actions"] == [1]


@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast path", "FastAPI"])
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
async def test_stamp_of_an_observation_comes_back(path: str, *, has_fast_path: bool) -> None:
    body = BODY if path == "/predict" else b"[" + BODY + b"]"
    async with serve_shared(has_fast_path=has_fast_path) as client:
        stamped = await client.post(path, content=body, headers={STAMP: "t-1.5e+3:7"})
        plain = await client.post(path, content=body)
        wrong = await client.post(path, content=b"{", headers={STAMP: "8"})

    assert stamped.headers[STAMP] == "t-1.5e+3:7"
    assert 0 <= float(stamped.headers[HELD]) < 10_000
    assert not {STAMP, HELD} & set(plain.headers)
    assert wrong.status_code == 422
    assert wrong.headers[STAMP] == "8"


async def test_hot_requests_with_times_of_their_own_are_known_by_one_head() -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=True)
        assert server.heads is not None
        protocol, transport = server.connect()
        for stamp in range(5):
            protocol.data_received(
                b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nx-observation-stamp: %d\r\n"
                b"X-Request-Timeout-Ms: 6000%d\r\nContent-Length: %d\r\n\r\n%b"
                % (KEY.encode(), stamp, stamp, len(BODY), BODY)
            )
            await until(lambda: not server.state.tasks)
        protocol.connection_lost(None)

    answers = [dict(answer.headers) for answer in answers_in(transport.written)]
    assert [answer[STAMP.encode()] for answer in answers] == [b"0", b"1", b"2", b"3", b"4"]
    assert all(float(answer[HELD.encode()]) >= 0 for answer in answers)
    assert len(server.heads) == 1


def is_past(moment: float) -> bool:
    """Return whether a time of `time.perf_counter` has come."""
    return time.perf_counter() > moment


async def test_times_of_a_hot_request_count_from_its_head_where_its_body_comes_later() -> None:
    app = build()
    async with running(app):
        server = Server(app, is_hot=True)
        assert server.heads is not None
        protocol, transport = server.connect()
        head = (
            b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nx-observation-stamp: 1\r\n"
            b"X-Request-Timeout-Ms: %%d\r\nContent-Length: %d\r\n\r\n" % (KEY.encode(), len(BODY))
        )
        for timeout_ms in (60_000, 20, 60_000):
            protocol.data_received(head % timeout_ms + BODY[:5])
            came = time.perf_counter()
            await until(partial(is_past, came + 0.02))
            protocol.data_received(BODY[5:])
            await until(lambda: not server.state.tasks)
        is_hot = len(server.heads) > 0
        protocol.connection_lost(None)

    answers = answers_in(transport.written)
    assert [answer.status for answer in answers] == [200, 504, 200]
    assert all(float(dict(answer.headers)[HELD.encode()]) >= 20 for answer in answers)
    assert is_hot


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("access-token", "wrong")], 401),
        ([("x-episode-id", "e"), ("x-episode-id", "e")], 422),
        ([(TIMEOUT, "soon")], 422),
        ([("content-encoding", "br")], 415),
    ],
    ids=["key", "header twice", "timeout", "encoding"],
)
async def test_request_that_is_refused_for_its_head_gets_its_stamp_back(
    headers: list[tuple[str, str]], status: int
) -> None:
    app = build()
    async with running(app), client_of(app, key=None) as client:
        given = dict(headers).get("access-token", KEY)
        others = [pair for pair in headers if pair[0] != "access-token"]
        pairs = [("access-token", given), *others, (STAMP, "7")]
        answer = await client.post("/predict", content=BODY, headers=pairs)

    assert answer.status_code == status
    assert answer.headers[STAMP] == "7"
    assert float(answer.headers[HELD]) >= 0


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "{}"])
async def test_stamp_that_could_not_be_a_header_is_refused(given: str) -> None:
    async with serve_shared() as client:
        answer = await client.post("/predict", content=BODY, headers={STAMP: given})

    assert_invalid(answer, f"header.{STAMP}")


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        *[(TIMEOUT, number, str(number)) for number in (0, 1, 3_600_000, 3_600_001)],
        *[(STAMP, text, text) for text in ("", "t-1.5e+3:7", "a b", "x" * 64, "x" * 65)],
    ],
)
async def test_document_tells_the_times_that_the_server_takes(
    name: str, given: object, text: str
) -> None:
    async with serve_shared() as client:
        document = (await client.get("/openapi.json")).json()
        answer = await client.post("/predict", content=BODY, headers={name: text})

    parameters = document["paths"]["/predict"]["post"]["parameters"]
    [known] = [item["schema"] for item in parameters if item["name"] == name]
    assert jsonschema.Draft202012Validator(known).is_valid(given) == (answer.status_code != 422)
    headers = document["paths"]["/predict"]["post"]["responses"]["200"]["headers"]
    for header in (STAMP, HELD) if name == STAMP and answer.status_code == 200 else ():
        value = answer.headers[header]
        shown = float(value) if header == HELD else value
        assert jsonschema.Draft202012Validator(headers[header]["schema"]).is_valid(shown)
