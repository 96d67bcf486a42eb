"""Answers with a deadline: requests' own timeout starts anew with each byte that comes."""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

__all__ = ["TimedAdapter", "TimedAnswer"]


class _Reader(io.RawIOBase):
    """Reads a socket until a deadline."""

    def __init__(self, link: socket.socket, stream: io.RawIOBase) -> None:
        super().__init__()
        timeout_s = link.gettimeout()
        assert timeout_s is not None, "each request is given a timeout"
        self._link = link
        self._stream = stream
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def readinto(self, buffer: Any, /) -> int | None:  # noqa: ANN401 -- any buffer
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        self._link.settimeout(left)
        try:
            return self._stream.readinto(buffer)
        finally:
            # The connection's next request is sent with it.
            self._link.settimeout(self._timeout_s)

    def close(self) -> None:
        self._stream.close()
        super().close()


class TimedAnswer(http.client.HTTPResponse):
    """An answer that has to be there, head and body, within its request's timeout."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:  # noqa: ANN401 -- http.client's own
        """Own the reading end of a connection until the answer is read.

        Args:
            sock: the connection.
            *args: as http.client gives them.
            **options: as http.client gives them.
        """
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Reader(sock, self.fp.detach()))


class _Connection(HTTPConnection):
    response_class = TimedAnswer


class _SecureConnection(HTTPSConnection):
    response_class = TimedAnswer


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


_POOLS = {"http": _Pool, "https": _SecurePool}


class TimedAdapter(HTTPAdapter):
    """Sends a session's requests; their timeouts are of whole answers."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 -- the base's
        """Prepare the connections; called by requests."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 -- the base's
        """Prepare the connections to a proxy; called by requests."""
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager
