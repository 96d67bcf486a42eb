"""Named observations over inputs of several types: each number is held to its own input's."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # its types are a package of their own
import numpy as np
import pytest

from policy_server.errors import ObservationError, SchemaError
from policy_server.observations import (
    BatchLayout,
    JsonBatchReader,
    NpyBatchReader,
    ObservationSpace,
)
from policy_server.policy import PolicySignature
from policy_server.schema import number_range
from tests.support.batches import problems_of, read, space_of
from tests.support.fakes import components_of, signature_of

Columns = Sequence[tuple[str, int]]
IMAGE_AND_X: Columns = [("uint8", 2), ("float32", 1)]
TWO_IMAGES: Columns = [("uint8", 2), ("uint8", 2), ("float32", 1)]
Read = Callable[[ObservationSpace, list[dict[str, Any]]], Any]


def signature_over(columns: Columns) -> PolicySignature:
    """Return a policy over inputs of these types."""
    known = signature_of(components_of(("categorical", 3)), width=sum(size for _, size in columns))
    return replace(known, observation_columns=tuple(columns))


def layout_over(space: ObservationSpace) -> BatchLayout:
    """Return the layout of named batches."""
    return BatchLayout(space, is_raw=False, width=None, dtype=np.float32, max_rows=10)


def as_columns(items: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return observations by column."""
    return {name: [item[name] for item in items] for name in items[0]}


def as_array(items: list[dict[str, Any]]) -> bytes:
    """Return observations as the npy format of their numbers."""
    file = io.BytesIO()
    np.save(
        file, np.array([np.concatenate([np.ravel(x) for x in item.values()]) for item in items])
    )
    return file.getvalue()


BATCHES: dict[str, Callable[[ObservationSpace, list[dict[str, Any]]], tuple[Any, bytes]]] = {
    "rows": lambda space, items: (JsonBatchReader(layout_over(space)), json.dumps(items).encode()),
    "columns": lambda space, items: (
        JsonBatchReader(layout_over(space)),
        json.dumps(as_columns(items)).encode(),
    ),
    "npy": lambda space, items: (NpyBatchReader(layout_over(space)), as_array(items)),
}
ALL = '{all: {type: "List[float]", min_items: 3, max_items: 3}}'
NESTED = '{all: {type: "List[float]", shape: [3, 1]}}'
OPEN = '{a: {type: "List[float]"}, b: {type: "List[float]"}}'
WRONG: dict[str, tuple[str, Columns, dict[str, Any], list[Any]]] = {
    "too large": (ALL, IMAGE_AND_X, {"all": [7, 300, 0.5]}, ["all", 1]),
    "fraction": (ALL, IMAGE_AND_X, {"all": [2.5, 7, 0.5]}, ["all", 0]),
    "small fraction": (ALL, IMAGE_AND_X, {"all": [7, 2.00000001, 0.5]}, ["all", 1]),
    "nested": (NESTED, IMAGE_AND_X, {"all": [[7], [300], [0.5]]}, ["all", 1, 0]),
    "open lists": (OPEN, IMAGE_AND_X, {"a": [7], "b": [-1, 0.5]}, ["b", 0]),
    "behind integers": (
        '{n: {type: int, one_hot: 2}, all: {type: "List[float]", min_items: 3, max_items: 3}}',
        [("float32", 2), *IMAGE_AND_X],
        {"n": 1, "all": [7, 300, 0.5]},
        ["all", 1],
    ),
    "normalized beyond half": (
        "{a: {type: float, normalize: {mean: 0, std: 0.001}}, x: {type: float}}",
        [("float16", 1), ("float32", 1)],
        {"a": 100.0, "x": 0.5},
        ["a"],
    ),
}


@pytest.mark.parametrize(("fields", "columns", "item", "place"), WRONG.values(), ids=WRONG)
def test_number_that_its_input_lacks_is_refused_in_one_observation(
    fields: str, columns: Columns, item: dict[str, Any], place: list[Any]
) -> None:
    space = space_of(f"observations: {fields}", signature_over(columns))

    parsers: list[Callable[[], Any]] = [
        lambda: space.parse_named(json.dumps(item).encode()),
        lambda: space.parse_values(item, is_raw=False),
    ]
    for parse in parsers:
        with pytest.raises(ObservationError) as caught:
            parse()
        assert [problem["loc"] for problem in caught.value.problems] == [["body", *place]]


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize(("fields", "columns", "item", "place"), WRONG.values(), ids=WRONG)
def test_number_that_its_input_lacks_is_refused_in_a_batch(
    fields: str, columns: Columns, item: dict[str, Any], place: list[Any], form: str
) -> None:
    if form == "npy" and fields == OPEN:
        # An array does not tell how long each list is.
        place = [1]
    space = space_of(f"observations: {fields}", signature_over(columns))
    good = json.loads(json.dumps(item).replace("300", "5").replace("2.5", "5").replace("-1", "5"))
    good = json.loads(json.dumps(good).replace("2.00000001", "5").replace("100.0", "0.0"))
    expected = [place[0], 1, *place[1:]] if form == "columns" else [1, *place]
    reader, body = BATCHES[form](space, [good, item])

    assert [found for found, _ in problems_of(reader, body)] == [
        ".".join(map(str, ["body", *expected]))
    ]
    reader, body = BATCHES[form](space, [good, good])
    assert len(read(reader, body)) == 2


@pytest.mark.parametrize("fields", [ALL, NESTED, OPEN])
def test_numbers_that_their_inputs_hold_are_taken_over_several(fields: str) -> None:
    space = space_of(f"observations: {fields}", signature_over(IMAGE_AND_X))
    item: dict[str, Any] = {"all": [7, 255, 0.5]}
    item = {"a": [7], "b": [255, 0.5]} if fields == OPEN else item
    item = {"all": [[7], [255], [0.5]]} if fields == NESTED else item

    assert space.parse_named(json.dumps(item).encode()) == [7, 255, 0.5]
    for form in BATCHES.values():
        reader, body = form(space, [item])
        assert read(reader, body).tolist() == [[7, 255, 0.5]]


def test_inputs_of_one_type_hold_a_field_over_both_as_one_does() -> None:
    fields = '{pixels: {type: "List[int]", min_items: 4, max_items: 4}, x: {type: float}}'
    space = space_of(f"observations: {fields}", signature_over(TWO_IMAGES))

    assert space.named_parts is None
    document = space.json_schema() or {}
    assert document["properties"]["pixels"]["items"]["maximum"] == 255
    with pytest.raises(ObservationError) as caught:
        space.parse_named(b'{"pixels": [1, 300, 2, 3], "x": 0.5}')
    assert caught.value.problems[0]["loc"] == ["body", "pixels", 1]
    assert space.parse_named(b'{"pixels": [1, 255, 2, 3], "x": 0.5}') == [1, 255, 2, 3, 0.5]


@pytest.mark.parametrize(
    ("row", "is_taken"),
    [([255, 2.0, 0.5], True), ([300, 2, 0], False), ([3, 2.5, 0], False)],
    ids=["all held", "too large", "fraction"],
)
def test_openapi_tells_the_numbers_of_each_input(row: list[float], *, is_taken: bool) -> None:
    space = space_of(f"observations: {ALL}", signature_over(IMAGE_AND_X))

    document = space.raw_json_schema(3)

    assert jsonschema.Draft202012Validator(document).is_valid({"obs": row}) is is_taken
    if is_taken:
        assert space.parse_raw(json.dumps({"obs": row}).encode()) == row


def test_openapi_lists_no_places_of_a_long_row() -> None:
    space = ObservationSpace(None, number_range("float32", [("uint8", 900), ("float32", 1)]))

    assert "prefixItems" not in space.raw_json_schema(901)["properties"]["obs"]


@pytest.mark.parametrize("fields", [ALL.replace("3}", "3, minimum: 0.5}"), NESTED])
def test_example_of_a_field_over_several_inputs_is_one_that_is_taken(fields: str) -> None:
    space = space_of(f"observations: {fields}", signature_over(IMAGE_AND_X))

    space.parse_named(json.dumps(space.example).encode())
    space.parse_raw(json.dumps({"obs": space.raw_example(3)}).encode())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            '{img: {type: "List[float]", min_items: 2, max_items: 2, '
            "normalize: {mean: 1, std: 2}}, x: {type: float}}",
            "img.normalize: gives fractions, the policy takes whole numbers from 0 to 255 (uint8)",
        ),
        (
            '{all: {type: "List[float]", min_items: 3, max_items: 3, normalize: {mean: 1, '
            "std: 2}}}",
            "all.normalize: gives fractions, the policy takes whole numbers from 0 to 255 (uint8)",
        ),
        (
            '{all: {type: "List[float]", min_items: 3, max_items: 3, minimum: 300}}',
            "all: its minimum and maximum allow none of the numbers that the policy takes, whole",
        ),
        (
            '{all: {type: "List[float]", min_items: 3, max_items: 3, example: [1, 300, 0.5]}}',
            "all.example: expected numbers that the policy takes, whole numbers from 0 to 255",
        ),
    ],
    ids=["normalized", "normalized in part", "no number", "example"],
)
def test_field_that_an_input_can_not_take_is_refused_at_the_start(
    fields: str, message: str
) -> None:
    with pytest.raises(SchemaError) as caught:
        space_of(f"observations: {fields}", signature_over(IMAGE_AND_X))

    assert message in caught.value.message


def test_field_beside_integers_may_be_normalized() -> None:
    fields = (
        '{img: {type: "List[int]", min_items: 2, max_items: 2}, '
        "x: {type: float, normalize: {mean: 1, std: 2, epsilon: 0}}}"
    )

    row = space_of(f"observations: {fields}", signature_over(IMAGE_AND_X)).parse_named(
        b'{"img": [1, 2], "x": 2}'
    )

    assert row == [1, 2, 0.5]
