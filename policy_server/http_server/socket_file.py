"""The file of a UNIX socket: by it clients are refused when a server ends, and none is left behind.

The kernel has no filter for connections to a UNIX socket: it makes them as long as a file leads to
one that listens. uvicorn's supervisor of several workers keeps it so until all have ended, and
removes the file then; one process removes it after SIGINT only. Either removes whatever is there by
then, the socket of the next server too.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from policy_server.ports import is_dead_unix_socket

__all__ = ["SocketFile"]

# The shortest queue has one place; a worker that has not closed its listener yet takes some.
_MOST_CONNECTIONS = 64


class SocketFile:
    """The file of the UNIX socket that this server listens on."""

    def __init__(self, path: str, *, supervisor: int = 0) -> None:
        """Own the file that is at the path now, until it is removed or put back.

        Another file that comes to its path is never touched.

        Args:
            path: as uvicorn has it.
            supervisor: the process that keeps the socket for workers to come; 0 for none.
        """
        self._path = Path(path).absolute()
        # Where the socket and the one that stands in for it are meanwhile.
        self._aside = Path(f"{self._path}.{supervisor}")
        self._next = Path(f"{self._path}.{supervisor}.new")
        if supervisor:
            self._put_back_for_others()
        self._identity = _identity_of(self._path)
        self._stand_in: socket.socket | None = None

    def remove(self) -> None:
        """Remove it: clients find nothing, and the next server may put its own there."""
        if self._is_there():
            # Where the folder may not be written to any more, clients come on.
            with suppress(OSError):
                self._path.unlink()

    def put_aside(self) -> None:
        """Have clients refused, where a supervisor keeps the socket for workers to come.

        A socket that does not listen comes to the path. No other server takes the path meanwhile,
        whose socket the supervisor would remove.
        """
        if self._stand_in is not None or not self._is_there():
            return
        stand_in = socket.socket(socket.AF_UNIX)
        try:
            stand_in.bind(str(self._next))
            os.link(self._path, self._aside)
            self._next.rename(self._path)
        except OSError:
            # The folder may not be written to, or the name is too long: clients come on.
            stand_in.close()
            for path in (self._next, self._aside):
                with suppress(OSError):
                    path.unlink()
            return
        self._stand_in, self._identity = stand_in, _identity_of(self._path)

    def put_back(self, listener: socket.socket) -> None:
        """Put it back once this process takes no clients, for the supervisor and its next workers.

        The queue is filled before: clients wait until the next worker serves, or until the
        supervisor has removed the file. So no connection is made that nobody takes.

        Args:
            listener: the socket.
        """
        if self._stand_in is None:
            return
        # The next worker may have put it back already.
        if _identity_of(self._aside) is not None:
            # The next worker gives it a queue again.
            listener.listen(0)
            _fill_queue(self._aside)
            if self._is_there():
                self._aside.rename(self._path)
            self._aside.unlink(missing_ok=True)
        self._stand_in.close()
        self._stand_in = None

    def _put_back_for_others(self) -> None:
        """Put back what a worker that has ended put aside, and could not put back itself."""
        if is_dead_unix_socket(str(self._aside)):
            # It is of a server that was killed, whose process had the same number.
            self._aside.unlink()
        elif _identity_of(self._aside) is not None:
            self._aside.rename(self._path)

    def _is_there(self) -> bool:
        return self._identity is not None and _identity_of(self._path) == self._identity


def _identity_of(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = path.lstat()
        return found.st_dev, found.st_ino
    return None


def _fill_queue(path: Path) -> None:
    """Connect to a socket with the shortest queue until it is full."""
    for _ in range(_MOST_CONNECTIONS):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(0)
            try:
                client.connect(str(path))
            except OSError:
                return
