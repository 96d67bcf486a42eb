"""Writes of one turn of the event loop go out together."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl

from policy_server.http_server import join_writes
from policy_server.http_server.joined_writes import JoinedWrites
from tests.web.harness import KEY, OBSERVATION, build


class Transport(asyncio.Transport):
    """Records what is written and when it is closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.events: list[object] = []
        self.is_gone = False

    def is_closing(self) -> bool:
        return self.is_gone

    def write(self, data: Any) -> None:  # noqa: ANN401 -- any buffer
        self.events.append(bytes(data))

    def close(self) -> None:
        self.events.append("closed")


async def test_writes_of_one_turn_are_one_write_and_those_of_the_next_another() -> None:
    transport = Transport()
    joined = JoinedWrites(transport)

    joined.write(b"head ")
    joined.write(b"body")
    before = list(transport.events)
    await asyncio.sleep(0)
    joined.write(b"next")
    await asyncio.sleep(0)

    assert before == []
    assert transport.events == [b"head body", b"next"]


async def test_nothing_is_lost_and_nothing_doubled_by_a_close() -> None:
    transport = Transport()
    joined = JoinedWrites(transport)

    joined.write(b"last")
    joined.close()
    await asyncio.sleep(0)

    assert transport.events == [b"last", "closed"]


async def test_much_is_handed_on_at_once() -> None:
    transport = Transport()
    joined = JoinedWrites(transport)

    for _ in range(3):
        joined.write(b"x" * 40_000)

    assert transport.events == [b"x" * 80_000]
    await asyncio.sleep(0)
    assert transport.events == [b"x" * 80_000, b"x" * 40_000]


async def test_client_that_has_gone_is_written_nothing() -> None:
    transport = Transport()
    joined = JoinedWrites(transport)

    joined.write(b"answer")
    transport.is_gone = True
    await asyncio.sleep(0)
    transport.is_gone = False
    joined.write(b"later")
    await asyncio.sleep(0)

    assert transport.events == [b"later"]


async def test_everything_else_is_the_transports() -> None:
    assert JoinedWrites(Transport()).get_extra_info("peername") == ("127.0.0.1", 1)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Serve an app by uvicorn, ask it twice, and give what was written."""
    join_writes()
    join_writes()
    written: list[bytes] = []
    connect = httptools_impl.HttpToolsProtocol.connection_made

    class Recorded:
        def __init__(self, transport: asyncio.Transport) -> None:
            self._transport = transport

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- the transport's own
            return getattr(self._transport, name)

        def write(self, data: bytes) -> None:
            written.append(data)
            self._transport.write(data)

    def connection_made(self: Any, transport: asyncio.Transport) -> None:  # noqa: ANN401 -- uvicorn's
        connect(self, Recorded(transport))  # type: ignore[arg-type]  # it answers for one

    monkeypatch.setattr(httptools_impl.HttpToolsProtocol, "connection_made", connection_made)
    config = uvicorn.Config(build(), port=0, log_config=None, ws="none", http="httptools")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"access-token": KEY}) as client:
        answers = [client.post("/predict", json=OBSERVATION) for _ in range(2)]
    server.should_exit = True
    thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    return written


def test_response_of_uvicorn_is_one_write(writes: list[bytes]) -> None:
    assert len(writes) == 2
    assert all(data.startswith(b"HTTP/1.1 200 OK") for data in writes)
    assert all(data.endswith(b"}") for data in writes)
