"""One connection of calls: bytes to frames and back, after both sides have proved the key."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from contextlib import suppress
from typing import Protocol, cast

import numpy as np

from policy_server.backends.ray.call_frames import (
    HEADER,
    MAX_BODY_BYTES,
    Body,
    Frame,
    FrameError,
)
from policy_server.backends.ray.call_proofs import Handshake

__all__ = ["PROOF_TIMEOUT_S", "CallConnection", "FrameReceiver"]

logger = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 16
PROOF_TIMEOUT_S = 5.0
# After this a machine that has gone without a word counts as gone.
_SILENCE_S = 5
_PROBES = 3
# struct ucred of unix(7): process, user, group.
_CREDENTIALS = struct.Struct("3i")


class FrameReceiver(Protocol):
    """The owner of a connection."""

    def proved(self) -> None:
        """Take note that both sides have proved the key: frames may be sent."""

    def received(self, kind: int, number: int, body: Body) -> None:
        """Take a frame.

        Raises:
            FrameError: if it has no place here; the connection is ended then.
        """

    def read(self) -> None:
        """Take note that all frames that have come so far have been received."""

    def choked(self, *, is_choked: bool) -> None:
        """Take note whether more is to be sent than the other side reads."""

    def ended(self) -> None:
        """Take note that the connection has ended; no other method is called from here on."""


class CallConnection(asyncio.BufferedProtocol):
    """One end of a connection.

    Short frames are cut out of one buffer; a long one is received where it will stay.

    Attributes:
        is_paused: whether nothing more is read for the time being.
    """

    def __init__(
        self,
        handshake: Handshake,
        receiver: FrameReceiver,
        *,
        proof_timeout_s: float = PROOF_TIMEOUT_S,
    ) -> None:
        """Own the transport, from when it is made until it is lost.

        Args:
            handshake: this side's part of the proofs.
            receiver: takes the frames.
            proof_timeout_s: how long the proofs may take, in seconds.
        """
        self._proof_timeout_s = proof_timeout_s
        self._handshake: Handshake | None = handshake
        self._needed = 0
        self._receiver = receiver
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reason = ""
        self._is_refused = False
        self.is_paused = False
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._end = 0
        # A frame that does not fit into the buffer: its kind and number, its body, how much of it
        # is there.
        self._long: tuple[int, int, Body] | None = None
        self._filled = 0

    @property
    def peer(self) -> int | None:
        """Return the id of the process behind a UNIX socket; None where nobody can tell."""
        transport, option = self._transport, getattr(socket, "SO_PEERCRED", None)
        if transport is None or transport.is_closing() or option is None:
            return None
        connection: socket.socket = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            return None
        found = connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
        pid: int = _CREDENTIALS.unpack(found)[0]
        return pid or None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the proofs."""
        # uvloop's derive from nothing of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        if self._reason:
            self._transport.abort()
            return
        _watch_silence(self._transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._proof_timeout_s, self.refuse, "no proof in time")
        self._advance(None)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 -- asyncio's
        """Return the memory that the next bytes are received into."""
        if self._long is not None:
            return self._long[2][self._filled :]
        return self._buffer[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes that have been received."""
        try:
            if self._long is not None:
                self._take_part(nbytes)
                return
            self._end += nbytes
            start = 0 if self._handshake is None else self._take_proof()
            if self._handshake is None:
                start = self._take_frames(start)
                self._receiver.read()
            if start:
                rest = self._end - start
                self._buffer[:rest] = self._buffer[start : self._end]
                self._end = rest
        except FrameError as error:
            self.refuse(str(error))

    def pause_writing(self) -> None:
        """Tell the receiver that the other side reads too slowly."""
        self._receiver.choked(is_choked=True)

    def resume_writing(self) -> None:
        """Tell the receiver that the other side has read."""
        self._receiver.choked(is_choked=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the receiver, and the log."""
        if self._timer is not None:
            self._timer.cancel()
        reason = self._reason or (repr(exc) if exc is not None else "ended by the other side")
        level = logging.WARNING if self._is_refused else logging.INFO
        logger.log(level, "calls_disconnected", extra={"peer": self._peer(), "reason": reason})
        self._receiver.ended()

    def send(self, frame: Frame) -> None:
        """Send a frame, unless the connection is on its way out.

        Args:
            frame: its parts.
        """
        assert self._transport is not None, "it is proved"
        if self._transport.is_closing():
            return
        if len(frame) == 1:
            self._transport.write(frame[0])
        else:
            self._transport.writelines(frame)

    def pause(self, *, is_paused: bool) -> None:
        """Read nothing more, or go on reading.

        Args:
            is_paused: whether to pause.
        """
        if is_paused == self.is_paused or self._transport is None:
            return
        self.is_paused = is_paused
        if not self._transport.is_closing():
            if is_paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def refuse(self, reason: str) -> None:
        """End a connection whose other side breaks the rules: a warning in the log.

        Args:
            reason: for the log.
        """
        self._is_refused = True
        self.close(reason)

    def close(self, reason: str) -> None:
        """End the connection at once; what has not been sent yet is lost.

        Args:
            reason: for the log; the first one counts.
        """
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    def _peer(self) -> str:
        """Return the other side's address; a UNIX socket has none."""
        peer = None if self._transport is None else self._transport.get_extra_info("peername")
        return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "this machine"

    def _advance(self, given: bytes | None) -> None:
        """Go on with the proofs; a handshake that has ended is None from here on."""
        assert self._handshake is not None
        assert self._transport is not None
        try:
            # A generator's first value comes without one that is sent.
            message, self._needed = self._handshake.send(given)  # type: ignore[arg-type]
            self._transport.write(message)
            if self._needed:
                return
            self._handshake.close()
        except StopIteration:
            pass
        self._handshake = None
        assert self._timer is not None
        self._timer.cancel()
        self._receiver.proved()

    def _take_proof(self) -> int:
        """Take bytes of the proofs, and return how many."""
        start = 0
        while self._handshake is not None and self._end - start >= self._needed:
            given = bytes(self._buffer[start : start + self._needed])
            start += self._needed
            self._advance(given)
        return start

    def _take_frames(self, start: int) -> int:
        """Hand on each whole frame in the buffer, and return where the rest begins."""
        buffer, end = self._buffer, self._end
        while end - start >= HEADER.size and not self._reason:
            length, kind, number = HEADER.unpack_from(buffer, start)
            first, after = start + HEADER.size, start + HEADER.size + length
            if after <= end:
                self._receiver.received(kind, number, memoryview(bytearray(buffer[first:after])))
                start = after
                continue
            if length > MAX_BODY_BYTES:
                raise FrameError(f"a frame of {length} bytes")
            if length + HEADER.size > _BUFFER_BYTES:
                # Memory that is not touched before bytes come: a length alone takes none.
                body = np.empty(length, np.uint8).data
                self._filled = end - first
                body[: self._filled] = buffer[first:end]
                self._long = (kind, number, body)
                return end
            break
        return start

    def _take_part(self, count: int) -> None:
        """Take a part of a long frame."""
        assert self._long is not None
        self._filled += count
        kind, number, body = self._long
        if self._filled == len(body):
            self._long = None
            self._receiver.received(kind, number, body)
            self._receiver.read()


def _watch_silence(transport: asyncio.Transport) -> None:
    """End a TCP connection when the other machine has gone without a word."""
    connection: socket.socket = transport.get_extra_info("socket")
    if connection.family == socket.AF_UNIX:
        return
    options = [
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", _PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", _SILENCE_S * 1000),
    ]
    for level, name, value in options:
        # Not every system has each.
        with suppress(OSError):
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(level, option, value)
