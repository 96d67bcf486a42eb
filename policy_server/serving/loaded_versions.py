"""The versions of a policy that a process has loaded, and how a deployment's others get there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial

from policy_server.errors import DeploymentError, OtherFilesError, PolicyServerError
from policy_server.serving.deployment import DeployedVersion, Deployment
from policy_server.serving.draining import Draining, still_drains
from policy_server.serving.following import FollowedVersions
from policy_server.serving.slot import PolicyOpener, PolicySlot
from policy_server.serving.version import OpenedPolicy, PolicyVersion

__all__ = ["LoadedVersions", "VersionOpener", "as_deployed", "check_files"]

VersionOpener = Callable[[DeployedVersion], PolicyOpener]


def as_deployed(opener: VersionOpener) -> VersionOpener:
    """Return an opener of versions whose files are those that were deployed, and no others.

    What lies at an address or a path may have changed since.

    Args:
        opener: opens any files.
    """

    @asynccontextmanager
    async def open_version(version: DeployedVersion) -> AsyncIterator[OpenedPolicy]:
        async with opener(version)() as opened:
            check_files(version, opened.digest)
            yield opened

    return lambda version: partial(open_version, version)


def check_files(version: DeployedVersion, digest: str) -> None:
    """Refuse other files than those that were deployed.

    Args:
        version: the version, with its digest if it was deployed.
        digest: the start of the digest of the files that were found.

    Raises:
        OtherFilesError: if they are others.
    """
    if version.digest not in ("", digest):
        raise OtherFilesError(
            f"version {version.name}: its address or path holds another policy than the one that "
            "was deployed; deploy it anew under another name"
        )


class LoadedVersions:
    """Loads and unloads the versions of one slot, by the names that deployments have for them."""

    def __init__(self, slot: PolicySlot, opener: VersionOpener, draining: Draining) -> None:
        """Own what is known of the slot's versions, from `begin` on.

        Args:
            slot: the policy's slot.
            opener: gives what loads and unloads a version.
            draining: the versions that the traffic has left.
        """
        self._slot = slot
        self._opener = opener
        self._draining = draining
        self._loaded: dict[str, DeployedVersion] = {}
        # Loaded beside, until the deployment with it is carried out.
        self._ready: dict[str, PolicyVersion] = {}
        self._followed = FollowedVersions(slot, opener)

    def begin(self, versions: Iterable[DeployedVersion]) -> None:
        """Begin with the versions that the slot has loaded.

        Args:
            versions: these, and maybe others.
        """
        self._loaded = {item.name: item for item in versions if item.name in self._slot.versions}

    @property
    def digests(self) -> Mapping[str, str]:
        """Return the start of the digest of each loaded version's files, by its name."""
        return {name: version.digest for name, version in self._slot.versions.items()}

    async def load(self, version: DeployedVersion) -> PolicyVersion:
        """Load a version that nobody can ask for before a deployment with it is carried out.

        Args:
            version: the version.

        Raises:
            PolicyServerError: if it can't be loaded.
        """
        return await self._slot.load(self._opener(version), name=version.name)

    @asynccontextmanager
    async def ready(self, loaded: PolicyVersion) -> AsyncIterator[None]:
        """Have a version ready for `added`; where that takes it not, it is unloaded at the end.

        Args:
            loaded: what `load` returned.
        """
        self._ready[loaded.label] = loaded
        try:
            yield
        finally:
            if self._ready.pop(loaded.label) not in self._slot.versions.values():
                await self._slot.discard(loaded)

    @asynccontextmanager
    async def followed(self, deployment: Deployment) -> AsyncIterator[None]:
        """Load the versions of another process's deployment for `added`, which others may use.

        One that can't be loaded fails there too.

        Args:
            deployment: the deployment.
        """
        names = {*self._slot.versions, *self._ready}
        try:
            await self._followed.load(item for item in deployment if item.name not in names)
            yield
        finally:
            await self._followed.discard()

    @asynccontextmanager
    async def added(
        self,
        deployment: Deployment,
        needed: Collection[str],
        failed: Mapping[str, PolicyServerError],
    ) -> AsyncIterator[Mapping[str, PolicyServerError]]:
        """Put the versions of a deployment beside the others; if the block fails, not.

        Args:
            deployment: the versions; those that are loaded stay as they are.
            needed: the names of those without which the block is not entered.
            failed: the reason of each version that need not be tried again now, by its name.

        Yields:
            The reason of each version that can't be loaded, by its name.

        Raises:
            PolicyServerError: if one that is needed can't be loaded.
        """
        added: list[str] = []
        outgoing: dict[str, str] = {}
        missing: dict[str, PolicyServerError] = {}
        try:
            for version in deployment:
                if version.name in failed.keys() - {*needed, *self._slot.versions}:
                    missing[version.name] = failed[version.name]
                    continue
                try:
                    await self._add(version, added, outgoing)
                except PolicyServerError as error:
                    if version.name in needed:
                        raise
                    missing[version.name] = error
            yield missing
        except BaseException:
            await self._take_away(added, outgoing)
            raise

    async def unload(self, name: str) -> DeployedVersion:
        """Unload a version.

        Args:
            name: its name.
        """
        # First: another version may get the name while this one is unloaded.
        version = self._loaded.pop(name)
        await self._slot.remove(name)
        return version

    async def _add(
        self, version: DeployedVersion, added: list[str], outgoing: dict[str, str]
    ) -> None:
        """Load a version unless it is loaded.

        Args:
            version: the version.
            added: takes its name if it was loaded.
            outgoing: takes its name, and that of another version which has had it until now: one
                that another process has undeployed, before it has deployed this one.
        """
        name = version.name
        if name in self._draining and not version.digest:
            raise DeploymentError(still_drains(name))
        if name in self._slot.versions:
            is_same = version.digest in ("", self._slot.versions[name].digest)
            if is_same and name not in self._draining:
                self._loaded[name] = version
                return
            outgoing[name] = f"{name} (outgoing {time.monotonic_ns()})"
            self._rename(name, outgoing[name])
        if name in self._ready and not version.digest:
            self._slot.keep(self._ready[name])
        elif followed := await self._followed.take(version):
            self._slot.keep(followed)
        else:
            await self._slot.add(self._opener(version), name=name)
        self._loaded[name] = version
        added.append(name)

    async def _take_away(self, added: Iterable[str], outgoing: Mapping[str, str]) -> None:
        for name in added:
            if self._slot.versions[name] is self._ready.get(name):
                del self._loaded[name]
                self._slot.release(name)
            else:
                await self.unload(name)
        for name, key in outgoing.items():
            self._rename(key, name)

    def _rename(self, name: str, key: str) -> None:
        self._slot.rename(name, key)
        self._loaded[key] = self._loaded.pop(name)
        self._draining.rename(name, key)
