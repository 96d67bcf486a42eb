"""requests over a UNIX socket: an adapter that connects there, whatever host an address names."""

from __future__ import annotations

import socket
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError

from policy_server.commands.timed_answers import TimedAnswer

__all__ = ["UnixAdapter"]


class UnixAdapter(HTTPAdapter):
    """Sends a session's requests to a UNIX socket."""

    def __init__(self, path: str) -> None:
        """Own the connections to the socket.

        Args:
            path: the socket's.
        """
        super().__init__()

        class Connection(HTTPConnection):
            """A connection of the pool."""

            response_class = TimedAnswer

            def connect(self) -> None:
                """Connect to the socket."""
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.settimeout(self.timeout)
                try:
                    self.sock.connect(path)
                except OSError as error:
                    # As urllib3 says it where nobody listens; any other is of a lost connection.
                    raise NewConnectionError(self, str(error)) from error

        self._pool = HTTPConnectionPool("localhost")
        self._pool.ConnectionCls = Connection

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,  # noqa: ARG002 -- as the base's
        verify: bool | str | None,  # noqa: ARG002, FBT001 -- as the base's
        proxies: Any = None,  # noqa: ANN401, ARG002 -- as the base's
        cert: Any = None,  # noqa: ANN401, ARG002 -- as the base's
    ) -> HTTPConnectionPool:
        """Return the connections to the socket; called by requests."""
        return self._pool

    def close(self) -> None:
        """Close the connections; called by the session."""
        self._pool.close()
        super().close()
