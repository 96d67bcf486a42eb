"""The policy in this process."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from policy_server import create_app
from policy_server.backends.local import LocalBackend, open_local_backend
from policy_server.errors import ModelError
from policy_server.formats.model_files import identify_model
from policy_server.policy import PolicyInputs, PolicyOutputs, PolicySignature
from policy_server.schema import ServerSchema
from policy_server.settings import Settings
from tests.support.fakes import SummingPolicy, summing_backend
from tests.support.hand_built import Part, V1Policy, observations
from tests.support.onnx_models import FAILING, HARMLESS, UNKNOWN, failing_actor
from tests.support.waiting import turns, until
from tests.support.web import assert_error

TENSORFLOW = Settings(engine="tensorflow")


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
    await until(
        lambda: not any(thread.name.startswith("policy") for thread in threading.enumerate())
    )


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


class HangingPolicy(SummingPolicy):
    """A policy whose calls last until they are let go, in a thread."""

    def __init__(self, signature: PolicySignature, is_let_go: threading.Event) -> None:
        super().__init__(signature)
        object.__setattr__(self, "is_let_go", is_let_go)

    def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        vars(self)["is_let_go"].wait(60)
        return super().infer(inputs)

    def seconds_for(self, rows: int) -> float:
        return float(rows)


async def settled(backend: LocalBackend, *, is_ready: bool) -> None:
    """Wait until a backend is ready, or is not."""
    async with asyncio.timeout(30):
        while await backend.is_ready() != is_ready:
            await asyncio.sleep(0.001)


async def test_backend_is_not_ready_while_a_call_hangs(caplog: pytest.LogCaptureFixture) -> None:
    is_let_go = threading.Event()
    policy = HangingPolicy(summing_backend().signature, is_let_go)
    with ThreadPoolExecutor(1) as executor:
        backend = LocalBackend(policy, executor, longest_call_s=0.05)
        call = asyncio.create_task(backend.infer(PolicyInputs.of(np.zeros((1, 2), np.float32))))
        was_ready = await backend.is_ready()
        # Whoever asked has given up.
        await turns(1)
        call.cancel()

        await settled(backend, is_ready=False)
        await settled(backend, is_ready=False)
        is_let_go.set()
        await settled(backend, is_ready=True)

    assert was_ready
    assert [record.message for record in caplog.records] == ["policy_hangs"]
