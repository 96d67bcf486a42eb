"""The JSON forms of a batch: a list of rows, and an object of columns.

A form validates parts of a batch that are JSON documents themselves, and collects their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from pydantic_core import from_json

from policy_server.errors import ObservationError
from policy_server.observations.batch_columns import BegunRow, Column
from policy_server.observations.batch_layout import BatchLayout, Matrix
from policy_server.observations.models import problem
from policy_server.observations.part_rules import check_rows
from policy_server.observations.row_encoding import RowEncoder, flatten

__all__ = ["Columns", "Form", "Rows"]

# One step may hold the event loop up for about a millisecond.
_ROWS_AT_ONCE = 2048
_NUMBERS_AT_ONCE = 131_072


class Form(Protocol):
    """The members of both forms; `Rows` describes them."""

    opening: bytes
    closing: bytes
    depth: int
    most_problems: int

    def parse(self, text: bytes) -> Any:  # noqa: ANN401 -- as `add` takes it
        """Validate a part."""

    def add(self, items: Any, text: bytes) -> Iterator[Matrix]:  # noqa: ANN401 -- as `parse` gives it
        """Add the rows or columns of a part."""

    def finish(self) -> Iterator[Matrix]:
        """Yield the rows that are left."""


class Rows:
    """A list of observations.

    Attributes:
        opening: the text before the first item of a part.
        closing: the text behind its last.
        start: the sign that an item starts with.
        end: the sign that an item ends with.
        depth: how many brackets are open around an item.
        most_problems: how many mistakes are named.
        inner_opening: the text before the next number of a flat observation that is begun.
        inner_closing: the text behind its last number so far.
    """

    opening, closing, start, end = b"[", b"]", b"{", b"}"
    depth = 1
    most_problems = 100
    inner_opening, inner_closing = b'[{"obs":[', b"]}]"

    def __init__(self, layout: BatchLayout) -> None:
        """Own the count of one batch's rows, from 0.

        Args:
            layout: the form that the rows must have.
        """
        self._layout = layout
        self._width = layout.width
        self._count = 0
        self._begun = BegunRow(layout)
        if layout.space.mask is not None:
            # A flat observation may have its mask before or behind its numbers: it is taken whole.
            self.inner_closing = b""

    def parse(self, text: bytes) -> list[Any]:
        """Validate a part.

        Args:
            text: a whole list.

        Returns:
            Its rows.

        Raises:
            ObservationError: with the rows' numbers in the batch.
        """
        try:
            return self._layout.space.parse_rows(text, is_raw=self._layout.is_raw)
        except ObservationError as error:
            raise ObservationError([self._shifted(item) for item in error.problems]) from error

    def add(self, items: list[Any], text: bytes) -> Iterator[Matrix]:
        """Yield the rows of a part.

        Args:
            items: what `parse` returned.
            text: the part.

        Raises:
            ObservationError: for a row of another width.
            BodyTooLargeError: if there are too many rows.
        """
        self._drop_earlier(text[: text.find(b"}")])
        rows = self._begun.finish(items)
        self._layout.check_rows(self._count + len(rows))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            yield self._matrix(rows[start : start + _ROWS_AT_ONCE])

    def begin(self, text: bytes) -> None:
        """Take the numbers of a flat observation that has not ended yet.

        Args:
            text: a whole list of this one observation.

        Raises:
            ObservationError: as `parse` does.
        """
        numbers = self.parse(text)[0]
        self._drop_earlier(text)
        self._begun.add(numbers)

    def _drop_earlier(self, text: bytes) -> None:
        """Forget the numbers of a key that comes once more: the last one counts."""
        if b'"' in text[len(self.inner_opening) :]:
            self._begun.drop()

    def skip(self, text: bytes) -> None:
        """Count the rows of a part that holds a mistake.

        Args:
            text: a whole list.
        """
        self._count += len(from_json(text))

    def finish(self) -> Iterator[Matrix]:
        """Yield the rows that are left: none."""
        yield from ()

    def _matrix(self, rows: Sequence[Sequence[float]]) -> Matrix:
        if self._width is None:
            self._width = len(rows[0])
        if set(map(len, rows)) != {self._width}:
            widths = [len(row) for row in rows]
            _check_widths(self._layout, widths, self._width, self._count, is_by_column=False)
        start, space = self._count, self._layout.space
        self._count += len(rows)
        matrix: Matrix = np.array(rows, self._layout.exact_dtype)
        if self._layout.is_raw:
            check_rows(matrix, space.numbers, lambda row, column: [start + row, "obs", column])
        return matrix.astype(self._layout.dtype, copy=False)

    def _shifted(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        body, *path = item["loc"]
        if not path:
            return item
        row, *inner = path
        return {**item, "loc": [body, self._count + row, *self._begun.shifted(row, inner)]}


class Columns:
    """An object with a list for each field, or with the one list `obs`; attributes as of `Rows`."""

    opening, closing, start, end = b"{", b"}", b'"', b"]"
    depth = 1
    most_problems = 100

    def __init__(self, layout: BatchLayout) -> None:
        """Own the columns of one batch until it has ended.

        Args:
            layout: the form that the rows must have.
        """
        self.layout = layout
        self._known: dict[str, Column] = {}
        self._width = layout.width

    def parse(self, text: bytes) -> dict[str, list[Any]]:
        """Validate a part.

        Args:
            text: a whole object.

        Returns:
            Its columns by their names.

        Raises:
            ObservationError: naming field and row.
        """
        return self.layout.space.parse_columns(text, is_raw=self.layout.is_raw)

    def add(self, items: dict[str, list[Any]], text: bytes) -> Iterator[Matrix]:  # noqa: ARG002 -- as of `Rows`
        """Add the columns of a part.

        Args:
            items: what `parse` returned.
            text: the part.

        Raises:
            BodyTooLargeError: if there are too many rows.
        """
        for name, values in items.items():
            self.begin_column(name).add(values)
            self._known[name].check_rows()
        yield from ()

    def begin_column(self, name: str) -> Column:
        """Return a new column, which replaces an earlier one of that name.

        Args:
            name: the field's.
        """
        self._known[name] = Column(self.layout)
        return self._known[name]

    def finish(self) -> Iterator[Matrix]:
        """Yield the rows of all columns.

        Raises:
            ObservationError: if a column is missing or shorter than others, or a row has another
                width.
        """
        space, is_raw = self.layout.space, self.layout.is_raw
        required = space.required_names(is_raw=is_raw)
        missing = [name for name in required if name not in self._known]
        if missing:
            raise ObservationError(
                [problem("missing", ["body", name], "Field required") for name in missing]
            )
        names = [name for name in space.names(is_raw=is_raw) if name in self._known]
        columns = [self._known[name] for name in names]
        self._check_lengths(names, [column.count for column in columns])
        count = max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // max(self._width or 1, 1)))
        for start in range(0, columns[0].count, count):
            taken = [column.next_rows(count) for column in columns]
            taken += self._absent_mask(taken[0], start)
            matrix = self._matrix(taken, start)
            self._check_parts(matrix, taken, start)
            yield matrix.astype(self.layout.dtype, copy=False)

    def _check_parts(
        self, matrix: Matrix, columns: Sequence[Matrix | list[Any]], start: int
    ) -> None:
        space = self.layout.space
        if self.layout.is_raw:
            check_rows(matrix, space.numbers, lambda row, column: ["obs", start + row, column])
        elif space.named_parts is not None:
            space.named_parts.check_columns(matrix, columns, start)

    def _absent_mask(self, first: Matrix | list[Any], start: int) -> list[Matrix]:
        """Return the column of an action mask that was left out: none where `obs` ends with it.

        Args:
            first: the first column.
            start: the number of its first row in the batch.
        """
        mask = self.layout.space.mask
        if mask is None or mask.name in self._known:
            return []
        if self.layout.is_raw and isinstance(first, np.ndarray) and first.shape[1] == self._width:
            at = mask.first
            mask.check(first[:, at:], lambda row, column: ["body", "obs", start + row, at + column])
            return []
        return [np.ones((len(first), mask.width), self.layout.dtype)]

    def _matrix(self, columns: list[Matrix | list[Any]], start: int) -> Matrix:
        if self.layout.encoder is not None:
            return self._encoded(self.layout.encoder, columns, start)
        arrays = [column for column in columns if isinstance(column, np.ndarray)]
        if len(arrays) == len(columns):
            # One column of lists is the matrix already.
            is_matrix = len(arrays) == 1 and arrays[0].ndim > 1
            matrix: Matrix = arrays[0] if is_matrix else np.column_stack(arrays)
            if self._width is None:
                self._width = matrix.shape[1]
            if matrix.shape[1] == self._width:
                return matrix
        rows = list(zip(*columns, strict=True))
        widths = [sum(map(_width, row)) for row in rows]
        if self._width is None:
            self._width = widths[0]
        _check_widths(self.layout, widths, self._width, start, is_by_column=True)
        return np.array([flatten(map(_plain, row)) for row in rows], self.layout.exact_dtype)

    def _encoded(
        self, encoder: RowEncoder, columns: list[Matrix | list[Any]], start: int
    ) -> Matrix:
        widths = encoder.widths(columns)
        if self._width is None:
            self._width = widths[0]
        _check_widths(self.layout, widths, self._width, start, is_by_column=True)
        return encoder.matrix(columns)

    def _check_lengths(self, names: Sequence[str], lengths: Sequence[int]) -> None:
        wrong = [
            problem(
                "columns_differ",
                ["body", name],
                f"Column should have {lengths[0]} rows as '{names[0]}' has, not {length}",
            )
            for name, length in zip(names, lengths, strict=True)
            if length != lengths[0]
        ]
        if wrong:
            raise ObservationError(wrong)


def _width(value: Any) -> int:  # noqa: ANN401 -- a number or numbers
    return len(value) if isinstance(value, (list, np.ndarray)) else 1


def _plain(value: Any) -> Any:  # noqa: ANN401 -- a number or numbers
    return value.tolist() if isinstance(value, np.ndarray) else value


def _check_widths(
    layout: BatchLayout, widths: Sequence[int], width: int, first: int, *, is_by_column: bool
) -> None:
    """Name the first row of another width.

    Args:
        layout: the form that the rows must have.
        widths: how many numbers each has.
        width: how many it has to have.
        first: the number of the first one in the batch.
        is_by_column: whether the body has a list for each field, in which the rows lie.
    """
    for index, found in enumerate(widths, first):
        try:
            layout.space.check_width(range(found), width, is_raw=layout.is_raw)
        except ObservationError as error:
            body, *path = error.problems[0]["loc"]
            place = [*path, index] if is_by_column else [index, *path]
            raise ObservationError([{**error.problems[0], "loc": [body, *place]}]) from error
