"""Bodies that a client has packed: gzip is unpacked as it arrives, up to the limit of a body.

Source: RFC 9110, section 8.4 (content codings), and RFC 1952 (gzip).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from starlette.types import Message, Receive

from policy_server.errors import BodyTooLargeError, ObservationError, UnsupportedEncodingError
from policy_server.observations import problem

__all__ = ["unpacked"]

_GZIP = frozenset({"gzip", "x-gzip"})
# zlib's number for a gzip header in front.
_GZIP_BITS = 31
_BYTES_AT_ONCE = 65536


def unpacked(receive: Receive, coding: str, *, limit: int, too_large: str) -> Receive:
    """Return an ASGI `receive` that gives the body unpacked.

    Args:
        receive: gives the body as it came.
        coding: the request's header `content-encoding`.
        limit: the largest body without its packing, in bytes.
        too_large: the message about a larger one.

    Returns:
        ASGI's `receive`. It raises a BodyTooLargeError as soon as more than the limit is unpacked,
        and an ObservationError for a body that is no gzip.

    Raises:
        UnsupportedEncodingError: if the body is packed in another way.
    """
    named = [item.strip().lower() for item in coding.split(",")]
    packings = [item for item in named if item not in ("", "identity")]
    if not packings:
        return receive
    if len(packings) > 1 or packings[0] not in _GZIP:
        raise UnsupportedEncodingError(
            f"content-encoding {', '.join(packings)[:60]!r} is not taken; send the body packed "
            "with gzip, or as it is"
        )
    return _Unpacking(receive, limit, too_large).receive


class _Unpacking:
    """One body that is being unpacked."""

    def __init__(self, receive: Receive, limit: int, too_large: str) -> None:
        self._receive = receive
        self._too_large = too_large
        self._left = limit
        self._gzip = _Gzip()
        self._pieces: Iterator[bytes] = iter(())
        self._is_whole = False
        self._is_given = False

    async def receive(self) -> Message:
        """Return the next piece; the last one is empty."""
        while True:
            for piece in self._pieces:
                self._left -= len(piece)
                if self._left < 0:
                    raise BodyTooLargeError(self._too_large)
                return {"type": "http.request", "body": piece, "more_body": True}
            if self._is_whole and not self._is_given:
                self._is_given = True
                self._gzip.check_end()
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._pieces = self._gzip.feed(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)


class _Gzip:
    """The members of a gzip file, which may be several."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_BITS)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the unpacked bytes of data, in pieces of bounded size."""
        is_full = False
        while data or is_full:
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP_BITS)
            try:
                piece = self._member.decompress(data, _BYTES_AT_ONCE)
            except zlib.error as error:
                raise _undecodable("the body is no gzip, or damaged") from error
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            # A full piece may leave some behind, though all that came has been read.
            is_full = len(piece) == _BYTES_AT_ONCE and not self._member.eof
            if piece:
                yield piece

    def check_end(self) -> None:
        if not self._member.eof:
            raise _undecodable("the body ends before its gzip does")


def _undecodable(reason: str) -> ObservationError:
    return ObservationError([problem("gzip_invalid", ["body"], f"gzip decode error: {reason}")])
