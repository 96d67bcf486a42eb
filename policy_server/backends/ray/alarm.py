"""A timer that many set: it rings at the earliest of their times."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

__all__ = ["Alarm"]

# A timer may be run before answers that have come meanwhile: they are read within this.
_GRACE_S = 0.001


class Alarm:
    """Rings once at the earliest of the times for which it was set since it last rang."""

    def __init__(self, ring: Callable[[], None]) -> None:
        """Own a timer, until `cancel`.

        Args:
            ring: called in the event loop.
        """
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def ring_by(self, moment: float) -> None:
        """Ring at a time, or before.

        Args:
            moment: the time, by `time.monotonic`.
        """
        if moment < self._rings_at:
            self.cancel()
            self._rings_at = moment
            delay_s = max(moment - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._wait_a_moment)

    def cancel(self) -> None:
        """Ring no more, unless it is set again."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = None, math.inf

    def _wait_a_moment(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_GRACE_S, self._rings)

    def _rings(self) -> None:
        self._timer, self._rings_at = None, math.inf
        self._ring()
