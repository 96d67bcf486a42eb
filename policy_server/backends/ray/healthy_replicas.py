"""How many replicas answer: by this process's connections, and by Ray Serve for those without.

Ray's own page of metrics has that figure too, among 1,600 lines that cost Ray memory for
each version that ever was: that page is off by default.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from policy_server.backends.ray.applications import running_replicas
from policy_server.backends.ray.backend import RayBackend
from policy_server.backends.ray.ray_calls import CallRay

__all__ = ["HealthyReplicas"]

logger = logging.getLogger(__name__)

_PERIOD_S = 5.0


class HealthyReplicas:
    """Counts the replicas that answer; `count` may be asked on any thread, and waits for nobody."""

    def __init__(
        self,
        backends: Collection[RayBackend],
        *,
        call_ray: CallRay,
        ask_serve: Callable[[], Mapping[str, int]] = running_replicas,
        period_s: float = _PERIOD_S,
    ) -> None:
        """Own nothing but the figures that Ray Serve has told.

        Args:
            backends: those that are open, as they come and go.
            call_ray: calls a function that uses Ray, in a thread.
            ask_serve: returns the number of running replicas by application; it may wait.
            period_s: how often Ray Serve is asked, in seconds.
        """
        self._backends = backends
        self._call_ray = call_ray
        self._ask_serve = ask_serve
        self._period_s = period_s
        self._told: Mapping[str, int] = {}
        # Why Ray Serve told nothing, as the log was told last.
        self._failure = ""

    def count(self) -> int:
        """Return how many there are of all backends; those that backends share count once."""
        found = {}
        for backend in list(self._backends):
            connected = backend.connected_replicas
            name = backend.application
            found[name] = self._told.get(name, 0) if connected is None else connected
        return sum(found.values())

    async def run(self) -> None:
        """Ask Ray Serve again and again, while there are backends that are not connected."""
        while True:
            if any(backend.connected_replicas is None for backend in self._backends):
                try:
                    self._told = await self._call_ray(self._ask_serve)
                except Exception as error:
                    # It has died, or ends; Ray raises plain exceptions too.
                    self._told = {}
                    if (reason := repr(error)[:300]) != self._failure:
                        self._failure = reason
                        logger.warning("replicas_not_counted", extra={"reason": reason})
            await asyncio.sleep(self._period_s)
