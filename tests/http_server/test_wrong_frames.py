"""Frames that are built wrongly, byte for byte: each closes its connection with the right code."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from tests.fuzz.frames import (
    BINARY,
    BOMB,
    CLOSE,
    COMPRESSED,
    FIN,
    GOOD,
    PING,
    PONG,
    RSV1,
    RSV2,
    RSV3,
    TEXT,
    RawStream,
    deflated,
    frame,
    send_frames,
)
from tests.fuzz.watching import resident_bytes
from tests.support.streams import served
from tests.support.waiting import until

PROTOCOL_ERROR, NO_TEXT, TOO_BIG = 1002, 1007, 1009

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
        raw = await RawStream.open(server)
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


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        pytest.param(frame(FIN | RSV1 | TEXT, BOMB), TOO_BIG, id="bomb"),
        pytest.param(
            frame(RSV1 | TEXT, BOMB[:999]) + frame(FIN, BOMB[999:]), TOO_BIG, id="bomb in two"
        ),
        pytest.param(frame(FIN | RSV1 | TEXT, b"\xff" * 9), PROTOCOL_ERROR, id="not compressed"),
        pytest.param(frame(FIN | RSV1 | TEXT, deflated(b"\xff")), NO_TEXT, id="no UTF-8"),
        pytest.param(frame(FIN | RSV1 | PING, deflated(b"x")), PROTOCOL_ERROR, id="ping"),
        pytest.param(
            frame(RSV1 | TEXT, deflated(b"{")) + frame(FIN | RSV1, b""), PROTOCOL_ERROR, id="twice"
        ),
    ],
)
async def test_wrong_compressed_frame_closes_the_connection(wrong: bytes, code: int) -> None:
    async with served() as server:
        raw = await RawStream.open(server, COMPRESSED)
        raw.writer.write(frame(FIN | RSV1 | TEXT, deflated(GOOD)))
        first, _ = await raw.next()
        before = resident_bytes()
        raw.writer.write(wrong)
        closed = await raw.until_closed()
        grown = resident_bytes() - before
        await raw.close()

    assert first & RSV1
    assert closed == (code, [])
    assert grown < 40 << 20


async def test_frames_cut_at_every_byte_are_answered() -> None:
    whole = frame(TEXT, GOOD[:5]) + frame(FIN | PING, b"p") + frame(FIN, GOOD[5:])
    async with served() as server:
        raw = await RawStream.open(server)
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
        raw = await RawStream.open(server)
        raw.writer.write(frame(TEXT, text[:3]) + frame(FIN, text[3:]))
        _, answer = await raw.next()
        await raw.close()

    assert b'"status":422' in answer


def web_sockets() -> list[WebSocketProtocol]:
    """Return those of this process, among them some that tests before have left as garbage."""
    return [item for item in gc.get_objects() if type(item) is WebSocketProtocol]


async def test_message_in_a_thousand_fragments_is_kept_as_one() -> None:
    before = web_sockets()
    async with served() as server:
        raw = await RawStream.open(server)
        parts = b"".join(frame(0, payload) for payload in (b"", b"ab")) * 500
        raw.writer.write(frame(BINARY, b"\x91") + parts + frame(FIN | PING))
        await raw.next()
        (kept,) = [item.frames for item in web_sockets() if item not in before]
        raw.writer.write(frame(FIN))
        _, answer = await raw.next()
        await raw.close()

    assert len(kept) == 1
    assert b"status" in answer


async def test_client_that_goes_on_sending_is_told_its_mistake() -> None:
    async with served() as server:
        raw = await RawStream.open(server)
        raw.writer.write(frame(FIN | TEXT, GOOD) + frame(FIN | 3, GOOD))
        for _ in range(50):
            raw.writer.write(frame(FIN | TEXT, GOOD))
            await raw.writer.drain()
            await asyncio.sleep(0)
        code, before = await raw.until_closed()
        await raw.close()
        await until(lambda: not server.server.server_state.connections)

    assert code == PROTOCOL_ERROR
    assert len(before) <= 1


async def test_client_that_stays_behind_a_wrong_frame_is_left() -> None:
    async with served() as server:
        raw = await RawStream.open(server)
        raw.writer.write(frame(FIN | 3, GOOD))
        code, _ = await raw.until_closed()
        await until(lambda: not server.server.server_state.connections)
        await raw.close()

    assert code == PROTOCOL_ERROR


async def test_frames_of_any_kind_end_their_own_connection_at_most() -> None:
    ends = await send_frames(320, seed=17)

    assert {"1000", "1002", "1007", "1009", "answers"} <= set(ends)
    assert ends["no close frame"] < 100
