"""A team of policies that training libraries wrote: each agent as if it were alone.

Answers of one row and of several differ in the last digit, as a matrix product does.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from policy_server import create_app
from tests.support.library_policies import POLICIES
from tests.support.teams import own_seed
from tests.support.web import KEY, client_of, running

SCHEMA = f"""
policies:
  left: {{model: agents.zip, module: left}}
  right:
    model: agents.zip
    module: right
    observations: {{first: {{type: float}}, second: {{type: float}}, third: {{type: float}}}}
    actions: {{action: {{low: [-1.0, 0.0], high: [3.0, 0.5]}}}}
  rllib_lstm: {{model: rllib_lstm.zip}}
  sb3_lstm: {{model: sb3_lstm.zip}}
multi_agent:
  adversary_*: left
  agent_*: right
  scout_0: sb3_lstm
  scout_*: rllib_lstm
parameters: {{api_key: {KEY}}}
"""
WIDTHS = {"left": 6, "right": 3, "rllib_lstm": 3, "sb3_lstm": 3}
AGENTS = {
    "adversary_0": "left",
    "adversary_1": "left",
    "agent_0": "right",
    "scout_0": "sb3_lstm",
    "scout_1": "rllib_lstm",
    "scout_2": "rllib_lstm",
}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the policies, and give a client of them."""
    for name, file, copy in (
        ("rllib_ppo_multiagent", "checkpoint.zip", "agents.zip"),
        ("rllib_ppo_lstm", "checkpoint.zip", "rllib_lstm.zip"),
        ("sb3_recurrent_ppo", "policy.zip", "sb3_lstm.zip"),
    ):
        shutil.copy(POLICIES / name / file, tmp_path / copy)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    app = create_app(tmp_path, backend="local")
    async with running(app), client_of(app) as client:
        yield client


def numbers_of(value: object) -> list[float]:
    """Return all numbers of an answer, in order."""
    if isinstance(value, dict):
        return numbers_of([*value.values()])
    if isinstance(value, list):
        return [number for item in value for number in numbers_of(item)]
    return [float(value)] if isinstance(value, int | float) else []


def assert_alike(found: Any, expected: Any) -> None:  # noqa: ANN401 -- answers
    """Hold an answer against that of the agent alone."""
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(numbers_of(found), numbers_of(expected), atol=1e-6)


async def test_agents_are_answered_for_twenty_steps_as_in_sessions_of_their_own(
    client: httpx.AsyncClient,
) -> None:
    generator = np.random.default_rng(3)
    begun = await client.post("/sessions/agents", json={"seed": 11})
    session = f"/sessions/{begun.json()['session_id']}"
    own = {}
    for agent, policy in AGENTS.items():
        answer = await client.post(f"/policies/{policy}/sessions")
        own[agent] = f"/policies/{policy}/sessions/{answer.json()['session_id']}"
    answered = 0
    for step in range(20):
        there = [agent for agent in generator.permutation(list(AGENTS)) if generator.random() < 0.8]
        body = {
            agent: {"obs": generator.normal(size=WIDTHS[AGENTS[agent]]).round(3).tolist()}
            for agent in there
        }
        kind = ("predict_raw", "distribution_raw")[step % 2]
        together = await client.post(f"{session}/{kind}/agents", json=body)
        assert together.status_code == 200, together.text
        assert list(together.json()) == there
        for agent in there:
            seed = f"?seed={own_seed(11 + step, agent)}" if kind == "predict_raw" else ""
            alone = await client.post(f"{own[agent]}/{kind}{seed}", json=body[agent])
            assert_alike(together.json()[agent], alone.json())
            answered += 1
        if step == 9:
            await client.post(f"{session}/reset/agents", json={"agents": ["scout_1"]})
            await client.post(f"{own['scout_1']}/reset")
    shown = (await client.get(f"{session}/agents")).json()

    assert answered > 60
    assert sorted(shown["agents"]) == ["scout_0", "scout_1", "scout_2"]


async def test_memories_change_the_answers(client: httpx.AsyncClient) -> None:
    begun = await client.post("/sessions/agents")
    session = f"/sessions/{begun.json()['session_id']}"
    body = {agent: {"obs": [0.5] * WIDTHS[policy]} for agent, policy in AGENTS.items()}
    first, second = [
        (await client.post(f"{session}/distribution_raw/agents", json=body)).json()
        for _ in range(2)
    ]
    plain = (await client.post("/distribution_raw/agents", json=body)).json()

    changed = {agent for agent in AGENTS if first[agent] != second[agent]}
    assert changed == {"scout_0", "scout_1", "scout_2"}
    for agent in AGENTS:
        assert_alike(plain[agent], first[agent])
