"""A graph as one step: the inputs that a row fills, and the tensors of the result's row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Feed", "Piece", "Plan", "Transform", "rows_first"]

Array = NDArray[Any]
Transform = Literal["as it is", "log", "index of the largest"]


@dataclass(frozen=True)
class Feed:
    """An input of the graph.

    Attributes:
        name: its name.
        dtype: NumPy's name of its type.
        shape: its dimensions in one row, without the axis of the rows.
        rows_axis: the axis that the rows of a batch lie along; None where it has none.
        first: the column of a row that it begins at; None for an input that is always the same.
        value: the number that fills an input that is always the same.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows_axis: int | None
    first: int | None
    value: float = 0.0

    @property
    def width(self) -> int:
        """Return how many numbers of a row it takes."""
        return math.prod(self.shape)

    def of(self, rows: Array) -> Array:
        """Return the input's tensor for rows.

        Args:
            rows: float[B, width of a row]; one row where it has no axis of rows.
        """
        if self.first is None:
            values = np.full((len(rows), self.width), self.value)
        else:
            values = rows[:, self.first : self.first + self.width]
        with np.errstate(invalid="ignore", over="ignore"):  # probes are larger than some types
            values = values.astype(self.dtype)
        if self.rows_axis is None:
            return values.reshape(self.shape)
        return np.ascontiguousarray(
            np.moveaxis(values.reshape(len(rows), *self.shape), 0, self.rows_axis)
        )


@dataclass(frozen=True)
class Piece:
    """A tensor of the graph whose numbers are a part of the result's row.

    Attributes:
        tensor: its name.
        width: how many numbers of the row it gives.
        transform: the change of its numbers.
        rows_axis: the axis that the rows of a batch lie along; None for a constant, which is the
            same for all rows.
        factor: the number that it is multiplied by.
        offset: the number that is added to it then.
    """

    tensor: str
    width: int
    transform: Transform = "as it is"
    rows_axis: int | None = 0
    factor: float = 1.0
    offset: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Return whether it gives the tensor's own numbers."""
        return self.transform == "as it is" and self.factor == 1.0 and not self.offset

    def of(self, value: Array, rows: int) -> Array:
        """Return float[B, width] of the tensor's value.

        Args:
            value: the tensor's value for a batch.
            rows: how many rows the batch has.

        Raises:
            ValueError: if it has no row for each of the batch's.
        """
        table = rows_first(value, rows, self.rows_axis)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.transform == "log":
                table = np.log(table)
            elif self.transform == "index of the largest":
                table = table.argmax(axis=1)[:, None]
        if self.factor != 1.0 or self.offset:
            table = table * self.factor + self.offset
        return table


def rows_first(value: Array, rows: int, axis: int | None = 0) -> Array:
    """Return a tensor's value as a table: float[B, numbers of one row].

    Args:
        value: its value for a batch.
        rows: how many rows the batch has.
        axis: the axis that the rows lie along; None for a constant, which is the same for all.

    Raises:
        ValueError: if it has no row for each of the batch's.
    """
    if axis is None:
        return np.broadcast_to(value.reshape(1, -1), (rows, value.size))
    if value.ndim > axis and value.shape[axis] == rows:
        return np.moveaxis(value, axis, 0).reshape(rows, -1)
    if rows == 1:
        return value.reshape(1, -1)
    raise ValueError(f"a tensor of the shape {value.shape} for {rows} rows")


@dataclass(frozen=True)
class Plan:
    """One step of a policy.

    Attributes:
        width: how many numbers a row has: the observation, then the state before the step.
        feeds: all inputs of the graph.
        pieces: the parts of a row of the result, in order: `action_dist_inputs`, then the state
            after the step.
    """

    width: int
    feeds: tuple[Feed, ...]
    pieces: tuple[Piece, ...]

    @property
    def takes_batches(self) -> bool:
        """Return whether every input has an axis of rows."""
        return all(feed.rows_axis is not None for feed in self.feeds)

    def joined(self, values: Mapping[str, Array], rows: int) -> Array:
        """Return the result's rows of the values of its pieces' tensors.

        Args:
            values: the tensors' values by their names.
            rows: how many rows the batch has.

        Returns:
            float[B, width of the result].
        """
        return np.concatenate(
            [piece.of(values[piece.tensor], rows) for piece in self.pieces], axis=1
        )
