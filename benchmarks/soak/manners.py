"""Scenarios: clients that leave at any point, are slow, or close one half of their connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson

from benchmarks.soak.questions import wanted_of
from benchmarks.soak.raw import Raw, connected, encode_request
from benchmarks.soak.traffic import Trouble, Visitor

__all__ = ["HEADER_TIMEOUT_S", "ask_slowly", "half_close", "leave", "read_slowly", "stall"]

# The server's own limit in this run.
HEADER_TIMEOUT_S = 5.0
_KIND = "predict_deterministic"
_ROWS = 800


def _batch(visitor: Visitor) -> bytes:
    case = visitor.case(is_named=True)
    body = orjson.dumps([case.observation] * _ROWS)
    return encode_request(f"/policies/{case.policy}/{_KIND}/batch", body)


async def leave(visitor: Visitor) -> None:
    """Leave before, in or after a request, by FIN or by RST; the answer is never read."""
    chance = visitor.chance
    case = visitor.case(is_named=True)
    body = orjson.dumps(case.observation)
    one = encode_request(f"/policies/{case.policy}/{_KIND}", body)
    data = chance.choice((one, one * 20, _batch(visitor)))
    sent = chance.choice(
        (
            0,
            chance.randrange(len(data)),
            data.index(b"\r\n\r\n") + 4,
            len(data) - 1,
            len(data),
            len(data),
        )
    )
    async with connected(visitor.port) as link:
        await link.send(data[:sent])
        # Sometimes the request is computed by then, or its answer on the way.
        await asyncio.sleep(chance.choice((0.0, 0.0, 0.001, 0.02)))
        if chance.random() < 0.6:
            link.reset()
    visitor.leave()


async def _ask(visitor: Visitor, send: Callable[[Raw, bytes], Awaitable[None]]) -> None:
    case = visitor.case(is_named=True)
    request = encode_request(f"/policies/{case.policy}/{_KIND}", orjson.dumps(case.observation))
    async with connected(visitor.port) as link:
        await send(link, request)
        outcome = await link.answer()
        visitor.hold(outcome, 200, "a slow request")
        visitor.compare(outcome.json(), [wanted_of(case, _KIND, outcome)], "a slow request")


async def ask_slowly(visitor: Visitor) -> None:
    """Send a request in pieces."""
    pieces = visitor.chance.choice((2, 5, 40))
    await _ask(visitor, lambda link, data: link.send_slowly(data, pieces=pieces, pause_s=0.01))


async def half_close(visitor: Visitor) -> None:
    """Close the sending half behind a request; its answer still has to come."""

    async def send(link: Raw, data: bytes) -> None:
        await link.send(data)
        link.half_close()

    await _ask(visitor, send)


async def read_slowly(visitor: Visitor) -> None:
    """Read the start of large answers slowly, and leave, by FIN or by RST."""
    async with connected(visitor.port) as link:
        await link.send(_batch(visitor) * 3)
        for _ in range(20):
            if not await link.receive(512):
                raise Trouble("the connection ended while a client read slowly")
            await asyncio.sleep(0.02)
        if visitor.chance.random() < 0.5:
            link.reset()
    visitor.counts.left[visitor.name] += 3


async def stall(visitor: Visitor) -> None:
    """Begin a request's head and never end it; it has to be refused in time."""
    async with connected(visitor.port) as link:
        await link.send(b"POST /predict HTTP/1.1\r\nhost: soak\r\n")
        outcome = await link.answer()
        visitor.hold(outcome, 408, "a head that never ends")
        await link.ended()
