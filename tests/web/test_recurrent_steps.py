"""Steps of recurrent policies whose episodes begin in the middle, by each way to keep state."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect

from policy_server import create_app
from policy_server.http_server.http_protocol import HttpProtocol
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.web import Application
from tests.support.folders import ROOT
from tests.support.servers import app_in_loop
from tests.support.streams import KEY_HEADER
from tests.support.web import KEY, client_of

SEQUENCES = ROOT / "tests" / "data" / "sequences"
NAMES = ["sb3_recurrent_vecnorm", "rllib_separate_lstm", "onnx_gru", "rllib_previous_step"]
every_policy = pytest.mark.parametrize("name", NAMES)
RESET = '{"reset": true}'


@asynccontextmanager
async def served(name: str, folder: Path) -> AsyncIterator[Application]:
    shutil.copytree(SEQUENCES / name, folder, dirs_exist_ok=True)
    app = create_app(folder, api_key=KEY)
    async with app.lifespan():
        yield app


@dataclass(frozen=True)
class Step:
    """One step: the observation, and what is stated of the step before."""

    observation: dict[str, Any]
    is_start: bool
    action: list[float] | None
    reward: float | None

    @property
    def body(self) -> str:
        return json.dumps(self.observation)

    @property
    def headers(self) -> dict[str, str]:
        if self.reward is None:
            return {}
        return {
            "x-previous-reward": repr(self.reward),
            "x-previous-action": json.dumps(self.action),
        }

    @property
    def frame(self) -> str:
        if self.reward is None:
            return self.body
        stated = {"previous_reward": self.reward, "previous_action": self.action}
        return json.dumps({"observation": self.observation, **stated})


def steps_of(name: str) -> list[Step]:
    """Return the steps of one sequence, in which further episodes begin."""
    steps = np.load(SEQUENCES / name / "steps.npz")
    assert steps["start"].sum() > 1, "an episode begins in the middle"
    actions, rewards = (
        steps[key].tolist() if key in steps else [None] * len(steps["raw"])
        for key in ("previous_action", "previous_reward")
    )
    return [
        Step({"obs": row}, start, None if start else action, None if start else reward)
        for row, start, action, reward in zip(
            steps["raw"].tolist(), steps["start"].tolist(), actions, rewards, strict=True
        )
    ]


def numbers_of(component: dict[str, Any]) -> list[float]:
    """Return the probabilities of a component's choices, or its means and deviations."""
    return component.get("probabilities") or [*component["mean"], *component["std"]]


def assert_are_the_librarys(name: str, answers: list[dict[str, Any]]) -> None:
    found = [
        [number for component in answer["components"] for number in numbers_of(component)]
        for answer in answers
    ]
    known = np.load(SEQUENCES / name / "steps.npz")["distribution"]
    np.testing.assert_allclose(found, known, atol=1e-5, rtol=0)


@every_policy
async def test_session_steps_as_the_library(name: str, tmp_path: Path) -> None:
    answers = []
    async with served(name, tmp_path) as app, client_of(app) as client:
        session = f"/sessions/{(await client.post('/sessions')).json()['session_id']}"
        for step in steps_of(name):
            if step.is_start:
                await client.post(f"{session}/reset")
            answer = await client.post(
                f"{session}/distribution_raw", content=step.body, headers=step.headers
            )
            answers.append(answer.json())

    assert_are_the_librarys(name, answers)


@every_policy
async def test_token_steps_as_the_library(name: str, tmp_path: Path) -> None:
    answers, token = [], "new"
    async with served(name, tmp_path) as app, client_of(app) as client:
        for step in steps_of(name):
            headers = {"x-state": "new" if step.is_start else token, **step.headers}
            answer = await client.post("/distribution_raw", content=step.body, headers=headers)
            token = answer.headers["x-state"]
            answers.append(answer.json())

    assert_are_the_librarys(name, answers)


@every_policy
async def test_stream_steps_as_the_library(name: str, tmp_path: Path) -> None:
    answers = []
    async with (
        served(name, tmp_path) as app,
        app_in_loop(app, http=HttpProtocol, ws=WebSocketProtocol, lifespan="off") as (url, _),
        connect(
            f"{url.replace('http', 'ws')}/distribution_raw/stream", additional_headers=KEY_HEADER
        ) as stream,
    ):
        frames = [
            frame
            for step in steps_of(name)
            for frame in ([RESET, step.frame] if step.is_start else [step.frame])
        ]
        for frame in frames:
            await stream.send(frame)
        for frame in frames:
            answer = json.loads(await stream.recv())
            if frame != RESET:
                answers.append(answer)

    assert_are_the_librarys(name, answers)
