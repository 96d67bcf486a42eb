"""Single observations as arrays in npy format, by the fast path and by FastAPI's own route."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pytest

from tests.support.fakes import integer_backend, masked_backend
from tests.support.web import SCHEMA, assert_error, assert_invalid, serve, serve_shared

NPY = {"content-type": "application/x-npy"}
IMAGE = """
observations:
  image: {type: "List[int]", shape: [2, 3, 1], minimum: 0, maximum: 255}
parameters: {api_key: 1234567asdfgh}
"""
PIXELS = np.array([[[0], [1], [2]], [[3], [4], [255]]], np.uint8)
both_paths = pytest.mark.parametrize(
    "has_fast_path", [True, False], ids=["fast path", "FastAPI's route"]
)
both_forms = pytest.mark.parametrize("path", ["/predict_deterministic", "/distribution_raw"])


def npy_of(values: object) -> bytes:
    """Return an array in npy format."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    return buffer.getvalue()


@both_paths
@both_forms
@pytest.mark.parametrize("content_type", ["application/x-npy", "Application/X-NPY; version=1"])
async def test_array_is_answered_as_the_same_observation_in_json(
    path: str, content_type: str, *, has_fast_path: bool
) -> None:
    backend = integer_backend(width=6)
    flat = {"obs": PIXELS.ravel().tolist()}
    json = flat if path.endswith("raw") else {"image": PIXELS.tolist()}
    headers = {"content-type": content_type}
    async with serve(backend, schema=IMAGE, has_fast_path=has_fast_path) as client:
        known = await client.post(path, json=json)
        answers = [
            await client.post(path, content=npy_of(values), headers=headers)
            for values in (PIXELS, PIXELS.ravel(), PIXELS.astype(np.float64))
        ]

    assert known.status_code == 200
    assert [answer.content for answer in answers] == [known.content] * 3
    rows = np.concatenate([call.observations for call in backend.calls[-4:]])
    assert rows.dtype == np.float32
    assert rows.tolist() == [PIXELS.ravel().tolist()] * 4


@both_paths
@both_forms
async def test_array_of_another_shape_is_refused(path: str, *, has_fast_path: bool) -> None:
    async with serve(integer_backend(width=6), schema=IMAGE, has_fast_path=has_fast_path) as client:
        answer = await client.post(path, content=npy_of(PIXELS.reshape(3, 2)), headers=NPY)

    assert_invalid(answer, "body")
    wanted = "The array should have the shape (6,) or (2, 3, 1), not (3, 2)"
    assert answer.json()["detail"][0]["msg"] == wanted


@both_paths
async def test_array_for_an_observation_of_several_fields_is_415(*, has_fast_path: bool) -> None:
    async with serve_shared(schema=SCHEMA, has_fast_path=has_fast_path) as client:
        named = await client.post("/predict", content=npy_of([0.0, 1.5]), headers=NPY)
        raw = await client.post("/predict_raw", content=npy_of([0.0, 1.5]), headers=NPY)

    assert_error(named, 415, "one field", "an observation has 2", "the raw route")
    assert raw.status_code == 200


@both_paths
async def test_body_that_is_no_array_is_refused(*, has_fast_path: bool) -> None:
    async with serve_shared(has_fast_path=has_fast_path) as client:
        answer = await client.post("/predict_raw", content=b'{"obs": [0, 1.5]}', headers=NPY)

    assert_invalid(answer, "body")
    assert answer.json()["detail"][0]["type"] == "npy_header"


@both_paths
@pytest.mark.parametrize("path", ["/predict_raw", "/predict_raw/batch"])
async def test_header_that_python_can_not_read_is_refused(
    path: str, *, has_fast_path: bool
) -> None:
    async with serve_shared(has_fast_path=has_fast_path) as client:
        for header in (b"(" * 20, b"(" * 5000, b"{'a", b"'''", b"f'{", b"\0", b"{" * 300, b"\xff"):
            body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
            answer = await client.post(path, content=body, headers=NPY)
            assert_invalid(answer, "body")
            assert answer.json()["detail"][0]["type"] == "npy_header"


async def test_seeded_draw_of_an_array_is_that_of_its_json() -> None:
    async with serve(integer_backend(width=6), schema=IMAGE) as client:
        answers = [
            await client.post("/predict?seed=7", json={"image": PIXELS.tolist()}),
            await client.post("/predict?seed=7", content=npy_of(PIXELS), headers=NPY),
        ]

    assert answers[0].status_code == 200
    assert answers[0].content == answers[1].content


async def test_array_is_held_to_the_limit_of_a_body_and_may_be_packed() -> None:
    body = gzip.compress(npy_of(PIXELS))
    headers = {**NPY, "content-encoding": "gzip"}
    async with serve(integer_backend(width=6), schema=IMAGE, max_body_bytes=150) as client:
        packed = await client.post("/predict", content=body, headers=headers)
        larger = await client.post("/predict", content=npy_of(PIXELS.astype("f8")), headers=NPY)

    assert packed.status_code == 200
    assert_error(larger, 413, "larger than 150 bytes")


@pytest.mark.parametrize(
    ("schema", "named"), [(IMAGE, True), (SCHEMA, False)], ids=["one field", "two fields"]
)
async def test_openapi_takes_arrays_where_the_routes_do(schema: str, *, named: bool) -> None:
    backend = integer_backend(width=6) if named else integer_backend()
    async with serve(backend, schema=schema) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]

    operations = {path: paths[path]["post"] for path in ("/predict", "/distribution_raw")}
    taken = {path: set(item["requestBody"]["content"]) for path, item in operations.items()}
    both = {"application/json", "application/x-npy"}
    assert taken == {"/predict": both if named else {"application/json"}, "/distribution_raw": both}
    assert ("[2, 3, 1]" in operations["/predict"]["description"]) == named


async def test_logged_prediction_of_an_array_has_its_numbers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="policy_server.predictions")
    async with serve(integer_backend(width=6), schema=IMAGE, prediction_log_rate=1.0) as client:
        await client.post("/predict", content=npy_of(PIXELS), headers=NPY)

    (record,) = [item for item in caplog.records if item.message == "prediction"]
    assert record.observation == PIXELS.ravel().tolist()  # type: ignore[attr-defined]  # a field
    assert {type(value) for value in record.observation} == {float}  # type: ignore[attr-defined]


EXPANDED = """
observations:
  gear: {type: int, one_hot: 2}
parameters: {api_key: 1234567asdfgh}
"""
# The first action may be 0 or 1, the second 0 only; without a mask the last choices are likeliest.
MASK = [1, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("path", "body", "actions"),
    [
        pytest.param("/predict_deterministic", [1, *MASK], [1, 0], id="named, with its mask"),
        pytest.param("/predict_deterministic", [1], [2, 1], id="named, without"),
        pytest.param("/predict_deterministic_raw", [0, 1, *MASK], [1, 0], id="raw, with its mask"),
        pytest.param("/predict_deterministic_raw", [0, 1], [2, 1], id="raw, without"),
    ],
)
async def test_array_may_end_with_an_action_mask(
    path: str, body: list[int], actions: list[int]
) -> None:
    backend = masked_backend(3, 2)
    async with serve(backend, schema=EXPANDED) as client:
        one = await client.post(path, content=npy_of(body), headers=NPY)
        many = await client.post(f"{path}/batch", content=npy_of([body]), headers=NPY)

    assert one.json()["actions"] == actions
    assert many.json()["actions"] == [actions]
    assert [call.observations.tolist() for call in backend.calls[-2:]] == [[[0, 1]]] * 2


@pytest.mark.parametrize("beside", [{"action_mask": MASK}, {}], ids=["with", "without"])
async def test_mask_stands_beside_an_expanded_integer(beside: dict[str, list[int]]) -> None:
    columns = {"gear": [1, 0], **{name: [mask, mask] for name, mask in beside.items()}}
    body = {"gear": 1, **beside}
    async with serve(masked_backend(3, 2), schema=EXPANDED) as client:
        one = await client.post("/predict_deterministic", json=body)
        rows = await client.post("/predict_deterministic/batch", json=[body, body])
        many = await client.post("/predict_deterministic/batch", json=columns)

    expected = [1, 0] if beside else [2, 1]
    assert one.json()["actions"] == expected
    assert rows.json()["actions"] == [expected] * 2
    assert many.json()["actions"] == [expected] * 2


async def test_wrong_mask_in_an_array_is_named() -> None:
    async with serve(masked_backend(3, 2), schema=EXPANDED) as client:
        named = await client.post("/predict", content=npy_of([1, 0, 0, 0, 1, 0]), headers=NPY)
        raw = await client.post("/predict_raw", content=npy_of([0, 1, 1, 2, 0, 1, 0]), headers=NPY)

    assert_invalid(named, "body.action_mask")
    assert_invalid(raw, "body.obs.3")
