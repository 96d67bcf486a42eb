"""The policy in this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from policy_server import create_app
from policy_server.backends.call_limit import CallLimit
from policy_server.backends.local import LocalBackend, open_local_backend
from policy_server.errors import ModelError, OverloadedError, PolicyFailedError, PolicyHangsError
from policy_server.formats.model_files import identify_model
from policy_server.policy import PolicyInputs, PolicyOutputs, PolicySignature
from policy_server.schema import ServerSchema
from policy_server.settings import Settings
from tests.support.fakes import SummingPolicy, summing_backend
from tests.support.hand_built import Part, V1Policy, observations
from tests.support.onnx_models import (
    FAILING,
    HARMLESS,
    UNKNOWN,
    failing_actor,
    node,
    tensor,
    write_model,
)
from tests.support.waiting import turns, until
from tests.support.web import assert_error

# What a fake's call takes on a machine that is busy with others, and far more.
_LONGEST_S = 0.5
TENSORFLOW = Settings(engine="tensorflow")


def policy_threads() -> list[threading.Thread]:
    """Return the threads that compute policies."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("policy")]


async def no_policy_threads() -> None:
    """Wait until they have ended."""
    await until(lambda: not policy_threads())


async def test_policy_answers_on_a_thread_of_its_own(tmp_path: Path) -> None:
    built = V1Policy()
    rows = observations().astype(np.float32)

    model = identify_model(built.save(tmp_path / "m"))
    async with open_local_backend(model, ServerSchema(), TENSORFLOW) as backend:
        threads = [thread.name for thread in threading.enumerate()]
        outputs = await backend.infer(PolicyInputs.of(rows, is_deterministic=True))
        assert await backend.is_ready()
        assert backend.signature.family == "categorical(3)"

    best = built.expected_inputs(rows).argmax(axis=1)
    assert (outputs.actions[:, 0] == best).all()
    assert any(name.startswith("policy") for name in threads)
    # It ends by itself, since nobody waits for a policy that may hang.
    await no_policy_threads()


async def test_event_loop_stays_free_while_the_policy_answers(tmp_path: Path) -> None:
    built = V1Policy(parts=(Part(sizes=(2,)),))

    model = identify_model(built.save(tmp_path / "m"))
    async with open_local_backend(model, ServerSchema(), TENSORFLOW) as backend:
        rows = observations(4096).astype(np.float32)
        call = asyncio.ensure_future(backend.infer(PolicyInputs.of(rows)))
        await turns(1)
        assert not call.done()
        assert (await call).actions.shape == (4096, 1)


async def test_model_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no saved_model\.pb"):
        async with open_local_backend(identify_model(tmp_path), ServerSchema(), TENSORFLOW):
            pytest.fail("a backend without a model was opened")


async def test_compiled_policy_is_kept_and_gives_the_same_answers(tmp_path: Path) -> None:
    built = V1Policy()
    folder = built.save(tmp_path / "m")
    rows = observations(8).astype(np.float32)
    inputs = PolicyInputs.of(rows, seeds=np.arange(8))
    outputs = []
    for engine in ("tensorflow", "numpy", "auto"):
        settings = Settings(engine=engine)
        async with open_local_backend(identify_model(folder), ServerSchema(), settings) as backend:
            outputs.append((backend.signature.engine, await backend.infer(inputs)))

    engines = [engine for engine, _ in outputs]
    assert engines == ["tensorflow", "numpy", "numpy"]
    assert (folder / ".compiled-policy.npz").exists()
    for _, found in outputs[1:]:
        assert (found.actions == outputs[0][1].actions).all()
        assert found.probability == pytest.approx(outputs[0][1].probability, abs=1e-6)


@pytest.mark.parametrize("engine", ["numpy", "onnxruntime"])
async def test_numbers_that_a_policy_fails_on_cost_their_own_requests_alone(
    tmp_path: Path, engine: str
) -> None:
    failing_actor(tmp_path)
    (tmp_path / "schema.yaml").write_text("parameters: {api_key: secret, discrete: true}")
    app = create_app(tmp_path, backend="local", engine=engine)
    rows = [HARMLESS, FAILING, HARMLESS, UNKNOWN] * 16
    transport = httpx.ASGITransport(app)
    headers = {"access-token": "secret"}

    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client,
    ):
        answers = await asyncio.gather(
            *(client.post("/predict_deterministic_raw", json={"obs": row}) for row in rows)
        )
        alone = await client.post("/predict_deterministic_raw", json={"obs": HARMLESS})

    assert alone.status_code == 200
    for row, answer in zip(rows, answers, strict=True):
        if row is HARMLESS:
            assert answer.json()["actions"] == alone.json()["actions"]
        else:
            assert_error(answer, 500, "NaN" if row is UNKNOWN else "the policy")


async def test_policy_that_fails_on_zeros_answers_other_observations(tmp_path: Path) -> None:
    nodes = [
        node("Constant", [], ["one"], value_ints=[1]),
        node("ReduceSum", ["obs", "one"], ["sum"], keepdims=1),
        node("Div", ["obs", "sum"], ["logits"]),
    ]
    ends = [tensor(name, ["batch", 4]) for name in ("obs", "logits")]
    write_model(tmp_path, nodes, ends[:1], ends[1:])
    (tmp_path / "schema.yaml").write_text("parameters: {api_key: secret, discrete: true}")
    app = create_app(tmp_path, backend="local", engine="onnxruntime")
    transport = httpx.ASGITransport(app)

    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        answered, failed = [
            await client.post(
                "/predict_deterministic_raw", json={"obs": row}, headers={"access-token": "secret"}
            )
            for row in ([1, 4, 2, 3], [0, 0, 0, 0])
        ]

    assert answered.json()["actions"] == [1]
    assert_error(failed, 500, "NaN")


class HangingPolicy(SummingPolicy):
    """A policy that answers at once, but not observations that begin with 7 or more.

    Those last until they are let go; from 8 on they fail then.
    """

    def __init__(
        self, signature: PolicySignature, is_let_go: Mapping[float, threading.Event]
    ) -> None:
        super().__init__(signature)
        object.__setattr__(self, "is_let_go", is_let_go)

    def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        if (first := float(inputs.observations[0, 0])) >= 7:
            vars(self)["is_let_go"][first].wait(60)
        if inputs.observations[0, 0] >= 8:
            raise ValueError("let go")
        return super().infer(inputs)

    def seconds_for(self, rows: int) -> float:
        return float(rows)


@dataclass(frozen=True)
class Hanging:
    """A backend that leaves calls which last longer than half a second."""

    backend: LocalBackend
    is_let_go: Mapping[float, threading.Event]

    def let_go(self, first: float | None = None) -> None:
        """Let calls end that hang: those whose observation begins with a value, or all."""
        for value, is_let_go in self.is_let_go.items():
            if first in (None, value):
                is_let_go.set()

    def ask(self, *firsts: float) -> asyncio.Task[PolicyOutputs]:
        """Ask for observations by their first values."""
        rows = np.array([[first, 1.0] for first in firsts], np.float32)
        inputs = PolicyInputs.of(rows, is_deterministic=True)
        return asyncio.create_task(self.backend.infer(inputs))

    async def settled(self, *, is_ready: bool) -> None:
        """Wait until the backend is ready, or is not."""
        async with asyncio.timeout(30):
            while await self.backend.is_ready() != is_ready:
                await asyncio.sleep(0.001)


@pytest.fixture
async def hanging(request: pytest.FixtureRequest) -> AsyncIterator[Hanging]:
    """Give a backend that is lost after a minute, or the seconds that the test gives."""
    is_let_go = {first: threading.Event() for first in (7, 7.25, 7.5, 8, 8.5, 9)}
    policy = HangingPolicy(summing_backend().signature, is_let_go)
    limit = CallLimit(_LONGEST_S, shortest_s=0)
    backend = LocalBackend(
        policy, limit, look_every_s=0.01, lost_after_s=getattr(request, "param", 60.0)
    )
    try:
        hanging = Hanging(backend, is_let_go)
        yield hanging
    finally:
        hanging.let_go()
        backend.close()
        await no_policy_threads()


async def test_thread_is_left_to_a_call_that_hangs(
    hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    hangs, *behind = [hanging.ask(first) for first in (7, 1, 2, 3)]
    given_up = hanging.ask(4)
    await turns(2)
    given_up.cancel()

    with pytest.raises(OverloadedError, match="the policy took too long"):
        await hangs
    answers = [await call for call in behind]

    assert [float(answer.actions[0, 0]) for answer in answers] == [1, 2, 0]
    assert given_up.cancelled()
    assert await hanging.backend.is_ready()
    assert [record.message for record in caplog.records] == ["policy_hangs"]
    assert vars(caplog.records[0])["left"] == 1


async def test_call_whose_asker_has_gone_is_left_too(hanging: Hanging) -> None:
    hangs = hanging.ask(7)
    await turns(2)
    hangs.cancel()

    assert float((await hanging.ask(2)).actions[0, 0]) == 2
    with pytest.raises(OverloadedError, match="twice"):
        await hanging.ask(7)


async def test_observation_at_which_the_policy_hangs_is_asked_twice(hanging: Hanging) -> None:
    with pytest.raises(PolicyHangsError):
        await hanging.ask(7)
    with pytest.raises(OverloadedError, match="took too long for this observation, twice"):
        await hanging.ask(7)
    with pytest.raises(OverloadedError, match="twice"):
        await hanging.ask(7)

    assert len(policy_threads()) == 2


async def test_those_that_are_asked_with_it_are_answered(hanging: Hanging) -> None:
    # Any row of the fake makes the whole call hang, as one of a graph's would.
    with pytest.raises(PolicyFailedError, match="one of 2"):
        await hanging.ask(7, 2)
    apart = hanging.ask(7)
    await turns(2)
    with_it = hanging.ask(2)
    other = await hanging.ask(1)
    assert not apart.done()
    with pytest.raises(OverloadedError, match="twice"):
        await apart

    assert float(other.actions[0, 0]) == 1
    assert float((await with_it).actions[0, 0]) == 2


async def test_time_that_the_whole_process_stands_still_does_not_count(hanging: Hanging) -> None:
    call = hanging.ask(7)
    await asyncio.sleep(0.05)
    time.sleep(2 * _LONGEST_S)
    await asyncio.sleep(0.02)
    hanging.let_go()

    assert float((await call).actions[0, 0]) == 1


async def test_backend_is_not_ready_while_too_many_calls_hang(
    hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [hanging.ask(first) for first in (7, 8, 7.5, 8.5, 7.25)]
    behind = hanging.ask(2)
    outcomes = await asyncio.gather(*calls[:4], return_exceptions=True)
    await hanging.settled(is_ready=False)
    await until(lambda: len(caplog.records) == 5)

    assert all(isinstance(outcome, OverloadedError) for outcome in outcomes)
    # Whoever waits is told so at once, as is whoever comes now.
    for refused in (behind, hanging.ask(1)):
        with pytest.raises(OverloadedError, match="too long for 5 calls at a time"):
            await refused
    assert not calls[4].done()
    # It may answer again: nobody starts the process anew for a short hang.
    assert not hanging.backend.is_lost()
    # Alone: were another one to end first, this one would be left to its thread.
    hanging.let_go(7.25)
    assert float((await calls[4]).actions[0, 0]) == 1
    for first in (7, 8, 7.5, 8.5):
        hanging.let_go(first)
    await until(lambda: len(policy_threads()) == 1)
    assert await hanging.backend.is_ready()
    assert {record.message for record in caplog.records} == {"policy_hangs"}
    # Those that were left have ended, so that others can be.
    again = [hanging.ask(first) for first in (9, 2)]
    assert float((await again[1]).actions[0, 0]) == 2


@pytest.mark.parametrize("hanging", [0.0], indirect=True)
async def test_policy_is_lost_once_all_its_threads_have_hung_for_long(hanging: Hanging) -> None:
    calls = [hanging.ask(first) for first in (7, 8, 7.5, 8.5, 7.25)]
    await until(hanging.backend.is_lost)
    is_ready = await hanging.backend.is_ready()
    hanging.let_go()
    await asyncio.gather(*calls, return_exceptions=True)

    assert not is_ready
    assert not hanging.backend.is_lost()


@pytest.mark.parametrize("hanging", [0.0], indirect=True)
async def test_policy_that_answers_in_the_event_loop_is_not_lost(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [hanging.ask(first) for first in (7, 8, 7.5, 8.5, 7.25)]
    await until(hanging.backend.is_lost)
    monkeypatch.setattr(HangingPolicy, "seconds_for", lambda _self, rows: rows * 1e-4)

    is_lost = hanging.backend.is_lost()
    hanging.let_go()
    await asyncio.gather(*calls, return_exceptions=True)

    assert not is_lost


async def test_calls_that_wait_at_the_end_are_answered(hanging: Hanging) -> None:
    calls = [hanging.ask(first) for first in range(3)]
    await turns(2)

    hanging.backend.close()

    assert [float((await call).actions[0, 0]) for call in calls] == [0, 1, 2]
