"""Requests that a client sends before the first is answered: some are parsed, the rest waits."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from starlette.types import Receive, Scope, Send

from policy_server.http_server.hot_heads import HotHeads
from policy_server.http_server.hot_requests import HotRoute, RequestHead
from policy_server.http_server.limited_protocol import LimitedHttpProtocol
from tests.support.connections import LIMITS, Server, Transport, answers_in
from tests.support.waiting import turns, until

SHORTEST = b"GET / HTTP/1.1\r\n\r\n"
# As many of the shortest requests as are in a piece, and the one at its end.
MOST_OF_A_PIECE = 1024 // len(SHORTEST) + 2
IS_HOT = pytest.mark.parametrize("is_hot", [False, True], ids=["plain", "hot"])


class Held:
    """An application that answers once its gate is open, each request with its number."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.asked = 0
        self.bodies: list[bytes] = []

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await self.gate.wait()
        body, has_more = b"", True
        while has_more:
            message = await receive()
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
        self.bodies.append(body)
        number, self.asked = b"%d" % self.asked, self.asked + 1
        headers = [(b"content-length", b"%d" % len(number))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": number})


class NoRoutes:
    """Routes of which none is hot."""

    changes = 0

    def find(self, _head: RequestHead) -> HotRoute | None:
        return None


def connected(app: Held, *, is_hot: bool, most: int = 8) -> tuple[LimitedHttpProtocol, Transport]:
    """Open a connection that has few requests at a time."""
    server = Server(app, limits=replace(LIMITS, max_pipelined=most))
    if is_hot:
        server.heads = HotHeads(NoRoutes())
    return server.connect()


@IS_HOT
async def test_segment_of_the_shortest_requests_is_parsed_as_far_as_they_may_wait(
    *, is_hot: bool
) -> None:
    app = Held()
    protocol, transport = connected(app, is_hot=is_hot)

    protocol.data_received(SHORTEST * 14_563)
    first = len(protocol.pipeline)
    protocol.data_received(SHORTEST * 14_563)
    await turns(20)
    second, is_paused = len(protocol.pipeline), transport.is_paused
    protocol.connection_lost(None)
    app.gate.set()
    await turns(20)

    assert 8 <= first <= 8 + MOST_OF_A_PIECE
    assert (second, is_paused) == (first, True)


@IS_HOT
@pytest.mark.parametrize("end", ["", "shutdown", "half-closed"])
async def test_all_are_answered_in_their_order_and_the_last_one_ends(
    end: str, *, is_hot: bool
) -> None:
    app = Held()
    protocol, transport = connected(app, is_hot=is_hot)
    bodies = [b"x" * (number * 37 % 1500) for number in range(300)]
    requests = b"".join(
        b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies
    )

    protocol.data_received(requests[:100_001])
    protocol.data_received(requests[100_001:])
    await turns(5)
    if end == "shutdown":
        protocol.shutdown()
    elif end == "half-closed":
        assert protocol.eof_received()
    app.gate.set()
    await until(lambda: len(app.bodies) == len(bodies))
    await until(lambda: transport.is_gone or not end)
    await turns(5)

    answers = answers_in(transport.written)
    assert app.bodies == bodies
    assert [answer.body for answer in answers] == [b"%d" % number for number in range(300)]
    assert (transport.is_paused, transport.is_gone) == (False, bool(end))
    closing = [(b"connection", b"close") in answer.headers for answer in answers]
    assert closing[:-1] == [False] * 299
    assert closing[-1] == (end == "shutdown")


@IS_HOT
async def test_nonsense_behind_requests_that_wait_is_refused_in_its_turn(*, is_hot: bool) -> None:
    app = Held()
    protocol, transport = connected(app, is_hot=is_hot)

    protocol.data_received(SHORTEST * 200 + b"nonsense\r\n\r\n" + SHORTEST * 500)
    app.gate.set()
    await until(lambda: transport.is_gone)

    assert [answer.status for answer in answers_in(transport.written)] == [200] * 200 + [400]
