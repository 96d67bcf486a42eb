"""A WebSocket client that costs next to nothing: one frame, encoded once, sent over and over.

RFC 6455. What comes back is counted, and held to be no error; only the first answer is read.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median

from benchmarks.failures import BenchmarkError

__all__ = ["BINARY", "TEXT", "Connection", "connected", "encode_frame", "read_frames"]

TEXT, BINARY = 1, 2
_CLOSE = 8
_FIN, _MASKED = 0x80, 0x80
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_TIMEOUT_S = 30.0
_RECEIVE = 1 << 16
# How an error's frame begins: in JSON, and in msgpack as a map of two items or three.
_ERRORS = (b'{"status"', b"\x82\xa6status", b"\x83\xa6status")


def encode_frame(kind: int, payload: bytes) -> bytes:
    """Return a client's frame; its mask is zero, which leaves the payload as it is.

    Args:
        kind: `TEXT` or `BINARY`.
        payload: up to 65,535 bytes.
    """
    length = len(payload)
    head = (
        struct.pack("!BB", _FIN | kind, _MASKED | length)
        if length < _TWO_BYTES
        else struct.pack("!BBH", _FIN | kind, _MASKED | _TWO_BYTES, length)
    )
    return head + bytes(4) + payload


def read_frames(buffer: bytearray) -> list[tuple[int, bytes]]:
    """Take all whole frames of a server out of a buffer.

    Args:
        buffer: what has come so far; what is left is the start of a frame.

    Returns:
        The kind and the payload of each.
    """
    frames: list[tuple[int, bytes]] = []
    at = 0
    while at + 2 <= len(buffer):
        kind, length, start = buffer[at] & 0x0F, buffer[at + 1] & 0x7F, at + 2
        wide = {_TWO_BYTES: 2, _EIGHT_BYTES: 8}.get(length, 0)
        if len(buffer) < start + wide:
            break
        if wide:
            length = int.from_bytes(buffer[start : start + wide], "big")
        start += wide
        if len(buffer) < start + length:
            break
        frames.append((kind, bytes(buffer[start : start + length])))
        at = start + length
    del buffer[:at]
    return frames


class Connection:
    """An open WebSocket."""

    def __init__(self, link: socket.socket) -> None:
        """Keep the socket.

        Args:
            link: has shaken hands.
        """
        self._link = link
        self._buffer = bytearray()

    def ask(self, frame: bytes) -> bytes:
        """Send a frame and return the payload of its answer."""
        self.send(frame)
        return self.receive()

    def send(self, frame: bytes) -> None:
        """Send a frame, whose answer `receive` returns."""
        self._link.sendall(frame)

    def receive(self) -> bytes:
        """Return the payload of the answer to the one frame in flight."""
        answers: list[bytes] = []
        while not answers:
            answers = self._receive()
        return answers[0]

    def round_trips(self, frame: bytes, *, in_flight: int, seconds: float) -> tuple[float, float]:
        """Keep a number of frames in flight.

        Args:
            frame: what is sent.
            in_flight: how many wait for their answers.
            seconds: for how long.

        Returns:
            Answers a second, and the median milliseconds of a round trip.
        """
        began = now = time.perf_counter()
        sent = [now] * in_flight
        self._link.sendall(frame * in_flight)
        times: list[float] = []
        while now - began < seconds:
            answered = len(self._receive())
            now = time.perf_counter()
            # Answers come in order: the oldest frames are those that were answered.
            times += [now - then for then in sent[:answered]]
            sent = [*sent[answered:], *[now] * answered]
            self._link.sendall(frame * answered)
        return len(times) / (now - began), median(times) * 1000

    def _receive(self) -> list[bytes]:
        """Return the payloads of the next frames that came."""
        received = self._link.recv(_RECEIVE)
        self._buffer += received
        frames = read_frames(self._buffer)
        if not received or any(kind == _CLOSE for kind, _ in frames):
            raise BenchmarkError("the server closed the WebSocket")
        payloads = [payload for kind, payload in frames if kind in (TEXT, BINARY)]
        for payload in payloads:
            if payload.startswith(_ERRORS):
                raise BenchmarkError(f"the stream answered an error: {payload[:100]!r}")
        return payloads


@contextmanager
def connected(port: int, path: str, headers: Mapping[str, str]) -> Iterator[Connection]:
    """Open a WebSocket to a server on this machine until the block ends.

    Args:
        port: the server's.
        path: the route.
        headers: beside those of the handshake.

    Yields:
        The connection.

    Raises:
        BenchmarkError: if the server refuses, or fails later.
    """
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    try:
        with socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.sendall("\r\n".join([*lines, "", ""]).encode())
            _check_switched(link, path)
            yield Connection(link)
    except OSError as error:
        raise BenchmarkError(f"WS {path}: {error}") from error


def _check_switched(link: socket.socket, path: str) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        received = link.recv(1)
        if not received:
            raise BenchmarkError(f"WS {path}: closed during the handshake")
        head += received
    status = head.split(b"\r\n")[0].decode()
    if " 101 " not in f"{status} ":
        raise BenchmarkError(f"WS {path}: answered {status.partition(' ')[2]}")
