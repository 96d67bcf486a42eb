"""Turns of requests: what has come at once is not worked off before other clients are heard.

A request that ASGI answers keeps the event loop for hundreds of microseconds, and clients that send
many without waiting for answers keep some hundred in front of everybody else. So requests begin for
a millisecond in a turn of the event loop; those that have come besides wait in their order, and the
sockets are looked at before the next of them begin. A connection has one request here at a time, so
that each has its turn, however many it has sent. Observations that were let in do not wait here:
the policies' schedulers gather those that come at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

__all__ = ["RequestTurns"]

# For how long requests begin within a turn of the event loop.
_TURN_S = 0.001


class RequestTurns:
    """The requests that wait for a later turn of the event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Own the requests that wait.

        Args:
            clock: tells the time in seconds.
        """
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        # Since when requests begin in this turn; None where none has.
        self._began: float | None = None
        # The one that the above is of: a host's tests may have one for each request.
        self._loop: asyncio.AbstractEventLoop | None = None
        # How many of the waiting begin in a turn: fewer after one that took long.
        self._at_once = 1

    def __len__(self) -> int:
        """Return how many requests wait."""
        return len(self._waiting)

    async def begin(self, now: float) -> None:
        """Begin a request now, if this turn has the time, or in a later one.

        Args:
            now: the time by the clock.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._began = loop, None
            self._waiting.clear()
        if self._began is None:
            self._began = now
            loop.call_soon(self._next_turn)
        elif self._waiting or now - self._began >= _TURN_S:
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append(turn)
            await turn

    def _next_turn(self) -> None:
        if not self._waiting:
            self._began, self._at_once = None, 1
            return
        now = self._clock()
        assert self._began is not None, "a turn has begun"
        is_short = now - self._began < _TURN_S
        self._at_once = self._at_once + 1 if is_short else max(1, self._at_once // 2)
        self._began = now
        for _ in range(min(self._at_once, len(self._waiting))):
            turn = self._waiting.popleft()
            # Its server may have given the request up.
            if not turn.done():
                turn.set_result(None)
        # Behind those that begin now.
        asyncio.get_running_loop().call_soon(self._next_turn)
