"""Bodies whose end can be read in two ways: refused, and nothing behind them is a request."""

from __future__ import annotations

import pytest
from starlette.types import Receive, Scope, Send

from tests.fuzz.raw_requests import CHUNKS, FRAMINGS
from tests.fuzz.sockets import send_bytes
from tests.support.connections import Server, answers_in

KNOWN = {b"size": 3, b"body": b"abc"}
BEHIND = b"POST /behind HTTP/1.1\r\nContent-Length: 1\r\n\r\nz"
OFFER = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
# All others are refused.
TAKEN_FRAMINGS = {b"Transfer-Encoding: CHUNKED\r\n"}
TAKEN_CHUNKS = {
    b"%(size)x\r\n%(body)b\r\n0\r\n\r\n",
    b"%(size)X;name=value\r\n%(body)b\r\n0;last\r\n\r\n",
    b"000000000000000000000%(size)x\r\n%(body)b\r\n0\r\n\r\n",
    b"%(size)x\r\n%(body)b\r\n00\r\n\r\n",
}
# More bytes than anybody sends: the request waits for them.
ENDLESS = {b"Content-Length: 9223372036854775807\r\n", b"ffffffffffffffff\r\n%(body)b\r\n0\r\n\r\n"}
# No body: what follows is no request.
NONE = {b"Content_Length: %(size)d\r\n", b""}


async def read(head: bytes, body: bytes) -> tuple[list[tuple[str, bytes]], list[int], bool]:
    """Return what an application was asked whole, the answers, and whether the connection ended."""
    asked: list[tuple[str, bytes]] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        content, has_more = b"", True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            content += message["body"]
            has_more = message["more_body"]
        asked.append((scope["path"], content))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    line = b"POST /first HTTP/1.1\r\n%b\r\n" % head
    transport = await Server(answer).exchange([line + body + BEHIND])
    return asked, [item.status for item in answers_in(transport.written)], transport.is_gone


@pytest.mark.parametrize("offer", [b"", OFFER], ids=["plain", "with an offer"])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_framing_is_http_or_nothing_behind_it_is_read(framing: bytes, offer: bytes) -> None:
    body = CHUNKS[0] % KNOWN if b"chunked" in framing.lower() else b"abc"

    asked, statuses, is_gone = await read(offer + framing % KNOWN, body)

    if framing in TAKEN_FRAMINGS:
        assert asked == [("/first", b"abc"), ("/behind", b"z")]
    elif framing in NONE:
        assert (asked, statuses, is_gone) == ([("/first", b"")], [204, 400], True)
    elif framing in ENDLESS:
        assert (asked, statuses) == ([], [])
    else:
        assert (asked, statuses, is_gone) == ([], [400], True)


@pytest.mark.parametrize("offer", [b"", OFFER], ids=["plain", "with an offer"])
@pytest.mark.parametrize("chunks", CHUNKS)
async def test_chunks_are_http_or_nothing_behind_them_is_read(chunks: bytes, offer: bytes) -> None:
    asked, statuses, is_gone = await read(offer + CHUNKED, chunks % KNOWN)

    if chunks in TAKEN_CHUNKS:
        assert asked == [("/first", b"abc"), ("/behind", b"z")]
    elif chunks in ENDLESS:
        assert (asked, statuses) == ([], [])
    else:
        assert (asked, statuses, is_gone) == ([], [400], True)


async def test_bytes_of_any_kind_end_their_own_connection_at_most() -> None:
    ends = await send_bytes(320, seed=18)

    assert {"101", "200", "400", "401", "422"} <= set(ends)
