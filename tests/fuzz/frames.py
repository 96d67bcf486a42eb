"""Frames of web sockets, built rightly and wrongly, byte for byte, on real connections.

A connection's answers have to be frames, and its end a close frame whose code RFC 6455 has; the
server goes on, and keeps nothing of the connections that have gone.
"""

from __future__ import annotations

import asyncio
import base64
import random
import struct
import zlib
from collections import Counter
from contextlib import suppress
from ssl import SSLContext

from tests.fuzz.watching import resident_bytes, without_complaints
from tests.support.hot_bytes import cut
from tests.support.streams import KEY_HEADER, Served, served
from tests.support.waiting import until

__all__ = [
    "BINARY",
    "BOMB",
    "CLOSE",
    "COMPRESSED",
    "FIN",
    "GOOD",
    "PING",
    "PONG",
    "RSV1",
    "RSV2",
    "RSV3",
    "TEXT",
    "RawStream",
    "deflated",
    "frame",
    "send_frames",
]

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
FIN, RSV1, RSV2, RSV3 = 0x80, 0x40, 0x20, 0x10
MASK = b"\x01\x02\x03\x04"
GOOD = b'{"cat": 0, "mouse": 1}'

# The codes that a close frame may have (RFC 6455, section 7.4, and the registry), and none.
_CODES = frozenset({*range(1000, 1015), *range(3000, 5000)}) - {1004, 1006}
_AT_ONCE = 16
# Memory that a run may add: buffers and caches, but nothing for each connection.
_MOST_GROWTH = 48 << 20
_WARM_UP = 320
_PAYLOADS = [
    GOOD,
    GOOD,
    b'{"cat": 1, "mouse": 2, "id": 7}',
    b'{"reset": true}',
    b'{"obs": [1, 2]}',
    b"{",
    b"",
    b"null",
    b"\xff",
    b"\xc3",
    b"\x28",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98",
    b"\x80",
    b"\x82\xa3cat\x00\xa5mouse\x01",
    b"\x91" * 500,
    b"\xdd\xff\xff\xff\xff",
    b"[" * 5000,
    b"\x00" * 70_000,
    "é".encode() * 40,
]
_CLOSINGS = [
    b"",
    b"\x03",
    *(
        struct.pack("!H", code)
        for code in (0, 999, 1000, 1001, 1004, 1005, 1006, 1015, 1016, 2999, 3000, 4999, 5000)
    ),
    b"\x03\xe8bye",
    b"\x03\xe8\xff\xfe",
    b"\x03\xe8" + b"x" * 123,
    b"\x03\xe8" + b"x" * 124,
]


def frame(
    first: int,
    payload: bytes = b"",
    *,
    length: int | None = None,
    mask: bytes | None = MASK,
    width: int = 0,
) -> bytes:
    """Return a client's frame.

    Args:
        first: its first byte: FIN, reserved bits and kind.
        payload: its bytes.
        length: what it says of its length, which may be a lie.
        mask: None for a frame without.
        width: the bytes of the length, 2 or 8, where that could be told by fewer.
    """
    size = len(payload) if length is None else length
    masked = 0 if mask is None else 0x80
    if size < 126 and not width:
        head = struct.pack("!BB", first, masked | size)
    elif size < 1 << 16 and width < 8:
        head = struct.pack("!BBH", first, masked | 126, size)
    else:
        head = struct.pack("!BBQ", first, masked | 127, size)
    if mask is None:
        return head + payload
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + mask + mixed.to_bytes(len(payload), "big")


def deflated(payload: bytes) -> bytes:
    """Return the payload of a compressed message (RFC 7692)."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


# A few kilobytes that stand for more than a message may have.
BOMB = deflated(bytes(64 << 20))
COMPRESSED = "sec-websocket-extensions: permessage-deflate"
_END = frame(FIN | CLOSE, struct.pack("!H", 1000))


class RawStream:
    """A web socket of which every byte is written by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def open(
        cls,
        server: Served,
        *extra: str,
        path: str = "/predict/stream",
        tls: SSLContext | None = None,
    ) -> RawStream:
        """Open a stream of a server, with more headers, or at another address."""
        host, port = server.url.removeprefix("http://").split(":")
        raw = cls(*await asyncio.open_connection(host, int(port), ssl=tls))
        key = base64.b64encode(bytes(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"host: {host}:{port}",
            "connection: Upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            f"sec-websocket-key: {key}",
            *(f"{name}: {value}" for name, value in KEY_HEADER.items()),
            *extra,
        ]
        raw.writer.write("\r\n".join([*lines, "", ""]).encode())
        head = await raw._reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head
        return raw

    async def next(self) -> tuple[int, bytes]:
        """Return the first byte and the payload of the server's next frame."""
        first, size = await self._reader.readexactly(2)
        if size == 126:
            (size,) = struct.unpack("!H", await self._reader.readexactly(2))
        payload = await self._reader.readexactly(size)
        # A slow machine's keepalive is none of the test's business.
        return await self.next() if first == FIN | PING else (first, payload)

    async def until_closed(self) -> tuple[int, list[bytes]]:
        """Return the code of the server's close frame, and the payloads before it."""
        before: list[bytes] = []
        while True:
            first, payload = await self.next()
            if first & 0x0F == CLOSE:
                # The server says nothing more.
                with suppress(ConnectionResetError):
                    assert await self._reader.read() == b""
                code: int = struct.unpack("!H", payload[:2])[0] if payload else 1005
                return code, before
            before.append(payload)

    async def close(self) -> None:
        """Leave, whatever the server says."""
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


def frames_of(choose: random.Random, *, is_compressed: bool) -> bytes:
    """Return some frames: most of them right, and in an order that is."""
    made, is_open = [], False
    for _ in range(choose.choice([1, 2, 3, 5, 8])):
        kind = choose.choice([0, 0, PING] if is_open else [TEXT, TEXT, TEXT, BINARY, PING, PONG])
        kind = choose.choice([kind] * 24 + [CLOSE, choose.randrange(16)])
        is_last = kind >= CLOSE or choose.random() < 0.7
        is_last = is_last if choose.random() < 0.98 else not is_last
        made.append(_frame_of(kind, choose, is_last=is_last, is_compressed=is_compressed))
        is_open = is_open if kind >= CLOSE else not is_last
    return b"".join(made)


def _frame_of(kind: int, choose: random.Random, *, is_last: bool, is_compressed: bool) -> bytes:
    reserved = choose.choice([0] * 60 + [RSV1, RSV2, RSV3, RSV1 | RSV3])
    payload = choose.choice(_CLOSINGS if kind == CLOSE else _PAYLOADS)
    if is_compressed and kind in {TEXT, BINARY} and choose.random() < 0.7:
        reserved ^= RSV1
        payload = choose.choice([deflated(payload)] * 20 + [payload, BOMB, deflated(payload)[:-3]])
    if kind in {PING, PONG} and choose.random() < 0.9:
        payload = payload[:125]
    return frame(
        (FIN if is_last else 0) | reserved | kind,
        payload,
        length=choose.choice([None] * 80 + [0, 1, 125, 126, 65_535, 17 << 20, 1 << 40, 2**63 + 1]),
        mask=choose.choice([MASK] * 24 + [bytes(4), choose.randbytes(4)] + [None]),
        width=choose.choice([0] * 24 + [2, 8]),
    )


def damaged(data: bytes, choose: random.Random) -> bytes:
    """Return frames of which some bytes may be changed, missing or more."""
    for _ in range(choose.choice([0, 0, 0, 0, 0, 0, 1, 3])):
        at = choose.randrange(len(data) + 1)
        data = data[:at] + choose.choice(
            [
                choose.randbytes(choose.choice([1, 1, 4])) + data[at + 1 :],
                data[at + choose.choice([1, 2, 4]) :],
                choose.randbytes(choose.choice([1, 2, 9])) + data[at:],
                b"",
            ]
        )
    return data


async def send_frames(cases: int, seed: int) -> Counter[str]:
    """Send the frames of many connections, some of them at once.

    Returns:
        How often connections ended with each code, or without one, and how many answers they got.
    """
    choose = random.Random(seed)  # noqa: S311 -- reproducible bytes, no secret
    ends: Counter[str] = Counter()
    with without_complaints():
        async with served() as server:
            before, warm = 0, min(_WARM_UP, cases // 2) // _AT_ONCE * _AT_ONCE
            for start in range(0, cases, _AT_ONCE):
                if start == warm:
                    before = resident_bytes()
                some = [_connection_of(choose) for _ in range(_AT_ONCE)]
                asked = (_sent(server, data, is_compressed=flag) for flag, data in some)
                for number, end in enumerate(await asyncio.gather(*asked)):
                    assert end is not None, (seed, start + number, some[number])
                    ends.update(end)
            answer = await server.post("/predict", GOOD)
            assert answer.status_code == 200, answer.text
            await until(lambda: not server.server.server_state.connections)
            grown = resident_bytes() - before
    assert grown < _MOST_GROWTH, f"{grown} bytes more"
    return ends


def _connection_of(choose: random.Random) -> tuple[bool, list[bytes]]:
    """Return whether a connection compresses, and its bytes in segments."""
    is_compressed = choose.random() < 0.4
    made = damaged(frames_of(choose, is_compressed=is_compressed), choose)
    return is_compressed, cut(made + _END, choose)


async def _sent(
    server: Served, segments: list[bytes], *, is_compressed: bool
) -> Counter[str] | None:
    """Send a connection's bytes and read all answers; None where they are none of a web socket."""
    raw = await RawStream.open(server, *([COMPRESSED] if is_compressed else []))
    found: Counter[str] = Counter()
    try:
        with suppress(OSError):
            for segment in segments:
                raw.writer.write(segment)
                await raw.writer.drain()
                await asyncio.sleep(0)
            raw.writer.write_eof()
        code, answers = await asyncio.wait_for(raw.until_closed(), 30)
    except (asyncio.IncompleteReadError, ConnectionError):
        found["no close frame"] += 1
        return found
    finally:
        await raw.close()
    found[str(code)] += 1
    found["answers"] += len(answers)
    return found if code in _CODES else None
