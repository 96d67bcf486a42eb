"""The numbers that a policy's own type holds, and a schema.yaml that asks for others."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.errors import SchemaError
from policy_server.schema import (
    FLOAT32_MAX,
    ObservationField,
    check_fields,
    number_range,
    parse_schema,
)

EXACT = 2**53 - 1


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "uint8", "uint16", "uint32"], ids=lambda name: name
)
def test_integers_have_the_types_own_range(dtype: str) -> None:
    known, numbers = np.iinfo(dtype), number_range(dtype)

    assert (numbers.low, numbers.high, numbers.is_integer) == (known.min, known.max, True)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "is_integer"),
    [
        ("int64", -EXACT, EXACT, True),
        ("uint64", 0, EXACT, True),
        ("bool", 0, 1, True),
        ("float16", -65504.0, 65504.0, False),
        ("bfloat16", -3.3895313892515355e38, 3.3895313892515355e38, False),
        ("float32", -FLOAT32_MAX, FLOAT32_MAX, False),
        ("float64", -FLOAT32_MAX, FLOAT32_MAX, False),
    ],
)
def test_other_types_hold_what_arrives_unchanged(
    dtype: str, low: float, high: float, *, is_integer: bool
) -> None:
    numbers = number_range(dtype)

    assert (numbers.low, numbers.high, numbers.is_integer) == (low, high, is_integer)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_largest_integers_arrive_exactly_as_64_bit_floats(dtype: str) -> None:
    high = number_range(dtype).high

    assert int(np.float64(high)) == high
    assert float(high + 1) == float(high + 2)


@pytest.mark.parametrize(
    ("dtype", "field", "message"),
    [
        (
            "uint8",
            "{type: int, example: -1}",
            "a.example: expected numbers that the policy takes, whole numbers from 0 to 255 "
            "(uint8), got -1",
        ),
        (
            "int32",
            "{type: 'List[float]', example: [1, 2.5]}",
            "a.example: expected numbers that the policy takes, whole numbers from -2147483648 to "
            "2147483647 (int32), got 2.5",
        ),
        (
            "uint8",
            "{type: int, minimum: 300}",
            "a: its minimum and maximum allow none of the numbers that the policy takes, whole "
            "numbers from 0 to 255 (uint8); mend them",
        ),
        (
            "int64",
            "{type: float, minimum: 0.2, maximum: 0.8}",
            "a: its minimum and maximum allow none of the numbers that the policy takes, whole "
            f"numbers from -{EXACT} to {EXACT} (int64); mend them",
        ),
        (
            "float16",
            "{type: float, example: 70000}",
            "a.example: expected numbers that the policy takes, numbers from -65504 to 65504 "
            "(float16), got 70000",
        ),
    ],
    ids=["example", "fraction", "no integer", "none between", "half"],
)
def test_field_that_the_policy_can_take_no_number_of_is_one_line(
    dtype: str, field: str, message: str
) -> None:
    schema = parse_schema(f"observations: {{a: {field}}}")

    with pytest.raises(SchemaError) as caught:
        check_fields(schema.observations or (), number_range(dtype), schema.source)

    assert caught.value.message == f"schema.yaml: observations.{message}"


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "float16", "float32"])
def test_field_that_the_policy_takes_passes(dtype: str) -> None:
    schema = parse_schema(
        "observations: {a: {type: int, minimum: -5, example: 1}, b: {type: bool, example: true}, "
        "c: {type: 'List[float]', example: [1.0, 0]}, d: {type: float, maximum: 0.5}}"
    )

    check_fields(schema.observations or (), number_range(dtype), schema.source)


@pytest.mark.parametrize("bound", [2.3, 4.8, 0.1, 1e-45, 3.4e38])
def test_float_bound_takes_the_float32_nearest_to_it(bound: float) -> None:
    field = ObservationField("x", "float", minimum=-bound, maximum=bound)

    low, high = number_range("float32").within(field)

    assert low <= -bound <= bound <= high
    assert low <= np.float64(np.float32(-bound)) <= np.float64(np.float32(bound)) <= high
    assert high == max(bound, np.float64(np.float32(bound)))


@pytest.mark.parametrize("wrong", [-1, 256, 2.5, float("nan")])
def test_first_number_that_its_part_does_not_hold_is_told(wrong: float) -> None:
    numbers = number_range("float32", [("float32", 2), ("uint8", 3)])

    assert numbers.mistake([0.5, 300, 0, 255.0, 7]) is None
    assert numbers.mistake([0.5, 300]) is None
    found = numbers.mistake([0.5, 300, 0, wrong, wrong])
    assert found == (3, number_range("uint8"))
