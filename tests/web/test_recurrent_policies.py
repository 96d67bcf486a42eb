"""Recurrent policies of training libraries, an episode long: each answer is the library's own."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect

from policy_server import create_app
from policy_server.http_server.http_protocol import HttpProtocol
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from tests.support.library_policies import POLICIES, cases_of
from tests.support.servers import app_in_loop
from tests.support.web import KEY, client_of

FILES = {
    "sb3_recurrent_ppo": ("policy.zip",),
    "rllib_ppo_lstm": ("checkpoint.zip",),
    "onnx_rsl_rl_lstm": ("policy.onnx", "policy.onnx.data"),
}
every_policy = pytest.mark.parametrize("name", FILES)
TOLERANCE = 1e-5
EPISODES = 64


@asynccontextmanager
async def served(name: str, folder: Path) -> AsyncIterator[Any]:
    """Serve a policy of a library from its own file."""
    for file in (*FILES[name], "schema.yaml"):
        shutil.copy(POLICIES / name / file, folder / file)
    app = create_app(folder, api_key=KEY)
    async with app.lifespan():
        yield app


def assert_is_the_librarys(answer: dict[str, Any], case: dict[str, Any]) -> None:
    """Hold a distribution against the library's."""
    component, expected = answer["components"][0], case["expected"]
    if component["kind"] == "categorical":
        found, known = component["probabilities"], expected["probabilities"]
    else:
        # The ONNX file holds no deviation.
        found, known = component["value"], expected["deterministic_action"]
    assert len(found) == len(known)
    np.testing.assert_allclose(found, known, atol=TOLERANCE, rtol=0)


async def begun(client: httpx.AsyncClient) -> str:
    """Begin a session, and return its address."""
    return f"/sessions/{(await client.post('/sessions')).json()['session_id']}"


@every_policy
async def test_session_answers_as_the_library_from_step_to_step(name: str, tmp_path: Path) -> None:
    cases = cases_of(name)
    async with served(name, tmp_path) as app, client_of(app) as client:
        session = await begun(client)
        for _ in range(2):
            for case in cases:
                answer = await client.post(f"{session}/distribution", json=case["observation"])
                assert_is_the_librarys(answer.json(), case)
            await client.post(f"{session}/reset")


async def test_interleaved_episodes_keep_apart(tmp_path: Path) -> None:
    name = "sb3_recurrent_ppo"
    cases = cases_of(name)
    async with served(name, tmp_path) as app, client_of(app) as client:
        sessions = [await begun(client) for _ in range(EPISODES)]
        # Episode i begins at turn i, so that a call has rows of every age.
        for turn in range(EPISODES + len(cases)):
            running = [
                (session, cases[turn - first])
                for first, session in enumerate(sessions)
                if 0 <= turn - first < len(cases)
            ]
            answers = await asyncio.gather(
                *(
                    client.post(f"{session}/distribution_raw", json={"obs": case["raw"]})
                    for session, case in running
                )
            )
            for answer, (_, case) in zip(answers, running, strict=True):
                assert_is_the_librarys(answer.json(), case)


@every_policy
async def test_stream_answers_as_the_library_from_frame_to_frame(name: str, tmp_path: Path) -> None:
    cases = cases_of(name)
    frames = [json.dumps(case["observation"]) for case in cases]
    async with (
        served(name, tmp_path) as app,
        app_in_loop(app, http=HttpProtocol, ws=WebSocketProtocol, lifespan="off") as (url, _),
        connect(
            f"{url.replace('http', 'ws')}/distribution/stream",
            additional_headers={"access-token": KEY},
        ) as stream,
    ):
        one_by_one = []
        for frame in frames:
            await stream.send(frame)
            one_by_one.append(await stream.recv())
        await stream.send('{"reset": true}')
        await stream.recv()
        for frame in frames:
            await stream.send(frame)
        at_once = [await stream.recv() for _ in frames]

    assert_episode(one_by_one, cases)
    assert_episode(at_once, cases)


@every_policy
async def test_tokens_answer_as_the_library_from_step_to_step(name: str, tmp_path: Path) -> None:
    cases, token = cases_of(name), "new"
    async with served(name, tmp_path) as app, client_of(app) as client:
        for case in cases:
            answer = await client.post(
                "/distribution", json=case["observation"], headers={"x-state": token}
            )
            assert_is_the_librarys(answer.json(), case)
            token = answer.headers["x-state"]


def assert_episode(answers: Sequence[str | bytes], cases: Sequence[dict[str, Any]]) -> None:
    """Hold the answers of one episode against the library's."""
    for answer, case in zip(answers, cases, strict=True):
        assert_is_the_librarys(json.loads(answer), case)


async def test_answers_without_memory_are_those_of_the_first_step(tmp_path: Path) -> None:
    cases = cases_of("rllib_ppo_lstm")
    async with served("rllib_ppo_lstm", tmp_path) as app, client_of(app) as client:
        for case in cases:
            answer = await client.post("/distribution", json=case["observation"])
            expected = {"expected": case["expected_zero_state"]}
            assert_is_the_librarys(answer.json(), expected)
            assert answer.headers["x-policy-memory"] == "none"
