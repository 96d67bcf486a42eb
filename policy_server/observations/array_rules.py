"""The types and bounds of the numbers in arrays, by the fields of schema.yaml."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ObservationError
from policy_server.observations.models import TOO_LARGE, problem
from policy_server.observations.part_rules import check_rows
from policy_server.schema import FLOAT32_MAX, NumberRange, ObservationField

__all__ = ["ArrayRules"]

_MOST_PROBLEMS = 100


class ArrayRules:
    """The rules that each number of an observation is held to.

    They are the fields' own where all lists have fixed lengths: only then is it known to which
    field a number belongs. Otherwise, and for flat observations, they are the policy's.
    """

    def __init__(self, fields: Sequence[ObservationField] | None, numbers: NumberRange) -> None:
        """Own the bounds.

        Args:
            fields: an observation's fields in order; None for a flat observation.
            numbers: the numbers that the policy's type holds.
        """
        is_known = all(field.has_fixed_length for field in fields or ())
        self._fields = tuple(fields or ()) if is_known else ()
        self._unnamed = ["obs"] if fields is None else []
        items = [field.items for field in self._fields]
        self._starts = np.cumsum([0, *items])
        self.items = int(self._starts[-1]) if self._fields else None
        bounds = [numbers.within(field) for field in self._fields]
        # One for every number where fields are not told apart.
        low, high = np.array(bounds or [(numbers.low, numbers.high)], np.float64).T
        is_integer = np.array(
            [_is_whole(field, numbers) for field in self._fields] or [numbers.is_integer]
        )
        if self._fields:
            low, high, is_integer = (np.repeat(each, items) for each in (low, high, is_integer))
        for field, start in zip(self._fields, self._starts, strict=False):
            if field.one_hot is not None and len(field.one_hot) > 1:
                ends = field.first + np.array(field.one_hot) - 1
                high[start : start + len(ends)] = np.minimum(ends, high[start])
        self._parts = numbers if fields is None else None
        self._low, self._high, self._is_integer = low, high, is_integer
        self._has_integers = bool(is_integer.any())
        self._has_bounds = bool((np.abs([low, high]) < FLOAT32_MAX).any())

    def check(self, values: NDArray[Any], first: int | None) -> None:
        """Refuse rows with a number that its place does not allow.

        Args:
            values: number[B, items].
            first: the index of the first row in the batch; None for an observation by itself.

        Raises:
            ObservationError: naming row and field of the first 100 mistakes of one kind.
        """
        if values.dtype.kind == "f":
            is_bad = ~np.isfinite(values)
            self._refuse(is_bad, first, lambda _: ("finite_number", "be a finite number"))
            if values.dtype.itemsize > np.dtype(np.float32).itemsize:
                is_over = np.abs(values) > FLOAT32_MAX
                self._refuse(is_over, first, lambda _: ("number_too_large", TOO_LARGE[FLOAT32_MAX]))
            if self._has_integers:
                is_broken = (values != np.rint(values)) & self._is_integer
                self._refuse(is_broken, first, lambda _: ("int_type", "be a whole number"))
        if self._has_bounds:
            self._refuse(values < self._low, first, self._below)
            self._refuse(values > self._high, first, self._above)
        if self._parts is not None:
            start = [] if first is None else [first]
            check_rows(
                values,
                self._parts,
                lambda row, column: [*(at + row for at in start), *self._path(column)],
            )

    def _below(self, column: int) -> tuple[str, str]:
        bound = self._low[column % len(self._low)]
        return _beyond(bound, "greater_than_equal", "be greater than or equal to")

    def _above(self, column: int) -> tuple[str, str]:
        bound = self._high[column % len(self._high)]
        return _beyond(bound, "less_than_equal", "be less than or equal to")

    def _refuse(
        self,
        wrong: NDArray[np.bool_],
        first: int | None,
        mistake: Callable[[int], tuple[str, str]],
    ) -> None:
        if not wrong.any():
            return
        problems = []
        for row, column in np.argwhere(wrong)[:_MOST_PROBLEMS].tolist():
            kind, wanted = mistake(column)
            place = [*([] if first is None else [first + row]), *self._path(column)]
            problems.append(problem(kind, ["body", *place], f"Input should {wanted}"))
        raise ObservationError(problems)

    def _path(self, column: int) -> list[str | int]:
        """Return the field and the place in it, as the observation has it in JSON."""
        if not self._fields:
            return [*self._unnamed, column]
        index = int(np.searchsorted(self._starts, column, side="right")) - 1
        field, place = self._fields[index], column - int(self._starts[index])
        if not field.is_list:
            return [field.name]
        return [field.name, *map(int, np.unravel_index(place, field.shape or (field.items,)))]


def _is_whole(field: ObservationField, numbers: NumberRange) -> bool:
    return numbers.is_integer or field.kind != "float"


def _beyond(bound: float, kind: str, wanted: str) -> tuple[str, str]:
    """Return type and message of the mistake of a number beyond a bound, the same as for JSON."""
    if abs(bound) in TOO_LARGE:
        return "number_too_large", TOO_LARGE[abs(bound)]
    return kind, f"{wanted} {int(bound) if bound.is_integer() else bound}"
