"""The numbers of each part of a row, where the types of a policy's inputs differ.

A place of a row is known in the whole row only: a piece of one is held to no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ObservationError
from policy_server.observations.annotations import JSON_TYPES
from policy_server.observations.models import problem
from policy_server.schema import NumberRange, ObservationField

__all__ = ["NamedParts", "check_row", "check_rows", "named_place", "places_of_parts"]

_MOST_PROBLEMS = 100
# The document has a line or more for each.
_MOST_PLACES = 100


class NamedParts:
    """The rows of named observations whose fields alone don't hold each number to its part."""

    def __init__(
        self,
        fields: Sequence[ObservationField],
        numbers: NumberRange,
        row_of: Callable[[Iterable[Any]], list[float]],
    ) -> None:
        """Own the fields.

        Args:
            fields: the observations in order.
            numbers: the numbers of the policy's types.
            row_of: makes the row of one observation's values.
        """
        self._fields, self._numbers, self._row_of = fields, numbers, row_of

    def row(self, values: Iterable[Any], *place: int) -> list[float]:
        """Return the row of one observation.

        Args:
            values: those of its fields in order.
            place: its index in a batch.

        Raises:
            ObservationError: naming the first number that its part does not hold.
        """
        given = list(values)
        row = self._row_of(given)
        check_row(row, self._numbers, lambda column: [*place, *self._place(given, column)])
        return row

    def check_columns(self, rows: NDArray[Any], columns: Sequence[Any], start: int) -> None:
        """Refuse rows of a batch by column with a number that its part does not hold.

        Args:
            rows: number[B, D].
            columns: for each field in order the values that the rows were made of.
            start: the index of the first row in the batch.

        Raises:
            ObservationError: naming the first 100 mistakes in one part.
        """

        def place(row: int, column: int) -> list[str | int]:
            name, *inner = self._place([values[row] for values in columns], column)
            return [name, start + row, *inner]

        check_rows(rows, self._numbers, place)

    def _place(self, values: Sequence[Any], column: int) -> list[str | int]:
        return named_place(self._fields, [int(np.size(value)) for value in values], column)


def check_row(
    row: Sequence[float], numbers: NumberRange, place: Callable[[int], Sequence[str | int]]
) -> None:
    """Refuse a row with a number that the type of its part does not hold.

    Args:
        row: the numbers of an observation, or those that it begins with.
        numbers: the numbers of the policy's types.
        place: gives the path of a number in the body by its column.

    Raises:
        ObservationError: naming the first mistake.
    """
    found = numbers.mistake(row)
    if found is not None:
        column, known = found
        raise ObservationError([_problem(known, place(column))])


def check_rows(
    rows: NDArray[Any], numbers: NumberRange, place: Callable[[int, int], Sequence[str | int]]
) -> None:
    """Refuse rows with a number that the type of its part does not hold.

    Args:
        rows: number[B, D], not rounded to another type yet.
        numbers: the numbers of the policy's types.
        place: gives the path of a number in the body by its row and column.

    Raises:
        ObservationError: naming the first 100 mistakes in one part.
    """
    for first, stop, known in numbers.columns:
        part = rows[:, first:stop]
        if known.holds(part):
            continue
        is_wrong = ~((part >= known.low) & (part <= known.high))
        if known.is_integer:
            is_wrong |= part != np.rint(part)
        wrong = np.argwhere(is_wrong)[:_MOST_PROBLEMS].tolist()
        raise ObservationError([_problem(known, place(row, first + at)) for row, at in wrong])


def named_place(
    fields: Sequence[ObservationField], sizes: Sequence[int], column: int
) -> list[str | int]:
    """Return the name and the place in a named observation of a number of its row.

    Args:
        fields: the observations in order.
        sizes: how many items the value of each has.
        column: the number's, not one of a one-hot vector or an action mask.
    """
    place = column
    for field, items in zip(fields, sizes, strict=False):
        width = field.columns_of(items)
        if place < width:
            inner = np.unravel_index(place, field.shape or (items,)) if field.is_list else ()
            return [field.name, *map(int, inner)]
        place -= width
    return [column]


def places_of_parts(numbers: NumberRange, width: int) -> dict[str, Any]:
    """Return the JSON schema of a row's places, where inputs differ in type and a row is short.

    Args:
        numbers: the numbers of the policy's types.
        width: how many numbers a row has.
    """
    if not numbers.columns or width > _MOST_PLACES:
        return {}
    places: list[dict[str, Any]] = []
    for first, stop, known in numbers.over(0, width):
        kind = JSON_TYPES["int" if known.is_integer else "float"]
        place = {"type": kind, "minimum": known.low, "maximum": known.high}
        places += [place] * (stop - first)
    return {"prefixItems": places}


def _problem(known: NumberRange, place: Sequence[str | int]) -> dict[str, Any]:
    return problem("number_of_part", ["body", *place], f"Input should be one of the {known}")
