"""Statements of the step before that are no reward or action are a 422, by whichever way."""

from __future__ import annotations

import json

import msgpack
import pytest

from tests.fuzz.session_steps import begin
from tests.support.connections import Server, answers_in
from tests.support.fakes import FakeBackend, integer_backend, previous_backend, summing_backend
from tests.support.streams import served
from tests.support.teams import served_team, streamed_team, usual_backends
from tests.support.web import KEY, OBSERVATION, assert_invalid, build, running, serve

# A number that no float holds, and JSON does.
HUGE = 10**400
OWN = {"cat": 1, "mouse": 1.0}
MODES = "predict_deterministic"
ACTION = "header.x-previous-action"


def nested(levels: int) -> str:
    """Return the JSON of lists in lists."""
    return "[" * levels + "]" * levels


def packed_statement(levels: int) -> bytes:
    """Return an observation with a nested action, as msgpack would not write it."""
    head: bytes = msgpack.packb({"observation": OWN, "previous_reward": 1.0})
    # One more pair in the map, whose head is a byte.
    action: bytes = msgpack.packb("previous_action") + b"\x91" * levels + b"\x01"
    return bytes([head[0] + 1]) + head[1:] + action


@pytest.mark.parametrize("levels", [100, 300, 1000])
@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast", "fastapi"])
@pytest.mark.parametrize("backend", [previous_backend(), integer_backend()], ids=["taken", "not"])
async def test_action_of_many_lists_is_refused_in_a_session_and_with_a_token(
    *, backend: FakeBackend, has_fast_path: bool, levels: int
) -> None:
    headers = {"x-previous-reward": "1", "x-previous-action": nested(levels)}
    async with serve(backend, has_fast_path=has_fast_path) as client:
        session = (await client.post("/sessions")).json()["session_id"]
        path = f"/sessions/{session}/{MODES}"
        refused = [
            await client.post(path, json=OBSERVATION, headers=headers),
            await client.post(f"/{MODES}", json=OBSERVATION, headers={**headers, "x-state": "new"}),
        ]
        after = await client.post(path, json=OBSERVATION)

    for answer in refused[: 2 if backend.signature.memory else 1]:
        assert_invalid(answer, ACTION)
    assert (after.status_code, after.headers["x-step"]) == (200, "0")


async def test_action_of_many_lists_is_refused_in_a_hot_step() -> None:
    app, body = build(summing_backend()), json.dumps(OBSERVATION).encode()
    async with running(app):
        server = Server(app, is_hot=True)
        session = (await begin(server)).decode()
        lines = [
            f"POST /sessions/{session}/{MODES} HTTP/1.1",
            f"access-token: {KEY}",
            f"content-length: {len(body)}",
            f"x-previous-action: {nested(300)}",
        ]
        request = "\r\n".join([*lines, "", ""]).encode() + body
        told = await server.exchange([request], turns_between=20)

    assert [answer.status for answer in answers_in(told.written)] == [422]


@pytest.mark.parametrize(
    ("stated", "word"),
    [
        ({"previous_reward": HUGE}, "previous_reward"),
        ({"previous_reward": 1.0, "previous_action": HUGE}, "previous_action"),
        ({"previous_reward": 1.0, "previous_action": [-HUGE]}, "previous_action"),
        ({"previous_reward": 1.0, "previous_action": json.loads(nested(150))}, "previous_action"),
    ],
    ids=["reward", "action", "action in a list", "nested action"],
)
async def test_number_that_no_float_holds_is_refused_in_a_team(
    stated: dict[str, object], word: str
) -> None:
    backends = {**usual_backends(), "hunter": previous_backend()}
    mistaken = {"hunter_1": {"observation": OWN, **stated}}
    async with served_team(backends) as team:
        session = (await team.client.post("/sessions/agents")).json()["session_id"]
        path = f"/sessions/{session}/{MODES}/agents"
        first = await team.client.post(path, json={"hunter_1": OWN})
        refused = await team.client.post(path, json=mistaken)
    path = f"/{MODES}/stream/agents"
    async with streamed_team(backends) as (server, _), server.stream(path) as stream:
        await stream.send(json.dumps(mistaken))
        streamed = json.loads(await stream.recv())

    assert first.status_code == 200
    assert_invalid(refused, f"body.hunter_1.{word}")
    assert streamed["status"] == 422
    assert streamed["detail"][0]["loc"] == ["body", "hunter_1", word]


@pytest.mark.parametrize("levels", [33, 300, 1000])
async def test_packed_action_of_many_lists_is_refused_in_streams(levels: int) -> None:
    frame = packed_statement(levels)
    async with served(previous_backend()) as server, server.stream(f"/{MODES}/stream") as stream:
        await stream.send(frame)
        alone = msgpack.unpackb(await stream.recv())
    backends = {**usual_backends(), "hunter": previous_backend()}
    path = f"/{MODES}/stream/agents"
    async with streamed_team(backends) as (server, _), server.stream(path) as stream:
        await stream.send(b"\x81" + msgpack.packb("hunter_1") + frame)
        team = msgpack.unpackb(await stream.recv())

    assert [answer["status"] for answer in (alone, team)] == [422, 422]
    assert alone["detail"][0]["loc"] == ["header", "x-previous-action"]
    assert team["detail"][0]["loc"] == ["body", "hunter_1", "previous_action"]
