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
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.schema.fields import FLOAT32_MAX, Normalization, Number, ObservationField

__all__ = ["EXACT_INTEGER_MAX", "NumberRange", "number_range", "places_of"]

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

    def over(self, start: int, stop: int) -> list[tuple[int, int, NumberRange]]:
        """Return the parts of some columns: the first one, the one behind the last, their range.

        Args:
            start: the first of the columns.
            stop: the column behind the last.
        """
        found, column, other = [], start, replace(self, columns=())
        for first, last, known in self.columns:
            if last <= start or stop <= first:
                continue
            if column < first:
                found.append((column, first, other))
            column = min(last, stop)
            found.append((max(first, start), column, known))
        return [*found, (column, stop, other)] if column < stop else found

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
            known = places_of(field.first, max(field.one_hot))
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

    def __str__(self) -> str:
        """Return the range in words, such as `whole numbers from 0 to 255 (uint8)`."""
        if self.is_integer:
            return f"whole numbers from {self.low} to {self.high} ({self.dtype})"
        return f"numbers from {self.low:.8g} to {self.high:.8g} ({self.dtype})"


def places_of(first: int, size: int) -> NumberRange:
    """Return the integers that have a place in a one-hot vector.

    Args:
        first: the integer of the first place.
        size: how many places there are.
    """
    return NumberRange("one-hot", is_integer=True, low=first, high=first + size - 1)


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
    stop = 0
    # A field may lie over inputs of one type as over one.
    for dtype, inputs in groupby(columns, itemgetter(0)):
        first, known = stop, number_range(dtype)
        stop += sum(width for _, width in inputs)
        if known.is_integer or known.high < FLOAT32_MAX:
            yield first, stop, known
