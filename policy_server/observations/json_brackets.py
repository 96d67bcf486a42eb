"""The brackets that are open in JSON text which is still arriving, and where it may be cut."""

from __future__ import annotations

import re

__all__ = ["Brackets"]

_BRACKET_OR_QUOTE = re.compile(rb'["\[\]{}]')
_SIGNS = (b'"', b"[", b"]", b"{", b"}")
_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_NEXT = re.compile(rb",[ \t\n\r]*+([^ \t\n\r])")
_CLOSING = {ord("["): ord("]"), ord("{"): ord("}")}
# pydantic reads no deeper JSON, so that there is nothing to cut.
_DEEPEST = 200
# Many short items, each of which may be a mistake, are taken in smaller parts than that.
_BYTES_AT_ONCE = 4096
# Before a comma, where there is some at all.
_MOST_SPACE = 64


class Brackets:
    """Follows text that grows at its end, and looks at each byte once.

    A text that is no JSON is followed too: a parser has the last word on each part that is cut.

    Example: after `[{"a": [1, 2]}, {"a": [3, 4` with a depth of 1, `item_end` is the comma between
    the objects, `inner_end` the last comma, and `inner_closing` is `]}]`.

    Attributes:
        item_end: the last comma between two items; -1 without one.
        inner_end: the last comma at any depth; -1 without one.
        closed_at: the bracket that ends the list of items; -1 before it has come.
        is_too_deep: whether more brackets are open than a parser takes.
    """

    def __init__(self, opened: bytes, *, depth: int) -> None:
        """Own the brackets of a text from its beginning, until a part is cut off.

        Args:
            opened: the brackets that are open there, from the outermost on.
            depth: how many are open around an item.
        """
        self._open = bytearray(opened)
        self._depth = depth
        self._at = 0
        self._is_in_string = False
        self.item_end = self.inner_end = self.closed_at = -1
        self.is_too_deep = self._is_waiting = False
        self._token_start = self._seen = 0
        self._open_there = b""

    def follow(self, text: bytes | bytearray) -> None:
        """Look at the bytes that are new, up to the end of some items.

        Args:
            text: the whole text, from its beginning.
        """
        stop = min(self._at + _BYTES_AT_ONCE, len(text))
        self._is_waiting = False
        while self._is_followed() and self._at < len(text) and not self._is_waiting:
            if self._is_in_string:
                self._at = self._seen = _end_of_string(text, self._at)
                if not text.startswith(b'"', self._at):
                    return
                self._is_in_string = False
                self._at += 1
                self._token_start = self._at
            if self._at >= stop:
                if self.item_end >= 0:
                    return
                stop = min(self._at + _BYTES_AT_ONCE, len(text))
            while self._has_passed_sign(text, stop):
                pass
        if self.closed_at >= 0:
            self._seen = len(text)

    @property
    def token_length(self) -> int:
        """Return how long the string, number or white space is that has not ended yet."""
        return self._seen - self._token_start

    def _is_followed(self) -> bool:
        return self.closed_at < 0 and not self.is_too_deep

    def _has_passed_sign(self, text: bytes | bytearray, stop: int) -> bool:
        """Pass the next bracket or quote before `stop`; return whether more may follow it."""
        # Most parts hold none, and a search for one sign takes a fiftieth of the pattern's time.
        has_sign = any(text.find(sign, self._at, stop) >= 0 for sign in _SIGNS)
        found = _BRACKET_OR_QUOTE.search(text, self._at, stop) if has_sign else None
        end = stop if found is None else found.start()
        comma = text.rfind(b",", self._at, end)
        self._seen = end
        if comma >= 0:
            self._token_start = comma + 1
            self._note_comma(text, comma)
        if found is None:
            self._at = comma if self._is_waiting else end
            return False
        self._at = self._token_start = end + 1
        if found[0] == b'"':
            self._is_in_string = True
        elif found[0] in b"[{":
            self._open += found[0]
            self.is_too_deep = len(self._open) > _DEEPEST
        else:
            if len(self._open) == self._depth:
                self.closed_at = end
            del self._open[-1:]
        return self._is_followed() and not self._is_in_string

    def _note_comma(self, text: bytes | bytearray, comma: int) -> None:
        following = _NEXT.match(text, comma)
        # The sign behind the last one may still be to come.
        self._is_waiting = following is None
        if following is None:
            self._seen = len(text)
            comma = text.rfind(b",", self._at, comma)
            following = _NEXT.match(text, comma) if comma >= 0 else None
        before = text[max(0, comma - _MOST_SPACE) : comma].rstrip()[-1:]
        if following is None or following[1] in b",]}" or before in b",[{" or not self._open:
            return
        self.inner_end, self._open_there = comma, bytes(self._open)
        if len(self._open) == self._depth:
            self.item_end = comma

    @property
    def inner_closing(self) -> bytes:
        """Return the brackets that make the text before `inner_end` whole."""
        return bytes(_CLOSING[sign] for sign in reversed(self._open_there))


def _end_of_string(text: bytes | bytearray, start: int) -> int:
    """Return where the quote is that ends a string, or as far as the string has come."""
    found = _REST_OF_STRING.match(text, start)
    assert found is not None, "the pattern matches nothing too"
    return found.end()
