"""The numbers of each part of a row, where the types of a policy's inputs differ.

A place of a row is known in the whole row only: a piece of one is held to no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ObservationError
from policy_server.observations.models import problem
from policy_server.schema import NumberRange

__all__ = ["check_row", "check_rows"]

_MOST_PROBLEMS = 100


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


def _problem(known: NumberRange, place: Sequence[str | int]) -> dict[str, Any]:
    return problem("number_of_part", ["body", *place], f"Input should be one of the {known}")
