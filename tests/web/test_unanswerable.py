"""Observations that a policy can't answer: each is a 500 of its own, and nobody else's."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.backends.local import open_local_backend
from policy_server.formats.model_files import identify_model
from policy_server.policy import PolicyInputs, PolicyOutputs
from policy_server.schema import ServerSchema
from policy_server.settings import Engine, Settings
from tests.support import asking
from tests.support.fakes import FakeBackend, integer_backend, opened
from tests.support.hand_built import Part, V1Policy, picking, tf
from tests.support.streams import Served, served
from tests.support.web import KEY, assert_error

RAW = f"parameters: {{api_key: {KEY}}}"
COUNT = 200
UNKNOWN = (Part("dirichlet"),)


def checking(rows: Any, outputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Fail on large numbers."""
    with tf.control_dependencies([tf.debugging.assert_less(rows, 5.0, message="too large")]):
        return tf.identity(outputs)


def undefined(rows: Any, outputs: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Give NaN for large numbers."""
    return outputs + tf.math.log(5.0 - rows[:, :1])


POLICIES: dict[str, tuple[V1Policy, Engine, str]] = {
    "index, NumPy": (V1Policy(network=picking), "numpy", "IndexError"),
    "index, TensorFlow": (V1Policy(network=picking), "tensorflow", "InvalidArgumentError"),
    "index, graph": (V1Policy(network=picking, parts=UNKNOWN), "auto", "InvalidArgumentError"),
    "assertion": (V1Policy(network=checking), "tensorflow", "InvalidArgumentError"),
    "NaN, NumPy": (V1Policy(network=undefined), "numpy", "DistributionError"),
    "NaN, TensorFlow": (V1Policy(network=undefined), "tensorflow", "DistributionError"),
    "NaN, graph": (V1Policy(network=undefined, parts=UNKNOWN), "auto", "DistributionError"),
}


def observation(index: int) -> dict[str, list[float]]:
    """Return an observation; one of twenty can't be answered."""
    return {"obs": [7.0 if is_bad(index) else float(index % 5), 0.0, 0.0, 0.0]}


def is_bad(index: int) -> bool:
    return index % 20 == 17


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the tracebacks of the errors that were logged since the last time."""
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    caplog.clear()
    assert {record.message for record in errors} <= {"request_failed"}
    return [logging.Formatter().format(record) for record in errors]


async def stream_of(server: Served, kind: str, rows: list[Any]) -> list[dict[str, Any]]:
    """Send all observations to a stream, and return what answers them."""
    async with server.stream(f"/{kind}_raw/stream") as stream:
        for row in rows:
            await stream.send(json.dumps(row))
        return [json.loads(await stream.recv()) for _ in rows]


@pytest.mark.parametrize(("built", "engine", "reason"), POLICIES.values(), ids=POLICIES)
async def test_bad_observation_costs_its_neighbours_nothing_and_is_logged_once(
    built: V1Policy, engine: Engine, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = identify_model(built.save(tmp_path / "m"))
    settings = Settings(engine=engine)
    rows = [observation(index) for index in range(COUNT)]
    async with (
        open_local_backend(model, ServerSchema(), settings) as backend,
        served(schema=RAW, open_policy=lambda: opened(backend)) as server,
        asking.async_client(base_url=server.url, headers={"access-token": KEY}) as client,
    ):
        for kind in ("predict", "predict_deterministic"):
            answers = await stream_of(server, kind, rows)
            statuses = Counter((is_bad(i), a.get("status", 200)) for i, a in enumerate(answers))
            assert statuses == {(True, 500): 10, (False, 200): 190}
            told = failures(caplog)
            assert len(told) == 10
            assert all(reason in text for text in told)

        posted = await asyncio.gather(*(client.post("/predict_raw", json=row) for row in rows[:60]))
        assert [answer.status_code == 500 for answer in posted] == [is_bad(i) for i in range(60)]
        assert len(failures(caplog)) == 3

        for body in (rows, {"obs": [row["obs"] for row in rows]}):
            batch = await client.post("/predict_raw/batch", json=body)
            assert_error(batch, 500, "observation 17: ")
            (told_once,) = failures(caplog)
            assert reason in told_once


class LateNaN(FakeBackend):
    """A policy that leaves it to its caller to find what is no distribution."""

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer with NaN among the distribution's inputs for an observation of 7."""
        is_wrong = inputs.observations[:, 0] == 7.0
        rows = np.where(is_wrong[:, None], np.float32(0), inputs.observations)
        outputs = await super().infer(replace(inputs, observations=rows))
        if outputs.distribution is not None:
            outputs.distribution[is_wrong] = np.nan
        return outputs


async def test_distribution_that_is_none_costs_its_neighbours_nothing() -> None:
    known = integer_backend()
    backend = LateNaN(known.signature, known.bias)
    rows = [{"obs": observation(index)["obs"][:2]} for index in range(60)]
    async with served(backend, schema=RAW) as server:
        answers = await stream_of(server, "distribution", rows)
        batch = await server.post("/distribution_raw/batch", json.dumps(rows).encode())

    assert [answer.get("status") for answer in answers] == [
        500 if is_bad(index) else None for index in range(60)
    ]
    assert_error(batch, 500, "observation 17: the policy's outputs hold NaN")
