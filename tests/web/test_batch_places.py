"""Places of batches: shared out, so that no client has those of the others."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from policy_server.errors import OverloadedError
from policy_server.web.batch_places import MOST_AT_ONCE, BatchPlaces
from tests.support.waiting import turns

LONG_S = 60.0


class Batches:
    """Batches of some clients, each of which keeps its place until it is let go."""

    def __init__(self) -> None:
        self.places = BatchPlaces()
        self.placed: list[str] = []
        self.ends: list[asyncio.Event] = []
        self.tasks: list[asyncio.Task[None]] = []

    def begin(self, client: str, number: int = 1) -> None:
        self.tasks += [asyncio.create_task(self._have(client)) for _ in range(number)]

    async def _have(self, client: str) -> None:
        async with self.places.one(client, patience_s=LONG_S):
            self.placed.append(client)
            self.ends.append(end := asyncio.Event())
            await end.wait()

    async def finish(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_client_leaves_as_many_places_as_it_takes() -> None:
    batches = Batches()
    for client in ("a", "b", "c"):
        batches.begin(client, MOST_AT_ONCE)
        await turns()
    taken = [batches.placed.count(client) for client in ("a", "b", "c")]
    await batches.finish()

    assert taken == [MOST_AT_ONCE // 2, MOST_AT_ONCE // 4, MOST_AT_ONCE // 8]


async def test_place_that_gets_free_is_the_client_s_that_has_the_fewest() -> None:
    batches = Batches()
    for number in range(MOST_AT_ONCE):
        batches.begin(f"client {number}")
    await turns()
    batches.begin("client 0")
    batches.begin("new")
    await turns()
    batches.ends[-1].set()
    await turns()
    last = batches.placed[-1]
    await batches.finish()

    assert (len(batches.placed), last) == (MOST_AT_ONCE + 1, "new")


async def test_batches_that_are_given_up_leave_every_place_free() -> None:
    batches = Batches()
    batches.begin("a", MOST_AT_ONCE)
    await turns()
    # One of those that wait gets its place in the same turn in which it is given up.
    batches.ends[0].set()
    await asyncio.sleep(0)
    await batches.finish()
    async with AsyncExitStack() as stack:
        for _ in range(MOST_AT_ONCE // 2):
            await stack.enter_async_context(batches.places.one("a", patience_s=LONG_S))
        with pytest.raises(OverloadedError, match="16 of them of this client"):
            await stack.enter_async_context(batches.places.one("a", patience_s=0.01))
        await stack.enter_async_context(batches.places.one("b", patience_s=LONG_S))
