"""Changing a policy's versions while it answers: load beside, move the traffic, drain, unload."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from policy_server.errors import (
    DeploymentChangedError,
    DeploymentError,
    PolicyServerError,
)
from policy_server.serving.deployment import DeployedVersion, Deployment, Evidence
from policy_server.serving.deployment_store import DeploymentStore
from policy_server.serving.draining import Draining, still_drains
from policy_server.serving.ending import EndableWork
from policy_server.serving.following import FollowedVersions
from policy_server.serving.slot import PlannedVersion, PolicyOpener, PolicySlot
from policy_server.serving.traffic import ALL_TRAFFIC
from policy_server.serving.verdicts import weigh
from policy_server.serving.version import PolicyVersion

__all__ = ["Deployer", "VersionOpener"]

logger = logging.getLogger(__name__)

VersionOpener = Callable[[DeployedVersion], PolicyOpener]

# How often the store is looked at, evidence is weighed, and the episodes of an old version counted.
_PERIOD_S = 1.0
# A change that comes after another process's is made anew, so many times in all.
_MOST_TRIES = 3
# A deployment that can't be followed is tried again, later each time.
_LONGEST_DELAY_S = 60.0
# Of a policy that could not be loaded: no change but a first deployment fits it.
_NOTHING = Deployment((), live="")


class Deployer:
    """The deployments of one policy, one change after the other.

    A change is carried out in this order: the new version is loaded, proved and warmed beside the
    old ones; the store keeps the new deployment; the traffic moves in one step; versions that are
    not needed any more answer the questions and episodes that they have, and are unloaded. Where
    any of the first two fails, everything is as it was.

    Attributes:
        slot: the policy's slot.
        deployment: the versions that are served now.
        draining: the versions that answer what they have, and are unloaded then.
    """

    def __init__(
        self,
        slot: PolicySlot,
        opener: VersionOpener,
        store: DeploymentStore,
        *,
        forget: Callable[[DeployedVersion], None] = lambda _version: None,
        period_s: float = _PERIOD_S,
        session_drain_s: float = 0.0,
    ) -> None:
        """Own the slot's versions while `run` runs; nothing is loaded yet.

        Args:
            slot: the policy's slot.
            opener: gives what loads and unloads a version.
            store: keeps deployments.
            forget: removes the files of a version that is undeployed.
            period_s: how often the store is looked at, in seconds.
            session_drain_s: for how long a version waits for its episodes and sessions to end, in
                seconds.
        """
        self.slot = slot
        self.deployment: Deployment | None = None
        self._opener = opener
        self._store = store
        self._forget = forget
        self._period_s = period_s
        # The store's latest deployment that was carried out here, or planned.
        self._kept: Deployment | None = None
        self._loaded: dict[str, DeployedVersion] = {}
        self._refused: Deployment | None = None
        self._delay_s = 0.0
        self._retry_at = 0.0
        self._changing = asyncio.Lock()
        self._deploying = asyncio.Lock()
        self._loads = EndableWork()
        # Loaded beside, until the deployment with it is carried out.
        self._ready: dict[str, PolicyVersion] = {}
        self._followed = FollowedVersions(slot, opener)
        self.draining = Draining(
            slot, self._unload_for_good, period_s=period_s, longest_s=session_drain_s
        )
        slot.is_expected = self._is_expected

    def plan(self) -> None:
        """Have the slot begin with the kept deployment, where there is one for today's files."""
        self._kept = self._store.read(self.slot.name)
        if self._kept is not None:
            self.slot.plan(
                [
                    PlannedVersion(
                        item.name, self._opener(item), item.model, item.percent, item.is_shadow
                    )
                    for item in self._kept
                ]
            )

    def adopt(self) -> None:
        """Begin with the versions that the slot has loaded."""
        if self.slot.traffic is not None:
            self.deployment = self._begun(self._kept)
            self._loaded = {version.name: version for version in self.deployment}

    async def aclose(self) -> None:
        """Stop draining, and end deploys; the slot unloads its versions itself."""
        self.end_deploys()
        await self.draining.aclose()

    def end_deploys(self) -> None:
        """Refuse the deploy whose version is being loaded, and those that come, for good."""
        self._loads.end()

    async def run(self) -> None:
        """Follow the other processes of the server, and weigh evidence, for ever."""
        while True:
            await asyncio.sleep(self._period_s)
            try:
                await self._follow()
                await self._weigh()
            except PolicyServerError as error:
                logger.warning(
                    "deployment_not_followed",
                    extra={"policy": self.slot.name, "reason": error.message},
                )
            except Exception:
                logger.exception("deployment_not_followed", extra={"policy": self.slot.name})

    async def deploy(self, version: DeployedVersion) -> Deployment:
        """Load a version, and give it its share of the questions.

        Other changes are carried out while it is loaded. One deploy waits for another.

        Args:
            version: its name, model and share; with 100 per cent it is live at once.

        Raises:
            DeploymentError: if the name is taken, or a version was promoted, rolled back or
                undeployed while this one was loaded.
            NotReadyError: if the server ends first.
            PolicyServerError: if the version can't be loaded, or is no version of this policy.
        """
        async with self._deploying:
            self._loads.check()
            begun = await self._latest()
            _deployed(begun, version)
            if version.name in self.draining:
                raise DeploymentError(still_drains(version.name))
            loading = self.slot.load(self._opener(version), name=version.name)
            loaded = await self._loads.run(loading)
            self._ready[version.name] = loaded
            try:
                return await self._change(partial(_deployed_since, begun, version))
            finally:
                if self._ready.pop(version.name) not in self.slot.versions.values():
                    await self.slot.discard(loaded)

    async def promote(self, name: str | None, *, evidence: Evidence | None = None) -> Deployment:
        """Give all questions to a version, at once or when the evidence is there.

        Args:
            name: the version's name; None for the only candidate.
            evidence: what the version has to show first; None for nothing.

        Raises:
            DeploymentError: if there is no such version, or none or several to choose from.
        """
        if evidence is None:
            return await self._change(lambda before: before.promoted(name))
        wanted = replace(evidence, version=name or "")
        return await self._change(lambda before: before.awaiting(wanted))

    async def roll_back(self, *, reason: str = "") -> Deployment:
        """Take the candidates back; without any, make the former version live again.

        Args:
            reason: why the server does it by itself; empty for a person's wish.

        Raises:
            DeploymentError: if there is nothing to go back to.
        """
        return await self._change(lambda before: before.rolled_back(reason=reason))

    async def undeploy(self, name: str) -> Deployment:
        """Unload a version, once it has answered what it has; one that drains already, at once.

        Args:
            name: the version's name; not that of the live one.

        Raises:
            DeploymentError: if there is no such version, or it is live.
        """
        latest = await self._latest()
        if name in self.draining and name not in latest.names:
            await self.draining.end(name)
            return latest
        return await self._change(lambda before: before.undeployed(name))

    async def _change(self, make: Callable[[Deployment], Deployment]) -> Deployment:
        """Carry out a change of the latest deployment, be it another process's.

        Args:
            make: returns the new deployment for the latest one.
        """
        async with self._changing:
            for _ in range(_MOST_TRIES - 1):
                try:
                    return await self._carry_out(make(await self._latest()), is_kept=False)
                except DeploymentChangedError:
                    continue
            return await self._carry_out(make(await self._latest()), is_kept=False)

    async def _latest(self) -> Deployment:
        kept = await self._read()
        if kept is not None and self._is_newer(kept):
            return kept
        if self.deployment is not None:
            return self.deployment
        return _NOTHING if kept is None else replace(_NOTHING, serial=kept.serial)

    async def _read(self) -> Deployment | None:
        reading = asyncio.create_task(asyncio.to_thread(self._store.read, self.slot.name))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            # The store may not be there any more when the server has ended.
            await asyncio.wait([reading])
            raise

    def _is_newer(self, kept: Deployment) -> bool:
        """Return whether the store's deployment is another one than that which was carried out.

        A store that was lost may have been given another one with the same serial.
        """
        known = self._kept
        return known is None or (kept.serial >= known.serial and kept != known)

    async def _carry_out(self, target: Deployment, *, is_kept: bool) -> Deployment:
        added: list[DeployedVersion] = []
        outgoing: dict[str, str] = {}
        kept = target
        try:
            for version in target:
                await self._add(version, added, outgoing)
            target = target.identified({name: self._digest(name) for name in self.slot.versions})
            if not is_kept:
                await asyncio.to_thread(self._store.write, self.slot.name, target)
        except BaseException:
            for version in added:
                if self.slot.versions[version.name] is self._ready.get(version.name):
                    del self._loaded[version.name]
                    self.slot.release(version.name)
                else:
                    await self._unload(version.name)
            for name, key in outgoing.items():
                self._rename(key, name)
            raise
        self._kept = kept if is_kept else target
        self._move_traffic(target)
        return target

    def _move_traffic(self, target: Deployment) -> None:
        self.slot.failures.clear()
        self.slot.route(target.percents, shadows=target.shadows)
        self.deployment = target
        logger.info(
            "deployment_changed",
            extra={
                "policy": self.slot.name,
                "live": target.live,
                "traffic": dict(target.percents),
                "reason": target.reason,
            },
        )
        kept = {version.name for version in target}
        for name in [name for name in self.slot.versions if name not in kept]:
            if name not in self.draining:
                self.draining.begin(name)

    async def _add(
        self, version: DeployedVersion, added: list[DeployedVersion], outgoing: dict[str, str]
    ) -> None:
        """Load a version unless it is loaded.

        Args:
            version: the version.
            added: takes it if it was loaded.
            outgoing: takes its name, and that of another version which has had it until now: one
                that another process has undeployed, before it has deployed this one.
        """
        name = version.name
        if name in self.draining and not version.digest:
            raise DeploymentError(still_drains(name))
        if name in self.slot.versions:
            is_same = version.digest in ("", self._digest(name))
            if is_same and name not in self.draining:
                self._loaded[name] = version
                return
            outgoing[name] = f"{name} (outgoing {time.monotonic_ns()})"
            self._rename(name, outgoing[name])
        if name in self._ready and not version.digest:
            self.slot.keep(self._ready[name])
        elif followed := await self._followed.take(version):
            self.slot.keep(followed)
        else:
            await self.slot.add(self._opener(version), name=name)
        self._loaded[name] = version
        added.append(version)
        if version.digest not in ("", self._digest(name)):
            raise DeploymentError(
                f"version {name}: its address or path holds another policy than the one that was "
                "deployed; deploy it anew under another name"
            )

    def _digest(self, name: str) -> str:
        return self.slot.versions[name].digest

    def _rename(self, name: str, key: str) -> None:
        self.slot.rename(name, key)
        self._loaded[key] = self._loaded.pop(name)
        self.draining.rename(name, key)

    async def _unload(self, name: str) -> DeployedVersion:
        # First: another version may get the name while this one is unloaded.
        version = self._loaded.pop(name)
        await self.slot.remove(name)
        return version

    async def _unload_for_good(self, name: str) -> None:
        """Unload a version that is not deployed any more, and remove its files."""
        version = await self._unload(name)
        if all(version.model != item.model for item in self.deployment or ()):
            await asyncio.to_thread(self._forget, version)

    async def _is_expected(self, name: str, digest: str) -> bool:
        """Return whether another process has deployed a version that is not loaded here yet."""
        kept = await self._read()
        return (
            kept is not None
            and self._is_newer(kept)
            and (name, digest) in {(version.name, version.digest) for version in kept}
        )

    async def _follow(self) -> None:
        """Carry out what another process has decided.

        Other changes are carried out while its versions are loaded.
        """
        kept = await self._due()
        if kept is None:
            return
        try:
            names = {*self.slot.versions, *self._ready}
            await self._followed.load(item for item in kept if item.name not in names)
            async with self._changing:
                if kept == await self._due():
                    await self._carry_out(kept, is_kept=True)
        except Exception:
            is_again = kept == self._refused
            self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S) if is_again else _PERIOD_S
            self._refused, self._retry_at = kept, time.monotonic() + self._delay_s
            raise
        finally:
            await self._followed.discard()

    async def _due(self) -> Deployment | None:
        """Return a deployment of another process that is to be carried out; None for none."""
        kept = await self._read()
        if kept is None or not self._is_newer(kept):
            return None
        is_refused = kept == self._refused and time.monotonic() < self._retry_at
        return None if is_refused else kept

    async def _weigh(self) -> None:
        """Promote a version that has shown what was asked, or take it back."""
        weighed = self.deployment
        verdict = None if weighed is None else weigh(self.slot, weighed)
        if weighed is None or verdict is None:
            return

        def concluded(before: Deployment) -> Deployment:
            if before.serial != weighed.serial:
                # Another process, or a person, has changed what was weighed.
                raise DeploymentChangedError.of(self.slot.name)
            name, reason = verdict.version, verdict.reason
            if verdict.is_promoted:
                return before.promoted(name, reason=reason)
            return before.undeployed(name, reason=reason)

        with suppress(DeploymentChangedError):
            await self._change(concluded)
            logger.info(
                "version_promoted" if verdict.is_promoted else "version_taken_back",
                extra={"version": verdict.version, "reason": verdict.reason},
            )

    def _begun(self, kept: Deployment | None) -> Deployment:
        """Return the deployment of the versions that could be loaded."""
        slot, traffic = self.slot, self.slot.traffic
        assert traffic is not None, "a version that answers was loaded"
        percents = {share.version.label: share.percent for share in traffic.shares}
        known = {item.name: item for item in kept or ()}
        versions = tuple(
            replace(
                known.get(name, DeployedVersion(name, self.slot.models.get(name))),
                percent=percents.get(name, 0.0),
                is_shadow=name in slot.shadows,
                digest=slot.versions[name].digest,
            )
            for name in slot.versions
        )
        if kept is None:
            return Deployment.begin(versions)
        names = set(slot.versions)
        return replace(
            kept,
            versions=versions,
            live=kept.live if kept.live in names else traffic.live.label,
            former=kept.former if kept.former in names else None,
            waiting_for=None,
        )


def _deployed(before: Deployment, version: DeployedVersion) -> Deployment:
    """Return a deployment with another version."""
    if before.versions:
        return before.deployed(version)
    # The policy could not be loaded: this is its first version.
    whole = replace(version, percent=ALL_TRAFFIC, is_shadow=False)
    return replace(Deployment.begin([whole]), serial=before.serial + 1)


def _deployed_since(begun: Deployment, version: DeployedVersion, before: Deployment) -> Deployment:
    """Return a deployment with a version that was loaded meanwhile."""
    target = _deployed(before, version)
    if not begun.is_followed_by(before):
        raise DeploymentError(
            f"version {version.name} is not deployed: the deployment changed meanwhile; look at it "
            "with `status`, and deploy again"
        )
    return target
