"""A policy's own type of number: what it can't hold is 422 in every form, and so OpenAPI says."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from starlette.testclient import TestClient

from policy_server.schema import FLOAT32_MAX
from tests.support.fakes import FakeBackend, components_of, integer_backend, signature_of
from tests.support.web import KEY, SCHEMA, build, serve, validator_of

NPY = {"content-type": "application/x-npy"}
EXACT = 2**53 - 1
FIELDS = """
observations:
  x: {type: float}
  n: {type: int}
  l: {type: "List[float]", min_items: 1, max_items: 1}
parameters: {api_key: "1234567asdfgh"}
"""


def backend_of(dtype: str) -> FakeBackend:
    """Return a policy over three numbers of a type."""
    signature = signature_of(components_of(("categorical", 3)), width=3)
    return FakeBackend(replace(signature, observation_dtype=dtype), (0.0, 1.0, 2.0))


def npy_of(rows: list[list[Any]], dtype: Any) -> bytes:  # noqa: ANN401 -- NumPy's own
    """Return rows as an array in npy format."""
    file = io.BytesIO()
    np.save(file, np.array(rows, dtype))
    return file.getvalue()


def npy_dtype(value: int | float) -> str:
    """Return a type of array that holds a number exactly, as far as there is one."""
    if isinstance(value, float):
        return "f8"
    return "i8" if -(2**63) <= value < 2**63 else "u8" if 0 <= value < 2**64 else "f8"


WRONG: dict[str, tuple[str, int | float]] = {
    "uint8 above": ("uint8", 300),
    "uint8 below": ("uint8", -1),
    "uint8 fraction": ("uint8", 2.5),
    "int8 above": ("int8", 128),
    "int32 above": ("int32", 2**31),
    "int64 fraction": ("int64", 2.5),
    "int64 small fraction": ("int64", 0.5**20),
    "int64 not exact": ("int64", 2**53),
    "int64 not exact either": ("int64", -(2**53) - 1),
    "int64 above": ("int64", 2**63),
    "int64 far above": ("int64", 10**30),
    "uint64 below": ("uint64", -1),
    "uint64 above": ("uint64", 2**64 - 1),
    "bool two": ("bool", 2),
    "bool half": ("bool", 0.5),
    "float16 above": ("float16", 65505),
    "float16 far above": ("float16", 1e30),
    "bfloat16 above": ("bfloat16", 3.4e38),
}


async def problems_of(client: httpx.AsyncClient, path: str, **options: Any) -> list[list[Any]]:  # noqa: ANN401 -- httpx' own
    """Return the places of the mistakes that a request is refused for."""
    response = await client.post(path, **options)
    assert response.status_code == 422, (path, options, response.text)
    return [item["loc"] for item in response.json()["detail"]]


@pytest.mark.parametrize(("dtype", "value"), WRONG.values(), ids=WRONG)
async def test_number_that_the_type_cannot_hold_is_refused_in_every_form(
    dtype: str, value: int | float
) -> None:
    good, bad = {"x": 1, "n": 1, "l": [1]}, {"x": value, "n": 1, "l": [1]}
    in_list = {"x": 1, "n": 1, "l": [value]}
    columns = {"x": [1, value], "n": [1, 1], "l": [[1], [1]]}
    list_columns = {"x": [1, 1], "n": [1, 1], "l": [[1], [value]]}
    rows: list[list[Any]] = [[1, 1, 1], [1, 1, value]]
    array = npy_of(rows, npy_dtype(value))
    async with serve(backend_of(dtype), schema=FIELDS) as client:
        for route in ("/predict", "/distribution"):
            assert await problems_of(client, route, json=bad) == [["body", "x"]]
            assert await problems_of(client, route, json=in_list) == [["body", "l", 0]]
            assert await problems_of(client, f"{route}_raw", json={"obs": rows[1]}) == [
                ["body", "obs", 2]
            ]
            batch = f"{route}/batch"
            assert await problems_of(client, batch, json=[good, bad]) == [["body", 1, "x"]]
            assert await problems_of(client, batch, json=[good, in_list]) == [["body", 1, "l", 0]]
            assert await problems_of(client, batch, json=columns) == [["body", "x", 1]]
            assert await problems_of(client, batch, json=list_columns) == [["body", "l", 1, 0]]
            assert await problems_of(client, batch, content=array, headers=NPY) == [
                ["body", 1, "l", 0]
            ]
            batch = f"{route}_raw/batch"
            assert await problems_of(client, batch, json=[{"obs": row} for row in rows]) == [
                ["body", 1, "obs", 2]
            ]
            assert await problems_of(client, batch, json={"obs": rows}) == [["body", "obs", 1, 2]]
            assert await problems_of(client, batch, content=array, headers=NPY) == [
                ["body", 1, "obs", 2]
            ]


@pytest.mark.parametrize(("dtype", "value"), WRONG.values(), ids=WRONG)
def test_number_that_the_type_cannot_hold_is_refused_in_a_frame(
    dtype: str, value: int | float
) -> None:
    observations = {
        "/predict/stream": ({"x": value, "n": 1, "l": [1]}, ["body", "x"]),
        "/predict_raw/stream": ({"obs": [1, value, 1]}, ["body", "obs", 1]),
    }
    # MessagePack has no integers beyond 64 bits.
    is_packable = isinstance(value, float) or -(2**63) <= value < 2**64
    app = build(backend_of(dtype), schema=FIELDS)
    with TestClient(app, headers={"access-token": KEY}) as client:
        for path, (observation, place) in observations.items():
            with client.websocket_connect(path) as stream:
                stream.send_text(json.dumps(observation))
                answers = [json.loads(stream.receive_text())]
                if is_packable:
                    stream.send_bytes(msgpack.packb(observation))
                    answers.append(msgpack.unpackb(stream.receive_bytes()))
            assert [answer["status"] for answer in answers] == [422] * len(answers)
            assert [answer["detail"][0]["loc"] for answer in answers] == [place] * len(answers)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(10**30, "number_too_large"), (2**63, "number_too_large"), (2**53, "number_too_large")],
)
async def test_integer_that_would_not_arrive_exactly_is_told_so(value: int, kind: str) -> None:
    body = {"x": 1, "n": value, "l": [1]}
    array = npy_of([[1, value, 1]], npy_dtype(value))
    async with serve(backend_of("int64"), schema=FIELDS) as client:
        answers = [
            await client.post("/predict", json=body),
            await client.post("/predict_raw", json={"obs": [1, value, 1]}),
            await client.post("/predict/batch", content=array, headers=NPY),
        ]

    for answer in answers:
        ((problem),) = answer.json()["detail"]
        assert problem["type"] == kind
        assert problem["msg"] == (
            f"Input should be at most {EXACT} in absolute value, to arrive exactly"
        )


RIGHT: dict[str, tuple[str, list[float]]] = {
    "uint8": ("uint8", [0, 255, 2.0]),
    "int8": ("int8", [-128, 127, -0.0]),
    "int64": ("int64", [-EXACT, EXACT, 1e15]),
    "uint64": ("uint64", [0, EXACT, 2.0]),
    "bool": ("bool", [0, 1, 1.0]),
    "float16": ("float16", [-65504, 65504, 0.1]),
    "float32": ("float32", [3e38, 2**63, 0.1]),
    "float64": ("float64", [3e38, 2**63, 0.1]),
}


@pytest.mark.parametrize(("dtype", "values"), RIGHT.values(), ids=RIGHT)
async def test_number_that_the_type_holds_arrives_exactly(dtype: str, values: list[float]) -> None:
    backend = replace(backend_of(dtype), weight=0.0)
    rows = [[value, 1, value] for value in values]
    named = [{"x": value, "n": 1, "l": [value]} for value in values]
    columns = {name: [row[name] for row in named] for name in named[0]}
    async with serve(backend, schema=FIELDS) as client:
        backend.calls.clear()
        statuses = [
            *[(await client.post("/predict", json=body)).status_code for body in named],
            *[(await client.post("/predict_raw", json={"obs": row})).status_code for row in rows],
            (await client.post("/predict/batch", json=named)).status_code,
            (await client.post("/predict/batch", json=columns)).status_code,
            (await client.post("/predict_raw/batch", json={"obs": rows})).status_code,
            (
                await client.post("/predict/batch", content=npy_of(rows, "f8"), headers=NPY)
            ).status_code,
        ]

    assert set(statuses) == {200}
    row_dtype = backend.signature.row_dtype
    seen = [row for inputs in backend.calls for row in inputs.observations.tolist()]
    assert seen == np.array(rows * 6, row_dtype).tolist()
    if row_dtype is np.float64:
        assert seen == rows * 6


NUMBERS: list[Any] = [
    *(-1, 0, 1, 2, 2.0, 2.5, 127, 128, 255, 256, 65504, 65505, 1e10, EXACT, 2**53, 2**63, 10**30),
    *(-0.0, -EXACT, -(2**53), 1e23, -1e30, FLOAT32_MAX, -FLOAT32_MAX, 3.5e38, -1e39, 10**39, 1e300),
    *(None, True, "1"),
]


@pytest.mark.parametrize("dtype", [*RIGHT, "bfloat16"])
async def test_document_allows_what_is_answered_and_forbids_what_is_refused(dtype: str) -> None:
    async with serve(backend_of(dtype), schema=FIELDS) as client:
        document = (await client.get("/openapi.json")).json()
        statuses = Counter[int]()
        for value in NUMBERS:
            for route, name, body in (
                ("/predict", "Observation", {"x": value, "n": 1, "l": [1]}),
                ("/predict", "Observation", {"x": 1, "n": value, "l": [1]}),
                ("/predict", "Observation", {"x": 1, "n": 1, "l": [value]}),
                ("/predict_raw", "RawObservation", {"obs": [value, 1, 1]}),
                ("/predict/batch", "ObservationColumns", {"x": [value], "n": [1], "l": [[1]]}),
                ("/predict/batch", "ObservationColumns", {"x": [1], "n": [value], "l": [[1]]}),
                ("/predict_raw/batch", "RawObservationColumns", {"obs": [[value, 1, 1]]}),
            ):
                status = (await client.post(route, json=body)).status_code
                is_valid = validator_of(document, name).is_valid(body)
                assert status == (200 if is_valid else 422), (route, body)
                statuses[status] += 1

    assert min(statuses[200], statuses[422]) > 20


WHOLE = ["1", "1.0", "1e0", "10E-1", "0.1e1"]


@pytest.mark.parametrize("text", WHOLE)
async def test_int_is_a_whole_number_in_every_form(text: str) -> None:
    named, raw = f'{{"x": 0, "n": {text}, "l": [0]}}', f'{{"obs": [0, {text}, 0]}}'
    columns = f'{{"x": [0], "n": [{text}], "l": [[0]]}}'
    array = npy_of([[0, float(text), 0]], "f8")
    app = build(backend_of("float32"), schema=FIELDS)
    with TestClient(app, headers={"access-token": KEY}) as client:
        statuses = [
            client.post("/predict", content=named).status_code,
            client.post("/predict_raw", content=raw).status_code,
            client.post("/predict/batch", content=f"[{named}]").status_code,
            client.post("/predict_raw/batch", content=f"[{raw}]").status_code,
            client.post("/predict/batch", content=columns).status_code,
            client.post("/predict/batch", content=array, headers=NPY).status_code,
        ]
        with client.websocket_connect("/predict/stream") as stream:
            stream.send_text(named)
            answers = [json.loads(stream.receive_text())]
            stream.send_bytes(msgpack.packb(json.loads(named)))
            answers.append(msgpack.unpackb(stream.receive_bytes()))

    assert statuses == [200] * 6
    assert ["actions" in answer for answer in answers] == [True, True]


async def test_int_with_a_fraction_is_refused_in_every_form() -> None:
    named, columns = {"x": 0, "n": 5.5, "l": [0]}, {"x": [0], "n": [5.5], "l": [[0]]}
    async with serve(backend_of("float32"), schema=FIELDS) as client:
        array = npy_of([[0, 5.5, 0]], "f8")
        places = [
            await problems_of(client, "/predict", json=named),
            await problems_of(client, "/predict/batch", json=[named]),
            await problems_of(client, "/predict/batch", json=columns),
            await problems_of(client, "/predict/batch", content=array, headers=NPY),
        ]

    assert places == [[["body", "n"]], [["body", 0, "n"]], [["body", "n", 0]], [["body", 0, "n"]]]


@pytest.mark.parametrize(
    ("lists", "length"),
    [
        ("l: {type: 'List[float]'}", 3),
        ("l: {type: 'List[float]', min_items: 1, max_items: 9}", 3),
        ("a: {type: int}, l: {type: 'List[float]', min_items: 1, example: [1]}", 2),
        ("a: {type: 'List[int]', max_items: 1, min_items: 1}, l: {type: 'List[float]'}", 2),
    ],
)
async def test_document_states_the_length_that_the_policys_width_leaves(
    lists: str, length: int
) -> None:
    async with serve(backend_of("float32"), schema=f"observations: {{{lists}}}") as client:
        document = (await client.get("/openapi.json")).json()
        observation = document["components"]["schemas"]["Observation"]
        answer = await client.post("/predict", json=observation["examples"][0])
        wrong = await client.post("/predict", json={**observation["examples"][0], "l": []})

    known = observation["properties"]["l"]
    assert (known["minItems"], known["maxItems"]) == (length, length)
    assert len(observation["examples"][0]["l"]) == length
    assert (answer.status_code, wrong.status_code) == (200, 422)


async def test_document_leaves_columns_of_different_lengths_out() -> None:
    async with serve(backend_of("float32"), schema=FIELDS) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]

    named = paths["/predict/batch"]["post"]["requestBody"]
    raw = paths["/predict_raw/batch"]["post"]["requestBody"]
    assert named["content"]["application/json"]["schema"]["type"] == "array"
    assert "`ObservationColumns`" in named["description"]
    assert len(raw["content"]["application/json"]["schema"]["oneOf"]) == 2


async def test_document_states_the_types_own_numbers_and_an_example_of_them() -> None:
    async with serve(backend_of("uint8"), schema=FIELDS) as client:
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]

    whole = {"type": "integer", "format": "int64", "minimum": 0, "maximum": 255}
    obs = schemas["RawObservation"]["properties"]["obs"]
    named = schemas["Observation"]["properties"]
    assert obs["items"] == named["l"]["items"] == whole
    assert whole.items() <= named["x"].items()
    assert whole.items() <= named["n"].items()
    assert schemas["RawObservation"]["examples"] == [{"obs": [0, 0, 0]}]
    assert "0.0" not in json.dumps(schemas["Observation"])


async def test_bounds_of_the_schema_hold_where_they_are_narrower() -> None:
    schema = SCHEMA.replace("{type: int}", "{type: int, minimum: -5, maximum: 9}")
    known = integer_backend()
    narrow = replace(known, signature=replace(known.signature, observation_dtype="uint8"))
    async with serve(narrow, schema=schema) as client:
        statuses = [
            (await client.post("/predict", json={"cat": cat, "mouse": 1})).status_code
            for cat in (-1, 0, 9, 10)
        ]
        raw = (await client.post("/predict_raw", json={"obs": [10, 255]})).status_code

    assert (statuses, raw) == ([422, 200, 200, 422], 200)
