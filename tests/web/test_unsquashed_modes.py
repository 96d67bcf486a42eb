"""Modes that a policy's own draws never reach: their probability is null in every answer."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import msgpack
import numpy as np
import pytest

from tests.support.fakes import FakeBackend, components_of, signature_of
from tests.support.streams import served
from tests.support.web import KEY, serve, validator_of

SCHEMA = f"""
observations: {{speed: {{type: float}}}}
parameters: {{api_key: {KEY}}}
"""
# The policy's mean in [-1, 1], and what is answered for it.
INSIDE, BEYOND = (0.5, 2.0), (1.5, 3.0)


def backend() -> FakeBackend:
    """Return a policy whose mean is the observation, and is rescaled to [-1, 3] and cut."""
    (part,) = components_of(("squashed_normal", 1))
    known = replace(part, low=(-1.0,), high=(3.0,), has_unsquashed_mode=True)
    return FakeBackend(signature_of((known,), width=1), bias=(0.0, 0.0))


@pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast path", "FastAPI"])
@pytest.mark.parametrize("suffix", ["", "_raw"], ids=["named", "raw"])
async def test_probability_is_null_beyond_the_distribution(
    suffix: str, *, has_fast_path: bool
) -> None:
    async with serve(backend(), schema=SCHEMA, has_fast_path=has_fast_path) as client:
        document = (await client.get("/openapi.json")).json()
        answers = [
            await client.post(
                f"/predict_deterministic{suffix}",
                json={"obs": [mean]} if suffix else {"speed": mean},
            )
            for mean, _ in (INSIDE, BEYOND)
        ]
        drawn = await client.post(
            f"/predict{suffix}", json={"obs": [1.5]} if suffix else {"speed": 1.5}
        )

    inside, beyond = (answer.json() for answer in answers)
    assert inside["actions"] == [INSIDE[1]]
    normal = math.exp(-0.5 * (math.atanh(0.5) - 0.5) ** 2) / math.sqrt(2 * math.pi)
    assert inside["probability"] == pytest.approx(normal / (1 - 0.5**2) / 2)
    assert beyond == {"actions": [BEYOND[1]], "probability": None, "log_probability": None}
    assert drawn.json()["probability"] > 0
    for answer in (inside, beyond):
        validator_of(document, "Prediction").validate(answer)


async def test_probability_is_null_in_batches_and_nan_in_arrays() -> None:
    rows = [{"speed": mean} for mean, _ in (INSIDE, BEYOND)]
    async with serve(backend(), schema=SCHEMA) as client:
        document = (await client.get("/openapi.json")).json()
        as_json = (await client.post("/predict_deterministic/batch", json=rows)).json()
        as_npy = await client.post(
            "/predict_deterministic/batch?log_probability=true",
            json=rows,
            headers={"accept": "application/x-npy"},
        )

    table = np.load(io.BytesIO(as_npy.content))
    assert as_json["actions"] == [[INSIDE[1]], [BEYOND[1]]]
    assert [value is None for value in as_json["probability"]] == [False, True]
    assert [value is None for value in as_json["log_probability"]] == [False, True]
    assert table[:, 0].tolist() == [INSIDE[1], BEYOND[1]]
    assert np.isnan(table).tolist() == [[False] * 3, [False, True, True]]
    validator_of(document, "PredictionBatch").validate(as_json)


async def test_probability_is_null_in_streams() -> None:
    question = {"speed": BEYOND[0]}
    path = "/predict_deterministic/stream"
    async with served(backend(), schema=SCHEMA) as server:
        async with server.stream(path) as stream:
            await stream.send(json.dumps(question))
            as_json = json.loads(await stream.recv())
        async with server.stream(path) as stream:
            await stream.send(msgpack.packb(question))
            as_msgpack = msgpack.unpackb(await stream.recv())

    expected = {"actions": [BEYOND[1]], "probability": None, "log_probability": None}
    assert (as_json, as_msgpack) == (expected, expected)


async def test_schema_route_says_so() -> None:
    async with serve(backend(), schema=SCHEMA) as client:
        (part,) = (await client.get("/schema")).json()["policy"]["components"]

    assert part["has_unsquashed_mode"] is True
