"""Many observations as JSON: a list of rows, or an object of columns.

A body is cut where an observation or a column ends, and each piece is validated by itself with the
generated models as soon as it is there. Pieces that are valid lists (objects) make a valid list
(object), so nothing is accepted that the whole would not be; and schema.yaml's names, which are
letters and digits, hold nothing that looks like an end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from policy_server.errors import ObservationError
from policy_server.observations.batch_layout import BatchLayout, Matrix
from policy_server.observations.encodings import UTF8_MARK
from policy_server.observations.models import flatten, problem

__all__ = ["JsonBatchReader"]

_SPACE = b" \t\n\r"
_COMMA = re.compile(rb"[ \t\n\r]*,[ \t\n\r]*")
_PLACE = re.compile(r"at line (\d+) column (\d+)$")
# What one step may hold the event loop up for: about a millisecond.
_ROWS_AT_ONCE = 2048


class JsonBatchReader:
    """Reads `[{...}, ...]` or `{"field": [...], ...}`; the first character tells them apart."""

    def __init__(self, layout: BatchLayout) -> None:
        """Wait for the first bytes.

        Args:
            layout: what the rows have to be.
        """
        self._layout = layout
        self._form: _Rows | _Columns | None = None
        # Whether the byte-order mark that may come first has been looked for.
        self._is_marked = False
        self._buffer = bytearray()
        # Where the buffer starts in the body; what of it has been searched for a place to cut.
        self._line, self._column, self._searched = 1, 1, 0
        self._opening = b""

    def feed(self, data: bytes) -> Iterator[Matrix]:
        """Take the next bytes; see `BatchReader.feed`."""
        self._buffer += data
        if self._form is None:
            if not self._is_begun() or not self._buffer:
                return
            self._form = (_Columns if self._buffer[:1] == b"{" else _Rows)(self._layout)
        cut = self._find_cut(self._form)
        if cut is not None:
            end, following = cut
            yield from self._take(self._form, bytes(self._buffer[:end]) + self._form.closing)
            self._drop(following, self._form.opening)

    def _is_begun(self) -> bool:
        """Take off what stands before the first character; return whether enough is there."""
        if not self._is_marked:
            if len(self._buffer) < len(UTF8_MARK) and UTF8_MARK.startswith(self._buffer):
                return False
            self._is_marked = True
            if self._buffer.startswith(UTF8_MARK):
                del self._buffer[: len(UTF8_MARK)]
        self._drop(self._leading_space(), b"")
        return True

    def close(self) -> Iterator[Matrix]:
        """Take the end of the body; see `BatchReader.close`."""
        form = self._form or _Rows(self._layout)
        if self._opening and self._buffer.lstrip(_SPACE)[:1] == form.closing:
            # With its comma gone it would pass.
            self._drop(self._leading_space(), self._opening)
            message = f"trailing comma at line {self._line} column {self._column}"
            raise ObservationError(
                [problem("json_invalid", ["body"], f"JSON decode error: {message}")]
            )
        yield from self._take(form, bytes(self._buffer))
        yield from form.finish()

    def _take(self, form: _Rows | _Columns, piece: bytes) -> Iterator[Matrix]:
        try:
            yield from form.take(self._opening + piece)
        except ObservationError as error:
            raise ObservationError([self._placed(item) for item in error.problems]) from error

    def _find_cut(self, form: _Rows | _Columns) -> tuple[int, int] | None:
        """Return where the last piece ends, and where the next one starts after its comma."""
        end = len(self._buffer)
        while (end := self._buffer.rfind(form.end, self._searched, end)) >= 0:
            comma = _COMMA.match(self._buffer, end + 1)
            if comma is not None and self._buffer.startswith(form.start, comma.end()):
                return end + 1, comma.end()
        self._searched = len(self._buffer)
        return None

    def _leading_space(self) -> int:
        return len(self._buffer) - len(self._buffer.lstrip(_SPACE))

    def _drop(self, count: int, opening: bytes) -> None:
        gone = self._buffer[:count]
        lines = gone.count(b"\n")
        self._line += lines
        self._column = count - gone.rfind(b"\n") if lines else self._column + count
        del self._buffer[:count]
        self._opening, self._searched = opening, 0

    def _placed(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        place = _PLACE.search(item["msg"])
        if item["type"] != "json_invalid" or place is None:
            return item
        line, column = int(place[1]), int(place[2])
        if line == 1:
            column += self._column - 1 - len(self._opening)
        where = f"at line {self._line + line - 1} column {column}"
        return {**item, "msg": item["msg"][: place.start()] + where}


class _Rows:
    """A list of observations."""

    opening, closing, start, end = b"[", b"]", b"{", b"}"

    def __init__(self, layout: BatchLayout) -> None:
        self._layout = layout
        self._width = layout.width
        self._count = 0

    def take(self, text: bytes) -> Iterator[Matrix]:
        try:
            rows = self._layout.space.parse_rows(text, is_raw=self._layout.is_raw)
        except ObservationError as error:
            raise ObservationError([self._shifted(item) for item in error.problems]) from error
        self._layout.check_rows(self._count + len(rows))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            yield self._matrix(rows[start : start + _ROWS_AT_ONCE])

    def finish(self) -> Iterator[Matrix]:
        yield from ()

    def _matrix(self, rows: Sequence[Sequence[float]]) -> Matrix:
        if self._width is None:
            self._width = len(rows[0])
        if set(map(len, rows)) != {self._width}:
            _check_widths(self._layout, rows, self._width, self._count)
        self._count += len(rows)
        matrix: Matrix = np.array(rows, self._layout.dtype)
        return matrix

    def _shifted(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        body, *place = item["loc"]
        if not place:
            return item
        return {**item, "loc": [body, self._count + place[0], *place[1:]]}


class _Columns:
    """An object with a list for each field, or with the one list `obs`."""

    opening, closing, start, end = b"{", b"}", b'"', b"]"

    def __init__(self, layout: BatchLayout) -> None:
        self._layout = layout
        self._known: dict[str, Matrix | list[list[float]]] = {}

    def take(self, text: bytes) -> Iterator[Matrix]:
        found = self._layout.space.parse_columns(text, is_raw=self._layout.is_raw)
        for name, values in found.items():
            self._layout.check_rows(len(values))
            is_ragged = isinstance(values[:1], list) and len(set(map(_length, values))) > 1
            self._known[name] = values if is_ragged else np.array(values, self._layout.dtype)
        yield from ()

    def finish(self) -> Iterator[Matrix]:
        names = self._layout.space.names(is_raw=self._layout.is_raw)
        missing = [name for name in names if name not in self._known]
        if missing:
            raise ObservationError(
                [problem("missing", ["body", name], "Field required") for name in missing]
            )
        columns = [self._known[name] for name in names]
        self._check_lengths(names, [len(column) for column in columns])
        for start in range(0, len(columns[0]), _ROWS_AT_ONCE):
            yield self._matrix([column[start : start + _ROWS_AT_ONCE] for column in columns], start)

    def _matrix(self, columns: list[Any], start: int) -> Matrix:
        if all(isinstance(column, np.ndarray) for column in columns):
            matrix: Matrix = np.column_stack(columns)
            if matrix.shape[1] == self._layout.width or self._layout.width is None:
                return matrix
        rows = [
            flatten(v.tolist() if isinstance(v, np.ndarray) else v for v in row)
            for row in zip(*columns, strict=True)
        ]
        width = len(rows[0]) if self._layout.width is None else self._layout.width
        _check_widths(self._layout, rows, width, start)
        return np.array(rows, self._layout.dtype)

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


def _length(value: float | list[float]) -> int:
    return len(value) if isinstance(value, list) else -1


def _check_widths(
    layout: BatchLayout, rows: Sequence[Sequence[float]], width: int, first: int
) -> None:
    """Name the first row of another width."""
    for index, row in enumerate(rows, first):
        try:
            layout.space.check_width(row, width, is_raw=layout.is_raw)
        except ObservationError as error:
            body, *place = error.problems[0]["loc"]
            raise ObservationError([{**error.problems[0], "loc": [body, index, *place]}]) from error
