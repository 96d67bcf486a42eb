"""Nothing of a web socket stays when it has gone, without any collection."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.server import ServerProtocol

from policy_server.http_server.http_protocol import HttpProtocol
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from tests.support import asking
from tests.support.streams import KEY_HEADER, Served, served
from tests.support.waiting import until
from tests.support.web import OBSERVATION

_HELD = (HttpProtocol, WebSocketProtocol, ServerProtocol)


@pytest.fixture
def _no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def held() -> Counter[str]:
    """Count the connections that are in memory, by their type."""
    return Counter(type(item).__name__ for item in gc.get_objects() if type(item) in _HELD)


async def ask_and_close(server: Served) -> None:
    async with server.stream(compression="deflate") as stream:
        await stream.send(json.dumps(OBSERVATION))
        await stream.recv()


async def break_off(server: Served) -> None:
    async with server.stream(compression="deflate") as stream:
        await stream.send(json.dumps(OBSERVATION))
        stream.transport.abort()


async def send_nonsense(server: Served) -> None:
    async with server.stream(compression="deflate") as stream:
        stream.transport.write(b"\xff\xff\xff\xff")
        with pytest.raises(ConnectionClosed):
            await stream.recv()


async def shake_hands_wrongly(server: Served) -> None:
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    async with asking.async_client(headers={**KEY_HEADER, **upgrade}) as client:
        assert (await client.get(f"{server.url}/predict/stream")).status_code == 400


async def be_refused(server: Served) -> None:
    with pytest.raises(InvalidStatus):
        await server.stream(additional_headers={"access-token": "wrong"})


@pytest.mark.usefixtures("_no_collections")
@pytest.mark.parametrize(
    "use", [ask_and_close, break_off, send_nonsense, shake_hands_wrongly, be_refused]
)
async def test_connection_that_has_gone_is_freed_at_once(
    use: Callable[[Served], Awaitable[None]],
) -> None:
    of_others = held()
    async with served() as server:
        for _ in range(3):
            await use(server)
        async with server.stream():
            own = {"WebSocketProtocol": 1, "ServerProtocol": 1}
            await until(lambda: held() - of_others == own)
        await until(lambda: not held() - of_others)


@pytest.mark.parametrize("scheme", ["http", "HTTPS", "ws"])
@pytest.mark.parametrize(("behind", "status"), [("/predict/stream?seed=1", 101), ("?a", 404)])
async def test_target_of_a_handshake_may_be_absolute(scheme: str, behind: str, status: int) -> None:
    async with served() as server:
        url = httpx.URL(server.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            b"GET %s://elsewhere:81%s HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\naccess-token: %s\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            % (scheme.encode(), behind.encode(), KEY_HEADER["access-token"].encode())
        )
        answer = await reader.readline()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 %d " % status)
