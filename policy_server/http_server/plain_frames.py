"""Plain frames of a web socket: whole messages, read and written in one step each.

websockets reads any frame with a generator for each of its parts and describes it by an object,
which takes longer than to mask some hundred bytes. A frame is plain if it is a whole message of
text or bytes that has come whole, up to 65,535 bytes long, on a connection without extensions.
Every other frame is read by websockets, and so is a wrong one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from websockets import frames as library
from websockets.protocol import Protocol, State

from policy_server.http_server.stream_frames import Message

__all__ = ["PlainFrames"]

# The first byte of a whole message; the second has the bit of a mask and the length.
_TEXT, _BINARY = 0x81, 0x82
_MASKED, _LONG = 0x80, 126
_MOST_SHORT, _MOST_BYTES = 125, 65535
_SHORT_HEAD, _LONG_HEAD = struct.Struct("!BB"), struct.Struct("!BBH")
_BEHIND_SHORT, _BEHIND_LONG, _MASK_BYTES = 2, 4, 4
# An inner name, like the members that `of` looks for; None where it is another.
_apply_mask = getattr(library, "apply_mask", None)


class PlainFrames:
    """The plain frames of one connection."""

    def __init__(self, connection: Protocol, reader: Any, *, most_bytes: int) -> None:  # noqa: ANN401 -- websockets' own
        """Own nothing: the connection has its state, and reads the frames that are not plain.

        Args:
            connection: websockets' state of the connection.
            reader: where that keeps what it has read in part.
            most_bytes: the longest message.
        """
        self._connection = connection
        self._reader = reader
        self._most_bytes = min(most_bytes, _MOST_BYTES)

    @classmethod
    def of(cls, connection: Protocol, *, most_bytes: int) -> PlainFrames | None:
        """Return the plain frames of a connection; None where it has none.

        Args:
            connection: websockets' state of the connection, whose handshake is over.
            most_bytes: the longest message.
        """
        reader = getattr(connection, "reader", None)
        is_known = hasattr(reader, "buffer") and hasattr(connection, "current_size")
        if connection.extensions or not is_known or _apply_mask is None:
            return None
        return cls(connection, reader, most_bytes=most_bytes)

    @property
    def is_between_messages(self) -> bool:
        """Return whether a frame that comes now would be the first of a message."""
        connection = self._connection
        return (
            not self._reader.buffer
            and connection.current_size is None
            and connection.state is State.OPEN
        )

    def read(self, data: bytes, begin: int = 0) -> tuple[Message, int] | None:
        """Read one frame of some bytes.

        Args:
            data: the bytes, which are not copied for each frame in them.
            begin: where the frame begins; two bytes or more are there.

        Returns:
            The message as ASGI has it, and where the frame ends; None where it is no plain frame.
        """
        opcode, length = data[begin], data[begin + 1] - _MASKED
        start = begin + _BEHIND_SHORT
        if length == _LONG and len(data) > begin + _BEHIND_LONG:
            length = data[start] << 8 | data[start + 1]
            start = begin + _BEHIND_LONG
        elif not 0 <= length <= _MOST_SHORT:
            return None
        end = start + _MASK_BYTES + length
        if len(data) < end or length > self._most_bytes:
            return None
        behind_mask = start + _MASK_BYTES
        assert _apply_mask is not None, "`of` has looked for it"
        payload: bytes = _apply_mask(data[behind_mask:end], data[start:behind_mask])
        if opcode == _BINARY:
            return {"bytes": payload}, end
        if opcode != _TEXT:
            return None
        try:
            return {"text": payload.decode()}, end
        except UnicodeDecodeError:
            return None

    def written(self, frames: Sequence[tuple[bytes, bool]]) -> bytes | None:
        """Return frames as they are sent; None where one is too long, or the connection is closing.

        Args:
            frames: the payload of each, and whether it is text.
        """
        if self._connection.state is not State.OPEN:
            return None
        parts: list[bytes] = []
        for payload, is_text in frames:
            length = len(payload)
            if length > _MOST_BYTES:
                return None
            opcode = _TEXT if is_text else _BINARY
            if length <= _MOST_SHORT:
                parts += (_SHORT_HEAD.pack(opcode, length), payload)
            else:
                parts += (_LONG_HEAD.pack(opcode, _LONG, length), payload)
        return b"".join(parts)
