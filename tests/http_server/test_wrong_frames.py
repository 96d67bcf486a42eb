"""Frames that are built wrongly, byte for byte: each closes its connection with the right code."""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
import struct
from contextlib import suppress

import pytest

from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from tests.support.streams import KEY_HEADER, Served, served

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
FIN, RSV1, RSV2, RSV3 = 0x80, 0x40, 0x20, 0x10
MASK = b"\x01\x02\x03\x04"
PROTOCOL_ERROR, NO_TEXT, TOO_BIG = 1002, 1007, 1009
GOOD = b'{"cat": 0, "mouse": 1}'


def frame(first: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a client's frame with its first byte as given, and a length that may be a lie."""
    size = len(payload) if length is None else length
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + MASK + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))


class Raw:
    """A web socket of which a test writes every byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, server: Served) -> Raw:
        host, port = server.url.removeprefix("http://").split(":")
        raw = cls(*await asyncio.open_connection(host, int(port)))
        key = base64.b64encode(bytes(16)).decode()
        lines = [
            "GET /predict/stream HTTP/1.1",
            f"host: {host}:{port}",
            "connection: Upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            f"sec-websocket-key: {key}",
            *(f"{name}: {value}" for name, value in KEY_HEADER.items()),
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
                return struct.unpack("!H", payload[:2])[0], before
            before.append(payload)

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


WRONG = [
    pytest.param(b"\x81\x02{}", PROTOCOL_ERROR, id="unmasked"),
    pytest.param(frame(FIN | RSV1 | TEXT, GOOD), PROTOCOL_ERROR, id="reserved bit 1"),
    pytest.param(frame(FIN | RSV2 | TEXT, GOOD), PROTOCOL_ERROR, id="reserved bit 2"),
    pytest.param(frame(FIN | RSV3 | BINARY, GOOD), PROTOCOL_ERROR, id="reserved bit 3"),
    pytest.param(frame(FIN | 3, GOOD), PROTOCOL_ERROR, id="unknown kind"),
    pytest.param(frame(FIN | 11), PROTOCOL_ERROR, id="unknown control frame"),
    pytest.param(frame(PING, b"x"), PROTOCOL_ERROR, id="ping in fragments"),
    pytest.param(frame(FIN | PING, b"x" * 126), PROTOCOL_ERROR, id="ping too long"),
    pytest.param(frame(FIN | CLOSE, b"x" * 126), PROTOCOL_ERROR, id="close too long"),
    pytest.param(frame(FIN | CLOSE, b"\x03"), PROTOCOL_ERROR, id="close with half a code"),
    pytest.param(frame(FIN | CLOSE, b"\x03\xed"), PROTOCOL_ERROR, id="close with 1005"),
    pytest.param(frame(FIN | CLOSE, b"\x03\xe8\xff"), NO_TEXT, id="close whose reason is no UTF-8"),
    pytest.param(frame(FIN, GOOD), PROTOCOL_ERROR, id="fragment of nothing"),
    pytest.param(frame(TEXT, b"{") + frame(FIN | TEXT, GOOD), PROTOCOL_ERROR, id="two begun"),
    pytest.param(frame(FIN | TEXT, b"\xff"), NO_TEXT, id="no UTF-8"),
    pytest.param(frame(FIN | TEXT, b"\xed\xa0\x80"), NO_TEXT, id="half a surrogate pair"),
    pytest.param(frame(TEXT, b"\xc3") + frame(FIN, b"\x28"), NO_TEXT, id="no UTF-8 in fragments"),
    pytest.param(frame(FIN | TEXT, length=17 << 20), TOO_BIG, id="huge"),
    pytest.param(frame(FIN | TEXT, length=(1 << 63) - 1), TOO_BIG, id="of all bytes there are"),
    pytest.param(
        b"".join(frame(first, bytes(9 << 20)) for first in (BINARY, FIN)), TOO_BIG, id="huge in two"
    ),
]


@pytest.mark.parametrize(("wrong", "code"), WRONG)
async def test_wrong_frame_closes_the_connection_behind_the_answers_before_it(
    wrong: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with served() as server:
        raw = await Raw.open(server)
        raw.writer.write(frame(FIN | TEXT, GOOD))
        _, answer = await raw.next()
        raw.writer.write(wrong + frame(FIN | TEXT, GOOD))
        closed = await raw.until_closed()
        await raw.close()
        after = await server.post("/predict", GOOD)

    assert b'"actions"' in answer
    assert closed == (code, [])
    assert after.status_code == 200
    assert not caplog.records


async def test_frames_cut_at_every_byte_are_answered() -> None:
    whole = frame(TEXT, GOOD[:5]) + frame(FIN | PING, b"p") + frame(FIN, GOOD[5:])
    async with served() as server:
        raw = await Raw.open(server)
        for cut in range(1, len(whole)):
            raw.writer.write(whole[:cut])
            await asyncio.sleep(0)
            raw.writer.write(whole[cut:])
            pong, answer = await raw.next(), await raw.next()
            assert pong == (FIN | PONG, b"p")
            assert b'"actions"' in answer[1]
        await raw.close()


async def test_character_cut_by_fragments_is_a_character() -> None:
    text = '{"é": 1}'.encode()
    async with served() as server:
        raw = await Raw.open(server)
        raw.writer.write(frame(TEXT, text[:3]) + frame(FIN, text[3:]))
        _, answer = await raw.next()
        await raw.close()

    assert b'"status":422' in answer


async def test_message_in_a_thousand_fragments_is_kept_as_one() -> None:
    async with served() as server:
        raw = await Raw.open(server)
        parts = b"".join(frame(0, payload) for payload in (b"", b"ab")) * 500
        raw.writer.write(frame(BINARY, b"\x91") + parts + frame(FIN | PING))
        await raw.next()
        (kept,) = [item.frames for item in gc.get_objects() if type(item) is WebSocketProtocol]
        raw.writer.write(frame(FIN))
        _, answer = await raw.next()
        await raw.close()

    assert len(kept) == 1
    assert b"status" in answer
