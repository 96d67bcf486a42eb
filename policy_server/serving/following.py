"""Versions that another process has deployed, while they are loaded here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from policy_server.errors import PolicyServerError
from policy_server.serving.deployment import DeployedVersion
from policy_server.serving.slot import PolicyOpener, PolicySlot
from policy_server.serving.version import PolicyVersion

__all__ = ["FollowedVersions"]


class FollowedVersions:
    """Loads versions that nobody can ask for before they are taken."""

    def __init__(self, slot: PolicySlot, opener: Callable[[DeployedVersion], PolicyOpener]) -> None:
        """Own the versions that are loaded, until `take` or `discard`.

        Args:
            slot: the policy's slot.
            opener: gives what loads and unloads a version.
        """
        self._slot = slot
        self._opener = opener
        # By name and digest: a name may be given to other files meanwhile.
        self._loading: dict[tuple[str, str], asyncio.Task[PolicyVersion]] = {}

    async def load(self, versions: Iterable[DeployedVersion]) -> None:
        """Load versions, one after the other; `take` raises the reason of one that can't be loaded.

        Args:
            versions: those that are to be served; each has its digest.
        """
        for version in versions:
            loading = self._slot.load(self._opener(version), name=version.name)
            task = asyncio.create_task(loading)
            self._loading[version.name, version.digest] = task
            with suppress(PolicyServerError):
                await task

    async def take(self, version: DeployedVersion) -> PolicyVersion | None:
        """Return a version that is loaded, or being loaded, and is the caller's from now on.

        Args:
            version: the version.

        Returns:
            The version; None where it is to be loaded by the caller.

        Raises:
            PolicyServerError: if it can't be loaded.
        """
        key = (version.name, version.digest)
        task = self._loading.get(key)
        if task is None:
            return None
        loaded = await asyncio.shield(task)
        # Another caller may have waited for it too.
        return None if self._loading.pop(key, None) is None else loaded

    async def discard(self) -> None:
        """Unload the versions that were not taken."""
        tasks = [*self._loading.values()]
        self._loading.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and task.exception() is None:
                await self._slot.discard(task.result())
