"""One connection to a replica, as a web process has it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from policy_server.backends.ray.call_connection import CallConnection
from policy_server.backends.ray.call_frames import Body, Frame
from policy_server.backends.ray.call_proofs import client_handshake
from policy_server.backends.ray.replica_list import ReplicaAddress

__all__ = ["LineOwner", "ReplicaLine"]


class LineOwner(Protocol):
    """The owner of a connection to a replica."""

    def received(self, kind: int, number: int, body: Body) -> None:
        """Take a frame; see `FrameReceiver`."""

    def ended(self) -> None:
        """Take note that a connection has ended."""


class ReplicaLine:
    """One of the connections to a replica; see `FrameReceiver`."""

    def __init__(self, replica: LineOwner) -> None:
        """Own the connection, from `open` until it ends.

        Args:
            replica: gets what comes.
        """
        self._replica = replica
        self._connection: CallConnection | None = None
        self._is_proved: asyncio.Future[None] | None = None
        self._has_ended = False

    async def open(self, address: ReplicaAddress) -> None:
        """Connect, and prove the key.

        Args:
            address: the replica's.

        Raises:
            OSError: if it can't be reached, or does not know the key.
        """
        loop = asyncio.get_running_loop()
        self._is_proved = loop.create_future()
        handshake = client_handshake(address.key, address.application, address.replica)
        connection = self._connection = CallConnection(handshake, self)
        if address.path:
            await loop.create_unix_connection(lambda: connection, address.path)
        else:
            await loop.create_connection(lambda: connection, address.host, address.port)
        await self._is_proved

    @property
    def is_open(self) -> bool:
        """Return whether it was opened, and has not ended."""
        return self._connection is not None and not self._has_ended

    @property
    def process(self) -> int | None:
        """Return the replica's process, where it is of this machine."""
        return self._connection.peer if self._connection is not None and self.is_open else None

    def send(self, frame: Frame) -> None:
        """Send a frame.

        Args:
            frame: its parts.
        """
        assert self._connection is not None, "it is open"
        self._connection.send(frame)

    def close(self, reason: str) -> None:
        """End it.

        Args:
            reason: for the log.
        """
        if self._connection is not None:
            self._connection.close(reason)

    def proved(self) -> None:
        """Take note that it is open."""
        assert self._is_proved is not None
        if not self._is_proved.done():
            self._is_proved.set_result(None)

    def received(self, kind: int, number: int, body: Body) -> None:
        """Hand a frame on."""
        self._replica.received(kind, number, body)

    def read(self) -> None:
        """Do nothing: each answer has been taken."""

    def choked(self, *, is_choked: bool) -> None:
        """Do nothing: the scheduler bounds how many calls there are."""

    def ended(self) -> None:
        """Tell of the end, and whoever waits for the proof."""
        self._has_ended = True
        assert self._is_proved is not None
        if not self._is_proved.done():
            self._is_proved.set_exception(ConnectionRefusedError("no proof of the key"))
        self._replica.ended()
