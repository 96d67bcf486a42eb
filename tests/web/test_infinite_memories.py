"""A step whose memory would hold no finite number is not made, by each way to keep a memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from policy_server.policy import PolicyInputs, PolicyOutputs, PolicySignature
from tests.fuzz.session_steps import begin, step_of, steps_of
from tests.support.connections import Server, answers_in
from tests.support.fakes import FakeBackend, SummingPolicy, summing_backend
from tests.support.streams import served
from tests.support.teams import served_team, usual_backends
from tests.support.web import assert_error, build, running, serve

OVERFLOWS = 5
SAYS = "the policy's memory is no longer finite after this step"
STEP = "/predict_deterministic"


@dataclass(frozen=True)
class OverflowingPolicy(SummingPolicy):
    """Sums as the others do, with a memory of infinity where the first value is `OVERFLOWS`."""

    def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer one step of each row's episode."""
        outputs = super().infer(inputs)
        if outputs.state is None:
            return outputs
        overflows = inputs.observations[:, :1] == OVERFLOWS
        return replace(outputs, state=np.where(overflows, np.float32(np.inf), outputs.state))


def backend() -> FakeBackend:
    plain = summing_backend()
    signature: PolicySignature = plain.signature
    return replace(plain, policy=OverflowingPolicy(signature))


def observation(cat: int) -> dict[str, float]:
    return {"cat": cat, "mouse": 1.0}


async def test_token_of_an_infinite_memory_is_not_handed_out() -> None:
    async with serve(backend()) as client:
        first = await client.post(STEP, json=observation(1), headers={"x-state": "new"})
        token = {"x-state": first.headers["x-state"]}
        failed = await client.post(STEP, json=observation(OVERFLOWS), headers=token)
        again = await client.post(STEP, json=observation(1), headers=token)

    assert_error(failed, 500, SAYS)
    assert "x-state" not in failed.headers
    assert again.json()["actions"] == [2]


@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast", "FastAPI"])
async def test_session_keeps_the_memory_before(*, has_fast_path: bool) -> None:
    async with serve(backend(), has_fast_path=has_fast_path) as client:
        session = f"/sessions/{(await client.post('/sessions')).json()['session_id']}"
        cats = (1, OVERFLOWS, 1)
        answers = [await client.post(session + STEP, json=observation(cat)) for cat in cats]

    assert_error(answers[1], 500, SAYS)
    assert answers[2].json()["actions"] == [2]
    assert answers[2].headers["x-step"] == "1"


async def test_session_of_hot_steps_keeps_the_memory_before() -> None:
    async with running(app := build(backend())):
        server = Server(app, is_hot=True)
        session = await begin(server)
        cats = (1, OVERFLOWS, 1)
        transport = await server.exchange([step_of(session, cat=cat) for cat in cats])
        steps = await steps_of(server, session)

    answers = answers_in(transport.written)
    assert [answer.status for answer in answers] == [200, 500, 200]
    assert json.loads(answers[2].body)["actions"] == [2]
    assert steps == 2


async def test_stream_keeps_the_memory_before() -> None:
    async with (
        served(backend()) as server,
        server.stream("/predict_deterministic/stream") as stream,
    ):
        answers = []
        for cat in (1, OVERFLOWS, 1):
            await stream.send(json.dumps(observation(cat)))
            answers.append(json.loads(await stream.recv()))

    assert (answers[1]["status"], answers[2]["actions"]) == (500, [2])
    assert SAYS in answers[1]["detail"]


async def test_team_keeps_all_memories_before() -> None:
    async with served_team({**usual_backends(), "hunter": backend()}) as team:
        begun = await team.client.post("/sessions/agents")
        path = f"/sessions/{begun.json()['session_id']}{STEP}/agents"

        def step(first: int, second: int) -> dict[str, dict[str, float]]:
            return {"hunter_1": observation(first), "hunter_2": observation(second)}

        steps = [step(1, 1), step(1, OVERFLOWS), step(1, 1)]
        answers = [await team.client.post(path, json=body) for body in steps]

    assert_error(answers[1], 500, "agent 'hunter_2'", SAYS)
    assert [answer["actions"] for answer in answers[2].json().values()] == [[2], [2]]
    assert answers[2].headers["x-step"] == "1"
