"""The fields of schema.yaml over the parts of a row, which hold numbers of different ranges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from policy_server.errors import SchemaError
from policy_server.schema.fields import Number, ObservationField
from policy_server.schema.number_range import NumberRange, places_of

__all__ = ["are_held", "check_fields", "narrowed"]


def narrowed(field: ObservationField, start: int, numbers: NumberRange) -> ObservationField:
    """Return a field with the range of the parts that it lies in.

    A field over several parts gets the range that covers all of them, and an example that each
    of them holds.

    Args:
        field: an observation of schema.yaml, of a known length.
        start: the index of its first number in a row.
        numbers: the numbers that the policy's types hold.
    """
    parts = numbers.over(start, start + (field.max_columns or 0))
    ranges = [known for _, _, known in parts]
    if _is_held_anywhere(field) or not any(known in ranges for _, _, known in numbers.columns):
        return field
    if field.normalize is not None:
        low, high = ranges[0].within(field)
        return field if len(ranges) > 1 else replace(field, minimum=low, maximum=high)
    low, high = min(known.low for known in ranges), max(known.high for known in ranges)
    return replace(
        field,
        kind="int" if all(known.is_integer for known in ranges) else field.kind,
        minimum=low if field.minimum is None else max(field.minimum, low),
        maximum=high if field.maximum is None else min(field.maximum, high),
        example=_example_over(field, parts) if len(parts) > 1 else field.example,
    )


def are_held(fields: Sequence[ObservationField], numbers: NumberRange) -> bool:
    """Return whether the fields' own types and bounds hold each part's numbers to its range.

    Args:
        fields: the observations in order.
        numbers: the numbers that the policy's types hold.
    """
    start, end = 0, max((last for _, last, _ in numbers.columns), default=0)
    ranges = [known for _, _, known in numbers.columns]
    for field in fields:
        if start >= end:
            break
        if not field.has_fixed_length:
            return False
        stop = start + (field.max_columns or 0)
        low, high = numbers.within(field)
        narrower = [known for _, _, known in numbers.over(start, stop) if known in ranges]
        if narrower and field.normalize is not None:
            # Its bounds are those before it is normalized.
            return False
        if not _is_held_anywhere(field) and any(
            low < known.low or high > known.high or (known.is_integer and field.kind != "int")
            for known in narrower
        ):
            return False
        start = stop
    return True


def check_fields(fields: Sequence[ObservationField], numbers: NumberRange, source: str) -> None:
    """Refuse fields whose bounds leave no number of the type, or whose example is none of it.

    Args:
        fields: the observations of schema.yaml.
        numbers: the numbers that the policy's types hold.
        source: the file's name, for messages.

    Raises:
        SchemaError: naming the first of them.
    """
    start: int | None = 0
    for field in fields:
        values, where = [*_numbers_of(field.example)], f"{source}: observations.{field.name}"
        if start is None or not field.has_fixed_length:
            # It is not known which parts the numbers lie in: each row is checked.
            _check_field(numbers, field, values, where)
            start = None
            continue
        stop = start + (field.max_columns or 0)
        for first, last, known in numbers.over(start, stop):
            _check_field(known, field, values[first - start : last - start], where)
        start = stop


def _check_field(
    numbers: NumberRange, field: ObservationField, values: Sequence[Number], where: str
) -> None:
    """Refuse a field over numbers of one range, with the numbers of its example there."""
    low, high = numbers.within(field)
    known = numbers.whole if field.kind == "int" else numbers
    if field.one_hot is not None:
        known = places_of(field.first, max(field.one_hot))
    if field.normalize is not None and numbers.is_integer:
        raise SchemaError(
            f"{where}.normalize: gives fractions, the policy takes {numbers}; remove it"
        )
    if low > high:
        raise SchemaError(
            f"{where}: its minimum and maximum allow none of the numbers that the policy "
            f"takes, {known}; mend them"
        )
    for value in values:
        if not low <= value <= high or (numbers.is_integer and value % 1):
            raise SchemaError(
                f"{where}.example: expected numbers that the policy takes, {known}, got {value}"
            )


def _is_held_anywhere(field: ObservationField) -> bool:
    """Return whether a field gives zeros and ones alone, which every type holds."""
    return field.kind == "bool" or field.one_hot is not None


def _example_over(field: ObservationField, parts: Sequence[tuple[int, int, NumberRange]]) -> Any:  # noqa: ANN401 -- a list of numbers, or of lists
    """Return a field's example, else one whose numbers their parts and the field allow."""
    if field.example is not None:
        return field.example
    values: list[Number] = []
    for first, last, known in parts:
        low, high = known.within(field)
        values += [min(max(low, 0), high)] * (last - first)
    return np.array(values).reshape(field.shape or (len(values),)).tolist()


def _numbers_of(example: Any) -> Iterator[Number]:  # noqa: ANN401 -- numbers, lists of them, or None
    if isinstance(example, list):
        for item in example:
            yield from _numbers_of(item)
    elif example is not None:
        yield example
