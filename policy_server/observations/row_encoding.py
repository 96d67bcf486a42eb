"""From the values of named observations to rows, where schema.yaml's words change them on the way.

The words are `shape` (nested lists, whose items go into the row in C order), `one_hot` and
`normalize`. Numbers are normalized in float64, whatever form they came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.schema import Normalization, ObservationField

__all__ = ["Row", "RowEncoder", "flatten", "row_maker"]

Floats = NDArray[np.float64]
# The numbers of one observation in the order of training.
Row = Sequence[float] | NDArray[Any]

# The largest finite number that 32 bits hold: no normalized number is above it.
_LARGEST = float(np.finfo(np.float32).max)


def flatten(values: Iterable[Any]) -> list[float]:
    """Return an observation's numbers in one list.

    Args:
        values: its fields' values in order: numbers, or lists of numbers.
    """
    row: list[float] = []
    for value in values:
        if isinstance(value, list):
            row += value
        else:
            row.append(value)
    return row


class RowEncoder:
    """Makes rows of the values of observations whose fields have words of their own."""

    def __init__(self, fields: Sequence[ObservationField]) -> None:
        """Own the rule of each field.

        Args:
            fields: an observation's fields in order.
        """
        self._fields = [_FieldEncoder(field) for field in fields]

    def row(self, values: Iterable[Any]) -> list[float]:
        """Return the row of one observation.

        Args:
            values: its fields' values in order, as the generated model holds them; behind them the
                action mask, where there is one.
        """
        row: list[float] = []
        left = iter(values)
        for field, value in zip(self._fields, left, strict=False):
            row += field.columns(value)
        return row + flatten(left)

    def matrix(self, columns: Sequence[NDArray[Any] | Sequence[Any]]) -> Floats:
        """Return the rows of many observations.

        Args:
            columns: for each field in order its values: an array [B] or [B, ...], or a list of B
                lists that differ in length; behind them the action mask's, where there is one.

        Returns:
            float64[B, width].

        Raises:
            ValueError: if the rows differ in length.
        """
        if all(isinstance(column, np.ndarray) for column in columns):
            pairs = zip(self._fields, columns, strict=False)
            parts = [field.matrix(np.asarray(item)) for field, item in pairs]
            masks = [np.asarray(item) for item in columns[len(parts) :]]
            return np.concatenate([*parts, *masks], axis=1)
        rows = [[_plain(item) for item in row] for row in zip(*columns, strict=True)]
        return np.array([self.row(row) for row in rows], np.float64)

    def widths(self, columns: Sequence[NDArray[Any] | Sequence[Any]]) -> list[int]:
        """Return how many numbers the row of each observation has.

        Args:
            columns: as for `matrix`.
        """
        if all(isinstance(column, np.ndarray) for column in columns):
            return [self._width([column[0] for column in columns])] * len(columns[0])
        return [self._width(row) for row in zip(*columns, strict=True)]

    def _width(self, values: Sequence[Any]) -> int:
        pairs = zip(self._fields, values, strict=False)
        own = sum(field.width(value) for field, value in pairs)
        return own + sum(int(np.size(value)) for value in values[len(self._fields) :])

    def split(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the columns of each field.

        Args:
            values: number[B, items of all fields]; the fields' lists have fixed lengths.
        """
        ends = np.cumsum([field.items for field in self._fields])[:-1]
        return np.split(values, ends, axis=1)


class _FieldEncoder:
    """The part of one field in a row."""

    def __init__(self, field: ObservationField) -> None:
        self._field = field
        self._levels = len(field.shape or ()) or int(field.is_list)
        rule = field.normalize
        self._normalized = None if rule is None else _normalizing(rule)
        self.items = field.items

    def columns(self, value: Any) -> Sequence[float]:  # noqa: ANN401 -- a number, or lists of them
        """Return the numbers of one value."""
        numbers: list[Any] = [value] if not self._levels else value
        for _ in range(self._levels - 1):
            numbers = list(chain.from_iterable(numbers))
        if self._normalized is not None:
            return self._normalized(np.array(numbers, np.float64)).tolist()  # type: ignore[no-any-return]  # of floats
        return numbers if self._field.one_hot is None else self._one_hot(numbers)

    def matrix(self, values: NDArray[Any]) -> Floats:
        """Return float64[B, columns] of the values [B, ...]."""
        numbers = values.reshape(len(values), -1).astype(np.float64)
        if self._normalized is not None:
            return self._normalized(numbers)
        if self._field.one_hot is None:
            return numbers
        starts = self._starts(numbers.shape[1])
        rows = np.zeros((len(numbers), self._field.columns_of(numbers.shape[1])))
        places = starts + numbers.astype(np.int64) - self._field.first
        np.put_along_axis(rows, places, 1.0, axis=1)
        return rows

    def width(self, value: Any) -> int:  # noqa: ANN401 -- a number, or lists of them
        """Return how many numbers one value takes."""
        return self._field.columns_of(int(np.size(value)))

    def _one_hot(self, numbers: Sequence[int]) -> list[float]:
        row = [0.0] * self._field.columns_of(len(numbers))
        for start, number in zip(self._starts(len(numbers)), numbers, strict=True):
            row[start + number - self._field.first] = 1.0
        return row

    def _starts(self, items: int) -> Sequence[int]:
        """Return the first column of each item."""
        sizes = self._field.one_hot or (1,)
        if len(sizes) == 1:
            return range(0, items * sizes[0], sizes[0])
        return [0, *np.cumsum(sizes)[:-1].tolist()]


def row_maker(
    fields: Sequence[ObservationField], *, has_mask: bool
) -> tuple[Callable[[Iterable[Any]], list[float]], RowEncoder | None]:
    """Return the function that makes a row of one observation's values, as simple as can be.

    Args:
        fields: an observation's fields in order.
        has_mask: whether an action mask stands behind them.

    Returns:
        The function, and the encoder behind it; None where the values are the row's numbers.
    """
    if any(field.shape or field.one_hot or field.normalize for field in fields):
        encoder = RowEncoder(fields)
        return encoder.row, encoder
    has_lists = has_mask or any(field.is_list for field in fields)
    return (flatten if has_lists else list), None


def _normalizing(rule: Normalization) -> Callable[[Floats], Floats]:
    mean, std = np.array(rule.mean, np.float64), np.array(rule.std, np.float64) + rule.epsilon
    limit = _LARGEST if rule.clip is None else rule.clip

    def normalized(numbers: Floats) -> Floats:
        return np.clip((numbers - mean) / std, -limit, limit)

    return normalized


def _plain(value: Any) -> Any:  # noqa: ANN401 -- a number or numbers
    return value.tolist() if isinstance(value, np.ndarray) else value
