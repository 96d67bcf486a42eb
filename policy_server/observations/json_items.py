"""One column of a batch that is long: its items are taken while it arrives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from policy_server.errors import ObservationError
from policy_server.observations.batch_columns import BegunRow
from policy_server.observations.batch_layout import Matrix
from policy_server.observations.json_forms import Columns

__all__ = ["Items"]

_BETWEEN_NUMBERS = re.compile(rb",(?=[ \t\n\r]*+[^\], \t\n\r])")
_BETWEEN_LISTS = re.compile(rb"\][ \t\n\r]*+,(?=[ \t\n\r]*+\[)")
_TWO_ENDS = re.compile(rb"\][ \t\n\r]*+\]")
# The brackets of a list of lists end in the same signs as its items.
_NESTED = re.compile(rb"[ \t\n\r]*+\[[ \t\n\r]*+\[")
# Brackets without a comma behind them are rare at the end of some rows.
_GUESSES = 8
# A mistake's path in a column begins with the column's name and a row.
_ROW_OF_COLUMN = 2


class Items:
    """The items of one column that is longer than a part; attributes as of `Rows`.

    Attributes:
        is_closed: whether the column's bracket has come.
    """

    closing = b"]}"
    depth = 2
    # The first wrong item of a list is named.
    most_problems = 1
    inner_opening, inner_closing = b'{"obs":[[', b"]]}"

    def __init__(self, columns: Columns, key: bytes, *, has_lists: bool) -> None:
        """Own the items of a column, until it has ended.

        Args:
            columns: get the column.
            key: the column's name as JSON; no field's is a mistake with the first items.
            has_lists: whether its first item is a list.
        """
        self.columns = columns
        self.opening = b"{" + key + b":["
        self.is_closed = False
        self._has_lists = has_lists
        self._column = columns.begin_column(from_json(key))
        self._begun = BegunRow(columns.layout)

    def guess_cut(self, text: bytes | bytearray) -> tuple[int, bool] | None:
        """Return where items seem to end, and whether the column seems to end there.

        The guess was right if the part is valid and holds no other key.

        Args:
            text: the items that are there.
        """
        if _NESTED.match(text) is not None:
            return None
        end = _end_of_column(text, has_lists=self._has_lists)
        cut = (end, True) if end >= 0 else (self._last_comma(text), False)
        return None if cut[0] < 0 or text.find(b'"', 0, cut[0]) >= 0 else cut

    def _last_comma(self, text: bytes | bytearray) -> int:
        sign, between = (b"]", _BETWEEN_LISTS) if self._has_lists else (b",", _BETWEEN_NUMBERS)
        at = len(text)
        for _ in range(_GUESSES):
            at = text.rfind(sign, 0, at)
            found = between.match(text, at) if at >= 0 else None
            if found is not None:
                return found.end() - 1
        return -1

    def parse(self, text: bytes) -> list[Any]:
        """Validate a part.

        Args:
            text: a whole object of this one column.

        Returns:
            Its items.

        Raises:
            ObservationError: naming the column and the row in the batch.
        """
        try:
            (items,) = self.columns.parse(text).values()
        except ObservationError as error:
            raise ObservationError([self._shifted(item) for item in error.problems]) from error
        return items

    def add(self, items: list[Any], text: bytes) -> Iterator[Matrix]:  # noqa: ARG002 -- as of `Rows`
        """Add the items of a part.

        Args:
            items: what `parse` returned.
            text: the part.
        """
        self._column.add(self._begun.finish(items))
        yield from ()

    def begin(self, text: bytes) -> None:
        """Take the numbers of a flat observation that has not ended yet.

        Args:
            text: a whole object of this one column and observation.

        Raises:
            ObservationError: as `parse` does.
        """
        self._begun.add(self.parse(text)[0])

    def skip(self, text: bytes) -> None:
        """Pass over a part that holds a mistake: the first one of a column is named."""

    def end(self) -> None:
        """Refuse a column that is longer than the limit.

        Raises:
            BodyTooLargeError: if there are too many rows.
        """
        self._column.check_rows()

    def finish(self) -> Iterator[Matrix]:
        """Yield the rows of all columns; see `Columns.finish`."""
        self.end()
        return self.columns.finish()

    def _shifted(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        body, *path = item["loc"]
        if len(path) < _ROW_OF_COLUMN:
            return item
        name, row, *inner = path
        path = [name, self._column.count + row, *self._begun.shifted(row, inner)]
        return {**item, "loc": [body, *path]}


def _end_of_column(text: bytes | bytearray, *, has_lists: bool) -> int:
    if not has_lists:
        return text.find(b"]")
    found = _TWO_ENDS.search(text)
    return -1 if found is None else found.end() - 1
