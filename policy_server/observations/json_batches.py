"""Many observations as JSON, a list of rows or an object of columns, read while they arrive.

A body is cut where an observation or a column ends, and inside of one that is long, and each part
is validated by itself with the generated models as soon as it is there. Parts that are valid lists
(objects) make a valid list (object), so nothing is accepted that the whole would not be; and
schema.yaml's names, which are letters and digits, hold nothing that looks like an end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from policy_server.errors import ObservationError
from policy_server.observations.batch_layout import BatchLayout, Matrix
from policy_server.observations.encodings import UTF8_MARK
from policy_server.observations.json_brackets import Brackets
from policy_server.observations.json_forms import Columns, Form, Rows
from policy_server.observations.json_items import Items
from policy_server.observations.models import problem

__all__ = ["LARGEST_PART", "JsonBatchReader"]

# So much text waits for its end before it is cut inside: it is validated in about a millisecond.
LARGEST_PART = 16_384
# No number or name is as long, and a parser takes a string or white space in one step.
_LARGEST_TOKEN = 131_072

_LIST_END = ord("]")
_SPACE = b" \t\n\r"
_COMMA = re.compile(rb"[ \t\n\r]*,[ \t\n\r]*")
_COLUMN = re.compile(
    rb'[ \t\n\r]*+("(?:[^"\\]|\\.)*+")[ \t\n\r]*+:[ \t\n\r]*+(\[?+)[ \t\n\r]*+([^, \t\n\r])',
    re.DOTALL,
)
_POSITION = re.compile(r"at line (\d+) column (\d+)$")
# A part that has not ended may miss more.
_OF_AN_END = {"too_short", "missing"}
# An observation of more parts than these is cut inside, or looked at before it ends.
_PARTS_OF_ONE = 4


class JsonBatchReader:
    """Reads `[{...}, ...]` or `{"field": [...], ...}`; the first character tells them apart."""

    def __init__(self, layout: BatchLayout, *, largest_part: int = LARGEST_PART) -> None:
        """Own the part of one body that has not been validated yet.

        Args:
            layout: the form that the rows must have.
            largest_part: how many bytes wait for the end of their observation or column, before
                they are cut inside.
        """
        self._layout = layout
        self._largest_part = largest_part
        self._most_waiting = _PARTS_OF_ONE * largest_part
        self._form: Rows | Columns | Items | None = None
        # Whether the byte-order mark that may come first has been looked for.
        self._is_marked = False
        self._buffer = bytearray()
        # Where the buffer starts in the body; how far it has been searched for the next cut.
        self._line, self._column, self._searched = 1, 1, 0
        # A stand-in for the text before the buffer, and the brackets since, where they are needed.
        self._opening = b""
        self._brackets: Brackets | None = None
        self._is_looked_at = False
        # Those of an observation or a column that has not ended: a mistake in JSON goes before.
        self._mistakes: list[Mapping[str, Any]] = []

    def feed(self, data: bytes) -> Iterator[Matrix]:
        """Take the next bytes, in one step; see `BatchReader.feed`."""
        self._buffer += data
        if self._form is None:
            if not self._is_begun() or not self._buffer:
                return
            self._form = (Columns if self._buffer[:1] == b"{" else Rows)(self._layout)
        if not isinstance(self._form, Items):
            yield from self._take_ended(self._form)
        if len(self._buffer) > self._largest_part:
            yield from self._shorten()

    def _is_begun(self) -> bool:
        """Take off white space and a byte-order mark; return whether a character follows."""
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
        if isinstance(self._form, Items):
            self._take_items(self._form, is_end=True)
        form = self._form or Rows(self._layout)
        if self._opening and self._buffer.lstrip(_SPACE)[:1] == form.closing:
            # With its comma gone it would pass.
            self._drop(self._leading_space(), self._opening)
            message = f"trailing comma at line {self._line} column {self._column}"
            raise ObservationError(
                [problem("json_invalid", ["body"], f"JSON decode error: {message}")]
            )
        yield from self._take(form, bytes(self._buffer))
        yield from form.finish()

    def _take_ended(self, form: Rows | Columns) -> Iterator[Matrix]:
        """Take the observations or columns that have ended."""
        end = len(self._buffer)
        while (end := self._buffer.rfind(form.end, self._searched, end)) >= 0:
            comma = _COMMA.match(self._buffer, end + 1)
            if comma is not None and self._buffer.startswith(form.start, comma.end()):
                yield from self._take(form, bytes(self._buffer[: end + 1]) + form.closing)
                self._drop(comma.end(), form.opening)
                return
        self._searched = len(self._buffer)

    def _take(self, form: Form, piece: bytes) -> Iterator[Matrix]:
        """Take the end of an observation or a column, with those that follow it."""
        text = self._opening + piece
        try:
            items = form.parse(text)
        except ObservationError as error:
            raise self._refusal(form, error) from error
        self._check_mistakes()
        yield from form.add(items, text)

    def _shorten(self) -> Iterator[Matrix]:
        """Take the whole items of an observation or a column that has not ended."""
        if isinstance(self._form, Columns):
            self._enter_column(self._form)
        if isinstance(self._form, Columns) and len(self._buffer) > self._most_waiting:
            # It is no column, or its name has not ended.
            self._followed(self._form)
        if isinstance(self._form, Items):
            self._take_items(self._form, is_end=False)
        size = 0
        while isinstance(self._form, Rows) and self._most_waiting < len(self._buffer) != size:
            size = len(self._buffer)
            yield from self._take_part(self._form)

    def _enter_column(self, columns: Columns) -> None:
        if len(self._buffer) > self._most_waiting:
            return
        found = _COLUMN.match(self._buffer, 0 if self._opening else 1)
        if found is None or not _is_json(found[1]):
            return
        if not found[2]:
            # It is no list, and the mistake is that of a short one.
            columns.parse(b"{" + found[1] + b":0}")
        self._form = Items(columns, found[1], has_lists=found[3] == b"[")
        self._drop(found.start(3), self._form.opening)

    def _take_items(self, form: Items, *, is_end: bool) -> None:
        """Take the items of a column: all, or until few bytes wait."""
        longest, most_waiting = (0, 0) if is_end else (self._largest_part, self._most_waiting)
        size = -1
        while not form.is_closed and longest < len(self._buffer) != size:
            size = len(self._buffer)
            if not self._is_guess_taken(form) and size > most_waiting:
                # It has no rows of its own.
                list(self._take_part(form))
        if form.is_closed:
            self._leave_column(form)

    def _is_guess_taken(self, form: Items) -> bool:
        """Take the items up to where a column of numbers, or lists of them, is likely to be cut."""
        cut = form.guess_cut(self._buffer) if self._brackets is None else None
        if cut is None:
            return False
        end, is_closed = cut
        text = self._opening + self._buffer[:end] + form.closing
        try:
            items = form.parse(text)
        except ObservationError as error:
            if _is_syntax(error):
                return False
            self._mistakes = list(self._refusal(form, error).problems)
        else:
            list(form.add(items, text))
        self._pass(form, end, is_closed=is_closed)
        return True

    def _take_part(self, form: Rows | Items) -> Iterator[Matrix]:
        """Take the items up to the last comma between two, or to the end of a column."""
        brackets = self._followed(form)
        is_closed = isinstance(form, Items) and brackets.closed_at >= 0
        if brackets.is_too_deep or (is_closed and self._buffer[brackets.closed_at] != _LIST_END):
            # It is no JSON, and the parser names the position.
            yield from self._take(form, bytes(self._buffer))
        end = brackets.closed_at if is_closed else brackets.item_end
        if end < 0:
            self._look_inside(form, brackets)
            return
        text = self._opening + self._buffer[:end] + form.closing
        try:
            items = form.parse(text)
        except ObservationError as error:
            refusal = self._refusal(form, error)
            if _is_syntax(error) or len(refusal.problems) == form.most_problems:
                raise refusal from error
            self._mistakes = list(refusal.problems)
        if self._mistakes:
            form.skip(text)
        else:
            yield from form.add(items, text)
        self._pass(form, end, is_closed=is_closed)

    def _followed(self, form: Form) -> Brackets:
        """Return the brackets that are open at the buffer's end; refuse a token without an end."""
        if self._brackets is None:
            opened = bytes(sign for sign in self._opening if sign in b"[{")
            self._brackets = Brackets(opened, depth=form.depth)
        self._brackets.follow(self._buffer)
        if self._brackets.token_length > _LARGEST_TOKEN:
            message = f"a string, number or white space of more than {_LARGEST_TOKEN} bytes"
            raise ObservationError(
                [problem("token_too_long", ["body"], f"The batch holds {message}; leave it out")]
            )
        return self._brackets

    def _look_inside(self, form: Rows | Items, brackets: Brackets) -> None:
        """Take the numbers of a long flat observation, or look for mistakes in a long named one."""
        if brackets.inner_end < 0 or self._is_looked_at:
            return
        text = self._opening + self._buffer[: brackets.inner_end] + brackets.inner_closing
        try:
            if self._layout.is_raw and brackets.inner_closing == form.inner_closing:
                form.begin(text)
                self._drop(brackets.inner_end + 1, form.inner_opening)
            else:
                self._is_looked_at = True
                form.parse(text)
        except ObservationError as error:
            refusal = self._refusal(form, error)
            found = [item for item in refusal.problems if item["type"] not in _OF_AN_END]
            if found:
                raise ObservationError(found) from error

    def _pass(self, form: Rows | Items, end: int, *, is_closed: bool) -> None:
        """Go on behind the sign that ended a part."""
        opening = form.opening
        if isinstance(form, Items) and is_closed:
            form.is_closed = True
            opening += b"]"
        self._drop(end + 1, opening)

    def _leave_column(self, form: Items) -> None:
        """Go on with the column that follows one whose bracket has been passed."""
        self._drop(self._leading_space(), self._opening)
        if self._buffer.startswith(b",") and not self._opening.endswith(b","):
            self._drop(1, self._opening + b",")
            self._drop(self._leading_space(), self._opening)
        if self._buffer.startswith(b'"') and self._opening.endswith(b","):
            self._check_mistakes()
            form.end()
            self._form = form.columns
            self._drop(0, form.columns.opening)

    def _leading_space(self) -> int:
        return len(self._buffer) - len(self._buffer.lstrip(_SPACE))

    def _drop(self, count: int, opening: bytes) -> None:
        gone = self._buffer[:count]
        lines = gone.count(b"\n")
        self._line += lines
        self._column = count - gone.rfind(b"\n") if lines else self._column + count
        del self._buffer[:count]
        self._opening, self._searched = opening, 0
        self._brackets, self._is_looked_at = None, False

    def _check_mistakes(self) -> None:
        if self._mistakes:
            raise ObservationError(self._mistakes)

    def _refusal(self, form: Form, error: ObservationError) -> ObservationError:
        """Return the mistakes of a part with those before it, or its mistake in JSON alone."""
        if _is_syntax(error):
            return ObservationError([self._positioned(item) for item in error.problems])
        return ObservationError([*self._mistakes, *error.problems][: form.most_problems])

    def _positioned(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        position = _POSITION.search(item["msg"])
        if position is None:
            return item
        line, column = int(position[1]), int(position[2])
        if line == 1:
            column += self._column - 1 - len(self._opening)
        where = f"at line {self._line + line - 1} column {column}"
        return {**item, "msg": item["msg"][: position.start()] + where}


def _is_json(text: bytes) -> bool:
    try:
        from_json(text)
    except ValueError:
        return False
    return True


def _is_syntax(error: ObservationError) -> bool:
    return bool(error.problems[0]["type"] == "json_invalid")
