"""Long JSON batches: parsed in small parts, with the answer that parsing them whole gives."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_server.errors import ObservationError
from policy_server.observations import BatchLayout, JsonBatchReader, ObservationSpace
from policy_server.observations.json_batches import LARGEST_PART
from policy_server.schema import parse_schema
from tests.support.batches import FIELDS, OPEN, ROWS, columns_of, layout_of, problems_of, read


class CountingSpace(ObservationSpace):
    """Notes how many bytes are parsed in one step of a reader."""

    def __init__(self, schema: str) -> None:
        """Take the observations of a schema."""
        super().__init__(parse_schema(schema).observations)
        self.sizes: list[int] = []

    def parse_rows(self, body: bytes, *, is_raw: bool) -> list[list[float]]:
        """Note the size, and parse."""
        self.sizes.append(len(body))
        return super().parse_rows(body, is_raw=is_raw)

    def parse_columns(self, body: bytes, *, is_raw: bool) -> dict[str, list[Any]]:
        """Note the size, and parse."""
        self.sizes.append(len(body))
        return super().parse_columns(body, is_raw=is_raw)


STEP = 16_384
MANY = 40_000
NUMBERS = ",".join(["1.5"] * (4 * MANY))
LONG_BODIES = {
    "one column": (True, '{"obs":[' + ",".join(["[1,2,3.25,4,5]"] * MANY) + "]}"),
    "indented": (True, '{\n "obs": [\n' + " ,\n ".join(["[1, 2,\n3.25, 4,5]"] * MANY) + "]}"),
    "named columns": (
        False,
        "{"
        + ",".join(
            f'"{name}":[{",".join([value] * MANY)}]'
            for name, value in zip(ROWS[0], ["7", "true", "[1,2]", "0.25"], strict=True)
        )
        + "}",
    ),
    "an escaped name": (
        False,
        '{"c\\u0061t":[' + ",".join(["7"] * MANY) + "],"
        '"is_open":[' + ",".join(["true"] * MANY) + "],"
        '"calls":[' + ",".join(["[1,2]"] * MANY) + "],"
        '"speed":[' + ",".join(["1e-2"] * MANY) + "]}",
    ),
    "one observation": (True, '{"obs":[[' + NUMBERS + "]]}"),
    "one observation in a list": (True, '[{"obs":[' + NUMBERS + "]}]"),
}
LONG_MISTAKES = {
    "numbers in place of lists": (True, '{"obs":[' + NUMBERS + "]}", "body.obs.0"),
    "numbers in place of rows": (True, "[" + NUMBERS + "]", "body.0"),
    "lists in place of rows": (True, "[" + ",".join(["[1,2]"] * MANY) + "]", "body.0"),
    "lists in lists": (True, '{"obs":[' + ",".join(["[[1,2],[3]]"] * MANY) + "]}", "body.obs.0.0"),
    "an unknown column": (False, '{"dog":[' + NUMBERS + "]}", "body.dog"),
    "a map in place of a column": (
        False,
        '{"cat":{' + ",".join(['"1":2'] * MANY) + "}}",
        "body.cat",
    ),
    "texts": (False, '{"speed":[' + ",".join(['"a],{b\\""'] * MANY) + "]}", "body.speed.0"),
    "the last of many": (False, '{"speed":[' + NUMBERS + ",null]}", f"body.speed.{4 * MANY}"),
    "one that is wrapped": (
        False,
        '{"data":[' + ",".join(['{"cat":1}'] * MANY) + "]}",
        "body.data",
    ),
    "too deep": (False, '{"cat":' + "[" * MANY, "body"),
    "a list with the end of a map": (
        True,
        '{"obs":[' + ",".join(["[1,2,3,4,5]"] * 9) + " " * MANY * 2 + "}}",
        "body",
    ),
    "one long observation": (False, '[{"cat":[' + NUMBERS + "]}]", "body.0.cat"),
}


def read_counting(schema: str, body: str, *, is_raw: bool, width: int | None) -> CountingSpace:
    """Read a body, and return the space that counted how much was parsed at once."""
    space = CountingSpace(schema)
    layout = BatchLayout(space, is_raw, width, np.float32, 10**6)
    try:
        read(JsonBatchReader(layout), body.encode(), step=STEP)
    finally:
        # An observation is parsed at once as long as it is no longer than four parts.
        assert 0 < max(space.sizes) <= 4 * LARGEST_PART + 2 * STEP
    return space


# What a token without an end follows, and what it repeats.
ENDLESS = {
    "a text": ('[{"cat": "', "a"),
    "an escaped text": ('[{"cat": "', '\\"],{'),
    "a number": ('[{"cat": ', "1"),
    "white space in front": ("[", " "),
    "white space behind a comma": ('[{"cat": 1},', "\n"),
    "white space behind the end": ("[]", " "),
    "a name": ('{"', "a"),
    "an escaped name": ('{"speed": [1], "', '\\"'),
    "white space behind a name": ('{"speed"', " "),
    "white space in a column": ('{"speed": [1,', " "),
    "a text in a column": ('{"speed": ["', "a"),
    "a number in a column": ('{"obs": [[1], [', "1"),
}


def read_without_end(reader: JsonBatchReader, body: bytes) -> None:
    """Feed the first bytes of a body, which hold no row."""
    for start in range(0, len(body), STEP):
        assert not list(reader.feed(body[start : start + STEP]))


@pytest.mark.parametrize(("start", "repeated"), ENDLESS.values(), ids=ENDLESS)
def test_token_without_an_end_is_refused_before_it_takes_long(start: str, repeated: str) -> None:
    space = CountingSpace(FIELDS)
    layout = BatchLayout(space, start.startswith('{"obs'), None, np.float32, 10**6)
    body = start + repeated * (2**20 // len(repeated))

    with pytest.raises(ObservationError) as caught:
        read_without_end(JsonBatchReader(layout), body.encode())

    (mistake,) = caught.value.problems
    assert mistake["type"] == "token_too_long"
    assert "more than 131072 bytes" in mistake["msg"]
    assert max(space.sizes, default=0) <= 4 * LARGEST_PART


def test_white_space_of_some_length_is_taken() -> None:
    gap = " " * 60_000
    rows = f'[{gap}{{"obs":{gap}[1,{gap}2,3,4,5]}}{gap}]{gap}'.encode()
    columns = f'{{{gap}"obs"{gap}:{gap}[{gap}[1,2,3,4,5]{gap}]}}'.encode()
    for body in (rows, columns):
        assert read(JsonBatchReader(layout_of(FIELDS, is_raw=True)), body, step=STEP).tolist() == [
            [1.0, 2.0, 3.0, 4.0, 5.0]
        ]


@pytest.mark.parametrize(("is_raw", "body"), LONG_BODIES.values(), ids=LONG_BODIES)
def test_no_step_parses_more_than_a_part_of_a_long_body(is_raw: bool, body: str) -> None:  # noqa: FBT001 -- a case
    assert len(body) > 10 * LARGEST_PART
    width = None if NUMBERS in body else 5

    space = read_counting(FIELDS, body, is_raw=is_raw, width=width)

    if width is not None:
        assert max(space.sizes) <= LARGEST_PART + 2 * STEP


@pytest.mark.parametrize(("is_raw", "body", "place"), LONG_MISTAKES.values(), ids=LONG_MISTAKES)
def test_mistake_in_a_long_body_is_named_and_takes_no_long_step(
    is_raw: bool,  # noqa: FBT001 -- a case
    body: str,
    place: str,
) -> None:
    with pytest.raises(ObservationError) as caught:
        read_counting(FIELDS, body, is_raw=is_raw, width=5)

    assert ".".join(map(str, caught.value.problems[0]["loc"])) == place


NUMBER = st.one_of(st.integers(0, 9), st.floats(-1e6, 1e6, width=32))
SCHEMAS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    FIELDS: st.fixed_dictionaries(
        {
            "cat": st.integers(0, 9),
            "is_open": st.booleans(),
            "calls": st.lists(NUMBER, min_size=2, max_size=2),
            "speed": NUMBER,
        }
    ),
    OPEN: st.fixed_dictionaries(
        {"calls": st.lists(NUMBER, min_size=4, max_size=4), "cat": st.integers(0, 9)}
    ),
    "parameters: {}": st.fixed_dictionaries({"obs": st.lists(NUMBER, min_size=5, max_size=5)}),
}
WRONG: list[Any] = [
    [1] * 9,
    None,
    "a],{b",
    "x",
    {},
    {"a": [1, {"b": 2}]},
    [],
    [[1, 2], [3]],
    1e300,
    -1,
    2.5,
]
SEPARATORS = [(",", ":"), (", ", ": "), (" , \n", "\t: ")]
SPLICES = ["", "}", "]", ",", '"', "{", "[", " ", "1", "},{", "\n", "],", '"cat":[', '],"', "\\"]
LAYOUTS = {
    (schema, width): layout_of(schema, is_raw=schema not in (FIELDS, OPEN), width=width)
    for schema in SCHEMAS
    for width in (5, None)
}


@st.composite
def batches(draw: st.DrawFn) -> tuple[BatchLayout, str]:
    """Draw a batch in any form and layout, right or with one wrong value in it."""
    schema = draw(st.sampled_from(list(SCHEMAS)))
    rows = draw(st.lists(SCHEMAS[schema], min_size=1, max_size=30))
    names = draw(st.permutations(list(rows[0])))
    document: Any = rows
    if draw(st.integers(0, 3)):
        document = {name: [row[name] for row in rows] for name in names}
    if draw(st.booleans()):
        values: Any = draw(st.sampled_from(document)) if document is rows else document
        key: Any = draw(st.sampled_from(list(values)))
        if document is not rows and draw(st.integers(0, 4)):
            values, key = values[key], draw(st.integers(0, len(rows) - 1))
        # A text behind a list looks like the next column's name, if the column is short.
        is_text_wrong = not isinstance(values[key], list)
        wrong = [item for item in WRONG if is_text_wrong or not isinstance(item, str)]
        values[key] = draw(st.sampled_from(wrong))
    text = json.dumps(
        document,
        indent=draw(st.sampled_from([None, 0, 1])),
        separators=draw(st.sampled_from(SEPARATORS)),
    )
    if draw(st.integers(0, 9)) == 0:
        text = text.replace('"cat"', '"c\\u0061t"')
    return LAYOUTS[schema, draw(st.sampled_from([5, None]))], text


def outcome(reader: JsonBatchReader, body: str, step: int) -> tuple[str, Any]:
    """Return the rows, or all mistakes with their words and places."""
    try:
        return "rows", read(reader, body.encode(), step=step).tolist()
    except ObservationError as error:
        return "mistakes", [dict(item) for item in error.problems]


@given(batches(), st.integers(1, 200), st.integers(1, 200))
def test_batch_in_parts_gives_what_it_gives_whole(
    batch: tuple[BatchLayout, str], largest_part: int, step: int
) -> None:
    layout, body = batch
    whole = JsonBatchReader(layout, largest_part=10**9)
    parts = JsonBatchReader(layout, largest_part=largest_part)

    assert outcome(parts, body, step) == outcome(whole, body, 10**9)


@given(batches(), st.data(), st.integers(1, 100), st.integers(1, 100))
def test_broken_batch_in_parts_gets_the_verdict_of_the_whole(
    batch: tuple[BatchLayout, str], data: st.DataObject, largest_part: int, step: int
) -> None:
    layout, body = batch
    at = data.draw(st.integers(0, len(body)))
    splice = data.draw(st.sampled_from(SPLICES))
    broken = body[:at] + splice + body[at + data.draw(st.integers(0, 2)) :]

    found = outcome(JsonBatchReader(layout, largest_part=largest_part), broken, step)
    expected = outcome(JsonBatchReader(layout, largest_part=10**9), broken, 10**9)

    assert found[0] == expected[0]
    if expected[0] == "rows":
        assert found == expected


def test_column_of_open_width_has_rows_of_one_length_beyond_a_slice() -> None:
    rows = [{"calls": [1, 2], "cat": 1}] * 2048 + [{"calls": [1], "cat": 1}]
    body = json.dumps(columns_of(rows)).encode()

    found = problems_of(JsonBatchReader(layout_of(OPEN, width=None, max_rows=9999)), body)

    assert found == [("body.calls.2048", "too_short")]
