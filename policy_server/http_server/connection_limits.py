"""Limits of connections: how long, how much and how many, for clients that mean harm or are broken.

One timer looks at all connections, once a second or more often where a limit is short; a connection
notes what it does, and not when.

Source of the limits: nginx (`client_header_timeout`, `large_client_header_buffers`) and Apache
(`RequestReadTimeout`, with the least rate of bodies).
"""

from __future__ import annotations

import asyncio
import enum
import logging
import resource
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from policy_server.http_server.address_connections import AddressConnections
from policy_server.metrics import Metrics
from policy_server.settings import Settings

__all__ = [
    "MOST_REFUSED",
    "UNREAD_S",
    "ConnectionLimits",
    "ConnectionWatch",
    "Handshake",
    "Phase",
    "RefusedRequest",
    "Unread",
    "WatchedConnection",
]

logger = logging.getLogger(__name__)

# How long a client may read nothing of what is left to send, once its connection is to end.
UNREAD_S = 5.0
# So many connections beyond the limit are told so; more are closed without a wait for their bytes.
MOST_REFUSED = 64

_LONGEST_PAUSE_S = 1.0
_LOOKS_A_LIMIT = 4
# Files that are no connections: logs, models, replicas' sockets.
_OTHER_FILES = 128


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of the connections of a process.

    Attributes:
        header_timeout_s: the longest that a head takes from its first byte to its last, in seconds.
        body_timeout_s: the longest that a body takes, in seconds; and a second for each 4 KiB.
        max_header_bytes: the most bytes of a head.
        max_connections: the most connections at a time.
        max_pipelined: the most requests of a connection that are answered at a time.
        max_address_connections: the most connections of one address; 0 for any number.
    """

    header_timeout_s: float
    body_timeout_s: float
    max_header_bytes: int
    max_connections: int
    max_pipelined: int
    max_address_connections: int = 0

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        """Return the limits that settings and system allow."""
        return cls(
            header_timeout_s=settings.header_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            max_header_bytes=settings.max_header_bytes,
            max_connections=_possible(settings.max_connections),
            max_pipelined=settings.max_pipelined,
            max_address_connections=settings.max_address_connections,
        )


class Phase(enum.Enum):
    """A part of a connection's course."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    BUSY = enum.auto()
    LINGER = enum.auto()


class Unread:
    """How long a client has read nothing of what is left to send to it."""

    def __init__(self) -> None:
        """Begin with nothing that is left."""
        self._bytes = 0
        self._since = 0.0

    def is_read(self) -> None:
        """Take note that the client reads."""
        self._bytes = 0

    def seconds(self, transport: asyncio.WriteTransport, now: float) -> float:
        """Return for how many seconds it has read nothing; 0 where nothing is left.

        Args:
            transport: the connection's.
            now: the time by the event loop's clock.
        """
        unsent = transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._bytes or self._bytes == 0:
            self._since = now
        self._bytes = unsent
        return now - self._since


class WatchedConnection:
    """A connection that the watch looks at.

    Attributes:
        transport: the connection's.
    """

    transport: asyncio.Transport

    def do_or_abort(self, act: Callable[..., None], *values: object) -> None:
        """Do something of the connection's; where that raises, log it and end this connection.

        Nothing is raised: whoever calls has other connections to care for.

        Args:
            act: a method of the connection.
            values: what it takes.
        """
        try:
            act(*values)
        except Exception:
            logger.exception("connection_failed")
            self.transport.abort()

    def look(self, now: float) -> None:
        """Close the connection if it does the same for too long.

        Args:
            now: the time by the event loop's clock.
        """
        raise NotImplementedError


class Handshake(Protocol):
    """A TLS handshake under way."""

    def make_room(self) -> None:
        """End, since others wait for a place."""


@dataclass(frozen=True)
class RefusedRequest:
    """A request that the protocol has answered by an error, without the application.

    Attributes:
        status: of the answer.
        client: the address that the connection comes from; None at a UNIX socket.
        method: its method; empty where it is not known.
        path: its address without the query, unquoted, behind uvicorn's `--root-path`, as far as it
            has come; empty where it is not known.
        root_path: uvicorn's `--root-path`.
    """

    status: int
    client: str | None
    method: str = ""
    path: str = ""
    root_path: str = ""


class ConnectionWatch:
    """Looks at all connections of a process, as long as there are any.

    Attributes:
        limits: the connections'.
        addresses: counts the connections of each address.
        handshakes: the TLS handshakes under way, the oldest first.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        metrics: Metrics | None = None,
        *,
        log_refused: Callable[[RefusedRequest], None] | None = None,
    ) -> None:
        """Own the timer, which ends with the last connection.

        Args:
            limits: the connections'.
            metrics: counts refused connections; None counts none.
            log_refused: logs a refused request; None logs none.
        """
        self.limits = limits
        self.addresses = AddressConnections(limits.max_address_connections)
        self.handshakes: dict[Handshake, None] = {}
        self._metrics = metrics
        self._log_refused = log_refused
        self._is_looking = False

    def begin(self, connections: Collection[object], keep_alive_s: float) -> None:
        """Look at the connections from now on, if that is not done already.

        Args:
            connections: uvicorn's.
            keep_alive_s: how long a connection may be idle.
        """
        if not self._is_looking:
            self._is_looking = True
            limits = self.limits
            shortest = min(limits.header_timeout_s, limits.body_timeout_s, keep_alive_s)
            pause_s = min(_LONGEST_PAUSE_S, shortest / _LOOKS_A_LIMIT)
            asyncio.get_running_loop().call_later(pause_s, self._look, connections, pause_s)

    def count_refused(self, status: int) -> None:
        """Count a connection that was closed with an error."""
        if self._metrics is not None:
            self._metrics.observe_request("", "other", status, 0.0)

    def note_refused(self, refused: RefusedRequest) -> None:
        """Count and log a request that was answered by an error."""
        self.count_refused(refused.status)
        if self._log_refused is not None:
            self._log_refused(refused)

    def _look(self, connections: Collection[object], pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(connections):
            if isinstance(connection, WatchedConnection):
                connection.do_or_abort(connection.look, now)
        self._is_looking = bool(connections)
        if self._is_looking:
            loop.call_later(pause_s, self._look, connections, pause_s)


def _possible(most: int) -> int:
    """Return how many connections the system allows, whose limit is raised if need be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(allowed, soft), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    return max(min(most, soft - _OTHER_FILES), 1)
