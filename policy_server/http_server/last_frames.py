"""The frames of a web socket that had come when the server began to end: the last ones it takes.

Others that come behind them are none of the application's, however fast a client sends: one that
sends a frame for each answer would be served for ever.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios

__all__ = ["LastFrames"]

# What a client of some hundred frames in flight has left with the kernel, at most. One that sends
# without pause may have left tens of thousands.
_MOST_FRAMES = 1024
# What asyncio reads ahead of a TLS connection.
_READ_AHEAD_BYTES = 256 * 1024


class LastFrames:
    """The bytes that lie with the kernel, unread, and the frames in them that are still taken.

    A client with many frames in flight was not read for a while, and its frames waited there.
    """

    def __init__(self, transport: asyncio.Transport, *, is_held_back: bool) -> None:
        """Own the count of the bytes and frames that are still to come.

        Args:
            transport: the connection.
            is_held_back: whether it is not read at the moment.
        """
        self._bytes = _unread_bytes(transport)
        self._frames = _MOST_FRAMES
        self._seen = self._bytes
        self._was_held_back = is_held_back
        if is_held_back and transport.get_extra_info("sslcontext") is not None:
            self._bytes += _READ_AHEAD_BYTES

    @property
    def is_over(self) -> bool:
        """Return whether all bytes that had come are read, or as many frames as are taken."""
        return self._bytes <= 0 or self._frames <= 0

    def count_bytes(self, data: bytes) -> int:
        """Count bytes that were read, and return how many of them had come.

        Args:
            data: the next bytes of the connection.
        """
        due = min(self._bytes, len(data))
        self._bytes -= due
        return due

    def take_frame(self) -> bool:
        """Count a frame, and return whether it is still taken."""
        self._frames -= 1
        return self._frames >= 0

    def is_quiet(self, *, is_held_back: bool) -> bool:
        """Return whether it was read ever since this was asked last, and no bytes came.

        TLS has fewer bytes than the kernel says.

        Args:
            is_held_back: whether it is not read at the moment.
        """
        seen, self._seen = self._seen, self._bytes
        # What is read again since a moment ago may not have been looked at yet.
        was_held_back, self._was_held_back = self._was_held_back, is_held_back
        return seen == self._bytes and not (is_held_back or was_held_back)


def _unread_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes of a connection lie with the kernel."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0:
        return 0
    count = array.array("i", [0])
    try:
        fcntl.ioctl(connection.fileno(), termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]
