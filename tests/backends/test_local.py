"""The policy in this process."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from policy_server.backends.local import open_local_backend
from policy_server.errors import ModelError
from policy_server.formats.model_files import identify_model
from policy_server.policy import PolicyInputs
from policy_server.schema import ServerSchema
from policy_server.settings import Settings
from tests.support.hand_built import Part, V1Policy, observations
from tests.support.waiting import turns, until

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
