"""Writes of one turn of the event loop go out together."""

from __future__ import annotations

import asyncio
from typing import Any

from policy_server.http_server.joined_writes import JoinedWrites
from tests.support.waiting import turns


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
    await turns(1)
    joined.write(b"next")
    await turns(1)

    assert before == []
    assert transport.events == [b"head body", b"next"]


async def test_nothing_is_lost_and_nothing_doubled_by_a_close() -> None:
    transport = Transport()
    joined = JoinedWrites(transport)

    joined.write(b"last")
    joined.close()
    await turns(1)

    assert transport.events == [b"last", "closed"]


async def test_much_is_handed_on_at_once() -> None:
    transport = Transport()
    joined = JoinedWrites(transport)

    for _ in range(3):
        joined.write(b"x" * 40_000)

    assert transport.events == [b"x" * 80_000]
    await turns(1)
    assert transport.events == [b"x" * 80_000, b"x" * 40_000]


async def test_client_that_has_gone_is_written_nothing() -> None:
    transport = Transport()
    joined = JoinedWrites(transport)

    joined.write(b"answer")
    transport.is_gone = True
    await turns(1)
    transport.is_gone = False
    joined.write(b"later")
    await turns(1)

    assert transport.events == [b"later"]


async def test_everything_else_is_the_transports() -> None:
    assert JoinedWrites(Transport()).get_extra_info("peername") == ("127.0.0.1", 1)
