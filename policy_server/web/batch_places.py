"""The places of batches that are read and answered at a time, shared out among their clients."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from policy_server.errors import OverloadedError

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
        try:
            yield
        finally:
            self._give_back(client)

    def _may_take(self, client: str) -> bool:
        return self._taken[client] < self._free

    async def _take(self, client: str) -> None:
        if client not in self._waiting and self._may_take(client):
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
