"""Deadlines and stamps of a stream's frames, beside their observations."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgpack
import pytest
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection

from policy_server.errors import ObservationError
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.web.frame_timing import split_timing
from tests.support.fakes import integer_backend, previous_backend, summing_backend
from tests.support.streams import KEY_HEADER, served
from tests.support.teams import streamed_team, usual_backends
from tests.support.web import OBSERVATION

MODES = "/predict_deterministic/stream"
PROTOCOLS = pytest.mark.parametrize(
    "protocol", [WebSocketProtocol, WebSocketsSansIOProtocol], ids=["direct", "ASGI"]
)


def observed(cat: int, **words: Any) -> dict[str, Any]:  # noqa: ANN401 -- any words
    """Return a frame with words beside its observation."""
    return {"observation": {"cat": cat, "mouse": 1.0}, **words}


async def answers_to(stream: ClientConnection, *frames: Any) -> list[Any]:  # noqa: ANN401 -- any
    """Send frames at once, and return the answers."""
    for frame in frames:
        await stream.send(frame if isinstance(frame, bytes) else json.dumps(frame))
    received = [await stream.recv() for _ in frames]
    return [
        json.loads(item) if isinstance(item, str) else msgpack.unpackb(item) for item in received
    ]


@PROTOCOLS
async def test_frame_whose_deadline_passes_is_504_and_makes_no_step(protocol: Any) -> None:  # noqa: ANN401 -- uvicorn's
    backend = summing_backend()
    async with served(backend, web_sockets=protocol) as server, server.stream(MODES) as stream:
        first = await answers_to(stream, observed(1, timeout_ms=60000))
        backend.gate = asyncio.Event()
        late = await answers_to(stream, observed(1, timeout_ms=10), observed(1, timeout_ms=10))
        backend.gate.set()
        backend.gate = None
        then = await answers_to(stream, observed(1, timeout_ms=60000), OBSERVATION)

    assert [item["status"] for item in late] == [504, 504]
    assert "timeout_ms" in late[0]["detail"]
    assert [item["actions"] for item in (*first, *then)] == [[1], [2], [2]]


@PROTOCOLS
async def test_stamp_of_a_frame_comes_back_with_its_answer_or_error(protocol: Any) -> None:  # noqa: ANN401 -- uvicorn's
    wrong = {"observation": {"cat": 1}, "stamp": "b"}
    async with (
        served(integer_backend(), web_sockets=protocol) as server,
        server.stream(MODES) as stream,
    ):
        plain, stamped, packed, refused, after = await answers_to(
            stream,
            OBSERVATION,
            {"observation": OBSERVATION, "stamp": 17},
            msgpack.packb({"observation": OBSERVATION, "stamp": 0.5, "timeout_ms": 60000}),
            wrong,
            OBSERVATION,
        )

    assert [item.get("stamp") for item in (stamped, packed, refused)] == [17, 0.5, "b"]
    assert all(0 <= item["held_ms"] < 10_000 for item in (stamped, packed, refused))
    assert stamped["actions"] == packed["actions"] == plain["actions"]
    assert refused["status"] == 422
    assert [problem["loc"] for problem in refused["detail"]] == [["body", "mouse"]]
    assert plain.keys() == after.keys() == {"actions", "probability", "log_probability"}


async def test_times_stand_beside_what_a_frame_states_of_the_step_before() -> None:
    async with served(previous_backend()) as server, server.stream(MODES) as stream:
        first, second = await answers_to(
            stream,
            observed(1, stamp="a"),
            observed(1, previous_reward=1.0, stamp="b"),
        )

    assert [first["stamp"], second["stamp"]] == ["a", "b"]
    assert "actions" in second


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"timeout_ms": 3_600_001}, "timeout_ms"),
        ({"timeout_ms": 5.5}, "timeout_ms"),
        ({"timeout_ms": 0.5}, "timeout_ms"),
        ({"timeout_ms": 1e300}, "timeout_ms"),
        ({"timeout_ms": True}, "timeout_ms"),
        ({"timeout_ms": "5"}, "timeout_ms"),
        ({"stamp": "a b"}, "stamp"),
        ({"stamp": [1]}, "stamp"),
        ({"stamp": False}, "stamp"),
        ({"stamp": 2**60}, "stamp"),
        ({"stamp": 12345678901234567890123}, "stamp"),
        ({"stamp": -12345678901234567890123}, "stamp"),
        ({"stamp": 1e300}, "stamp"),
    ],
)
async def test_time_that_is_none_is_refused(words: dict[str, Any], place: str) -> None:
    async with served(integer_backend()) as server, server.stream(MODES) as stream:
        refused, after = await answers_to(stream, observed(0, **words), OBSERVATION)

    assert refused["status"] == 422
    assert [problem["loc"] for problem in refused["detail"]] == [["body", place]]
    assert "actions" in after


@pytest.mark.parametrize("timeout_ms", [20.0, 2e3])
def test_timeout_is_a_whole_number_however_json_writes_it(timeout_ms: float) -> None:
    frame = {"text": json.dumps({"observation": OBSERVATION, "timeout_ms": timeout_ms})}

    message, timing = split_timing(frame)

    assert timing.deadline(1.0) == 1.0 + timeout_ms / 1000
    assert json.loads(message["text"]) == OBSERVATION


def test_frame_that_is_nested_too_deeply_is_refused_with_a_stamp_too() -> None:
    nested = "[" * 300 + "]" * 300

    with pytest.raises(ObservationError, match="nested too deeply"):
        split_timing({"text": f'{{"observation": {nested}, "stamp": "a"}}'})


@PROTOCOLS
@pytest.mark.parametrize(
    ("header", "remedy"),
    [
        ("x-request-timeout-ms", "A stream takes the word timeout_ms in each frame instead"),
        ("x-observation-stamp", "A stream takes the word stamp in each frame instead"),
        ("x-previous-reward", "A stream takes the word previous_reward in each frame instead"),
        ("x-previous-action", "A stream takes the word previous_action in each frame instead"),
        ("x-state", "A stream keeps its own memory and counts its own steps; leave it out"),
        ("x-step", "A stream keeps its own memory and counts its own steps; leave it out"),
    ],
)
async def test_handshake_with_the_header_of_a_request_is_refused(
    header: str,
    remedy: str,
    protocol: Any,  # noqa: ANN401 -- uvicorn's
) -> None:
    async with served(summing_backend(), web_sockets=protocol) as server:
        answer = await server.refusal(MODES, additional_headers={**KEY_HEADER, header: "5"})

    assert answer.status_code == 422
    assert json.loads(answer.body)["detail"] == [
        {"type": "not_allowed", "loc": ["header", header], "msg": remedy}
    ]


@pytest.mark.parametrize("header", ["x-state", "x-step", "x-previous-reward"])
async def test_handshake_of_a_team_with_the_header_of_a_request_is_refused(header: str) -> None:
    async with streamed_team(usual_backends()) as (server, _):
        answer = await server.refusal(
            f"{MODES}/agents", additional_headers={**KEY_HEADER, header: "5"}
        )

    assert answer.status_code == 422
    assert json.loads(answer.body)["detail"][0]["loc"] == ["header", header]


async def test_team_whose_frame_is_late_makes_no_step() -> None:
    backends = usual_backends()
    frame = {"observation": {"hunter_1": {"cat": 1, "mouse": 1.0}}, "timeout_ms": 10}
    path = f"{MODES}/agents"
    async with streamed_team(backends) as (server, _), server.stream(path) as stream:
        backends["hunter"].gate = gate = asyncio.Event()
        late = await answers_to(stream, frame)
        gate.set()
        done = await answers_to(stream, {**frame, "timeout_ms": 60000})
        refused = await answers_to(stream, {**frame, "stamp": 1})

    assert late[0]["status"] == 504
    assert done[0]["hunter_1"]["actions"] == [1]
    assert refused[0]["detail"][0]["loc"] == ["body", "stamp"]


async def test_late_frames_are_counted() -> None:
    backend = integer_backend()
    async with served(backend) as server, server.stream(MODES) as stream:
        backend.gate = gate = asyncio.Event()
        await answers_to(stream, observed(0, timeout_ms=10))
        gate.set()
        counted = server.counted("policy_server_rejected_total")

    assert counted == 1
