"""Batches: bytes in any form, cut anywhere, become the rows that reading them at once gives."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from policy_server.errors import BodyTooLargeError, ObservationError
from policy_server.observations import (
    BatchLayout,
    BatchReader,
    JsonBatchReader,
    NpyBatchReader,
)
from tests.support.batches import (
    OPEN,
    ROWS,
    columns_of,
    layout_of,
    problems_of,
    read,
)

MATRIX = np.array(
    [[row["cat"], row["is_open"], *row["calls"], row["speed"]] for row in ROWS],  # type: ignore[misc]  # rows are dictionaries of anything
    np.float32,
)


def npy_of(values: NDArray[Any], **options: Any) -> bytes:  # noqa: ANN401 -- NumPy's own
    """Return an array in npy format."""
    file = io.BytesIO()
    np.lib.format.write_array(file, values, **options)
    return file.getvalue()


BODIES = {
    "rows": json.dumps(ROWS),
    "compact rows": orjson.dumps(ROWS).decode(),
    "indented rows": json.dumps(ROWS, indent=2),
    "columns": json.dumps(columns_of(ROWS)),
    "compact columns": orjson.dumps(columns_of(ROWS)).decode(),
    "indented columns": json.dumps(columns_of(ROWS), indent=1),
    "space around": "\n \t" + json.dumps(ROWS) + "\r\n ",
}


@pytest.mark.parametrize("step", [1, 7, 64, 1000, 10**6])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_json_in_any_form_cut_anywhere_gives_the_same_rows(body: str, step: int) -> None:
    found = read(JsonBatchReader(layout_of()), body.encode(), step=step)

    assert found.dtype == np.float32
    assert (found == MATRIX).all()


@pytest.mark.parametrize("step", [3, 10**6])
@pytest.mark.parametrize("form", [lambda x: [{"obs": row} for row in x], lambda x: {"obs": x}])
def test_raw_observations_are_rows_or_one_column(
    form: Callable[[list[list[float]]], Any], step: int
) -> None:
    reader = JsonBatchReader(layout_of(is_raw=True))

    found = read(reader, orjson.dumps(form(MATRIX.tolist())), step=step)

    assert (found == MATRIX).all()


@pytest.mark.parametrize("step", [1, 100, 10**6])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "float16"])
def test_npy_of_any_number_type_gives_the_same_rows(
    dtype: str, order: Literal["C", "F"], version: tuple[int, int], step: int
) -> None:
    values = np.array(np.round(MATRIX * 4) / 4, dtype, order=order)
    values[:, :2] = MATRIX[:, :2]

    found = read(NpyBatchReader(layout_of()), npy_of(values, version=version), step=step)

    assert found.dtype == np.float32
    assert (found == values.astype(np.float32)).all()


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_npy_may_hold_integers(dtype: type[np.generic]) -> None:
    values = np.eye(5).astype(dtype)

    assert (read(NpyBatchReader(layout_of()), npy_of(values)) == np.eye(5)).all()


@pytest.mark.parametrize("body", ["[]", " [ ] ", json.dumps(columns_of(ROWS[:1]))])
def test_batch_may_be_small(body: str) -> None:
    found = read(JsonBatchReader(layout_of()), body.encode())

    assert len(found) == ("cat" in body)


def test_space_before_a_batch_is_not_kept() -> None:
    reader = JsonBatchReader(layout_of())

    for _ in range(100):
        assert list(reader.feed(b" \n" * 100)) == []
        # What is kept would be searched again with each part.
        assert len(reader._buffer) == 0  # noqa: SLF001 -- there is no other sign

    with pytest.raises(ObservationError, match=r"at line 10001 column 2$"):
        read(reader, b"[x]")


@pytest.mark.parametrize("order", ["C", "F"])
def test_array_without_a_row_is_an_empty_batch(order: Literal["C", "F"]) -> None:
    header = {"descr": "<f4", "fortran_order": order == "F", "shape": (0, 5)}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)

    assert read(NpyBatchReader(layout_of()), file.getvalue()).shape[0] == 0


def test_columns_without_a_row_are_an_empty_batch() -> None:
    body = json.dumps({name: [] for name in ROWS[0]})

    assert len(read(JsonBatchReader(layout_of()), body.encode())) == 0
    assert len(read(NpyBatchReader(layout_of()), npy_of(np.empty((0, 5))))) == 0


def wrong_row(index: int, **values: object) -> bytes:
    """Return rows of which one has other values."""
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS]
    rows[index].update(values)
    return json.dumps(rows).encode()


MISTAKES: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "type": (wrong_row(37, cat="x"), [("body.37.cat", "int_type")]),
    "bound": (wrong_row(3, cat=11), [("body.3.cat", "less_than_equal")]),
    "item": (wrong_row(49, calls=[1, None]), [("body.49.calls.1", "float_type")]),
    "length": (wrong_row(20, calls=[1]), [("body.20.calls", "too_short")]),
    "NaN": (wrong_row(20, calls=[1, float("nan")]), [("body.20.calls.1", "finite_number")]),
    "unknown": (wrong_row(41, dog=1), [("body.41.dog", "extra_forbidden")]),
    "no object": (b"[1, 2]", [("body.0", "model_type"), ("body.1", "model_type")]),
    "no list": (b"3", [("body", "list_type")]),
    "nothing": (b"", [("body", "json_invalid")]),
    "trailing comma": (json.dumps(ROWS)[:-1].encode() + b",]", [("body", "json_invalid")]),
    "no end": (json.dumps(ROWS)[:-1].encode(), [("body", "json_invalid")]),
    "more": (json.dumps(ROWS).encode() + b"[]", [("body", "json_invalid")]),
    "two commas": (json.dumps(ROWS).replace("}, {", "},,{").encode(), [("body", "json_invalid")]),
    "list in list": (
        json.dumps(ROWS).replace("}, {", "}],[{").encode(),
        [("body", "json_invalid")],
    ),
}


@pytest.mark.parametrize("step", [5, 200, 10**6])
@pytest.mark.parametrize(("body", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_in_a_row_names_row_and_field(
    body: bytes, expected: list[tuple[str, str]], step: int
) -> None:
    assert problems_of(JsonBatchReader(layout_of()), body, step=step) == expected


@pytest.mark.parametrize("separator", [" ", "\n  "], ids=["one line", "lines"])
def test_place_of_a_syntax_error_is_that_in_the_whole_body(separator: str) -> None:
    body = json.dumps(ROWS, separators=("," + separator, ":"))
    broken = body[:2000].rpartition("{")[0] + "oops" + body[2000:]
    messages = set()
    for step in (10, 100, 10**6):
        with pytest.raises(ObservationError) as caught:
            read(JsonBatchReader(layout_of()), broken.encode(), step=step)
        messages.add(caught.value.problems[0]["msg"])

    line = broken[: broken.index("oops")].count("\n") + 1
    column = broken.index("oops") - broken.rfind("\n", 0, broken.index("oops"))
    assert messages == {f"JSON decode error: expected value at line {line} column {column}"}


def changed(**columns: object) -> bytes:
    """Return columns of which some are other ones; None leaves one out."""
    known = {**columns_of(ROWS), **columns}
    return json.dumps({k: v for k, v in known.items() if v is not None}).encode()


COLUMN_MISTAKES: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "type": (changed(cat=[1] * 9 + ["x"]), [("body.cat.9", "int_type")]),
    "item": (changed(calls=[[1, 2], [1, True]]), [("body.calls.1.1", "float_type")]),
    "length": (changed(calls=[[1, 2], [1]]), [("body.calls.1", "too_short")]),
    "missing": (
        changed(cat=None, calls=None),
        [("body.cat", "missing"), ("body.calls", "missing")],
    ),
    "unknown": (changed(dog=[1]), [("body.dog", "extra_forbidden")]),
    "no list": (changed(cat=4), [("body.cat", "list_type")]),
    "shorter": (changed(is_open=[True]), [("body.is_open", "columns_differ")]),
    "trailing comma": (changed()[:-1] + b",}", [("body", "json_invalid")]),
    "empty": (b"{}", [(f"body.{name}", "missing") for name in ROWS[0]]),
}


@pytest.mark.parametrize("step", [5, 10**6])
@pytest.mark.parametrize(("body", "expected"), COLUMN_MISTAKES.values(), ids=COLUMN_MISTAKES)
def test_mistake_in_a_column_names_field_and_row(
    body: bytes, expected: list[tuple[str, str]], step: int
) -> None:
    assert problems_of(JsonBatchReader(layout_of()), body, step=step) == expected


def npy_with(row: int, column: int, value: float, dtype: str = "f4") -> bytes:
    """Return an array with one other value."""
    values = MATRIX.astype(dtype)
    values[row, column] = value
    return npy_of(values)


def npy_of_shape(shape: str, *, is_by_column: bool = True) -> bytes:
    """Return the npy format of zeros with a shape that NumPy itself would not write."""
    header = f"{{'descr': '<f4', 'fortran_order': {is_by_column}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(20)


NPY_MISTAKES: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "NaN": (npy_with(7, 3, np.nan), [("body.7.calls.1", "finite_number")]),
    "infinity": (npy_with(7, 4, np.inf), [("body.7.speed", "finite_number")]),
    "too large": (npy_with(9, 2, 1e39, "f8"), [("body.9.calls.0", "number_too_large")]),
    "fraction": (npy_with(1, 0, 1.5), [("body.1.cat", "int_type")]),
    "below": (npy_with(1, 0, -1), [("body.1.cat", "greater_than_equal")]),
    "above": (npy_with(2, 0, 10), [("body.2.cat", "less_than_equal")]),
    "no truth": (npy_with(2, 1, 2), [("body.2.is_open", "less_than_equal")]),
    "width": (npy_of(MATRIX[:, :4]), [("body", "npy_shape")]),
    "one dimension": (npy_of(MATRIX[0]), [("body", "npy_shape")]),
    "three dimensions": (npy_of(MATRIX[None]), [("body", "npy_shape")]),
    "complex": (npy_of(MATRIX.astype(complex)), [("body", "npy_dtype")]),
    "text": (npy_of(MATRIX.astype(str)), [("body", "npy_dtype")]),
    "objects": (npy_of(MATRIX.astype(object)), [("body", "npy_dtype")]),
    "too short": (npy_of(MATRIX)[:-1], [("body", "npy_length")]),
    "too long": (npy_of(MATRIX) + b"x", [("body", "npy_length")]),
    "JSON": (json.dumps(ROWS).encode(), [("body", "npy_header")]),
    "empty": (b"", [("body", "npy_header")]),
    "header only begun": (npy_of(MATRIX)[:40], [("body", "npy_header")]),
    "version": (b"\x93NUMPY\x07" + npy_of(MATRIX)[7:], [("body", "npy_header")]),
    "long header": (npy_of(MATRIX)[:8] + b"\xff\xff" + b" " * 70000, [("body", "npy_header")]),
    "no header": (npy_of(MATRIX).replace(b"descr", b"desks"), [("body", "npy_header")]),
    "truth value in the shape": (npy_of_shape("(True, 5)"), [("body", "npy_header")]),
    "code": (
        npy_of(MATRIX).replace(b"'descr': '<f4'", b"'descr': f(1)\x20"),
        [("body", "npy_header")],
    ),
}


@pytest.mark.parametrize("step", [11, 10**6])
@pytest.mark.parametrize(("body", "expected"), NPY_MISTAKES.values(), ids=NPY_MISTAKES)
def test_mistake_in_an_array_names_row_and_field(
    body: bytes, expected: list[tuple[str, str]], step: int
) -> None:
    assert problems_of(NpyBatchReader(layout_of()), body, step=step) == expected


def test_raw_array_is_held_to_no_bounds_and_names_the_item() -> None:
    reader = NpyBatchReader(layout_of(is_raw=True))
    assert (read(reader, npy_with(1, 0, -1.5))[1, 0]) == -1.5

    assert problems_of(NpyBatchReader(layout_of(is_raw=True)), npy_with(5, 2, np.nan)) == [
        ("body.5.obs.2", "finite_number")
    ]


def test_array_of_lists_of_open_length_names_the_column() -> None:
    reader = NpyBatchReader(layout_of(OPEN, width=5))

    assert problems_of(reader, npy_with(5, 2, np.nan)) == [("body.5.2", "finite_number")]


@pytest.mark.parametrize(
    ("form", "place"),
    [(list, "body.2.calls"), (columns_of, "body.calls.2")],
    ids=["rows", "columns"],
)
def test_row_of_another_width_is_named(form: Callable[[Any], Any], place: str) -> None:
    good = {"calls": [1, 2, 3], "cat": 1}
    rows = [good, good, {"calls": [1, 2], "cat": 1}, good]

    found = problems_of(JsonBatchReader(layout_of(OPEN, width=4)), orjson.dumps(form(rows)))

    assert found == [(place, "too_short")]


@pytest.mark.parametrize(
    ("form", "place"),
    [(list, "body.2.obs"), (columns_of, "body.obs.2")],
    ids=["rows", "columns"],
)
def test_flat_row_of_another_width_is_named(form: Callable[[Any], Any], place: str) -> None:
    rows = [{"obs": [1, 2]}, {"obs": [1, 2]}, {"obs": [1, 2, 3]}]
    layout = layout_of(OPEN, width=2, is_raw=True)

    assert problems_of(JsonBatchReader(layout), orjson.dumps(form(rows))) == [(place, "too_long")]


@pytest.mark.parametrize(
    ("form", "place"),
    [(list, "body.3.calls"), (columns_of, "body.calls.3")],
    ids=["rows", "columns"],
)
def test_where_the_policy_leaves_the_width_open_rows_have_that_of_the_first(
    form: Callable[[Any], Any], place: str
) -> None:
    layout = layout_of(OPEN, width=None)
    rows = [{"calls": [1, 2], "cat": 1}] * 3

    assert read(JsonBatchReader(layout), orjson.dumps(form(rows))).shape == (3, 3)
    assert problems_of(
        JsonBatchReader(layout), orjson.dumps(form([*rows, {"calls": [1], "cat": 1}]))
    ) == [(place, "too_short")]


@pytest.mark.parametrize(
    ("reader", "body"),
    [
        (JsonBatchReader, json.dumps(ROWS).encode()),
        (JsonBatchReader, changed()),
        (NpyBatchReader, npy_of(MATRIX)),
    ],
    ids=["rows", "columns", "npy"],
)
@pytest.mark.parametrize("step", [50, 10**6])
def test_batch_over_the_limit_is_refused(
    reader: Callable[[BatchLayout], BatchReader], body: bytes, step: int
) -> None:
    assert len(read(reader(layout_of(max_rows=50)), body, step=step)) == 50

    with pytest.raises(BodyTooLargeError, match=r"more than 49 .*POLICY_SERVER_MAX_BATCH_ROWS"):
        read(reader(layout_of(max_rows=49)), body, step=step)


def mutations(body: bytes, choose: random.Random) -> Iterator[bytes]:
    """Yield bodies that are broken somewhere."""
    for _ in range(150):
        broken = bytearray(body)
        for _ in range(choose.randrange(1, 4)):
            at = choose.randrange(len(broken))
            broken[at : at + choose.randrange(3)] = choose.choice(
                [b"", b"}", b"]", b",", b'"', b"{", b"[", b" ", b"1", b"},{", b"\xff", b"\n"]
            )
        yield bytes(broken)


@pytest.mark.parametrize("text", ["compact rows", "rows", "columns", "indented columns"])
def test_broken_body_gets_the_same_verdict_however_it_arrives(text: str) -> None:
    choose = random.Random(7)  # noqa: S311 -- reproducible bodies, no secret
    layout, verdicts = layout_of(), set()
    for body in mutations(BODIES[text][:1500].encode() + BODIES[text][-200:].encode(), choose):
        outcomes = []
        for step in (9, 120, 10**6):
            try:
                outcomes.append(read(JsonBatchReader(layout), body, step=step).tolist())
            except ObservationError as error:
                outcomes.append(error.problems[0]["type"])
        # The first mistake that is met may be another one, but never none.
        is_refused = {isinstance(outcome, str) for outcome in outcomes}
        assert len(is_refused) == 1, body
        assert is_refused == {True} or outcomes[0] == outcomes[1] == outcomes[2]
        verdicts |= is_refused
    assert True in verdicts
