"""A stream is a session for as long as its connection lives, with a frame that resets it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from websockets.asyncio.client import ClientConnection

from policy_server.http_server.http_protocol import HttpProtocol
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.metrics import Metrics
from policy_server.policy import StateTensor
from policy_server.schema import parse_schema
from policy_server.serving import PolicyRegistry
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.support.fakes import FakeBackend, integer_backend, opened, slot_of, summing_backend
from tests.support.servers import app_in_loop
from tests.support.streams import Served, served
from tests.support.waiting import until
from tests.support.web import KEY, OBSERVATION, SCHEMA

PARSED = parse_schema(SCHEMA)
RESET = '{"reset":true}'
MODES = "/predict_deterministic/stream"


def observed(cat: int) -> str:
    """Return a frame that adds a number to the memory of `summing_backend`."""
    return json.dumps({"cat": cat, "mouse": 1.0})


async def answers_to(stream: ClientConnection, *frames: str | bytes) -> list[Any]:
    """Send frames at once, and return the answers."""
    for frame in frames:
        await stream.send(frame)
    received = [await stream.recv() for _ in frames]
    return [
        json.loads(item) if isinstance(item, str) else msgpack.unpackb(item) for item in received
    ]


def actions_in(answers: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the only action of each answer."""
    return [answer["actions"][0] for answer in answers]


async def test_stream_steps_the_memory_of_its_own_episode() -> None:
    async with served(summing_backend()) as server, server.stream(MODES) as stream:
        one_by_one = [(await answers_to(stream, observed(1)))[0] for _ in range(4)]
        async with server.stream(MODES) as other:
            others = await answers_to(other, observed(1), observed(1))
        at_once = await answers_to(stream, *([observed(1)] * 5))

    assert actions_in(one_by_one) == [1, 2, 0, 1]
    assert actions_in(others) == [1, 2]
    assert actions_in(at_once) == [2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    "backend", [summing_backend(), integer_backend()], ids=["memory", "without memory"]
)
async def test_reset_frame_is_answered_in_its_place(backend: FakeBackend) -> None:
    async with served(backend) as server, server.stream(MODES) as stream:
        as_json = await answers_to(stream, observed(1), RESET, observed(1), '{"reset": true}')
        as_msgpack = await answers_to(stream, msgpack.packb({"reset": True}))
        last = await answers_to(stream, observed(1))

    assert as_json[0] == as_json[2] == last[0]
    assert [as_json[1], as_json[3], as_msgpack[0]] == [{"reset": True}] * 3


@pytest.mark.parametrize(
    "frame", ['{"reset": 1}', '{"reset": false}', '{"reset": true, "cat": 1}', "[true]", "{"]
)
async def test_frame_that_resets_nothing_is_a_mistake(frame: str) -> None:
    async with served(summing_backend()) as server, server.stream(MODES) as stream:
        answers = await answers_to(stream, observed(1), frame, observed(1))

    assert answers[1]["status"] == 422
    assert actions_in([answers[0], answers[2]]) == [1, 2]


async def test_frame_that_fails_does_not_step_the_memory() -> None:
    backend = replace(summing_backend(), error=ValueError("broken"))
    async with served(backend) as server, server.stream(MODES) as stream:
        answers = await answers_to(stream, observed(1), observed(666), "{}", observed(1))

    assert [answer.get("status") for answer in answers] == [None, 500, 422, None]
    assert actions_in([answers[0], answers[3]]) == [1, 2]


async def test_reset_frame_begins_the_seeds_again() -> None:
    observed_again = [json.dumps(OBSERVATION)] * 3
    async with served(integer_backend()) as server:
        async with server.stream("/predict/stream?seed=5") as stream:
            first = await answers_to(stream, *observed_again, RESET, *observed_again)
            other = await answers_to(stream, '{"reset": true, "seed": 70}', *observed_again)
            packed = msgpack.packb({"reset": True, "seed": 5})
            same = await answers_to(stream, RESET, *observed_again, packed, *observed_again)
        async with server.stream() as stream:
            later = await answers_to(stream, '{"reset": true, "seed": 70}', *observed_again)

    assert first[:3] == first[4:]
    assert other[0] == {"reset": True, "seed": 70}
    assert other == later
    assert other[1:] != first[:3]
    assert same == [{"reset": True}, *other[1:], {"reset": True, "seed": 5}, *first[:3]]


@pytest.mark.parametrize("seed", ["-1", "1.5", '"7"', "true", str(2**63)])
async def test_reset_frame_with_a_wrong_seed_resets_nothing(seed: str) -> None:
    async with served(summing_backend()) as server, server.stream(MODES) as stream:
        frame = f'{{"reset": true, "seed": {seed}}}'
        answers = await answers_to(stream, observed(1), frame, observed(1))

    assert answers[1]["status"] == 422
    assert [problem["loc"] for problem in answers[1]["detail"]] == [["body", "seed"]]
    assert actions_in([answers[0], answers[2]]) == [1, 2]


async def test_steps_of_many_streams_ride_in_one_call() -> None:
    gate = asyncio.Event()
    gate.set()
    backend = replace(summing_backend(), gate=gate)
    async with served(backend) as server:
        streams = [await server.stream(MODES) for _ in range(4)]
        for stream in streams:
            await answers_to(stream, observed(1))
        gate.clear()
        del backend.batches[:]
        for stream in streams:
            await stream.send(observed(1))
        await until(lambda: server.counted("policy_server_queue_depth") == len(streams))
        gate.set()
        received = [json.loads(await stream.recv()) for stream in streams]
        for stream in streams:
            await stream.close()

    assert actions_in(received) == [2] * 4
    assert sum(backend.batches) == len(received)
    assert len(backend.batches) < len(received)


async def test_connection_that_ends_leaves_no_step_behind() -> None:
    gate = asyncio.Event()
    gate.set()
    backend = replace(summing_backend(), gate=gate)
    async with served(backend) as server:
        del backend.batches[:]
        gate.clear()
        async with server.stream(MODES) as stream:
            for _ in range(5):
                await stream.send(observed(1))
            await until(lambda: bool(backend.batches))
        await until(lambda: server.counted("policy_server_stream_connections") == 0)
        gate.set()
        async with server.stream(MODES) as stream:
            answers = await answers_to(stream, observed(1))

    assert actions_in(answers) == [1]
    assert sum(backend.batches) == 2


async def test_frame_states_the_reward_and_the_action_of_the_step_before() -> None:
    backend = summing_backend()
    memory = (
        *backend.signature.memory,
        StateTensor("prev_actions", (1,), role="previous_action"),
        StateTensor("prev_rewards", (1,), role="previous_reward"),
    )
    backend = replace(backend, signature=replace(backend.signature, memory=memory))
    observation = {"cat": 1, "mouse": 1.0}
    async with served(backend) as server, server.stream(MODES) as stream:
        del backend.calls[:]
        answers = await answers_to(
            stream,
            json.dumps(observation),
            json.dumps({"observation": observation, "previous_reward": 0.5}),
            json.dumps(observation),
            msgpack.packb(
                {"observation": observation, "previous_reward": 2, "previous_action": [0]}
            ),
            json.dumps({"observation": {"cat": 1}, "previous_reward": 0.5}),
        )

    states = [None if call.state is None else call.state[0].tolist() for call in backend.calls]
    assert states == [[0.0, 0.0, 0.0], [1.0, 1.0, 0.5], [2.0, 0.0, 2.0]]
    assert [answer.get("status") for answer in answers] == [None, None, 422, None, 422]
    assert answers[2]["detail"][0]["loc"] == ["header", "x-previous-reward"]


async def test_reset_frame_leaves_a_version_that_was_unloaded() -> None:
    slot = slot_of(summing_backend(), PARSED, metrics=(metrics := Metrics()))
    app = create_app(PolicyRegistry([slot]), Settings(), api_key=KEY, metrics=metrics)
    async with (
        app_in_loop(app, http=HttpProtocol, ws=WebSocketProtocol) as (url, server),
        Served(url, server, metrics).stream(MODES) as stream,
    ):
        first = await answers_to(stream, observed(1))
        old = slot.current().label
        await slot.add(lambda: opened(summing_backend()), name="v2")
        slot.route({"v2": 100.0})
        await slot.remove(old)
        refused, reset, last = await answers_to(stream, observed(1), RESET, observed(1))

    assert (refused["status"], reset) == (409, {"reset": True})
    assert actions_in([*first, last]) == [1, 1]
