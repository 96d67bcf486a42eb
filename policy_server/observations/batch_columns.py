"""The numbers of a batch by column that have arrived so far, in arrays instead of JSON."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from policy_server.observations.batch_layout import BatchLayout, Matrix

__all__ = ["BegunRow", "Column"]


class Column:
    """The values of one field, a row each."""

    def __init__(self, layout: BatchLayout) -> None:
        """Own the values of one batch, until they are taken.

        Args:
            layout: the form that the rows must have.
        """
        self._layout = layout
        self._dtype = layout.exact_dtype if layout.encoder is None else np.float64
        self._parts: deque[Matrix | list[Any]] = deque()
        self.count = 0

    def add(self, values: Sequence[Any]) -> None:
        """Add rows at the end; those beyond the limit are counted alone.

        Args:
            values: numbers, or a list of numbers for each row.
        """
        self.count += len(values)
        if not values or self.count > self._layout.max_rows:
            return
        is_ragged = _length(values[0]) >= 0 and len(set(map(len, values))) > 1
        self._parts.append(list(values) if is_ragged else np.array(values, self._dtype))

    def check_rows(self) -> None:
        """Refuse more rows than the limit.

        Raises:
            BodyTooLargeError: if there are too many rows.
        """
        self._layout.check_rows(self.count)

    def next_rows(self, count: int) -> Matrix | list[Any]:
        """Take rows off the front.

        Args:
            count: how many; fewer are taken where there are fewer.

        Returns:
            An array; or a list with a row each, if they differ in length.
        """
        taken: list[Matrix | list[Any]] = []
        while count and self._parts:
            part = self._parts.popleft()
            taken.append(part[:count])
            if len(part) > count:
                self._parts.appendleft(part[count:])
            count -= len(taken[-1])
        arrays = [part for part in taken if isinstance(part, np.ndarray)]
        if len(arrays) == len(taken) and len({part.shape[1:] for part in arrays}) == 1:
            return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return [row for part in taken for row in part]


class BegunRow:
    """The first numbers of one flat observation that is longer than a part."""

    def __init__(self, layout: BatchLayout) -> None:
        """Own the numbers until their row ends.

        Args:
            layout: the form that the rows must have.
        """
        self._dtype = layout.exact_dtype
        self._parts: list[Matrix] = []

    def add(self, numbers: Sequence[float]) -> None:
        """Add numbers at the end.

        Args:
            numbers: the next numbers of the row.
        """
        self._parts.append(np.array(numbers, self._dtype))

    def drop(self) -> None:
        """Forget the numbers."""
        self._parts.clear()

    def finish(self, rows: list[Any]) -> list[Any]:
        """Return rows of which the first one has these numbers in front.

        Args:
            rows: lists of numbers.
        """
        if self._parts:
            rows = [np.concatenate([*self._parts, np.array(rows[0], self._dtype)]), *rows[1:]]
            self.drop()
        return rows

    def shifted(self, row: int, path: Sequence[str | int]) -> list[str | int]:
        """Return the path of a mistake, counted in its whole row.

        Args:
            row: its row in the part.
            path: the path in the row, which ends with a number's index.
        """
        *outer, last = path or [""]
        if row or not isinstance(last, int):
            return list(path)
        return [*outer, last + sum(map(len, self._parts))]


def _length(value: object) -> int:
    return len(value) if isinstance(value, (list, np.ndarray)) else -1
