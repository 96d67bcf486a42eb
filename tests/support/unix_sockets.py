"""HTTP to a UNIX socket."""

from __future__ import annotations

import http.client
import socket
import time
from pathlib import Path

__all__ = ["UnixConnection"]

_PAUSE_S = 0.01


class UnixConnection(http.client.HTTPConnection):
    """A connection to a UNIX socket."""

    def __init__(self, path: Path, *, timeout: float) -> None:
        """Own no socket yet."""
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect; while the socket's queue is full, wait as a client without a timeout does.

        Raises:
            OSError: if no server has the socket, or none that takes clients.
        """
        until = time.monotonic() + (self.timeout or 0.0)
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            try:
                self.sock.connect(str(self._path))
            except OSError as error:
                self.sock.close()
                self.sock = None
                if not isinstance(error, BlockingIOError) or time.monotonic() > until:
                    raise
                time.sleep(_PAUSE_S)
            else:
                return
