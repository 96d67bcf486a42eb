"""Steps of recurrent policies whose episodes begin in the middle, by each way to keep state."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
NAMES = ["sb3_recurrent_vecnorm", "rllib_separate_lstm", "onnx_gru"]
every_policy = pytest.mark.parametrize("name", NAMES)
RESET = '{"reset": true}'


@asynccontextmanager
async def served(name: str, folder: Path) -> AsyncIterator[Application]:
    shutil.copytree(SEQUENCES / name, folder, dirs_exist_ok=True)
    app = create_app(folder, api_key=KEY)
    async with app.lifespan():
        yield app


def steps_of(name: str) -> list[tuple[str, bool]]:
    """Return each observation's JSON, and whether an episode begins with it."""
    steps = np.load(SEQUENCES / name / "steps.npz")
    assert steps["start"].sum() > 1, "an episode begins in the middle"
    return [
        (json.dumps({"obs": row}), bool(start))
        for row, start in zip(steps["raw"].tolist(), steps["start"], strict=True)
    ]


def assert_are_the_librarys(name: str, answers: list[dict[str, Any]]) -> None:
    found = [answer["components"][0]["probabilities"] for answer in answers]
    known = np.load(SEQUENCES / name / "steps.npz")["probabilities"]
    np.testing.assert_allclose(found, known, atol=1e-5, rtol=0)


@every_policy
async def test_session_steps_as_the_library(name: str, tmp_path: Path) -> None:
    answers = []
    async with served(name, tmp_path) as app, client_of(app) as client:
        session = f"/sessions/{(await client.post('/sessions')).json()['session_id']}"
        for body, is_start in steps_of(name):
            if is_start:
                await client.post(f"{session}/reset")
            answer = await client.post(f"{session}/distribution_raw", content=body)
            answers.append(answer.json())

    assert_are_the_librarys(name, answers)


@every_policy
async def test_token_steps_as_the_library(name: str, tmp_path: Path) -> None:
    answers, token = [], "new"
    async with served(name, tmp_path) as app, client_of(app) as client:
        for body, is_start in steps_of(name):
            headers = {"x-state": "new" if is_start else token}
            answer = await client.post("/distribution_raw", content=body, headers=headers)
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
            for body, is_start in steps_of(name)
            for frame in ([RESET, body] if is_start else [body])
        ]
        for frame in frames:
            await stream.send(frame)
        for frame in frames:
            answer = json.loads(await stream.recv())
            if frame != RESET:
                answers.append(answer)

    assert_are_the_librarys(name, answers)
