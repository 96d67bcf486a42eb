"""Limits of keys and addresses over HTTP: 429 at once, and nobody else hears of it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import httpx
import numpy as np
import orjson
import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from policy_server.access_keys import AccessKey, KeyRing
from policy_server.client_limits import ClientLimits, Share
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.metrics import Metrics
from policy_server.web.gate import Gate
from tests.support.connections import Server, answers_in
from tests.support.fakes import integer_backend
from tests.support.pages import rendered
from tests.support.streams import served
from tests.support.teams import served_team, streamed_team
from tests.support.waiting import turns, until
from tests.support.web import (
    KEY,
    OBSERVATION,
    assert_error,
    build,
    client_of,
    document_of,
    running,
    serve,
)

# One request, and then none for a quarter of an hour.
ONCE = 0.001
MANY = 200
MARK = "limits are broken"
BODY = orjson.dumps(OBSERVATION)
KEYS = {"plant": "plant key", "ops": "ops key"}
PLANT, OPS = (AccessKey.of(name, key) for name, key in KEYS.items())


def ring() -> KeyRing:
    return KeyRing([PLANT, OPS])


def by(name: str) -> dict[str, str]:
    return {"access-token": KEYS[name]}


def hot(name: str, *lines: str, body: bytes = BODY) -> bytes:
    head = [
        "POST /predict HTTP/1.1",
        f"access-token: {KEYS[name]}",
        f"content-length: {len(body)}",
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


async def asked(server: Server, *requests: bytes) -> list[int]:
    """Return the statuses of requests that follow each other on one connection."""
    transport = await server.exchange(requests, turns_between=20)
    return [answer.status for answer in answers_in(transport.written)]


def assert_paid_off(response: httpx.Response, *, observations: int = MANY) -> None:
    """Check that a client of two observations a second waits for so many that it asked."""
    assert_error(response, 429, "at most 2 observations a second, got more")
    owed = 2 * int(response.headers["retry-after"])
    # Some were paid off while the test ran.
    assert 0.7 * observations < owed < 1.1 * observations


@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast path", "FastAPI"])
async def test_key_that_asks_too_much_is_refused_alone(*, has_fast_path: bool) -> None:
    metrics = Metrics()
    async with serve(
        key=None, keys=ring(), has_fast_path=has_fast_path, metrics=metrics, max_key_rate=ONCE
    ) as client:
        first = await client.post("/predict", json=OBSERVATION, headers=by("plant"))
        second = await client.post("/predict", json=OBSERVATION, headers=by("plant"))
        other = await client.post("/predict", json=OBSERVATION, headers=by("ops"))

    assert [first.status_code, other.status_code] == [200, 200]
    assert_error(second, 429, "key 'plant': expected at most 0.001 observations a second, got more")
    assert second.headers["retry-after"] == "1000"
    assert second.headers["x-request-id"]
    page = rendered(metrics)
    assert page["rejected_total policy=default reason=key_rate"] == 1
    assert page["requests_total policy=default route=/predict status=429"] == 1


async def test_hot_requests_are_limited_and_their_connection_stays() -> None:
    app = build(keys=ring(), max_key_rate=ONCE)
    async with running(app):
        server = Server(app, is_hot=True)
        protocol, transport = server.connect()
        for name in [*["plant"] * 4, "ops"]:
            protocol.data_received(hot(name))
            await until(lambda: not server.state.tasks)
        is_kept = not transport.is_gone
        protocol.connection_lost(None)

    answers = answers_in(transport.written)
    assert [answer.status for answer in answers] == [200, 429, 429, 429, 200]
    assert dict(answers[1].headers)[b"retry-after"] == b"1000"
    assert "try again in 1000 s" in json.loads(answers[1].body)["detail"]
    assert is_kept


@pytest.mark.parametrize("is_hot", [True, False], ids=["hot", "ASGI"])
async def test_requests_in_flight_are_limited(*, is_hot: bool) -> None:
    backend = integer_backend()
    app = build(backend, keys=ring(), max_key_in_flight=2)
    async with running(app):
        backend.gate = asyncio.Event()
        server = Server(app, is_hot=is_hot)
        connections = [server.connect() for _ in range(4)]
        for (protocol, _), name in zip(connections, ["plant"] * 3 + ["ops"], strict=True):
            protocol.data_received(hot(name))
        refused = connections[2][1]
        await until(lambda: bool(refused.written))
        backend.gate.set()
        await until(lambda: all(transport.written for _, transport in connections))
        for protocol, _ in connections:
            protocol.connection_lost(None)
        await until(lambda: not server.state.tasks)
        afterwards = await asked(server, hot("plant"), hot("plant"), hot("plant"))

    statuses = [answers_in(transport.written)[0].status for _, transport in connections]
    assert statuses == [200, 200, 429, 200]
    assert afterwards == [200] * 3


async def test_client_that_goes_gives_its_places_back() -> None:
    backend = integer_backend()
    app = build(backend, keys=ring(), max_key_in_flight=2)
    async with running(app):
        backend.gate = asyncio.Event()
        server = Server(app, is_hot=True)
        going, staying = server.connect(), server.connect()
        going[0].data_received(hot("plant") * 2)
        going[0].connection_lost(None)
        staying[0].data_received(hot("plant") * 3)
        backend.gate.set()
        await until(lambda: staying[1].written.count(b"HTTP/1.1") == 3)
        staying[0].connection_lost(None)

    assert [answer.status for answer in answers_in(staying[1].written)] == [200, 200, 429]


async def test_bodies_that_come_slowly_take_no_places_from_the_batches_of_others() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"["
        await asyncio.sleep(30)

    app = build(keys=ring(), max_key_in_flight=64, request_timeout_s=5)
    async with running(app), client_of(app, key=None) as client:
        slow = [
            asyncio.create_task(client.post("/predict/batch", content=never(), headers=by("plant")))
            for _ in range(64)
        ]
        await turns()
        batch = client.post("/predict/batch", json=[OBSERVATION], headers=by("ops"))
        other = await asyncio.wait_for(batch, 2.5)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    assert other.status_code == 200


async def test_key_opens_no_more_sessions_than_it_may() -> None:
    metrics = Metrics()
    async with serve(key=None, keys=ring(), metrics=metrics, max_key_sessions=2) as client:
        opened = [await client.post("/sessions", headers=by("plant")) for _ in range(3)]
        other = await client.post("/sessions", headers=by("ops"))
        one = f"/sessions/{opened[0].json()['session_id']}"
        reset = await client.post(f"{one}/reset", headers=by("plant"))
        await client.delete(one, headers=by("plant"))
        again = await client.post("/sessions", headers=by("plant"))

    assert [answer.status_code for answer in opened] == [201, 201, 429]
    assert_error(opened[2], 429, "key 'plant': 2 sessions are open already", "MAX_KEY_SESSIONS")
    assert opened[2].headers["retry-after"] == "1"
    assert [other.status_code, reset.status_code, again.status_code] == [201, 200, 201]
    assert rendered(metrics)["rejected_total policy=default reason=key_sessions"] == 1


async def test_sessions_of_a_team_count_for_their_key() -> None:
    async with served_team(max_key_sessions=2) as team:
        routes = ("/sessions/agents", "/policies/prey/sessions", "/sessions/agents")
        opened = [await team.client.post(route) for route in routes]

    assert [answer.status_code for answer in opened] == [201, 201, 429]
    assert rendered(team.metrics)["rejected_total policy= reason=key_sessions"] == 1


async def test_requests_with_a_header_twice_count_as_others_do() -> None:
    twice = [("access-token", KEYS["plant"]), ("x-episode-id", "e"), ("x-episode-id", "e")]
    async with serve(key=None, keys=ring(), max_key_rate=ONCE) as client:
        answers = [await client.post("/predict", json=OBSERVATION, headers=twice) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [422, 429, 429]


async def test_batch_counts_as_many_as_it_has_rows() -> None:
    rows = [OBSERVATION] * MANY
    async with serve(key=None, keys=ring(), max_key_rate=2) as client:
        batch = await client.post("/predict/batch", json=rows, headers=by("plant"))
        after = await client.post("/predict", json=OBSERVATION, headers=by("plant"))

    assert len(batch.json()["actions"]) == MANY
    assert_paid_off(after)


async def test_array_of_many_calls_counts_each_row_once() -> None:
    packed = io.BytesIO()
    np.save(packed, np.zeros((12 * MANY, 2), np.float32))
    headers = {**by("plant"), "content-type": "application/x-npy"}
    async with serve(key=None, keys=ring(), max_key_rate=2) as client:
        batch = await client.post("/predict/batch", content=packed.getvalue(), headers=headers)
        after = await client.post("/predict", json=OBSERVATION, headers=by("plant"))

    assert batch.status_code == 200
    assert_paid_off(after, observations=12 * MANY)


@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast path", "FastAPI"])
async def test_agents_of_a_team_are_counted_one_by_one(*, has_fast_path: bool) -> None:
    team = {f"hunter_{number}": {"cat": 1, "mouse": 0.5} for number in range(MANY)}
    async with served_team(max_key_rate=2, has_fast_path=has_fast_path) as served:
        answer = await served.client.post("/predict/agents", json=team)
        after = await served.client.post("/predict/agents", json=team)

    assert list(answer.json()) == list(team)
    assert_paid_off(after)


async def test_step_of_a_session_of_a_team_counts_its_agents() -> None:
    team = {f"hunter_{number}": {"cat": 1, "mouse": 0.5} for number in range(MANY)}
    async with served_team(max_key_rate=2) as served:
        session = (await served.client.post("/sessions/agents")).json()["session_id"]
        path = f"/sessions/{session}/predict/agents"
        answer = await served.client.post(path, json=team)
        after = await served.client.post(path, json=team)

    assert list(answer.json()) == list(team)
    assert_paid_off(after)


@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast path", "FastAPI"])
@pytest.mark.parametrize("has_session", [True, False], ids=["session", "alone"])
async def test_step_of_a_team_without_agents_counts_as_one(
    *, has_session: bool, has_fast_path: bool
) -> None:
    path = "/predict/agents"
    async with served_team(max_address_rate=ONCE, has_fast_path=has_fast_path) as served:
        if has_session:
            session = (await served.client.post("/sessions/agents")).json()["session_id"]
            path = f"/sessions/{session}{path}"
        elsewhere = httpx.ASGITransport(served.app, client=("203.0.113.7", 1234))
        headers = {"access-token": KEY}
        async with httpx.AsyncClient(
            transport=elsewhere, base_url="http://test", headers=headers
        ) as client:
            answers = [await client.post(path, json={}) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 429, 429]


def posted(path: str, body: bytes, key: str = KEY) -> bytes:
    head = f"POST {path} HTTP/1.1\r\naccess-token: {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("is_hot", [True, False], ids=["hot", "ASGI"])
@pytest.mark.parametrize("has_session", [True, False], ids=["session", "alone"])
async def test_steps_of_teams_are_counted_on_each_way(*, has_session: bool, is_hot: bool) -> None:
    team = orjson.dumps({f"hunter_{number}": {"cat": 1, "mouse": 0.5} for number in range(MANY)})
    async with served_team(max_key_rate=4) as served:
        path = "/predict/agents"
        if has_session:
            session = (await served.client.post("/sessions/agents")).json()["session_id"]
            path = f"/sessions/{session}{path}"
        server = Server(served.app, is_hot=is_hot)
        transport = await server.exchange([posted(path, team)] * 2, turns_between=20)

    first, second = answers_in(transport.written)
    assert (first.status, second.status) == (200, 429)
    owed = 4 * int(dict(second.headers)[b"retry-after"])
    assert 0.6 * MANY < owed < 1.1 * MANY


@pytest.mark.parametrize("is_hot", [True, False], ids=["hot", "ASGI"])
async def test_steps_of_a_session_in_flight_are_limited_and_given_back(*, is_hot: bool) -> None:
    backend = integer_backend()
    app = build(backend, keys=ring(), max_key_in_flight=2)
    async with running(app), client_of(app, key=KEYS["plant"]) as client:
        session = (await client.post("/sessions")).json()["session_id"]
        path = f"/sessions/{session}/predict"
        backend.gate = asyncio.Event()
        server = Server(app, is_hot=is_hot)
        # One is computed, and the next one waits for its turn.
        connections = [server.connect() for _ in range(3)]
        for protocol, _ in connections:
            protocol.data_received(posted(path, BODY, KEYS["plant"]))
        await until(lambda: bool(connections[2][1].written))
        # A step that waits for its turn is given up when its client goes.
        connections[1][0].connection_lost(None)
        backend.gate.set()
        await until(lambda: bool(connections[0][1].written))
        for protocol, _ in (connections[0], connections[2]):
            protocol.connection_lost(None)
        await until(lambda: not server.state.tasks)
        afterwards = await asked(server, *[posted(path, BODY, KEYS["plant"])] * 3)

    assert answers_in(connections[0][1].written)[0].status == 200
    assert answers_in(connections[2][1].written)[0].status == 429
    assert afterwards == [200] * 3


@pytest.mark.parametrize("web_sockets", [WebSocketProtocol, WebSocketsSansIOProtocol])
async def test_frame_beyond_the_rate_is_answered_by_an_error_in_its_turn(
    web_sockets: type[WebSocketsSansIOProtocol],
) -> None:
    frame = json.dumps(OBSERVATION)
    keys = ring()
    async with served(web_sockets=web_sockets, keys=keys) as server:
        async with server.stream(additional_headers=by("plant")) as stream:
            keys.replace([replace(PLANT, max_rate=ONCE)])
            for _ in range(4):
                await stream.send(frame)
            answers = [json.loads(await stream.recv()) for _ in range(4)]
        refused = server.counted('policy_server_rejected_total{policy="default",reason="key_rate"}')

    assert [answer.get("status") for answer in answers] == [None, 429, 429, 429]
    assert "try again in 1000 s" in answers[1]["detail"]
    assert refused == 3


@pytest.mark.parametrize("web_sockets", [WebSocketProtocol, WebSocketsSansIOProtocol])
async def test_frames_behind_one_beyond_the_rate_keep_their_seeds(
    web_sockets: type[WebSocketsSansIOProtocol],
) -> None:
    frame, backend = json.dumps(OBSERVATION), integer_backend((0.0,) * 50)
    async with served(backend) as server:
        drawn = [(await server.post(f"/predict?seed={seed}", BODY)).json() for seed in (7, 8, 9)]
    keys = ring()
    async with served(backend, web_sockets=web_sockets, keys=keys) as server:
        path = "/predict/stream?seed=7"
        async with server.stream(path, additional_headers=by("plant")) as stream:
            answers = []
            for rate in (ONCE, ONCE, None):
                keys.replace([replace(PLANT, max_rate=rate)])
                await stream.send(frame)
                answers.append(json.loads(await stream.recv()))

    assert answers[1]["status"] == 429
    assert [answers[0], answers[2]] == [drawn[0], drawn[2]]
    assert drawn[1] != drawn[2]


@pytest.mark.parametrize("web_sockets", [WebSocketProtocol, WebSocketsSansIOProtocol])
async def test_frames_in_flight_are_limited_and_given_back(
    web_sockets: type[WebSocketsSansIOProtocol],
) -> None:
    backend = integer_backend()
    frame = json.dumps(OBSERVATION)
    async with served(backend, web_sockets=web_sockets, max_key_in_flight=2) as server:
        asked_before = sum(backend.batches)
        backend.gate = asyncio.Event()
        async with server.stream() as leaving:
            for _ in range(2):
                await leaving.send(frame)
            await until(lambda: sum(backend.batches) > asked_before)
            refused = await server.post("/predict", BODY)
        await until(lambda: server.counted("policy_server_stream_connections") == 0)
        async with server.stream() as stream:
            for _ in range(3):
                await stream.send(frame)
            await until(lambda: server.counted("policy_server_rejected_total") == 2)
            backend.gate.set()
            answers = [json.loads(await stream.recv()) for _ in range(3)]
            await stream.send(frame)
            last = json.loads(await stream.recv())

    assert refused.status_code == 429
    assert [answer.get("status") for answer in answers] == [None, None, 429]
    assert "actions" in last


async def test_frame_of_a_team_counts_its_agents() -> None:
    team = {f"hunter_{number}": {"cat": 1, "mouse": 0.5} for number in range(MANY)}
    async with (
        streamed_team(max_key_rate=2) as (server, _),
        server.stream("/predict/stream/agents") as stream,
    ):
        await stream.send(json.dumps(team))
        first = json.loads(await stream.recv())
        await stream.send(json.dumps(team))
        second = json.loads(await stream.recv())

    assert list(first) == list(team)
    assert second["status"] == 429
    assert 0.7 * MANY < 2 * int(second["detail"].split()[-2]) < 1.1 * MANY


async def test_address_that_guesses_keys_is_refused() -> None:
    async with serve(key=None, keys=ring(), max_address_rate=ONCE) as client:
        answers = [
            await client.post(path, json=OBSERVATION, headers={"access-token": "a guess"})
            for path in ("/predict", "/nowhere", "/schema", "/predict")
        ]
        right = await client.post("/predict", json=OBSERVATION, headers=by("plant"))

    assert [answer.status_code for answer in answers] == [401, 429, 429, 429]
    assert_error(right, 429, "this address: expected at most 0.001 observations a second")


@pytest.mark.parametrize("has_fast_path", [True, False])
async def test_probes_of_load_balancers_are_not_limited(*, has_fast_path: bool) -> None:
    async with serve(
        key=None,
        keys=ring(),
        has_fast_path=has_fast_path,
        max_address_rate=ONCE,
        max_address_in_flight=1,
    ) as client:
        for _ in range(3):
            for path in ("/", "/livez", "/readyz"):
                assert (await client.get(path)).status_code == 200, path
                assert (await client.head(path)).status_code == 200, path


OPEN_PAGES = [
    "/docs",
    "/redoc",
    "/redoc/logo-mini.svg",
    "/openapi.json",
    "/static/swagger/swagger-ui-bundle.js",
    "/static/none",
]


@pytest.mark.parametrize("path", OPEN_PAGES)
async def test_open_pages_count_for_their_address(path: str) -> None:
    async with serve(key=None, keys=ring(), max_address_rate=ONCE) as client:
        answers = [await client.get(path, headers=by("plant")) for _ in range(2)]

    assert answers[0].status_code != 429
    assert_error(answers[1], 429, "this address: expected at most 0.001 observations a second")


@pytest.mark.parametrize("path", OPEN_PAGES)
async def test_open_pages_count_for_no_key(path: str) -> None:
    async with serve(key=None, keys=ring(), max_key_rate=ONCE) as client:
        answers = [await client.get(path, headers=by("plant")) for _ in range(2)]
        prediction = await client.post("/predict", json=OBSERVATION, headers=by("plant"))

    assert answers[1].status_code == answers[0].status_code != 429
    assert prediction.status_code == 200


async def test_server_without_keys_limits_addresses() -> None:
    async with serve(key=None, api_key=None, max_address_rate=ONCE) as client:
        answers = [await client.post("/predict", json=OBSERVATION) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 429]


@pytest.mark.parametrize(
    ("trusted", "expected"),
    [
        pytest.param("127.0.0.1", [200, 200, 429], id="trusted proxy"),
        pytest.param("10.9.9.9", [200, 429, 429], id="client that only says so"),
    ],
)
@pytest.mark.parametrize("is_hot", [True, False], ids=["hot", "ASGI"])
async def test_address_is_the_one_that_a_trusted_proxy_forwards_for(
    trusted: str, expected: Sequence[int], *, is_hot: bool
) -> None:
    app = build(keys=ring(), max_address_rate=ONCE)
    async with running(app):
        server = Server(app, is_hot=is_hot, forwarded_allow_ips=trusted)
        requests = [
            hot("plant", f"x-forwarded-for: {client}")
            for client in ("192.0.2.1", "192.0.2.2", "192.0.2.1")
        ]
        found = [(await asked(server, request))[0] for request in requests]

    assert isinstance(server.config.loaded_app, ProxyHeadersMiddleware)
    assert found == expected


async def test_limits_in_schema_yaml_follow_the_keys() -> None:
    keys = KeyRing([PLANT, replace(OPS, max_rate=ONCE)])
    app = build(keys=keys)
    async with running(app):
        server = Server(app, is_hot=True)
        before = await asked(server, *[hot("ops")] * 2, *[hot("plant")] * 3)
        keys.replace([replace(PLANT, max_rate=ONCE), OPS])
        after = await asked(server, *[hot("ops")] * 3, *[hot("plant")] * 2)

    assert before == [200, 429, 200, 200, 200]
    assert after == [200, 200, 200, 200, 429]


async def test_document_says_which_routes_are_limited() -> None:
    paths = (await document_of())["paths"]
    limited = {
        path
        for path, methods in paths.items()
        for operation in methods.values()
        if "429" in operation["responses"]
    }

    assert {"/predict", "/predict/batch", "/schema", "/clients", "/sessions"} <= limited
    assert not limited & {"/", "/livez", "/readyz"}
    refusal = paths["/predict"]["post"]["responses"]["429"]
    assert refusal["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")


async def test_refused_body_over_the_limit_gives_its_place_back() -> None:
    app = build(keys=ring(), max_key_in_flight=1, max_body_bytes=64)
    async with running(app), client_of(app, key=KEYS["plant"]) as client:
        statuses = [
            (await client.post("/predict", content=content)).status_code
            for content in (b"x" * 65, b"{", BODY)
        ]

    assert statuses == [413, 422, 200]


class BrokenLimits(ClientLimits):
    """Limits that can't be worked out: when a request begins, or before that too."""

    def __init__(self, broken: str) -> None:
        super().__init__(ring())
        self.broken = broken

    @property
    def is_on(self) -> bool:
        if self.broken == "is_on":
            raise OverflowError(MARK)
        return True

    def begin(self, key: str | None, address: str | None) -> Share:
        if key == "ops":
            return super().begin(key, address)
        raise OverflowError(MARK)


@pytest.mark.parametrize("is_hot", [True, False], ids=["hot", "ASGI"])
@pytest.mark.parametrize("broken", ["is_on", "begin"])
async def test_limits_that_fail_are_a_500_in_the_log_and_no_lost_connection(
    broken: str, caplog: pytest.LogCaptureFixture, *, is_hot: bool
) -> None:
    app = build(keys=ring())
    gate = app.answer_http
    assert isinstance(gate, Gate)
    gate.client_limits = BrokenLimits(broken)
    async with running(app):
        server = Server(app, is_hot=is_hot)
        transport = await server.exchange(
            [hot("plant"), hot("ops"), hot("plant")], turns_between=20
        )
    answers = answers_in(transport.written)

    assert [answer.status for answer in answers] == [500, 200, 500]
    assert MARK not in transport.written.decode()
    failed = [item for item in caplog.records if item.message == "request_failed"]
    assert [str(item.exc_info and item.exc_info[1]) for item in failed] == [MARK] * 2
