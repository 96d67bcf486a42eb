"""A replica's note of the call that it computes, which outlives its process.

A replica that hangs or has ended can't be asked which call it computes, and no web process knows
of the others' calls. So it keeps the call's number in eight bytes of memory that the web processes
of its machine read: they open it by way of its process (`/proc/PID/fd`), and learn which
descriptor it is from a link beside the replica's socket.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from pathlib import Path

__all__ = ["CallNote", "NotedCall", "remove_note"]

_NUMBER = struct.Struct("<Q")
# Of no call: `DirectCalls` counts from above it.
_NONE = 0
_SUFFIX = "-computes"


class CallNote:
    """The replica's side of the note."""

    def __init__(self) -> None:
        """Own memory, from `publish` to `close`; until then nothing is noted."""
        self._memory: mmap.mmap | None = None
        self._descriptor = -1
        self._link: Path | None = None

    def publish(self, socket: Path) -> None:
        """Let others of this machine read it; where the system can't do so, nothing is noted.

        Args:
            socket: the path of the replica's socket.
        """
        # Memory and no file: a disk that is full would end the process at a write to its page.
        with suppress(AttributeError, OSError):
            self._descriptor = os.memfd_create(socket.name)
            os.truncate(self._descriptor, _NUMBER.size)
            memory = mmap.mmap(self._descriptor, _NUMBER.size)
            link = _link_of(socket)
            link.symlink_to(str(self._descriptor))
            self._memory, self._link = memory, link

    def begin(self, number: int) -> None:
        """Note that a call is computed from now on.

        Args:
            number: the call's.
        """
        if self._memory is not None:
            _NUMBER.pack_into(self._memory, 0, number)

    def end(self) -> None:
        """Note that no call is computed."""
        self.begin(_NONE)

    def close(self) -> None:
        """Note nothing more; those who have opened it read what was noted last."""
        self._memory = None
        if self._link is not None:
            with suppress(OSError):
                self._link.unlink(missing_ok=True)
            self._link = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class NotedCall:
    """A web process's side of the note of one replica."""

    def __init__(self, descriptor: int) -> None:
        """Own the descriptor, until `close`."""
        self._descriptor = descriptor

    @classmethod
    def of(cls, process: int | None, socket: str) -> NotedCall | None:
        """Return the note of a replica; None where it keeps none that can be read here.

        Args:
            process: the replica's, where it is of this machine.
            socket: the path of its socket.
        """
        if process is None or not socket:
            return None
        try:
            number = int(_link_of(Path(socket)).readlink().name)
            memory = f"/proc/{process}/fd/{number}"
            return cls(os.open(memory, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except (OSError, ValueError):
            return None

    def number(self) -> int:
        """Return the number of the call that the replica computes; 0 for none."""
        try:
            number: int = _NUMBER.unpack(os.pread(self._descriptor, _NUMBER.size, 0))[0]
        except (OSError, struct.error):
            return _NONE
        return number

    def close(self) -> None:
        """Read it no more."""
        os.close(self._descriptor)


def remove_note(socket: Path) -> None:
    """Remove the link of a replica that was killed; who has opened its note reads it still.

    Args:
        socket: the path of its socket.
    """
    _link_of(socket).unlink(missing_ok=True)


def _link_of(socket: Path) -> Path:
    return socket.with_name(socket.name + _SUFFIX)
