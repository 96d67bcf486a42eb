"""Plain frames are read and written as websockets reads and writes them, byte for byte."""

from __future__ import annotations

import random
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from policy_server.http_server.plain_frames import PlainFrames
from policy_server.http_server.stream_frames import Message
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from tests.fuzz.frames import BINARY, CLOSE, FIN, PING, RSV1, TEXT, frame
from tests.support.connections import Server, Transport

_MOST_BYTES = 1 << 24
_LENGTHS = [0, 1, 2, 125, 126, 127, 1000, 65535]


def connection() -> Protocol:
    return Protocol(Side.SERVER, max_size=_MOST_BYTES)


def plain(used: Protocol, *, most_bytes: int = _MOST_BYTES) -> PlainFrames:
    found = PlainFrames.of(used, most_bytes=most_bytes)
    assert found is not None
    return found


def read_by_websockets(data: bytes) -> dict[str, Any]:
    """Return the one message in some bytes, as ASGI has it."""
    used = connection()
    used.receive_data(data)
    (event,) = used.events_received()
    assert isinstance(event, Frame)
    payload = bytes(event.data)
    return {"text": payload.decode()} if event.opcode is Opcode.TEXT else {"bytes": payload}


@pytest.mark.parametrize("length", _LENGTHS)
@pytest.mark.parametrize("kind", [Opcode.TEXT, Opcode.BINARY])
def test_frame_is_read_as_websockets_reads_it(kind: Opcode, length: int) -> None:
    choose = random.Random(length)  # noqa: S311 -- no secret
    payload = (
        "".join(choose.choices('{"aé€𝄞 ', k=length)).encode()[:length].decode(errors="ignore")
        if kind is Opcode.TEXT
        else choose.randbytes(length)
    )
    sent = payload.encode() if isinstance(payload, str) else payload
    data = Frame(kind, sent).serialize(mask=True)

    for behind in (b"", b"\x81", data):
        assert plain(connection()).read(data + behind) == (read_by_websockets(data), len(data))


def test_frame_that_has_not_come_whole_is_left_alone() -> None:
    used = plain(connection())
    for length in (3, 200):
        data = frame(FIN | TEXT, b"x" * length)
        assert [used.read(data[:cut]) for cut in range(2, len(data))] == [None] * (len(data) - 2)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(TEXT, b"{}"), id="fragment"),
        pytest.param(frame(FIN, b"{}"), id="last fragment"),
        pytest.param(frame(FIN | PING, b"x"), id="ping"),
        pytest.param(frame(FIN | CLOSE, b"\x03\xe8"), id="close"),
        pytest.param(frame(FIN | RSV1 | TEXT, b"{}"), id="reserved bit"),
        pytest.param(frame(FIN | RSV1 | BINARY, b"{}"), id="compressed"),
        pytest.param(frame(FIN | 3, b"{}"), id="unknown kind"),
        pytest.param(b"\x81\x02{}", id="unmasked"),
        pytest.param(b"\x81\x7e\x00\x7f" + bytes(131), id="unmasked and long"),
        pytest.param(frame(FIN | TEXT, b"\xff"), id="no UTF-8"),
        pytest.param(frame(FIN | TEXT, bytes(65536)), id="longer than 65,535 bytes"),
        pytest.param(frame(FIN | TEXT, length=(1 << 63) - 1), id="of all bytes there are"),
    ],
)
def test_other_frames_are_left_to_websockets(data: bytes) -> None:
    assert plain(connection()).read(data) is None


def test_frame_longer_than_the_server_takes_is_left_to_websockets() -> None:
    data = frame(FIN | TEXT, b"x" * 300)

    assert plain(connection(), most_bytes=299).read(data) is None
    assert plain(connection(), most_bytes=300).read(data) is not None


@pytest.mark.parametrize("length", _LENGTHS)
@pytest.mark.parametrize("is_text", [True, False])
def test_frames_are_written_as_websockets_writes_them(*, is_text: bool, length: int) -> None:
    frames = [(b"a" * length, is_text), (b"{}", not is_text)]
    kinds = {True: Opcode.TEXT, False: Opcode.BINARY}

    expected = b"".join(Frame(kinds[text], data).serialize(mask=False) for data, text in frames)

    assert plain(connection()).written(frames) == expected


def test_frame_that_is_too_long_and_a_closing_connection_are_left_to_websockets() -> None:
    used = connection()

    assert plain(used).written([(b"{}", True), (bytes(65536), True)]) is None
    used.state = State.CLOSING
    assert plain(used).written([(b"{}", True)]) is None


def test_message_in_fragments_and_a_frame_in_part_come_first() -> None:
    used = connection()
    found = plain(used)
    seen = [found.is_between_messages]
    for data in (frame(TEXT, b"{"), frame(FIN | PING), frame(FIN, b"}")[:3], frame(FIN, b"}")[3:]):
        used.receive_data(data)
        seen.append(found.is_between_messages)
    used.receive_data(frame(FIN | CLOSE, b"\x03\xe8"))
    seen.append(found.is_between_messages)

    assert seen == [True, False, False, False, True, False]


def test_connection_with_extensions_has_no_plain_frames() -> None:
    used = connection()
    used.extensions = [
        PerMessageDeflate(
            remote_no_context_takeover=False,
            local_no_context_takeover=False,
            remote_max_window_bits=15,
            local_max_window_bits=15,
        )
    ]

    assert PlainFrames.of(used, most_bytes=_MOST_BYTES) is None


def test_websockets_without_the_inner_names_has_no_plain_frames() -> None:
    used = connection()
    del used.current_size

    assert PlainFrames.of(used, most_bytes=_MOST_BYTES) is None


class Counted(bytes):
    """Bytes that count how many of them are copied."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 -- as of any bytes
        found = super().__getitem__(key)
        if not isinstance(key, slice):
            return found
        Counted.copied += len(found)
        return Counted(found)


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def take(self, message: Message) -> None:
        self.messages.append(message)

    def go_on(self) -> None:
        """Have nothing to write."""


async def unasked(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Stand in for an application that is not asked."""


async def test_segment_of_many_frames_is_not_copied_for_each() -> None:
    server = Server(unasked, ws=WebSocketProtocol)
    web_socket = WebSocketProtocol(server.config, server.state, {})
    web_socket.connection_made(Transport())
    web_socket.conn.state = State.OPEN
    heard = Heard()
    web_socket.listen(heard)
    Counted.copied = 0
    data = Counted(b"\x81\x80abcd" * 2000)

    web_socket.data_received(data)

    assert heard.messages == [{"text": ""}] * 2000
    assert Counted.copied <= 2 * len(data)
