"""Batches of observations: schemas, rows, and what a reader makes of a body."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.errors import ObservationError
from policy_server.observation_fit import fit_observations
from policy_server.observations import BatchLayout, BatchReader, ObservationSpace
from policy_server.policy import PolicySignature
from policy_server.schema import number_range, parse_schema
from policy_server.schema_fit import check_schema_fits

FIELDS = """
observations:
  cat: {type: int, minimum: 0, maximum: 9}
  is_open: {type: bool}
  calls: {type: "List[float]", min_items: 2, max_items: 2}
  speed: {type: float}
parameters: {api_key: k}
"""
OPEN = 'observations: {calls: {type: "List[float]"}, cat: {type: int}}\nparameters: {api_key: k}'
ROWS = [
    {"cat": i % 9, "is_open": i % 2 == 0, "calls": [i / 7, -i], "speed": i * 0.25}
    for i in range(50)
]


def layout_of(
    schema: str = FIELDS, *, is_raw: bool = False, width: int | None = 5, max_rows: int = 1000
) -> BatchLayout:
    """Return the layout of a schema's batches."""
    space = ObservationSpace(parse_schema(schema).observations)
    return BatchLayout(space, is_raw, width, np.float32, max_rows)


def space_of(schema: str, signature: PolicySignature) -> ObservationSpace:
    """Return the observations that a server takes for a policy by this schema.yaml."""
    parsed = parse_schema(schema)
    check_schema_fits(parsed, signature)
    numbers = number_range(signature.observation_dtype, signature.observation_columns)
    return ObservationSpace(fit_observations(parsed, signature), numbers)


def read(reader: BatchReader, body: bytes, *, step: int = 10**9) -> NDArray[Any]:
    """Feed a body in steps and return its rows."""
    parts = [
        rows for start in range(0, len(body), step) for rows in reader.feed(body[start:][:step])
    ]
    parts += reader.close()
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def columns_of(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def problems_of(reader: BatchReader, body: bytes, *, step: int = 10**9) -> list[tuple[str, str]]:
    """Return place and type of each mistake."""
    with pytest.raises(ObservationError) as caught:
        read(reader, body, step=step)
    return [(".".join(map(str, item["loc"])), item["type"]) for item in caught.value.problems]
