"""Versions that the traffic has left: they answer what they have, for a bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from policy_server.errors import SessionStoreError
from policy_server.serving.slot import PolicySlot

__all__ = ["Draining", "still_drains"]

# Other processes have looked at the store by then.
_PERIODS_TO_FOLLOW = 5


@dataclass(eq=False)
class _Leaving:
    """A version on its way out.

    Attributes:
        name: the name that the slot keeps it under.
        since: when this process moved the traffic away from it, on the monotonic clock.
        is_over: is set where it is to wait no longer.
        work: waits, and unloads it.
    """

    name: str
    since: float
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None


class Draining:
    """The versions of a slot that get no other questions than those of their episodes."""

    def __init__(
        self,
        slot: PolicySlot,
        unload: Callable[[str], Awaitable[None]],
        *,
        period_s: float,
        longest_s: float,
    ) -> None:
        """Own what waits for each version's end.

        Args:
            slot: the policy's slot.
            unload: unloads a version, by its name.
            period_s: how often episodes and sessions are counted, in seconds.
            longest_s: for how long a version waits for them to end, in seconds.
        """
        self._slot = slot
        self._unload = unload
        self._period_s = period_s
        self._longest_s = longest_s
        self._leaving: dict[str, _Leaving] = {}

    def __contains__(self, name: str) -> bool:
        """Return whether the version that the slot keeps under a name drains."""
        return name in self._leaving

    def begin(self, name: str) -> None:
        """Unload a version when its episodes and sessions have ended, or their time has.

        Args:
            name: the version's name.
        """
        leaving = self._leaving[name] = _Leaving(name, time.monotonic())
        leaving.work = asyncio.create_task(self._drain(leaving))

    def rename(self, name: str, key: str) -> None:
        """Know a version by another name, if it drains.

        Args:
            name: the name that the slot has kept it under.
            key: the other one.
        """
        if (leaving := self._leaving.pop(name, None)) is not None:
            leaving.name = key
            self._leaving[key] = leaving

    async def end(self, name: str) -> None:
        """Unload a version that drains now, whatever episodes and sessions it has.

        Args:
            name: the version's name.
        """
        leaving = self._leaving[name]
        leaving.is_over.set()
        assert leaving.work is not None, "it was begun"
        # Somebody who does not wait for it any more changes nothing.
        await asyncio.shield(leaving.work)

    async def aclose(self) -> None:
        """Wait for nothing any more; the slot unloads its versions itself."""
        works = [leaving.work for leaving in self._leaving.values() if leaving.work is not None]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    async def _drain(self, leaving: _Leaving) -> None:
        try:
            while not leaving.is_over.is_set() and await self._is_needed(leaving):
                with suppress(TimeoutError):
                    await asyncio.wait_for(leaving.is_over.wait(), self._period_s)
            await self._unload(leaving.name)
        finally:
            if self._leaving.get(leaving.name) is leaving:
                del self._leaving[leaving.name]

    async def _is_needed(self, leaving: _Leaving) -> bool:
        """Return whether a version has episodes or sessions, and is in time."""
        if time.monotonic() >= leaving.since + self._longest_s:
            return False
        return bool(self._slot.episodes_of(leaving.name)) or await self._has_sessions(leaving)

    async def _has_sessions(self, leaving: _Leaving) -> bool:
        """Return whether a version has sessions, or may get some from another process."""
        followed_at = leaving.since + _PERIODS_TO_FOLLOW * self._period_s
        if self._slot.sessions.is_shared and time.monotonic() < followed_at:
            return True
        try:
            return bool(await self._slot.sessions_of(leaving.name))
        except SessionStoreError:
            # There may be some.
            return True


def still_drains(name: str) -> str:
    """Return the message that refuses a new version the name of one that drains.

    Args:
        name: the name.
    """
    return (
        f"version {name} is undeployed, and still answers its last episodes and sessions; undeploy "
        "it once more, which unloads it at once, or give the new one another name"
    )
