"""A policy that takes an action mask beside its observation, asked in every form of a request."""

from __future__ import annotations

import io
import json
import logging
import random
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.sdk.openapi_document import prepare_document
from tests.support.fakes import FakeBackend, integer_backend, masked_backend
from tests.support.streams import served
from tests.support.web import (
    OBSERVATION,
    assert_invalid,
    build,
    client_of,
    running,
    serve,
    serve_shared,
    validator_of,
)

RAW = {"obs": [0, 1.5]}
KINDS = ["predict", "predict_deterministic", "distribution"]
NPY = {"content-type": "application/x-npy"}
LISTED = """
observations:
  legal: {type: "List[bool]", description: What may be done}
  cat: {type: int}
  mouse: {type: float, maximum: 10}
parameters: {api_key: "1234567asdfgh"}
"""
# The first action may be 0 or 1, the second 0 only; without a mask the last choices are likeliest.
MASK = [1, 1, 0, 1, 0]
forms = pytest.mark.parametrize("suffix", ["", "_raw"], ids=["named", "raw"])


def two_choices() -> FakeBackend:
    """Return a policy of two actions, of three and of two choices."""
    return masked_backend(3, 2)


def body_of(suffix: str, **fields: object) -> dict[str, Any]:
    """Return an observation, named or flat, with further fields."""
    return {**(RAW if suffix else OBSERVATION), **fields}


def npy_of(values: NDArray[Any]) -> bytes:
    """Return an array in npy format."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


async def actions_of(client: httpx.AsyncClient, path: str, **options: Any) -> Any:  # noqa: ANN401 -- JSON
    """Return the actions of an answer."""
    response = await client.post(path, **options)
    assert response.status_code == 200, response.text
    return response.json()["actions"]


@forms
async def test_mask_holds_in_every_kind_of_answer(suffix: str) -> None:
    body = body_of(suffix, action_mask=MASK)
    async with serve_shared(two_choices) as client:
        mode = await client.post(f"/predict_deterministic{suffix}", json=body)
        stated = await client.post(f"/distribution{suffix}", json=body)
        drawn = [await actions_of(client, f"/predict{suffix}", json=body) for _ in range(40)]

    e = float(np.e)
    chance = e / (1 + e)
    assert mode.json()["actions"] == [1, 0]
    assert mode.json()["probability"] == pytest.approx(chance)
    first, second = [part["probabilities"] for part in stated.json()["components"]]
    assert first == pytest.approx([1 - chance, chance, 0])
    assert second == [1, 0]
    assert {tuple(actions) for actions in drawn} == {(0, 0), (1, 0)}


@forms
@pytest.mark.parametrize("mask", [{}, {"action_mask": [True] * 5}], ids=["absent", "all-true"])
async def test_all_choices_are_allowed_without_a_word_to_the_contrary(
    suffix: str, mask: dict[str, object]
) -> None:
    async with serve_shared(two_choices) as client:
        answer = await actions_of(
            client, f"/predict_deterministic{suffix}", json=body_of(suffix, **mask)
        )

    assert answer == [2, 1]


@forms
@pytest.mark.parametrize(
    "mask",
    [[True, True, False, True, False], [1.0, 1, 0, True, 0.0]],
    ids=["booleans", "mixed"],
)
async def test_mask_may_be_written_as_numbers_or_truth_values(
    suffix: str, mask: list[object]
) -> None:
    async with serve_shared(two_choices) as client:
        answer = await actions_of(
            client, f"/predict_deterministic{suffix}", json=body_of(suffix, action_mask=mask)
        )

    assert answer == [1, 0]


async def test_flat_observation_may_end_with_its_mask() -> None:
    async with serve_shared(two_choices) as client:
        answer = await actions_of(
            client, "/predict_deterministic_raw", json={"obs": [0, 1.5, *MASK]}
        )

    assert answer == [1, 0]


MISTAKES: dict[str, tuple[object, str, str]] = {
    "too short": ([1, 1, 1], "action_mask", "at least 5 items"),
    "too long": ([1] * 6, "action_mask", "at most 5 items"),
    "two": ([1, 1, 2, 1, 1], "action_mask.2", "should be 0 or 1, or false or true"),
    "half": ([0.5, 1, 1, 1, 1], "action_mask.0", "should be 0 or 1, or false or true"),
    "text": (["1", 1, 1, 1, 1], "action_mask.0", "should be 0 or 1, or false or true"),
    "null": (None, "action_mask", "valid array"),
    "number": (1, "action_mask", "valid array"),
    "none of one action": (
        [1, 1, 1, 0, 0],
        "action_mask",
        "at least one choice of each action; items 3 to 4, those of action 1, are all 0",
    ),
    "none at all": ([False] * 5, "action_mask", "items 0 to 2, those of action 0, are all 0"),
}


@forms
@pytest.mark.parametrize(("mask", "place", "words"), MISTAKES.values(), ids=MISTAKES)
async def test_mask_that_is_none_is_refused_in_words(
    suffix: str, mask: object, place: str, words: str
) -> None:
    async with serve_shared(two_choices) as client:
        answer = await client.post(f"/predict{suffix}", json=body_of(suffix, action_mask=mask))
        rows = [body_of(suffix), body_of(suffix, action_mask=mask)]
        batch = await client.post(f"/predict{suffix}/batch", json=rows)

    assert_invalid(answer, f"body.{place}")
    assert words in answer.json()["detail"][0]["msg"]
    assert_invalid(batch, f"body.1.{place}")
    assert batch.json()["detail"][0]["msg"] == answer.json()["detail"][0]["msg"]


@pytest.mark.parametrize(
    ("obs", "place", "words"),
    [
        ([0, 1.5, 1, 1, 0.5, 1, 1], "obs.4", "should be 0 or 1"),
        ([0, 1.5, 1, 1, 1, 0, 0], "obs", "at least one choice of each action"),
        ([0], "obs", "should have 2 items, not 1"),
        ([0, 1.5, 1, 1, 1, 1], "obs", "should have 2 items, not 6"),
    ],
    ids=["half", "forbids-all", "too-short", "too-long"],
)
async def test_flat_observation_that_ends_with_no_mask_is_refused(
    obs: list[float], place: str, words: str
) -> None:
    async with serve_shared(two_choices) as client:
        answer = await client.post("/predict_raw", json={"obs": obs})
        row = await client.post("/predict_raw/batch", json=[RAW, {"obs": obs}])

    assert_invalid(answer, f"body.{place}")
    assert words in answer.json()["detail"][0]["msg"]
    assert_invalid(row, f"body.1.{place}")


async def test_mask_twice_is_one_too_many() -> None:
    async with serve_shared(two_choices) as client:
        answer = await client.post(
            "/predict_raw", json={"obs": [0, 1.5, *MASK], "action_mask": MASK}
        )

    assert_invalid(answer, "body.obs")


@forms
async def test_policy_that_takes_no_mask_knows_no_such_field(suffix: str) -> None:
    async with serve(integer_backend()) as client:
        answer = await client.post(f"/predict{suffix}", json=body_of(suffix, action_mask=[1, 1, 1]))

    assert_invalid(answer, "body.action_mask")


async def test_both_ways_to_a_route_give_the_same_bytes() -> None:
    choose = random.Random(11)  # noqa: S311 -- reproducible requests, no secret
    fast, slow = build(masked_backend(3, 2)), build(masked_backend(3, 2), has_fast_path=False)
    values = [0, 1, True, False, 1, 1, 0.5, None]
    statuses = set()
    async with running(fast), running(slow), client_of(fast) as a, client_of(slow) as b:
        for _ in range(400):
            suffix, kind = choose.choice(["", "_raw"]), choose.choice(KINDS[1:])
            mask = choose.choices(values, [9] * 6 + [1] * 2, k=choose.choice([5] * 9 + [4]))
            request: dict[str, Any] = {
                "json": body_of(suffix, action_mask=mask),
                "headers": {"x-request-id": "same"},
            }
            ours, theirs = [await client.post(f"/{kind}{suffix}", **request) for client in (a, b)]
            assert ours.content == theirs.content
            assert ours.headers.raw == theirs.headers.raw
            statuses.add(ours.status_code)

    assert statuses == {200, 422}


@forms
async def test_seeded_draw_is_the_same_in_every_form(suffix: str) -> None:
    body = body_of(suffix, action_mask=MASK)
    async with serve_shared(two_choices) as client:
        single = [
            await actions_of(client, f"/predict{suffix}?seed={seed}", json=body)
            for seed in range(20)
        ]
        batch = await actions_of(client, f"/predict{suffix}/batch?seed=0", json=[body] * 20)

    assert batch == single
    assert {tuple(actions) for actions in single} == {(0, 0), (1, 0)}


@forms
async def test_rows_of_a_batch_have_masks_of_their_own_or_none(suffix: str) -> None:
    rows = [
        body_of(suffix, action_mask=MASK),
        body_of(suffix),
        body_of(suffix, action_mask=[1, 0, 0, 0, 1]),
    ]
    async with serve_shared(two_choices) as client:
        answer = await actions_of(client, f"/predict_deterministic{suffix}/batch", json=rows)

    assert answer == [[1, 0], [2, 1], [0, 1]]


@forms
async def test_columns_have_masks_or_none(suffix: str) -> None:
    columns: dict[str, Any] = (
        {"obs": [[0, 1.5]] * 2} if suffix else {"cat": [0, 1], "mouse": [1, 2]}
    )
    path = f"/predict_deterministic{suffix}/batch"
    async with serve_shared(two_choices) as client:
        masked = await actions_of(
            client, path, json={"action_mask": [MASK, [0, 0, 1, 0, 1]], **columns}
        )
        free = await actions_of(client, path, json=columns)
        short = await client.post(path, json={**columns, "action_mask": [MASK]})
        wrong = await client.post(path, json={**columns, "action_mask": [MASK, [0] * 5]})

    assert masked == [[1, 0], [2, 1]]
    assert free == [[2, 1], [2, 1]]
    assert_invalid(short, "body.action_mask")
    assert_invalid(wrong, "body.action_mask.1")


async def test_flat_column_may_end_with_masks() -> None:
    path = "/predict_deterministic_raw/batch"
    async with serve_shared(two_choices) as client:
        masked = await actions_of(
            client, path, json={"obs": [[0, 1, *MASK], [0, 1, 1, 0, 0, 1, 1]]}
        )
        wrong = await client.post(path, json={"obs": [[0, 1, *MASK], [0, 1, 0, 0, 0, 1, 1]]})
        ragged = await client.post(path, json={"obs": [[0, 1, *MASK], [0, 1]]})

    assert masked == [[1, 0], [0, 1]]
    assert_invalid(wrong, "body.obs.1")
    assert_invalid(ragged, "body.obs.0")


@forms
@pytest.mark.parametrize("order", ["C", "F"])
async def test_array_ends_with_masks_or_has_none(suffix: str, order: Any) -> None:  # noqa: ANN401 -- numpy's own literal
    rows = np.array([[0, 1.5, *MASK], [3, 2, 1, 0, 0, 0, 1]], np.float32)
    path = f"/predict_deterministic{suffix}/batch"
    async with serve_shared(two_choices) as client:
        masked = await actions_of(
            client, path, content=npy_of(np.array(rows, order=order)), headers=NPY
        )
        free = await actions_of(client, path, content=npy_of(rows[:, :2]), headers=NPY)

    assert masked == [[1, 0], [0, 1]]
    assert free == [[2, 1], [2, 1]]


@pytest.mark.parametrize(
    ("suffix", "place"), [("", "action_mask"), ("_raw", "obs")], ids=["named", "raw"]
)
async def test_array_with_a_mask_that_is_none_names_row_and_place(suffix: str, place: str) -> None:
    rows = np.array([[0, 1.5, *MASK]] * 3)
    half, empty = rows.copy(), rows.copy()
    half[1, 4] = np.nan
    empty[2, 5:] = 0
    path = f"/predict{suffix}/batch"
    async with serve_shared(two_choices) as client:
        wrong = await client.post(path, content=npy_of(half), headers=NPY)
        forbids = await client.post(path, content=npy_of(empty), headers=NPY)
        narrow = await client.post(path, content=npy_of(rows[:, :3]), headers=NPY)

    assert_invalid(wrong, f"body.1.{place}.{4 if suffix else 2}")
    assert_invalid(forbids, f"body.2.{place}")
    assert "(N, 2) or (N, 7), not (3, 3)" in narrow.json()["detail"][0]["msg"]


async def test_long_flat_observation_is_read_with_its_mask_on_either_side() -> None:
    """It is longer than a part of a batch, which is cut inside where no mask may follow."""
    backend = masked_backend(3, 2)
    wide = FakeBackend(
        type(backend.signature)(**{**vars(backend.signature), "observation_width": 40_000}),
        backend.bias,
        weight=0.0,
    )
    numbers = json.dumps([0.25] * 40_000)
    mask = json.dumps(MASK)
    async with serve(wide, schema="parameters: {}") as client:
        answer = await actions_of(
            client,
            "/predict_deterministic_raw/batch",
            content=(
                f'[{{"obs": {numbers}, "action_mask": {mask}}},'
                f'{{"action_mask": {mask}, "obs": {numbers}}}, {{"obs": {numbers}}}]'
            ).encode(),
        )
        columns = await actions_of(
            client,
            "/predict_deterministic_raw/batch",
            content=f'{{"obs": [{numbers}], "action_mask": [{mask}]}}'.encode(),
        )

    assert answer == [[1, 0], [1, 0], [2, 1]]
    assert columns == [[1, 0]]


@forms
async def test_stream_answers_as_the_post_route(suffix: str) -> None:
    questions = [body_of(suffix, action_mask=MASK), body_of(suffix, action_mask=[0] * 5)]
    async with served(masked_backend(3, 2)) as server:
        posted = [
            (await server.post(f"/predict{suffix}?seed=5", json.dumps(question).encode())).json()
            for question in questions
        ]
        async with server.stream(f"/predict{suffix}/stream?seed=5") as stream:
            await stream.send(json.dumps(questions[0]))
            as_json = json.loads(await stream.recv())
        async with server.stream(f"/predict{suffix}/stream?seed=5") as stream:
            await stream.send(msgpack.packb(questions[0]))
            as_msgpack = msgpack.unpackb(await stream.recv())
            await stream.send(msgpack.packb(questions[1]))
            refused = msgpack.unpackb(await stream.recv())

    assert as_json == as_msgpack == posted[0]
    assert refused == {"status": 422, **posted[1]}


async def test_mask_that_the_schema_lists_is_required_wherever_it_stands() -> None:
    named = {"cat": 0, "mouse": 1.5, "legal": [True, False, False, True, False]}
    async with serve(masked_backend(3, 2, mask_name="legal"), schema=LISTED) as client:
        answer = await actions_of(client, "/predict_deterministic", json=named)
        raw = await actions_of(client, "/predict_deterministic_raw", json={**RAW, "legal": MASK})
        absent = await client.post("/predict", json=OBSERVATION)
        column = await client.post("/predict/batch", json={"cat": [0], "mouse": [1]})
        array = await client.post("/predict/batch", content=npy_of(np.zeros((1, 2))), headers=NPY)
        whole = await actions_of(
            client,
            "/predict_deterministic/batch",
            content=npy_of(np.array([[0, 1.5, *MASK]])),
            headers=NPY,
        )
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]

    assert answer == [0, 0]
    assert raw == [1, 0]
    assert_invalid(absent, "body.legal")
    assert_invalid(column, "body.legal")
    assert "(N, 7), not (1, 2)" in array.json()["detail"][0]["msg"]
    assert whole == [[1, 0]]
    assert "legal" in schemas["Observation"]["required"]
    flag = {"type": ["boolean", "integer"], "minimum": 0, "maximum": 1}
    assert schemas["Observation"]["properties"]["legal"]["items"] == flag
    assert schemas["Observation"]["properties"]["legal"]["description"] == "What may be done"
    assert schemas["RawObservation"]["required"] == ["obs"]


async def test_document_forbids_a_mask_of_one_action_that_allows_nothing() -> None:
    async with serve(masked_backend(3)) as client:
        document = (await client.get("/openapi.json")).json()

    for name in ("Observation", "RawObservation"):
        example = document["components"]["schemas"][name]["examples"][0]
        validator = validator_of(document, name)
        allowed: list[list[object]] = [[0, 1, 0], [False, True, False], [0, True, 0]]
        refused: list[list[object]] = [
            [0, 0, 0],
            [False] * 3,
            [0, False, 0],
            [0, 1, 2],
            [0, 1, "1"],
        ]
        for mask in allowed:
            assert validator.is_valid({**example, "action_mask": mask}), mask
        for mask in refused:
            assert not validator.is_valid({**example, "action_mask": mask}), mask
    columns = document["components"]["schemas"]["ObservationColumns"]["properties"]
    assert columns["action_mask"]["items"]["contains"] == {"enum": [1, True]}
    prepared = prepare_document(document, url="http://a-server")["components"]["schemas"]
    assert "contains" not in prepared["Observation"]["properties"]["action_mask"]


@pytest.mark.parametrize("truth", [int, bool], ids=["numbers", "truth-values"])
@pytest.mark.parametrize("kind", ["int", "bool"])
async def test_document_forbids_a_mask_that_allows_nothing_of_an_action(
    kind: str, truth: type
) -> None:
    schema = LISTED.replace("legal", "action_mask").replace("bool", kind)
    async with serve(two_choices(), schema=schema) as client:
        document = (await client.get("/openapi.json")).json()
        validator = validator_of(document, "Observation")
        for mask in ([1, 0, 0, 0, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 0], [0] * 5):
            body = {**OBSERVATION, "action_mask": [*map(truth, mask)]}
            answer = await client.post("/predict", json=body)
            is_allowed = any(mask[:3]) and any(mask[3:])
            assert (answer.status_code, validator.is_valid(body)) == (
                200 if is_allowed else 422,
                is_allowed,
            ), mask

    prepared = prepare_document(document, url="http://a-server")["components"]["schemas"]
    assert "not" not in prepared["Observation"]["properties"]["action_mask"]
    # A client library has the type of schema.yaml, and no bound of another one.
    of_library = {"int": {"type": "integer", "format": "int64", "minimum": 0, "maximum": 1}}
    items = prepared["Observation"]["properties"]["action_mask"]["items"]
    assert items == of_library.get(kind, {"type": "boolean"})


async def test_document_of_a_long_mask_says_in_words_alone_that_each_action_needs_a_choice() -> (
    None
):
    async with serve(masked_backend(60, 41)) as client:
        document = (await client.get("/openapi.json")).json()

    mask = document["components"]["schemas"]["Observation"]["properties"]["action_mask"]
    assert "not" not in mask
    assert "at least one of each action" in mask["description"]


async def test_document_and_schema_describe_the_mask() -> None:
    async with serve_shared(two_choices) as client:
        document = (await client.get("/openapi.json")).json()
        schema = (await client.get("/schema")).json()
        example = document["components"]["schemas"]["Observation"]["examples"][0]
        answer = await client.post("/predict", json=example)

    for name, required in (("Observation", ["cat", "mouse"]), ("RawObservation", ["obs"])):
        described = document["components"]["schemas"][name]
        assert described["required"] == required
        mask = described["properties"]["action_mask"]
        assert (mask["minItems"], mask["maxItems"]) == (5, 5)
        flag = {"type": ["integer", "boolean"], "minimum": 0, "maximum": 1}
        assert mask["items"] == {"format": "int64", **flag}
        assert mask["description"] == (
            "The allowed choices of the integer actions: 1 or 0 for each of the 3 + 2 in order, at "
            "least one of each action; left out, all are allowed"
        )
        assert validator_of(document, name).is_valid(described["examples"][0])
    assert example["action_mask"] == [1] * 5
    assert answer.status_code == 200
    assert schema["policy"]["action_mask"] == {"name": "action_mask", "sizes": [3, 2]}
    columns = document["components"]["schemas"]["ObservationColumns"]
    assert columns["required"] == ["cat", "mouse"]
    assert columns["properties"]["action_mask"]["items"]["items"]["maximum"] == 1


async def test_prediction_log_has_the_mask_beside_the_observation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve(masked_backend(3, 2), prediction_log_rate=1.0) as client:
        with caplog.at_level(logging.INFO, logger="policy_server.predictions"):
            await client.post("/predict", json={**OBSERVATION, "action_mask": MASK})
            await client.post("/predict_raw/batch", json=[{**RAW, "action_mask": MASK}])

    records = [vars(item) for item in caplog.records if item.message == "prediction"]
    assert [item["observation"] for item in records] == [[0, 1.5], [0, 1.5]]
    assert [item["action_mask"] for item in records] == [MASK, MASK]


async def test_schema_without_names_takes_the_mask_too() -> None:
    async with serve(masked_backend(4), schema="parameters: {}") as client:
        answer = await actions_of(
            client, "/predict_deterministic_raw", json={**RAW, "action_mask": [0, 1, 1, 0]}
        )
        refused = await client.post("/predict_raw", json={**RAW, "action_mask": [0] * 4})

    assert answer == [2]
    assert refused.json()["detail"][0]["msg"] == "The mask should allow at least one choice"
