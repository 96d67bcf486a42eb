"""Batches for a policy whose inputs have different types: each number is held to its own part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from policy_server.errors import ObservationError
from policy_server.observations import BatchLayout, JsonBatchReader, ObservationSpace
from policy_server.schema import number_range
from tests.support.batches import problems_of, read

# Floats between two images of bytes; a part of 64 bytes is much less than a row.
PARTS = [("uint8", 300), ("float32", 200), ("uint8", 4)]
GOOD = [7] * 300 + [0.5, -1.5] * 100 + [1, 2, 3, 255]
WRONG = {"fraction": 2.5, "too large": 300, "negative": -1, "a small fraction": 2.00000001}


def reader_of(parts: Sequence[tuple[str, int]], *, largest_part: int = 64) -> JsonBatchReader:
    """Return the reader of raw rows of a policy with inputs of these types."""
    numbers = number_range("float32", parts)
    width = sum(size for _, size in parts)
    layout = BatchLayout(
        ObservationSpace(None, numbers), is_raw=True, width=width, dtype=np.float32, max_rows=1000
    )
    return JsonBatchReader(layout, largest_part=largest_part)


def bodies_of(rows: list[list[float]]) -> dict[str, bytes]:
    """Return both forms of a batch."""
    listed: Any = [{"obs": row} for row in rows]
    return {
        form: json.dumps(body).encode()
        for form, body in [("rows", listed), ("columns", {"obs": rows})]
    }


@pytest.mark.parametrize("largest_part", [64, 500, 100_000])
@pytest.mark.parametrize("step", [50, 1 << 20])
@pytest.mark.parametrize("form", ["rows", "columns"])
def test_row_that_is_read_in_pieces_is_taken_as_it_is_whole(
    form: str, step: int, largest_part: int
) -> None:
    body = bodies_of([GOOD, GOOD])[form]

    rows = read(reader_of(PARTS, largest_part=largest_part), body, step=step)

    assert rows.tolist() == [GOOD, GOOD]
    assert rows.dtype == np.float32


@pytest.mark.parametrize("largest_part", [64, 500, 100_000])
@pytest.mark.parametrize("column", [0, 299, 503])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_number_that_its_part_lacks_is_named_in_its_whole_row(
    wrong: float, column: int, largest_part: int
) -> None:
    row = [*GOOD]
    row[column] = wrong
    bodies = bodies_of([GOOD, row])

    for form, place in [("rows", f"1.obs.{column}"), ("columns", f"obs.1.{column}")]:
        reader = reader_of(PARTS, largest_part=largest_part)
        found = problems_of(reader, bodies[form], step=200)
        assert found == [(f"body.{place}", "number_of_part")]


def test_wrong_number_of_one_observation_is_named_by_its_index() -> None:
    space = ObservationSpace(None, number_range("float32", [("uint8", 2), ("float32", 1)]))

    with pytest.raises(ObservationError) as caught:
        space.parse_raw(b'{"obs": [1, 300, 0.5]}')

    message = "Input should be one of the whole numbers from 0 to 255 (uint8)"
    place = ["body", "obs", 1]
    assert caught.value.problems == [{"type": "number_of_part", "loc": place, "msg": message}]
