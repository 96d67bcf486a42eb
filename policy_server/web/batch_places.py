"""The places of batches that are read and answered at a time, shared out among their clients."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from policy_server.errors import OverloadedError
from policy_server.serving.service_rate import ServiceRate

__all__ = ["MOST_AT_ONCE", "BatchPlaces"]

# More batches than these wait with their bodies unread, so that memory stays bounded.
MOST_AT_ONCE = 32


class BatchPlaces:
    """The places of the batches of one policy, for one event loop.

    A client may have as many places as are left free beside its own (the dynamic threshold of
    Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998): half of them while it is
    alone, so that the next one finds some however slowly the bodies of the first arrive.
    """

    def __init__(self) -> None:
        """Own the places, all of them free."""
        self._free = MOST_AT_ONCE
        self._taken: Counter[str] = Counter()
        # In the order of their coming; a client without a waiting batch is none of them.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        # Its calls are batches: how often a place gets free.
        self._rate = ServiceRate()

    @property
    def waiting(self) -> int:
        """Return how many batches wait for a place."""
        return sum(map(len, self._waiting.values()))

    def has_one(self, client: str) -> bool:
        """Return whether a batch of a client gets a place without waiting for it."""
        return client not in self._waiting and self._may_take(client)

    def expected_s(self, client: str) -> float:
        """Return how long a batch of a client is expected to wait for a place, in seconds.

        In front of it are those of the same client, and of each other client as many.
        """
        if self.has_one(client):
            return 0.0
        turn = len(self._waiting.get(client, ())) + 1
        others = (queue for name, queue in self._waiting.items() if name != client)
        return (turn + sum(min(len(queue), turn) for queue in others)) * self._rate.seconds_a_row

    @asynccontextmanager
    async def one(self, client: str, *, patience_s: float) -> AsyncIterator[None]:
        """Have a place while the block runs.

        Args:
            client: the name of the batch's client.
            patience_s: the longest wait for a place, in seconds.

        Raises:
            OverloadedError: if none got free for the client in time.
        """
        try:
            async with asyncio.timeout(patience_s):
                await self._take(client)
        except TimeoutError as error:
            raise OverloadedError(
                f"{MOST_AT_ONCE - self._free} batches are being answered already, "
                f"{self._taken[client]} of them of this client; try again in a second"
            ) from error
        placed, was_refused = time.perf_counter(), False
        try:
            yield
        except OverloadedError:
            # It was refused when it had its place: the next ones take longer.
            was_refused = True
            raise
        finally:
            if not was_refused:
                self._rate.observe(1, started=placed, ended=time.perf_counter())
            self._give_back(client)

    def _may_take(self, client: str) -> bool:
        return self._taken[client] < self._free

    async def _take(self, client: str) -> None:
        if self.has_one(client):
            self._count(client, 1)
            return
        own: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(client, deque())
        queue.append(own)
        try:
            await own
        except asyncio.CancelledError:
            if not own.cancelled():
                self._give_back(client)
            raise
        finally:
            if own in queue:
                queue.remove(own)
            if not queue and self._waiting.get(client) is queue:
                del self._waiting[client]

    def _give_back(self, client: str) -> None:
        self._count(client, -1)
        self._hand_on()

    def _hand_on(self) -> None:
        """Give free places to batches that wait, first to those whose client has the fewest."""
        while self._waiting:
            client = min(self._waiting, key=self._taken.__getitem__)
            if not self._may_take(client):
                return
            queue = self._waiting[client]
            place = queue.popleft()
            if not queue:
                del self._waiting[client]
            if not place.done():
                self._count(client, 1)
                place.set_result(None)

    def _count(self, client: str, change: int) -> None:
        self._free -= change
        self._taken[client] += change
        if not self._taken[client]:
            del self._taken[client]
