"""`one_hot`, `normalize` and `shape` in every way that an observation can come."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np
import pytest

from tests.support.fakes import integer_backend
from tests.support.streams import served
from tests.support.web import document_of, serve, validator_of

SCHEMA = """
observations:
  gear: {type: int, one_hot: 3}
  image: {type: "List[int]", shape: [2, 2, 1], minimum: 0, maximum: 9}
  speed: {type: float, normalize: {mean: 1, std: 2, clip: 5}}
parameters: {api_key: 1234567asdfgh}
"""
ONE = {"gear": 1, "image": [[[1], [2]], [[3], [4]]], "speed": 4}
ROW = [0, 1, 0, 1, 2, 3, 4, 1.5]
# The changes to a right observation, and the places of the mistakes that they are.
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"gear": 2.0}, ""),
    ({"gear": 3}, "body.gear"),
    ({"gear": -1}, "body.gear"),
    ({"gear": [0, 1, 0]}, "body.gear"),
    ({"image": [1, 2, 3, 4]}, "body.image.0"),
    ({"image": [[[1], [2]], [[3], [10]]]}, "body.image.1.1.0"),
    ({"image": [[[1], [2]], [[3]]]}, "body.image.1"),
    ({"image": [[[1], [2]], [[3], [4], [5]]]}, "body.image.1"),
    ({"image": [[[1], [2]]]}, "body.image"),
    ({"image": [[[1], [2]], [[3], [True]]]}, "body.image.1.1.0"),
    ({"speed": 1e30}, ""),
    ({"speed": 1e39}, "body.speed"),
]
cases = pytest.mark.parametrize(("change", "place"), CHANGES, ids=lambda value: str(value))


@cases
async def test_both_paths_answer_what_openapi_allows_and_no_more(
    change: dict[str, Any], place: str
) -> None:
    validator = validator_of(await document_of(SCHEMA), "Observation")
    body = json.dumps(ONE | change).encode()
    found = []
    for has_fast_path in (True, False):
        backend = integer_backend(width=len(ROW))
        async with serve(backend, schema=SCHEMA, has_fast_path=has_fast_path) as client:
            answer = await client.post(
                "/predict_deterministic", content=body, headers={"x-request-id": "same"}
            )
        found.append((answer.status_code, answer.content))

    assert found[0] == found[1]
    assert found[0][0] == (422 if place else 200)
    assert validator.is_valid(json.loads(body)) == (not place)
    if place:
        (item,) = json.loads(found[0][1])["detail"]
        assert ".".join(map(str, item["loc"])) == place


async def test_batches_ask_the_rows_of_single_observations() -> None:
    backend = integer_backend(width=len(ROW))
    columns = {name: [value, value] for name, value in ONE.items()}
    async with serve(backend, schema=SCHEMA) as client:
        for body in (ONE, [ONE, ONE], columns):
            path = "/predict" if body is ONE else "/predict/batch"
            assert (await client.post(path, json=body)).status_code == 200

    rows = [call.observations.tolist() for call in backend.calls[-3:]]
    assert rows == [[ROW], [ROW, ROW], [ROW, ROW]]


async def test_streams_ask_the_same_row_in_both_encodings() -> None:
    backend = integer_backend(width=len(ROW))
    async with served(backend, schema=SCHEMA) as server, server.stream() as stream:
        await stream.send(json.dumps(ONE))
        as_json = json.loads(await stream.recv())
        await stream.send(msgpack.packb(ONE))
        as_msgpack = msgpack.unpackb(await stream.recv())
        await stream.send(msgpack.packb(ONE | {"image": [1, 2, 3, 4]}))
        refused = msgpack.unpackb(await stream.recv())

    assert set(as_json) == set(as_msgpack) == {"actions", "probability", "log_probability"}
    assert [call.observations.tolist() for call in backend.calls[-2:]] == [[ROW], [ROW]]
    assert refused["status"] == 422
    assert refused["detail"][0]["loc"] == ["body", "image", 0]


async def test_example_of_openapi_is_answered() -> None:
    async with serve(integer_backend(width=len(ROW)), schema=SCHEMA) as client:
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
        example = schemas["Observation"]["examples"][0]
        raw = schemas["RawObservation"]["examples"][0]
        answers = [
            await client.post("/predict_deterministic", json=example),
            await client.post("/predict_deterministic_raw", json=raw),
        ]

    assert np.shape(example["image"]) == (2, 2, 1)
    assert answers[0].status_code == 200
    assert answers[0].content == answers[1].content
