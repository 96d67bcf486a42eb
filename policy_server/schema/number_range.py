"""The numbers that a policy's own type of observation holds; any other number is refused.

A number that the type can't hold would be changed on the way to the policy (300 is 44 as uint8, 2.5
is 2), and the answer would be that to another observation.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import SchemaError
from policy_server.schema.fields import FLOAT32_MAX, Normalization, Number, ObservationField

__all__ = ["EXACT_INTEGER_MAX", "NumberRange", "number_range"]

# JSON's numbers are read, and observations travel, as 64-bit floats. Up to here no other whole
# number is rounded to one of these (RFC 8259, section 6).
EXACT_INTEGER_MAX = 2**53 - 1

_INTEGER = re.compile(r"(u?)int(\d+)")
# Casting rounds to the nearest number of the type, and a larger number to infinity.
_LARGEST_FLOATS = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep+127")}


@dataclass(frozen=True)
class NumberRange:
    """The numbers that a type of observation holds.

    Attributes:
        dtype: NumPy's name of the type.
        is_integer: whether it holds whole numbers only.
        low: the smallest.
        high: the largest.
        columns: the first number, the number behind the last one, and the narrower range of each
            part of an observation that has one of its own, such as an image of uint8 beside floats.
    """

    dtype: str
    is_integer: bool
    low: Number
    high: Number
    columns: tuple[tuple[int, int, NumberRange], ...] = ()

    def mistake(self, numbers: Sequence[Number]) -> tuple[int, NumberRange] | None:
        """Return the first number that its part's range lacks: its index, and that range.

        Args:
            numbers: an observation, or its beginning.
        """
        for first, stop, known in self.columns:
            part = numbers[first:stop]
            # A look at each number of an image takes several times as long.
            if known.holds(np.asarray(part, np.float64)):
                continue
            for place, number in enumerate(part, first):
                if not known.low <= number <= known.high or (known.is_integer and number % 1):
                    return place, known
        return None

    def holds(self, numbers: NDArray[Any]) -> bool:
        """Return whether all numbers are in this range, its parts aside; a NaN is in none.

        Args:
            numbers: of any shape.
        """
        if not numbers.size:
            return True
        is_within = self.low <= numbers.min() and numbers.max() <= self.high
        if not self.is_integer or numbers.dtype.kind != "f":
            return bool(is_within)
        return bool(is_within and (np.rint(numbers) == numbers).all())

    def narrowed(self, field: ObservationField, start: int) -> ObservationField:
        """Return a field that lies in a part of a narrower range, with that range.

        Args:
            field: an observation of schema.yaml, of a known length.
            start: the index of its first number in a row.
        """
        stop = start + (field.max_columns or 0)
        if field.kind == "bool" or field.one_hot is not None or field.normalize is not None:
            return field
        for first, last, known in self.columns:
            if first <= start and stop <= last:
                low = known.low if field.minimum is None else max(field.minimum, known.low)
                high = known.high if field.maximum is None else min(field.maximum, known.high)
                kind = "int" if known.is_integer else field.kind
                return replace(field, kind=kind, minimum=low, maximum=high)
        return field

    def within(self, field: ObservationField) -> tuple[Number, Number]:
        """Return the smallest and the largest number that a field and the policy both allow.

        A bound such as 4.8 takes the 32-bit float that is nearest to it, 4.800000190734863, too:
        an environment that is bounded there gives that one.

        Args:
            field: an observation of schema.yaml.
        """
        if field.kind == "bool":
            return 0, 1
        if field.one_hot is not None:
            known = _places_of(field.first, max(field.one_hot))
        else:
            known = self if field.normalize is None else self._before(field.normalize)
        known = known.whole if field.kind == "int" else known
        low = known.low if field.minimum is None else max(known.low, field.minimum)
        high = known.high if field.maximum is None else min(known.high, field.maximum)
        if known.is_integer:
            return math.ceil(low), math.floor(high)
        return min(low, _as_float32(low)), max(high, _as_float32(high))

    def _before(self, rule: Normalization) -> NumberRange:
        """Return the numbers whose normalized ones are in this range."""
        low, high = -FLOAT32_MAX, FLOAT32_MAX
        if rule.clip is None or rule.clip > min(-self.low, self.high):
            count = max(len(rule.mean), len(rule.std))
            means = rule.mean if len(rule.mean) > 1 else rule.mean * count
            deviations = rule.std if len(rule.std) > 1 else rule.std * count
            for mean, std in zip(means, deviations, strict=True):
                low = max(low, mean + self.low * (std + rule.epsilon))
                high = min(high, mean + self.high * (std + rule.epsilon))
        return NumberRange("float32", is_integer=False, low=low, high=high)

    @property
    def whole(self) -> NumberRange:
        """Return the range of the whole numbers in this one, as far as 64-bit floats hold them."""
        low = max(math.ceil(self.low), -EXACT_INTEGER_MAX)
        high = min(math.floor(self.high), EXACT_INTEGER_MAX)
        return replace(self, is_integer=True, low=low, high=high)

    def check_fields(self, fields: Sequence[ObservationField], source: str) -> None:
        """Refuse fields whose bounds leave no number of the type, or whose example is none of it.

        Args:
            fields: the observations of schema.yaml.
            source: the file's name, for messages.

        Raises:
            SchemaError: naming the first of them.
        """
        for field in fields:
            low, high = self.within(field)
            known = self.whole if field.kind == "int" else self
            if field.one_hot is not None:
                known = _places_of(field.first, max(field.one_hot))
            where = f"{source}: observations.{field.name}"
            if field.normalize is not None and self.is_integer:
                raise SchemaError(
                    f"{where}.normalize: gives fractions, the policy takes {self}; remove it"
                )
            if low > high:
                raise SchemaError(
                    f"{where}: its minimum and maximum allow none of the numbers that the policy "
                    f"takes, {known}; mend them"
                )
            for value in _numbers_of(field.example):
                if not low <= value <= high or (self.is_integer and value % 1):
                    raise SchemaError(
                        f"{where}.example: expected numbers that the policy takes, {known}, got "
                        f"{value}"
                    )

    def __str__(self) -> str:
        """Return the range in words, such as `whole numbers from 0 to 255 (uint8)`."""
        if self.is_integer:
            return f"whole numbers from {self.low} to {self.high} ({self.dtype})"
        return f"numbers from {self.low:.8g} to {self.high:.8g} ({self.dtype})"


def _places_of(first: int, size: int) -> NumberRange:
    """Return the integers that have a place in a one-hot vector."""
    return NumberRange("one-hot", is_integer=True, low=first, high=first + size - 1)


def _numbers_of(example: Any) -> Iterator[Number]:  # noqa: ANN401 -- numbers, lists of them, or None
    if isinstance(example, list):
        for item in example:
            yield from _numbers_of(item)
    elif example is not None:
        yield example


def _as_float32(number: Number) -> Number:
    """Return the 32-bit float that is nearest to a number; the number itself beyond them."""
    if abs(number) >= FLOAT32_MAX:
        return number
    nearest: float = struct.unpack("f", struct.pack("f", number))[0]
    return nearest


def number_range(dtype: str, columns: Sequence[tuple[str, int]] = ()) -> NumberRange:
    """Return the numbers that a type of observation holds.

    Args:
        dtype: NumPy's name of the type, such as a signature's `observation_dtype`.
        columns: the type and the width of each part of an observation, where they differ.

    Returns:
        The range of float32 for float64 too, since answers are given in float32; whole numbers of
        64 bits as far as 64-bit floats hold them exactly.
    """
    if columns:
        return replace(number_range(dtype), columns=tuple(_narrower(columns)))
    if dtype == "bool":
        return NumberRange(dtype, is_integer=True, low=0, high=1)
    integer = _INTEGER.fullmatch(dtype)
    if integer is None:
        largest = _LARGEST_FLOATS.get(dtype, FLOAT32_MAX)
        return NumberRange(dtype, is_integer=False, low=-largest, high=largest)
    is_unsigned, bits = bool(integer[1]), int(integer[2])
    high = 2**bits - 1 if is_unsigned else 2 ** (bits - 1) - 1
    low = 0 if is_unsigned else -high - 1
    return NumberRange(
        dtype,
        is_integer=True,
        low=max(low, -EXACT_INTEGER_MAX),
        high=min(high, EXACT_INTEGER_MAX),
    )


def _narrower(columns: Sequence[tuple[str, int]]) -> Iterator[tuple[int, int, NumberRange]]:
    """Yield the parts of an observation that hold fewer numbers than float32."""
    first = 0
    for dtype, width in columns:
        known = number_range(dtype)
        if known.is_integer or known.high < FLOAT32_MAX:
            yield first, first + width, known
        first += width
