"""Tensors of a graph as a runtime gives them for some observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.output_meaning import Ending

__all__ = ["Measured"]

Array = NDArray[Any]

_SUM_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Measured:
    """A tensor as a runtime gave it for some observations.

    Attributes:
        rows: its numbers: float[B, width].
        has_integer_type: whether its type is an integer.
        is_one_a_row: whether it has no dimension but that of the rows.
        shape: its dimensions for a batch.
    """

    rows: Array
    has_integer_type: bool
    is_one_a_row: bool
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Return how many numbers it has in one row."""
        return int(self.rows.shape[1])

    @property
    def row_length(self) -> int:
        """Return how many numbers its last dimension has, leaving those of one number out."""
        return min(next((size for size in self.shape[::-1] if size > 1), 1), self.width)

    @property
    def ending(self) -> Ending | None:
        """Return the operation that its numbers show, where the graph spells it out in others.

        Zeros and ones show none: a clipped action holds them too, wherever the probes saturate it.
        """
        rows = self.rows
        if self.has_integer_type or self.width < 2 or not ((rows >= 0) & (rows <= 1)).all():
            return None
        sums = rows.reshape(len(rows), -1, self.row_length).sum(axis=2)
        if not np.allclose(sums, 1, atol=_SUM_TOLERANCE):
            return None
        return None if self.is_saturated else "softmax"

    @property
    def is_one_hot(self) -> bool:
        """Return whether each of its rows of zeros and ones has exactly one 1."""
        rows = self.rows
        if self.width < 2 or not ((rows == 0) | (rows == 1)).all():
            return False
        sums = rows.reshape(len(rows), -1, self.row_length).sum(axis=2)
        return bool((sums == 1).all())

    @property
    def has_several_places(self) -> bool:
        """Return whether its largest number is not always at the same place.

        Truth values of which the same one alone is always true tell no choice among them.
        """
        return len(np.unique(self.rows.argmax(axis=1))) > 1

    @property
    def may_join_log_probabilities(self) -> bool:
        """Return whether its numbers are none that rule log-probabilities out."""
        if self.has_integer_type or len(self.shape) != len(("rows", "choices")):
            return False
        return (
            self.width > 1 and not self.is_saturated and bool((self.rows <= _SUM_TOLERANCE).all())
        )

    def log_probability_sizes(self, told: Sequence[tuple[int, ...]] = ()) -> tuple[int, ...]:
        """Return the sizes of the choices whose log-probabilities it joins; empty for another.

        ML-Agents spells them out: the logarithm of a softmax and a small number. A choice that is
        never taken hides where the next ones begin, so that numbers alone do not tell it.

        Args:
            told: sizes that something else tells, the likeliest first.
        """
        if not self.may_join_log_probabilities:
            return ()
        chances = np.exp(self.rows.astype(np.float64))
        for sizes in told:
            if sum(sizes) == self.width and min(sizes) > 0:
                sums = np.add.reduceat(chances, np.cumsum((0, *sizes[:-1])), axis=1)
                if np.allclose(sums, 1, atol=_SUM_TOLERANCE):
                    return sizes
        return _cut(chances)

    @property
    def is_saturated(self) -> bool:
        """Return whether it holds nothing but zeros and ones, or the same for all observations."""
        rows = self.rows
        return bool(((rows == 0) | (rows == 1)).all() or (rows == rows[:1]).all())


def _cut(chances: Array) -> tuple[int, ...]:
    """Return the sizes of the parts that sum to one; empty where there may be others."""
    sums, first = chances.cumsum(axis=1), 0
    width = chances.shape[1]
    sizes: list[int] = []
    for last in range(1, width + 1):
        if np.allclose(sums[:, last - 1], len(sizes) + 1, atol=_SUM_TOLERANCE):
            if last < width and (chances[:, last] <= _SUM_TOLERANCE).all():
                return ()
            sizes.append(last - first)
            first = last
    return tuple(sizes) if first == width and min(sizes) > 1 else ()
