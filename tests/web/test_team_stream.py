"""A stream of a team: a frame for all agents, memories of their own, resets of one or all."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import msgpack
from websockets.asyncio.client import ClientConnection

from tests.support.fakes import opened, summing_backend
from tests.support.teams import own_seed, streamed_team, usual_backends
from tests.support.waiting import until

MODES = "/predict_deterministic/stream/agents"
SEEN = {"distance": 0.0, "is_seen": True}
RESET = {"reset": True}


def observed(**cats: int) -> dict[str, Any]:
    """Return observations of hunters that add numbers to their memories."""
    return {agent: {"cat": cat, "mouse": 1.0} for agent, cat in cats.items()}


async def answers_to(stream: ClientConnection, *frames: Any) -> list[Any]:  # noqa: ANN401 -- any
    """Send frames at once, and return the answers."""
    for frame in frames:
        await stream.send(frame if isinstance(frame, bytes) else json.dumps(frame))
    received = [await stream.recv() for _ in frames]
    return [
        json.loads(item) if isinstance(item, str) else msgpack.unpackb(item) for item in received
    ]


def actions_in(answers: list[Any]) -> list[dict[str, int]]:
    """Return the action of each agent in each answer."""
    return [{agent: found["actions"][0] for agent, found in answer.items()} for answer in answers]


async def test_frames_that_are_sent_at_once_step_each_agents_memory_in_order() -> None:
    async with streamed_team() as (server, _), server.stream(MODES) as stream:
        at_once = await answers_to(
            stream,
            {**observed(hunter_1=1, hunter_2=2), "prey": SEEN},
            observed(hunter_1=1),
            msgpack.packb(observed(hunter_2=2, hunter_1=1)),
        )
        async with server.stream(MODES) as other:
            others = await answers_to(other, observed(hunter_1=1))

    assert actions_in(at_once) == [
        {"hunter_1": 1, "hunter_2": 2, "prey": 2},
        {"hunter_1": 2},
        {"hunter_2": 1, "hunter_1": 0},
    ]
    assert actions_in(others) == [{"hunter_1": 1}]


async def test_reset_frames_of_one_and_of_all_are_answered_in_their_places() -> None:
    both = observed(hunter_1=1, hunter_2=1)
    one = {"reset": ["hunter_2"]}
    async with streamed_team() as (server, _), server.stream(MODES) as stream:
        answers = await answers_to(stream, both, one, both, RESET, both, msgpack.packb(RESET), both)

    assert [answers[1], answers[3], answers[5]] == [one, RESET, RESET]
    assert actions_in(answers[::2]) == [
        {"hunter_1": 1, "hunter_2": 1},
        {"hunter_1": 2, "hunter_2": 1},
        {"hunter_1": 1, "hunter_2": 1},
        {"hunter_1": 1, "hunter_2": 1},
    ]


async def test_frame_that_fails_moves_nobodys_memory() -> None:
    backends = usual_backends()
    backends["prey"].error = ValueError("broken")
    poisoned = {**observed(hunter_1=1), "prey": {**SEEN, "distance": 666.0}}
    mistaken = {**observed(hunter_1=1), "prey": {"distance": "far", "is_seen": True}}
    frames = [
        observed(hunter_1=1),
        poisoned,
        mistaken,
        {"wolf": SEEN},
        {"reset": ["wolf"]},
        {"reset": False},
        b"\xc1",
        msgpack.packb({1: SEEN}, strict_types=True),
        msgpack.packb([1]),
    ]
    async with streamed_team(backends) as (server, _), server.stream(MODES) as stream:
        answers = await answers_to(stream, *frames, observed(hunter_1=1))

    assert [answer.get("status") for answer in answers] == [None, 500, *[422] * 7, None]
    assert answers[1]["detail"].startswith("agent 'prey': ")
    assert answers[2]["detail"][0]["loc"] == ["body", "prey", "distance"]
    assert actions_in([answers[0], answers[-1]]) == [{"hunter_1": 1}, {"hunter_1": 2}]


async def test_agent_of_that_name_is_no_reset() -> None:
    rules = {"reset": "prey"}
    async with streamed_team(rules=rules) as (server, _), server.stream(MODES) as stream:
        answers = await answers_to(stream, {"reset": SEEN})

    assert actions_in(answers) == [{"reset": 2}]


async def test_frame_i_is_drawn_with_the_seed_plus_i_by_each_agent_with_its_own() -> None:
    path = "/predict/stream/agents?seed=5"
    async with streamed_team() as (server, _), server.stream(path) as stream:
        seen = {"prey": SEEN}
        answers = await answers_to(
            stream,
            seen,
            {"wolf": SEEN},
            {"drone_1": {"obs": [0, 0]}, **seen},
            {**RESET, "seed": 70},
            seen,
            seen,
            RESET,
            seen,
        )
        alone = []
        for first in (5, 7, 70, 71, 70):
            seed = own_seed(first, "prey")
            body = json.dumps(SEEN).encode()
            answer = await server.post(f"/policies/prey/predict?seed={seed}", body)
            alone.append(answer.json())

    assert [answers[frame]["prey"] for frame in (0, 2, 4, 5, 7)] == alone
    assert (answers[3], answers[6]) == ({"reset": True, "seed": 70}, RESET)


async def test_frames_without_memory_and_frames_of_many_streams_ride_in_one_call() -> None:
    gate = asyncio.Event()
    gate.set()
    backends = usual_backends()
    for name, backend in backends.items():
        backends[name] = replace(backend, gate=gate)
    team = {**observed(hunter_1=1, hunter_2=1), "prey": SEEN}
    async with streamed_team(backends) as (server, slots):
        streams = [await server.stream(MODES) for _ in range(3)]
        for stream in streams:
            await answers_to(stream, team)
        gate.clear()
        for backend in backends.values():
            del backend.batches[:]
        # The first call of each policy waits; the others gather behind it.
        for stream in streams:
            await stream.send(json.dumps(team))
            await stream.send(json.dumps({"prey": SEEN}))
        schedulers = {name: slot.current().scheduler for name, slot in slots.items()}
        await until(lambda: schedulers["hunter"].waiting == 6 and schedulers["prey"].waiting == 6)
        gate.set()
        received = [json.loads(await stream.recv()) for stream in streams for _ in range(2)]
        for stream in streams:
            await stream.close()

    assert actions_in(received[::2]) == [{"hunter_1": 2, "hunter_2": 2, "prey": 2}] * 3
    assert (sum(backends["hunter"].batches), sum(backends["prey"].batches)) == (6, 6)
    assert len(backends["hunter"].batches) < 6


async def test_episode_keeps_its_version_and_policies_without_memory_follow_the_traffic() -> None:
    async with streamed_team() as (server, slots), server.stream(MODES) as stream:
        team = {**observed(hunter_1=1), "prey": SEEN}
        await answers_to(stream, team)
        for name in ("hunter", "prey"):
            await slots[name].add(lambda: opened(summing_backend(), digest="other"))
            slots[name].route({"other": 100.0})
        counts = [await slots["hunter"].sessions_of(name) for name in ("hunter0123", "other")]
        await slots["prey"].remove("prey0123")
        kept = await answers_to(stream, team)
        await slots["hunter"].remove("hunter0123")
        gone, *_, after = await answers_to(stream, team, RESET, team)
        after_counts = await slots["hunter"].sessions_of("other")
        await stream.close()
        await until(lambda: server.counted("policy_server_stream_connections") == 0)
        ended = await slots["hunter"].sessions_of("other")

    assert counts == [1, 0]
    # The prey's new version sums too, and begins with the zero state.
    assert actions_in(kept) == [{"hunter_1": 2, "prey": 0}]
    assert gone["status"] == 409
    assert actions_in([after])[0]["hunter_1"] == 1
    assert (after_counts, ended) == (1, 0)


async def test_version_that_is_kept_under_another_name_goes_on_answering_its_episodes() -> None:
    single = "/policies/hunter/predict_deterministic/stream"
    async with (
        streamed_team() as (server, slots),
        server.stream(MODES) as team,
        server.stream(single) as alone,
    ):
        observation = observed(hunter_1=1)
        before = [
            await answers_to(team, observation),
            await answers_to(alone, *observation.values()),
        ]
        # As a deployment does that brings other files under the same name.
        slots["hunter"].rename("hunter0123", "hunter0123 (outgoing)")
        after = [
            await answers_to(team, observation),
            await answers_to(alone, *observation.values()),
        ]

    assert before[0][0]["hunter_1"]["actions"] == before[1][0]["actions"] == [1]
    assert actions_in(after[0]) == [{"hunter_1": 2}]
    assert after[1][0]["actions"] == [2]


async def test_closed_stream_frees_the_places_of_its_agents() -> None:
    gate = asyncio.Event()
    backends = {name: replace(item, gate=gate) for name, item in usual_backends().items()}
    gate.set()
    async with streamed_team(backends) as (server, slots):
        gate.clear()
        schedulers = [slots[name].current().scheduler for name in ("hunter", "prey")]
        stream = await server.stream(MODES)
        for _ in range(3):
            await stream.send(json.dumps({**observed(hunter_1=1), "prey": SEEN}))
        await until(lambda: all(scheduler.waiting for scheduler in schedulers))
        stream.transport.abort()
        await until(lambda: not any(scheduler.waiting for scheduler in schedulers))
        gate.set()
