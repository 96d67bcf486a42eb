"""The observations of a closed loop: an example, one's own, or random ones in range."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from policy_server.commands.client import (
    PolicyClient,
    example_observation,
    is_flat,
    read_observation,
)

__all__ = ["AskedObservations", "observations_of"]

_RANDOM = "random"
_MOST_RANDOM = 256
# The bounds of a random number where the schema has none.
_LOW, _HIGH = -1.0, 1.0
_LONGEST = 4


class AskedObservations:
    """The bodies of requests, each the JSON of an observation.

    Attributes:
        bodies: at least one.
        is_raw: whether they are `{"obs": [...]}`.
    """

    def __init__(self, bodies: list[bytes], *, is_raw: bool) -> None:
        """Own the bodies.

        Args:
            bodies: see the class.
            is_raw: see the class.
        """
        self.bodies = bodies
        self.is_raw = is_raw


def observations_of(
    client: PolicyClient,
    schema: Mapping[str, Any],
    observation: str | None,
    *,
    read_standard_input: Callable[[], str],
) -> AskedObservations:
    """Return the observations that a policy is asked about.

    Args:
        client: of the server and the policy.
        schema: as the server gives it.
        observation: JSON, a file with JSON, or `-`; `random` for random ones in range; None for the
            server's own example.
        read_standard_input: gives the text that is piped in.

    Raises:
        SettingsError: if the observation is none of these.
        ServerAnswerError: if the server can't be reached, or gives no example.
    """
    if observation == _RANDOM:
        return _random(schema)
    text = (
        example_observation(client)
        if observation is None
        else read_observation(observation, read_standard_input)
    )
    value = json.loads(text)
    if isinstance(value, list):
        return AskedObservations([f'{{"obs": {text}}}'.encode()], is_raw=True)
    return AskedObservations([text.encode()], is_raw=is_flat(value, schema))


def _random(schema: Mapping[str, Any]) -> AskedObservations:
    generator = np.random.default_rng()
    fields: Mapping[str, Mapping[str, Any]] = schema.get("observations") or {}
    if fields:
        values = [
            {name: _value(field, generator) for name, field in fields.items()}
            for _ in range(_MOST_RANDOM)
        ]
        return AskedObservations([orjson.dumps(value) for value in values], is_raw=False)
    width = schema["policy"]["observation_width"] or _LONGEST
    rows = generator.uniform(_LOW, _HIGH, (_MOST_RANDOM, width)).round(4)
    return AskedObservations([orjson.dumps({"obs": row}) for row in rows.tolist()], is_raw=True)


def _value(field: Mapping[str, Any], generator: np.random.Generator) -> Any:  # noqa: ANN401 -- any JSON
    """Return a random value of a field."""
    kind = str(field["type"])
    shape = field.get("shape")
    if "ist" not in kind:
        return _numbers(field, kind, 1, generator)[0]
    if shape:
        flat = _numbers(field, kind, int(np.prod(shape)), generator)
        nested: Any = np.array(flat, object).reshape(shape).tolist()
        return nested
    fewest = field.get("min_items") or 0
    most = field.get("max_items")
    length = max(fewest, _LONGEST) if most is None else most
    return _numbers(field, kind, length, generator)


def _numbers(
    field: Mapping[str, Any], kind: str, count: int, generator: np.random.Generator
) -> list[Any]:
    if "bool" in kind:
        return [bool(number) for number in generator.integers(0, 2, count)]
    if field.get("one_hot"):
        sizes = field["one_hot"] if isinstance(field["one_hot"], list) else [field["one_hot"]]
        first = field.get("minimum") or 0
        return [first + int(generator.integers(sizes[at % len(sizes)])) for at in range(count)]
    low, high = _range_of(field)
    if "int" in kind:
        first, last = math.ceil(low), math.floor(high)
        return [int(number) for number in generator.integers(first, last + 1, count)]
    drawn = generator.uniform(low, high, count).round(4).clip(low, high)
    return [float(number) for number in drawn]


def _range_of(field: Mapping[str, Any]) -> tuple[float, float]:
    """Return the bounds of a field; where it has one of them, the other is two away."""
    low, high = field.get("minimum"), field.get("maximum")
    if low is None:
        low = _LOW if high is None or high > _LOW else high - (_HIGH - _LOW)
    if high is None:
        high = _HIGH if low < _HIGH else low + (_HIGH - _LOW)
    return float(low), float(high)
