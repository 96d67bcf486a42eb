"""Web sockets through a real uvicorn: frames, order, errors, limits, handshakes, the end."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from policy_server.errors import PolicyFailedError
from policy_server.policy import ActionOutput
from policy_server.web.stream_connections import MOST_IN_FLIGHT
from tests.support.fakes import FakeBackend, integer_backend, signature_of
from tests.support.streams import KEY_HEADER, served
from tests.support.waiting import turns, until
from tests.support.web import KEY, OBSERVATION, SCHEMA, build, client_of

KINDS = ["predict", "predict_deterministic", "distribution"]


async def ask(stream: ClientConnection, message: str | bytes) -> Any:  # noqa: ANN401 -- an answer
    await stream.send(message)
    answer = await stream.recv()
    assert isinstance(answer, type(message))
    return json.loads(answer) if isinstance(answer, str) else msgpack.unpackb(answer)


def observation(cat: int, mouse: float = 1.5) -> str:
    return json.dumps({"cat": cat, "mouse": mouse})


@pytest.mark.parametrize("suffix", ["", "_raw"], ids=["named", "raw"])
@pytest.mark.parametrize("kind", KINDS)
async def test_answer_is_that_of_the_post_route(kind: str, suffix: str) -> None:
    question: dict[str, Any] = {"obs": [3, 1.5]} if suffix else OBSERVATION
    seed = "?seed=7" if kind == "predict" else ""
    async with served() as server:
        expected = await server.post(f"/{kind}{suffix}{seed}", json.dumps(question).encode())
        async with server.stream(f"/{kind}{suffix}/stream{seed}") as stream:
            await stream.send(json.dumps(question))
            as_json = await stream.recv(decode=False)
        async with server.stream(f"/{kind}{suffix}/stream{seed}") as stream:
            as_msgpack = await ask(stream, msgpack.packb(question))

    assert expected.status_code == 200
    assert as_json == expected.content
    assert as_msgpack == expected.json()


MISTAKES: list[Any] = [
    None,
    [],
    "text",
    1,
    {},
    {"cat": 0},
    {"cat": 0, "mouse": 1, "dog": 2},
    {"cat": "0", "mouse": 1},
    {"cat": True, "mouse": 1},
    {"cat": 0.5, "mouse": 1},
    {"cat": 0, "mouse": True},
    {"cat": 0, "mouse": None},
    {"cat": 0, "mouse": 11},
    {"cat": 0, "mouse": float("nan")},
    {"cat": 0, "mouse": float("-inf")},
    {"cat": 0, "mouse": -1e39},
    {"cat": {"x": [1]}, "mouse": [1]},
    {"cat": 0, "mouse": 1, "\U0001f600<script>": 2},
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=repr)
async def test_mistake_is_the_422_of_the_post_route_and_the_connection_stays(mistake: Any) -> None:  # noqa: ANN401 -- any JSON
    async with served() as server:
        expected = await server.post("/predict", json.dumps(mistake).encode())
        async with server.stream() as stream:
            as_json = await ask(stream, json.dumps(mistake))
            as_msgpack = await ask(stream, msgpack.packb(mistake))
            after = await ask(stream, json.dumps(OBSERVATION))

    assert expected.status_code == 422
    assert as_json == as_msgpack == {"status": 422, **expected.json()}
    assert list(after) == ["actions", "probability", "log_probability"]


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        pytest.param(b"", "msgpack_invalid", id="empty"),
        pytest.param(b"\xc1", "msgpack_invalid", id="unknown format"),
        pytest.param(b"\x82\xa3cat", "msgpack_invalid", id="truncated"),
        pytest.param(b"\xc0\xc0", "msgpack_invalid", id="two values"),
        pytest.param(b"\x91" * 5000, "msgpack_invalid", id="too deep to unpack"),
        pytest.param(b"\x91" * 990 + b"\xc0", "value_invalid", id="too deep for JSON"),
        pytest.param(b"\x91" * 201 + b"\xc0", "value_invalid", id="just too deep for JSON"),
        pytest.param(b"\xdf\xff\xff\xff\xff", "msgpack_invalid", id="map of four billion"),
        pytest.param(msgpack.packb({1: 2}), "msgpack_invalid", id="number as a key"),
        pytest.param(b"\x81\xa1\xff\x01", "msgpack_invalid", id="no UTF-8"),
        pytest.param(msgpack.packb({b"cat": 0, "mouse": 1}), "value_invalid", id="binary key"),
        pytest.param(msgpack.packb({"cat": b"0", "mouse": 1}), "value_invalid", id="binary"),
        pytest.param(
            msgpack.packb({"cat": msgpack.Timestamp(1), "mouse": 1}), "value_invalid", id="time"
        ),
        pytest.param(
            msgpack.packb({"cat": msgpack.ExtType(1, b""), "mouse": 1}), "value_invalid", id="ext"
        ),
    ],
)
async def test_msgpack_that_is_no_observation_is_a_typed_error(frame: bytes, kind: str) -> None:
    async with served() as server, server.stream() as stream:
        answer = await ask(stream, frame)
        after = await ask(stream, msgpack.packb(OBSERVATION))

    assert answer["status"] == 422
    [problem] = answer["detail"]
    assert problem["type"] == kind
    assert problem["loc"] == ["body"]
    assert "actions" in after


async def test_float32_of_msgpack_counts_as_it_is() -> None:
    async with served() as server, server.stream("/distribution_raw/stream") as stream:
        single = await ask(stream, msgpack.packb({"obs": [0.1, 1]}, use_single_float=True))
        double = await ask(stream, msgpack.packb({"obs": [0.10000000149011612, 1]}))

    assert single == double


async def test_a_thousand_frames_in_flight_are_answered_in_order_with_their_errors() -> None:
    count = 1000
    frames = [
        "{" if index % 97 == 5 else msgpack.packb({}) if index % 89 == 7 else observation(index)
        for index in range(count)
    ]
    backend = integer_backend()
    async with served(backend) as server, server.stream("/distribution/stream") as stream:
        sending = asyncio.create_task(_send_all(stream, frames))
        answers = [await stream.recv() for _ in range(count)]
        await sending
        expected = [
            (await server.post("/distribution", frame.encode())).content
            for frame in (observation(0), observation(999))
        ]

    for frame, answer in zip(frames, answers, strict=True):
        assert isinstance(answer, type(frame))
        is_error = not isinstance(frame, str) or frame == "{"
        assert (b"status" in _bytes(answer)) == is_error
    assert [_bytes(answers[0]), _bytes(answers[999])] == expected
    # They rode together.
    assert max(backend.batches) > 10


async def _send_all(stream: ClientConnection, frames: list[Any]) -> None:
    for frame in frames:
        await stream.send(frame)


def _bytes(answer: str | bytes) -> bytes:
    return answer.encode() if isinstance(answer, str) else answer


async def test_frames_in_flight_are_bounded() -> None:
    backend = integer_backend()
    async with served(backend) as server, server.stream() as stream:
        backend.gate = asyncio.Event()
        for index in range(2 * MOST_IN_FLIGHT):
            await stream.send(observation(index))
        await until(lambda: server.counted("policy_server_queue_depth") == MOST_IN_FLIGHT)
        await turns(100)
        in_flight = server.counted("policy_server_queue_depth")
        backend.gate.set()
        answers = [await stream.recv() for _ in range(2 * MOST_IN_FLIGHT)]

    assert in_flight == MOST_IN_FLIGHT
    assert ["actions" in json.loads(answer) for answer in answers] == [True] * 2 * MOST_IN_FLIGHT


async def test_client_that_reads_nothing_is_held_and_loses_no_answer() -> None:
    sent = 0
    # One answer of this policy has ten thousand probabilities.
    backend = integer_backend((0.0,) * 10_000)
    async with (
        served(backend) as server,
        server.stream("/distribution/stream", max_queue=1) as stream,
    ):
        while sent < 1_000_000:
            try:
                async with asyncio.timeout(0.5):
                    await stream.send(observation(sent) + " " * 10_000)
            except TimeoutError:
                break
            sent += 1
        asked = server.counted("policy_server_batch_size_sum")
        answers = [json.loads(await stream.recv()) for _ in range(sent)]

    assert 0 < sent < 1_000_000
    assert asked <= sent
    first = [answer["components"][0]["probabilities"][0] for answer in answers]
    assert first == sorted(first)


async def test_client_that_leaves_frees_what_it_had_in_flight() -> None:
    backend = integer_backend()
    async with served(backend) as server:
        async with server.stream() as stream:
            backend.gate = asyncio.Event()
            for index in range(10):
                await stream.send(observation(index))
            await until(lambda: server.counted("policy_server_queue_depth") == 10)
            stream.transport.abort()
        await until(lambda: server.counted("policy_server_queue_depth") == 0)
        await until(lambda: server.counted("policy_server_stream_connections") == 0)
        backend.gate.set()


@pytest.mark.parametrize("headers", [{}, {"access-token": "x"}, {"authorization": "Bearer x"}])
@pytest.mark.parametrize("path", ["/predict/stream", "/nowhere"])
async def test_no_key_or_a_wrong_one_refuses_the_handshake(
    path: str, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as server:
        response = await server.refusal(
            path, additional_headers={**headers, "x-request-id": "mine"}
        )
        await until(lambda: server.counted("policy_server_requests_total{") == 1)

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"] == "mine"
    assert "access key" in json.loads(response.body)["detail"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_bearer_token_opens_a_stream_and_the_handshake_has_the_request_id() -> None:
    headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine"}
    async with served() as server, server.stream(additional_headers=headers) as stream:
        assert stream.response is not None
        assert stream.response.headers["x-request-id"] == "mine"
        assert "actions" in await ask(stream, json.dumps(OBSERVATION))


async def test_without_a_key_everybody_is_let_in() -> None:
    async with served(api_key=None) as server, server.stream(additional_headers={}) as stream:
        assert "actions" in await ask(stream, json.dumps(OBSERVATION))


@pytest.mark.parametrize("path", ["/nowhere", "/docs", "/schema/stream", "/"])
async def test_unknown_stream_is_404(path: str) -> None:
    async with served() as server:
        response = await server.refusal(path)

    assert response.status_code == 404
    assert json.loads(response.body) == {"detail": "no such route; /docs lists them"}


@pytest.mark.parametrize(
    ("path", "stream"),
    [
        ("/predict", "/predict/stream"),
        ("/app/v1/predict_raw/batch", "/predict_raw/stream"),
        ("/sessions/abc/distribution", "/distribution/stream"),
    ],
)
async def test_web_socket_at_the_address_of_another_route_is_told_its_stream(
    path: str, stream: str
) -> None:
    async with served(schema=SCHEMA + "  url_path: app/v1\n") as server:
        response = await server.refusal(path)

    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert json.loads(response.body) == {
        "detail": f"this route opens no web socket; its stream is /app/v1{stream}"
    }


async def test_named_stream_needs_named_observations() -> None:
    async with served(schema=f"parameters: {{api_key: {KEY}}}") as server:
        assert (await server.refusal("/predict/stream")).status_code == 404
        async with server.stream("/predict_raw/stream") as stream:
            assert "actions" in await ask(stream, '{"obs": [0, 1]}')


@pytest.mark.parametrize("path", ["/predict/stream/", "/app/v1/predict/stream", "/predict/stream"])
async def test_stream_is_reached_with_a_slash_and_with_the_prefix(path: str) -> None:
    schema = SCHEMA + "  url_path: app/v1\n"
    async with served(schema=schema) as server, server.stream(path) as stream:
        assert "actions" in await ask(stream, json.dumps(OBSERVATION))


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", "", str(2**63), "9" * 5000])
async def test_wrong_seed_refuses_the_handshake_as_the_post_route_does(seed: str) -> None:
    async with served() as server:
        expected = await server.post(f"/predict?seed={seed}", json.dumps(OBSERVATION).encode())
        response = await server.refusal(f"/predict/stream?seed={seed}")

    assert response.status_code == expected.status_code == 422
    assert json.loads(response.body) == expected.json()


async def test_frame_is_drawn_with_the_seed_plus_its_number() -> None:
    last = 2**63 - 1
    body = json.dumps(OBSERVATION)
    async with served(integer_backend((0.0,) * 50)) as server:
        expected = [
            (await server.post(f"/predict?seed={seed}", body.encode())).json()
            for seed in (last - 1, 0)
        ]
        async with server.stream(f"/predict/stream?seed={last - 1}") as stream:
            first, _, third = [await ask(stream, frame) for frame in (body, "{", body)]

    assert [first, third] == expected


async def test_query_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with served() as server, server.stream("/predict/stream?seed=31415&key=secret"):
            pass

    lines = [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")]
    assert any("[accepted]" in line for line in lines)
    assert not any("secret" in line for line in lines)


async def test_frame_over_the_limit_is_413_and_the_connection_stays() -> None:
    body = json.dumps(OBSERVATION)
    async with served(max_body_bytes=len(body)) as server, server.stream() as stream:
        large = await ask(stream, body + " ")
        wide = await ask(stream, "ü" * (len(body) // 2 + 1))
        right = await ask(stream, body)

    expected = f"the frame is larger than {len(body)} bytes (POLICY_SERVER_MAX_BODY_BYTES)"
    assert large == wide == {"status": 413, "detail": expected}
    assert "actions" in right


async def test_overload_is_a_503_frame() -> None:
    backend = integer_backend()
    async with served(backend, max_queue_size=2) as server, server.stream() as stream:
        backend.gate = asyncio.Event()
        for index in range(3):
            await stream.send(observation(index))
        await until(lambda: server.counted("policy_server_rejected_total") == 1)
        backend.gate.set()
        answers = [json.loads(await stream.recv()) for _ in range(3)]

    assert ["actions" in answer for answer in answers] == [True, True, False]
    assert answers[2]["status"] == 503
    assert "2 observations are waiting already" in answers[2]["detail"]


async def test_late_answer_is_a_503_frame() -> None:
    backend = integer_backend()
    async with served(backend, request_timeout_s=0.05) as server, server.stream() as stream:
        backend.gate = asyncio.Event()
        answer = await ask(stream, json.dumps(OBSERVATION))

    assert answer == {"status": 503, "detail": "no answer within 0.05 s; try again in a second"}


@pytest.mark.parametrize("error", [PolicyFailedError("it failed"), ValueError("/home/secret")])
async def test_policy_that_fails_is_a_500_frame_logged_with_the_handshakes_id(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    backend = integer_backend()
    backend.error = error
    headers = {**KEY_HEADER, "x-request-id": "id-7"}
    async with served(backend) as server, server.stream(additional_headers=headers) as stream:
        answer = await ask(stream, observation(666))
        after = await ask(stream, observation(1))

    assert answer["status"] == 500
    assert "secret" not in answer["detail"]
    assert "actions" in after
    (record,) = [item for item in caplog.records if item.message == "request_failed"]
    assert record.__dict__["request_id"] == "id-7"


async def test_answer_that_the_policy_can_not_give_is_a_501_frame() -> None:
    output = ActionOutput("actions_0", is_integer=True, columns=1, is_vector=False)
    backend = FakeBackend(signature_of(None, outputs=(output,)), (), actions=([1.0], 0.5))
    async with served(backend) as server, server.stream("/distribution/stream") as stream:
        answer = await ask(stream, json.dumps(OBSERVATION))

    assert answer["status"] == 501


async def test_server_that_stops_answers_what_is_in_flight_then_says_1012() -> None:
    backend = integer_backend()
    async with served(backend) as server, server.stream() as idle, server.stream() as busy:
        backend.gate = asyncio.Event()
        for index in range(3):
            await busy.send(observation(index))
        await until(lambda: server.counted("policy_server_queue_depth") == 3)
        server.server.should_exit = True
        with pytest.raises(ConnectionClosed) as ended:
            await idle.recv()
        backend.gate.set()
        answers = [json.loads(await busy.recv()) for _ in range(3)]
        with pytest.raises(ConnectionClosed) as drained:
            await busy.recv()

    assert ["actions" in answer for answer in answers] == [True] * 3
    assert [caught.value.rcvd and caught.value.rcvd.code for caught in (ended, drained)] == [
        1012,
        1012,
    ]


async def test_before_the_start_the_handshake_is_refused() -> None:
    sent = await _by_hand(build(), extensions={"websocket.http.response": {}})

    assert [message["type"] for message in sent] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert sent[0]["status"] == 503
    assert (b"retry-after", b"1") in sent[0]["headers"]


async def test_server_without_refusals_by_http_closes_with_1008() -> None:
    sent = await _by_hand(build(), extensions={})

    assert sent == [{"type": "websocket.close", "code": 1008}]


async def _by_hand(
    app: Callable[..., Awaitable[None]], *, extensions: dict[str, Any]
) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/predict/stream",
        "headers": [(b"access-token", KEY.encode())],
        "query_string": b"",
        "extensions": extensions,
    }
    await app(scope, receive, send)
    return sent


async def test_plain_request_to_a_stream_is_told_to_upgrade() -> None:
    async with client_of(build()) as client:
        response = await client.get("/predict/stream")

    assert response.status_code == 426
    assert response.headers["upgrade"] == "websocket"
    assert "a web socket is expected here" in response.json()["detail"]


async def test_connection_is_counted_and_has_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="policy_server.access"):
        async with served() as server:
            headers = {**KEY_HEADER, "x-request-id": "abc"}
            async with server.stream(additional_headers=headers) as stream:
                for frame in (observation(0), "{", observation(1)):
                    await ask(stream, frame)
                is_open = server.counted("policy_server_stream_connections")
            await until(lambda: server.counted("policy_server_stream_connections") == 0)
            route = 'policy_server_requests_total{policy="default",route="/predict/stream",status='
            counted = [server.counted(f'{route}"{status}"}}') for status in (101, 200, 422)]

    assert is_open == 1
    assert counted == [1, 2, 1]
    (line,) = [vars(item) for item in caplog.records if item.name == "policy_server.access"]
    assert line["message"] == "stream"
    assert (line["request_id"], line["route"]) == ("abc", "/predict/stream")
    assert (line["frames"], line["errors"], line["code"]) == (3, 1, 1000)
    assert line["client"] == "127.0.0.1"
    assert line["duration_ms"] > 0


async def test_answers_are_sampled_into_the_prediction_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="policy_server.predictions"):
        async with served(prediction_log_rate=1.0) as server, server.stream() as stream:
            answer = await ask(stream, json.dumps(OBSERVATION))

    (line,) = [vars(item) for item in caplog.records if item.message == "prediction"]
    assert line["answer"] == answer
    assert line["observation"] == [0, 1.5]


async def test_random_frames_are_answered_each_and_nothing_is_logged_as_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chance = random.Random(4)  # noqa: S311 -- the same frames in each run
    frames = [_random_frame(chance) for _ in range(3000)]
    async with served() as server, server.stream() as stream:
        sending = asyncio.create_task(_send_all(stream, frames))
        answers = [await stream.recv() for _ in frames]
        await sending

    for frame, answer in zip(frames, answers, strict=True):
        found = json.loads(answer) if isinstance(answer, str) else msgpack.unpackb(answer)
        assert isinstance(answer, type(frame))
        assert list(found) in (["status", "detail"], ["actions", "probability", "log_probability"])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def _random_frame(chance: random.Random) -> str | bytes:
    good = msgpack.packb({"cat": chance.randint(-5, 5), "mouse": chance.uniform(-5, 10)})
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(40))
    if kind == 1:
        return chance.randbytes(chance.randrange(40)).decode("latin-1")
    changed = bytearray(good)
    for _ in range(chance.randrange(3)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed) if kind == 2 else bytes(changed[: chance.randrange(len(changed))])
