"""Real sockets with bytes that nobody means: requests, handshakes and halves of them.

Whatever comes, each connection ends, its answers are HTTP, and the server answers the next client.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from contextlib import suppress

from tests.fuzz.raw_requests import BODY, TOLD, request_of
from tests.fuzz.watching import resident_bytes, without_complaints
from tests.support.hot_bytes import cut, mutated
from tests.support.servers import app_in_loop
from tests.support.waiting import until
from tests.support.web import KEY, build

__all__ = ["send_bytes"]

_AT_ONCE = 32
_MOST_GROWTH = 32 << 20
_WARM_UP = 640
_PATIENCE_S = 0.1
_SWITCHING = 101
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")
_HANDSHAKE = (
    b"GET /predict/stream HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"access-token: %b\r\n\r\n"
) % KEY.encode()
_HANDSHAKES = [
    _HANDSHAKE,
    _HANDSHAKE.replace(b"/predict/stream", b"/predict/stream/caf\xc3\xa9?a=\xff"),
    _HANDSHAKE.replace(b"/predict/stream", b"/predict%2Fstream?seed=%FF&seed=1"),
    _HANDSHAKE.replace(b"/predict/stream", b"http://a/predict/stream"),
    _HANDSHAKE.replace(b"Host: a", b"Host: a\r\nSec-WebSocket-Protocol: a, , b\r\nx: \xff\xfe"),
    _HANDSHAKE.replace(b"Host: a", b"Sec-WebSocket-Extensions: permessage-deflate; a=\xc3"),
    _HANDSHAKE.replace(b"Host: a", b"Sec-WebSocket-Extensions: permessage-deflate"),
    _HANDSHAKE.replace(b"AAAAAAAAAAAAAAAAAAAAAA==", b"\xff"),
    _HANDSHAKE.replace(b": 13", b": 8"),
    _HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"),
    _HANDSHAKE.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nabcde"),
    _HANDSHAKE.replace(b"websocket", b"WebSocket, h2c"),
]
_CLOSING = (
    b"POST /predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\naccess-token: %b\r\n"
    b"Content-Length: %d\r\n\r\n%b"
) % (KEY.encode(), len(BODY), BODY)


def _bytes_of(choose: random.Random) -> bytes:
    parts = [request_of(choose) for _ in range(choose.choice([0, 1, 1, 2, 4]))]
    if choose.random() < 0.3 or not parts:
        parts.append(choose.choice(_HANDSHAKES))
    data = b"".join(parts)
    return mutated(data, choose) if choose.random() < 0.6 else data


async def send_bytes(cases: int, seed: int) -> Counter[str]:
    """Send the bytes of many connections, 32 at once.

    Returns:
        How often connections ended with each status, or without one.
    """
    choose = random.Random(seed)  # noqa: S311 -- reproducible bytes, no secret
    ends: Counter[str] = Counter()
    with without_complaints():
        async with app_in_loop(build()) as (url, server):
            host, port = url.removeprefix("http://").split(":")
            before, warm = 0, min(_WARM_UP, cases // 2) // _AT_ONCE * _AT_ONCE
            for start in range(0, cases, _AT_ONCE):
                if start == warm:
                    before = resident_bytes()
                some = [cut(_bytes_of(choose), choose) for _ in range(_AT_ONCE)]
                answers = await asyncio.gather(*(_asked(host, port, data) for data in some))
                for number, written in enumerate(answers):
                    statuses = _statuses(written)
                    assert statuses <= TOLD | {_SWITCHING}, (seed, start + number, some[number])
                    ends.update(map(str, statuses or ["no answer"]))
            assert _statuses(await _asked(host, port, [_CLOSING])) == {200}
            await until(lambda: not server.server_state.connections)
            grown = resident_bytes() - before
    assert grown < _MOST_GROWTH, f"{grown} bytes more"
    return ends


def _statuses(written: bytes) -> set[int]:
    """Return the statuses of a connection's answers, of which the first has to be HTTP."""
    assert not written or _STATUS.match(written), written
    return {int(status) for status in _STATUS.findall(written)}


async def _asked(host: str, port: str, segments: list[bytes]) -> bytes:
    """Return all that is answered to a connection's bytes, behind which nothing more comes."""
    reader, writer = await asyncio.open_connection(host, int(port))
    written = b""
    with suppress(OSError):
        for segment in segments:
            writer.write(segment)
            await writer.drain()
            await asyncio.sleep(0)
        # What has no answer by then may be half a request: it ends with the connection.
        with suppress(TimeoutError):
            while part := await asyncio.wait_for(reader.read(65536), _PATIENCE_S):
                written += part
        writer.write_eof()
        while part := await asyncio.wait_for(reader.read(65536), 30):
            written += part
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return written
