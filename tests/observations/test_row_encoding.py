"""Rows of fields with `shape`, `one_hot` and `normalize`: the same from every form of a body."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # its types are a package of their own
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_server.errors import ObservationError, UnsupportedEncodingError
from policy_server.observations import (
    BatchLayout,
    BatchReader,
    JsonBatchReader,
    NpyBatchReader,
    ObservationSpace,
)
from policy_server.schema import number_range, parse_schema
from tests.support.batches import columns_of, read

WORDS = """
observations:
  gear: {type: int, one_hot: 4, minimum: 1}
  doors: {type: "List[int]", one_hot: [2, 3]}
  speed: {type: float, normalize: {mean: 10, std: 2, clip: 3, epsilon: 0.5}}
  image: {type: "List[int]", shape: [2, 3, 1], minimum: 0, maximum: 255}
  cells: {type: "List[int]", shape: [2, 2], one_hot: 3}
  rays: {type: "List[float]", min_items: 2, max_items: 2, normalize: {mean: [1, 2], std: 4}}
  lit: {type: bool}
parameters: {api_key: k}
"""
SCHEMA = parse_schema(WORDS)
SPACE = ObservationSpace(SCHEMA.observations)
ONE = {
    "gear": 2,
    "doors": [1, 2],
    "speed": 11,
    "image": [[[1], [2], [3]], [[4], [5], [6]]],
    "cells": [[0, 1], [2, 0]],
    "rays": [5, -2],
    "lit": True,
}
ROW = [
    *[0, 1, 0, 0],
    *[0, 1, 0, 0, 1],
    0.4,
    *[1, 2, 3, 4, 5, 6],
    *[1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0],
    *[1, -1],
    1,
]


def npy_of(values: object) -> bytes:
    """Return an array in npy format."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    return buffer.getvalue()


def batch_layout(space: ObservationSpace = SPACE, *, width: int = 31) -> BatchLayout:
    """Return the layout of named batches."""
    return BatchLayout(space, is_raw=False, width=width, dtype=np.float32, max_rows=10_000)


def test_row_is_what_the_words_make_of_the_values() -> None:
    assert SPACE.parse_named(json.dumps(ONE).encode()) == ROW
    assert SCHEMA.width == len(ROW)


def test_values_of_messagepack_give_the_same_row() -> None:
    assert SPACE.parse_values(ONE, is_raw=False) == ROW


def test_clipped_number_is_at_the_bound() -> None:
    row = SPACE.parse_named(json.dumps({**ONE, "speed": 100}).encode())

    assert row[9] == 3.0


def test_example_is_taken() -> None:
    assert len(SPACE.parse_named(json.dumps(SPACE.example).encode())) == len(ROW)
    assert len(SPACE.raw_example(31)) == len(ROW)


OBSERVATIONS = st.fixed_dictionaries(
    {
        "gear": st.integers(1, 4),
        "doors": st.tuples(st.integers(0, 1), st.integers(0, 2)).map(list),
        "speed": st.floats(-1e9, 1e9),
        "image": st.lists(
            st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=1), min_size=3, max_size=3),
            min_size=2,
            max_size=2,
        ),
        "cells": st.lists(
            st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=2, max_size=2
        ),
        "rays": st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=2),
        "lit": st.booleans(),
    }
)


@given(rows=st.lists(OBSERVATIONS, min_size=1, max_size=20), step=st.sampled_from([7, 64, 10**6]))
def test_batch_gives_the_rows_of_single_observations(rows: list[dict[str, Any]], step: int) -> None:
    expected = np.array([SPACE.parse_named(json.dumps(row).encode()) for row in rows], np.float32)
    flat = [np.concatenate([np.ravel(row[name]) for name in ONE]) for row in rows]

    bodies: dict[str, tuple[BatchReader, bytes]] = {
        "rows": (JsonBatchReader(batch_layout(), largest_part=50), json.dumps(rows).encode()),
        "columns": (
            JsonBatchReader(batch_layout(), largest_part=50),
            json.dumps(columns_of(rows)).encode(),
        ),
        "npy": (NpyBatchReader(batch_layout()), npy_of(np.array(flat, np.float64))),
    }

    for name, (reader, body) in bodies.items():
        assert np.array_equal(read(reader, body, step=step), expected), name


@pytest.mark.parametrize("step", [100, 4096, 10**9])
def test_columns_of_images_arrive_in_parts(step: int) -> None:
    fields = parse_schema("observations: {image: {type: 'List[int]', shape: [4, 5, 3]}}")
    space = ObservationSpace(fields.observations)
    images = np.random.default_rng(1).integers(0, 255, (300, 4, 5, 3))

    body = json.dumps({"image": images.tolist()}).encode()
    layout = batch_layout(space, width=60)
    rows = read(JsonBatchReader(layout, largest_part=200), body, step=step)

    assert np.array_equal(rows, images.reshape(300, 60))


def test_open_list_of_one_hot_integers_is_ragged_in_a_batch_and_named() -> None:
    fields = parse_schema("observations: {a: {type: 'List[int]', one_hot: 2}, b: {type: float}}")
    space = ObservationSpace(fields.observations)
    body = json.dumps({"a": [[0, 1], [1]], "b": [0.5, 1.5]}).encode()

    with pytest.raises(ObservationError) as caught:
        read(JsonBatchReader(batch_layout(space, width=5)), body)

    (item,) = caught.value.problems
    assert item["loc"] == ["body", "a", 1]
    assert item["msg"] == "The observation should have 5 values in all, not 3"


@pytest.mark.parametrize(
    ("change", "place", "kind"),
    [
        pytest.param({"gear": 0}, ["gear"], "greater_than_equal", id="below the first place"),
        pytest.param({"gear": 5}, ["gear"], "less_than_equal", id="beyond the last place"),
        pytest.param({"gear": 1.5}, ["gear"], "int_from_float", id="between places"),
        pytest.param({"gear": [0, 1, 0, 0]}, ["gear"], "int_type", id="expanded already"),
        pytest.param({"doors": [0, 3]}, ["doors", 1], "less_than_equal", id="place of an item"),
        pytest.param({"doors": [2, 0]}, ["doors", 0], "less_than_equal", id="smaller item"),
        pytest.param({"doors": [1]}, ["doors", 1], "missing", id="too few integers"),
        pytest.param({"doors": [1, 1, 1]}, ["doors"], "too_long", id="too many integers"),
        pytest.param({"image": [1, 2, 3, 4, 5, 6]}, ["image", 0], "list_type", id="flat"),
        pytest.param(
            {"image": [[[1], [2], [3]], [[4], 5, [6]]]}, ["image", 1, 1], "list_type", id="shallow"
        ),
        pytest.param(
            {"image": [[[1], [2], [3]], [[4], [[5]], [6]]]},
            ["image", 1, 1, 0],
            "int_type",
            id="deep",
        ),
        pytest.param(
            {"image": [[[1], [2], [3]], [[4], [5]]]}, ["image", 1], "too_short", id="short level"
        ),
        pytest.param(
            {"image": [[[1], [2], [3]], [[4], [5], [256]]]},
            ["image", 1, 2, 0],
            "less_than_equal",
            id="pixel beyond the bounds",
        ),
        pytest.param({"cells": [[0, 1], [3, 0]]}, ["cells", 1, 0], "less_than_equal", id="cell"),
        pytest.param({"speed": "fast"}, ["speed"], "float_type", id="text"),
    ],
)
def test_value_that_no_word_allows_is_named(
    change: dict[str, Any], place: list[str | int], kind: str
) -> None:
    with pytest.raises(ObservationError) as caught:
        SPACE.parse_named(json.dumps(ONE | change).encode())
    with pytest.raises(ObservationError) as in_batch:
        SPACE.parse_rows(json.dumps([ONE, ONE | change]).encode(), is_raw=False)

    assert [(item["loc"], item["type"]) for item in caught.value.problems] == [
        (["body", *place], kind)
    ]
    assert [item["loc"] for item in in_batch.value.problems] == [["body", 1, *place]]


def test_number_that_would_leave_a_32_bit_float_is_refused_as_openapi_says() -> None:
    fields = parse_schema("observations: {a: {type: float, normalize: {mean: 0, std: 0.001}}}")
    space = ObservationSpace(fields.observations)
    document = space.json_schema()
    assert document is not None
    most = document["properties"]["a"]["maximum"]

    with pytest.raises(ObservationError):
        space.parse_named(json.dumps({"a": most * 1.001}).encode())
    row = np.array(space.parse_named(json.dumps({"a": most}).encode())).astype(np.float32)

    assert most == pytest.approx(3.4028235e35)
    assert row == pytest.approx(3.4028235e38)


def test_openapi_nests_arrays_with_their_lengths_and_ranges() -> None:
    document = SPACE.json_schema()
    assert document is not None
    known = document["properties"]

    image = known["image"]
    levels = [image, image["items"], image["items"]["items"]]
    assert [(level["minItems"], level["maxItems"]) for level in levels] == [(2, 2), (3, 3), (1, 1)]
    assert levels[-1]["items"] == {"type": "integer", "minimum": 0, "maximum": 255}
    assert (known["gear"]["minimum"], known["gear"]["maximum"]) == (1, 4)
    assert known["doors"]["items"] == {"type": "integer", "minimum": 0, "maximum": 2}
    assert (known["doors"]["minItems"], known["doors"]["maxItems"]) == (2, 2)


@pytest.mark.parametrize(
    "field",
    [
        "{type: 'List[int]', one_hot: [2, 3]}",
        "{type: 'List[int]', one_hot: [4, 2], minimum: 1}",
        "{type: 'List[float]', min_items: 2, max_items: 2, "
        "normalize: {mean: [0, 9.0e+37], std: [3, 0.5]}}",
        "{type: 'List[float]', min_items: 2, max_items: 2, "
        "normalize: {mean: [0, 1], std: [3, 0.5]}, minimum: -1}",
    ],
    ids=["one_hot", "one_hot from 1 on", "normalize", "normalize with a bound"],
)
def test_openapi_forbids_an_item_that_is_refused_in_its_place(field: str) -> None:
    space = ObservationSpace(parse_schema(f"observations: {{a: {field}}}").observations)
    document = space.json_schema()
    assert document is not None
    allowed = jsonschema.Draft202012Validator(document)
    items = [-2, -1, 0, 1, 2, 3, 4, 5, 1e37, 2e38, 3.4e38, -3.4e38]

    taken = 0
    for body in [{"a": [one, two]} for one in items for two in items]:
        try:
            space.parse_named(json.dumps(body).encode())
        except ObservationError:
            assert not allowed.is_valid(body), body
        else:
            assert allowed.is_valid(body), body
            taken += 1

    assert 0 < taken < len(items) ** 2


IMAGE = parse_schema(
    "observations: {image: {type: 'List[int]', shape: [2, 3, 1], minimum: 0, maximum: 9}}"
).observations
PIXELS = np.arange(6).reshape(2, 3, 1)


@pytest.mark.parametrize("is_raw", [False, True], ids=["named", "raw"])
@pytest.mark.parametrize(
    "values",
    [
        pytest.param(PIXELS.astype(np.uint8), id="uint8"),
        pytest.param(PIXELS.astype(">f8"), id="big-endian float64"),
        pytest.param(PIXELS.astype(np.float16), id="float16"),
        pytest.param(np.asfortranarray(PIXELS), id="Fortran's order"),
        pytest.param(PIXELS.ravel(), id="flat"),
    ],
)
def test_array_of_one_observation_is_its_row(values: np.ndarray[Any, Any], *, is_raw: bool) -> None:
    space = ObservationSpace(IMAGE)

    row = space.arrays.parse(npy_of(values), is_raw=is_raw, width=6)

    assert row.tolist() == [0, 1, 2, 3, 4, 5]


def test_array_of_one_number_is_expanded_as_in_json() -> None:
    space = ObservationSpace(
        parse_schema("observations: {a: {type: int, one_hot: 3}}").observations
    )

    assert space.arrays.parse(npy_of(2), is_raw=False, width=3).tolist() == [0, 0, 1]
    assert space.arrays.parse(npy_of([2.0]), is_raw=False, width=3).tolist() == [0, 0, 1]
    assert space.arrays.parse(npy_of([0, 0, 1]), is_raw=True, width=3).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("body", "place", "kind"),
    [
        pytest.param(npy_of(PIXELS + 5), ["image", 1, 2, 0], "less_than_equal", id="bound"),
        pytest.param(npy_of(PIXELS + 0.5), ["image", 0, 0, 0], "int_type", id="fraction"),
        pytest.param(npy_of(PIXELS * np.nan), ["image", 0, 0, 0], "finite_number", id="NaN"),
        pytest.param(npy_of(PIXELS.reshape(3, 2)), [], "npy_shape", id="other shape"),
        pytest.param(npy_of(PIXELS[None]), [], "npy_shape", id="batch of one"),
        pytest.param(npy_of(PIXELS.astype("U1")), [], "npy_dtype", id="text"),
        pytest.param(npy_of(PIXELS * 1j), [], "npy_dtype", id="complex"),
        pytest.param(npy_of(PIXELS)[:-1], [], "npy_length", id="cut"),
        pytest.param(npy_of(PIXELS) + b"0", [], "npy_length", id="longer"),
        pytest.param(npy_of(PIXELS)[:20], [], "npy_header", id="half a header"),
        pytest.param(b"", [], "npy_header", id="empty"),
        pytest.param(b'{"image": []}', [], "npy_header", id="JSON"),
    ],
)
def test_array_that_is_no_observation_is_named(
    body: bytes, place: list[str | int], kind: str
) -> None:
    with pytest.raises(ObservationError) as caught:
        ObservationSpace(IMAGE).arrays.parse(body, is_raw=False, width=6)

    first = caught.value.problems[0]
    assert (first["loc"][: 1 + len(place)], first["type"]) == (["body", *place], kind)


def test_array_of_an_observation_with_several_fields_is_refused_by_its_type() -> None:
    with pytest.raises(UnsupportedEncodingError, match="an observation has 7"):
        SPACE.arrays.parse(npy_of([1.0]), is_raw=False, width=31)


def test_array_of_a_policy_of_bytes_is_held_to_its_own_numbers() -> None:
    space = ObservationSpace(None, number_range("uint8"))

    assert space.arrays.parse(npy_of([0, 255]), is_raw=True, width=2).tolist() == [0, 255]
    with pytest.raises(ObservationError):
        space.arrays.parse(npy_of([0, 256]), is_raw=True, width=2)


@pytest.mark.parametrize("takes_flags", [True, False])
@pytest.mark.parametrize("kind", ["List[int]", "List[bool]", "List[float]"])
def test_zeros_and_ones_may_be_flags_where_the_policys_file_has_them(
    kind: str, *, takes_flags: bool
) -> None:
    fields = parse_schema(f"observations: {{a: {{type: '{kind}', shape: [2]}}}}").observations
    assert fields is not None
    space = ObservationSpace((replace(fields[0], takes_flags=takes_flags),))

    taken = []
    for body in (b'{"a": [0, 1]}', b'{"a": [false, true]}', b'{"a": [0.0, true]}'):
        try:
            taken.append(space.parse_named(body))
        except ObservationError:
            taken.append([])

    assert (taken == [[0, 1]] * 3) == takes_flags
    assert [0, 1] in taken


@pytest.mark.parametrize("kind", ["int", "bool", "float", "List[int]", "List[bool]", "List[float]"])
def test_document_of_a_flag_allows_what_is_taken_and_nothing_else(kind: str) -> None:
    is_list = kind.startswith("List")
    shape = ", shape: [1]" if is_list else ""
    fields = parse_schema(f"observations: {{a: {{type: '{kind}'{shape}}}}}").observations
    assert fields is not None
    field = replace(fields[0], takes_flags=True)
    if field.kind != "bool":
        field = replace(field, minimum=0, maximum=1)
    space = ObservationSpace((field,))
    validator = jsonschema.Draft202012Validator(space.json_schema() or {})

    for value in (0, 1, False, True, 1.0, 0.5, 2, -1, "1", None):
        body = {"a": [value] if is_list else value}
        try:
            space.parse_named(json.dumps(body).encode())
        except ObservationError:
            is_taken = False
        else:
            is_taken = True
        assert validator.is_valid(body) == is_taken, value
