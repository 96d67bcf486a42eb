"""Changing a policy's versions while it answers: load beside, move the traffic, drain, unload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from policy_server.errors import (
    DeploymentChangedError,
    DeploymentError,
    PolicyServerError,
)
from policy_server.serving.deployment import DeployedVersion, Deployment, Evidence
from policy_server.serving.deployment_store import DeploymentStore
from policy_server.serving.draining import Draining, still_drains
from policy_server.serving.ending import EndableWork
from policy_server.serving.loaded_versions import LoadedVersions, VersionOpener, as_deployed
from policy_server.serving.served_part import begun_deployment, needed_versions, served_part
from policy_server.serving.slot import PlannedVersion, PolicySlot, log_not_served
from policy_server.serving.stored_deployment import StoredDeployment
from policy_server.serving.traffic import ALL_TRAFFIC
from policy_server.serving.verdicts import weigh

__all__ = ["Deployer"]

logger = logging.getLogger(__name__)

# How often the store is looked at, evidence is weighed, and the episodes of an old version counted.
_PERIOD_S = 1.0
# A change that comes after another process's is made anew, so many times in all.
_MOST_TRIES = 3
# Of a policy that could not be loaded: no change but a first deployment fits it.
_NOTHING = Deployment((), live="")


class Deployer:
    """The deployments of one policy, one change after the other.

    A change is carried out in this order: the new version is loaded, proved and warmed beside the
    old ones; the store keeps the new deployment; the traffic moves in one step; versions that are
    not needed any more answer the questions and episodes that they have, and are unloaded. Where
    any of the first two fails, everything is as it was.

    A version that only other processes could load stays in the deployment: this one serves the
    rest, lists the version as failed, and tries to load it again.

    Attributes:
        slot: the policy's slot.
        deployment: the versions that are to be served now; None where the policy is not loaded.
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
        has_other_files: bool = False,
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
            has_other_files: whether the policy's own files may be others than those that the kept
                deployment was made over: they are served where it can't be.
        """
        self.slot = slot
        self._has_other_files = has_other_files
        self.deployment: Deployment | None = None
        self._opener = opener = as_deployed(opener)
        self._stored = StoredDeployment(slot, store)
        self._forget = forget
        self._period_s = period_s
        # What this process serves of `deployment`.
        self._served: Deployment | None = None
        self._changing = asyncio.Lock()
        self._deploying = asyncio.Lock()
        self._loads = EndableWork()
        # The error that the log was told last of each step of `run`.
        self._told: dict[str, str] = {}
        # Tries the versions again that could not be loaded.
        self._trying: asyncio.Task[None] | None = None
        self.draining = Draining(
            slot, self._unload_for_good, period_s=period_s, longest_s=session_drain_s
        )
        self._versions = LoadedVersions(slot, opener, self.draining)
        slot.is_expected = self._is_expected

    def plan(self) -> None:
        """Have the slot begin with the kept deployment, where there is one for today's files."""
        kept = self._stored.begin()
        if kept is not None:
            self.slot.plan(
                [
                    PlannedVersion(
                        item.name,
                        self._opener(item),
                        item.model,
                        item.percent,
                        item.is_shadow,
                        stands_in_for=kept.live if item.name == kept.former else "",
                    )
                    for item in kept
                ],
                is_own_next=self._has_other_files,
            )

    def adopt(self) -> None:
        """Begin with the versions that the slot has loaded."""
        kept, loaded = self._stored.known, self.slot.versions.keys()
        if kept is not None and self.slot.traffic is not None and not self._has_loaded_of(kept):
            self._stored.overrule(kept)
        elif kept is not None and not kept.names <= loaded:
            self._stored.postpone(kept)
        if self.slot.traffic is None:
            return
        begun = self._stored.in_force
        self.deployment = begun or begun_deployment(self.slot, serial=kept.serial if kept else 0)
        self._versions.begin(self.deployment)
        here = served_part(self.deployment, self.deployment.names - loaded)
        assert here is not None, "a version that answers was loaded"
        self._served = here
        self.slot.route(here.percents, shadows=here.shadows)

    def _has_loaded_of(self, kept: Deployment) -> bool:
        """Return whether a version is loaded as it is deployed: others may have its name."""
        versions = self.slot.versions
        return any(
            item.name in versions and item.digest in ("", versions[item.name].digest)
            for item in kept
        )

    @property
    def names(self) -> frozenset[str]:
        """Return the names that are taken: of all versions that are to be served, or loaded."""
        known = self._stored.in_force or self.deployment
        return frozenset({*(() if known is None else known.names), *self.slot.versions})

    async def aclose(self) -> None:
        """Stop draining, and end deploys; the slot unloads its versions itself."""
        self.end_deploys()
        await self.draining.aclose()

    def end_deploys(self) -> None:
        """Refuse the deploy whose version is being loaded, and those that come, for good."""
        self._loads.end()

    async def run(self) -> None:
        """Follow the other processes of the server, and weigh evidence, for ever."""
        try:
            while True:
                await asyncio.sleep(self._period_s)
                await self._logged("follow", self._follow())
                await self._logged("weigh", self._weigh())
        finally:
            await self._try_no_more()

    async def _logged(self, step: str, work: Coroutine[Any, Any, None]) -> None:
        """Take a step of `run`; the same error is logged once until the step has succeeded."""
        try:
            await work
        except PolicyServerError as error:
            if self._is_news(step, error):
                logger.warning(
                    "deployment_not_followed",
                    extra={"policy": self.slot.name, "reason": error.message},
                )
        except Exception as error:
            if self._is_news(step, error):
                logger.exception("deployment_not_followed", extra={"policy": self.slot.name})
        else:
            self._told.pop(step, None)

    def _is_news(self, step: str, error: Exception) -> bool:
        """Return whether a step did not fail by the same error before, and note it."""
        before = self._told.get(step)
        self._told[step] = repr(error)
        return before != repr(error)

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
            loaded = await self._loads.run(self._versions.load(version))
            async with self._versions.ready(loaded):
                return await self._change(partial(_deployed_since, begun, version))

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
                with suppress(DeploymentChangedError):
                    return await self._make(make)
            return await self._make(make)

    async def _make(self, make: Callable[[Deployment], Deployment]) -> Deployment:
        before = await self._latest()
        target = make(before)
        return await self._carry_out(target, needed_versions(before, target), is_kept=False)

    async def _latest(self) -> Deployment:
        return await self._stored.latest() or self.deployment or _NOTHING

    async def _carry_out(
        self, target: Deployment, needed: Collection[str], *, is_kept: bool
    ) -> Deployment:
        """Load, keep and serve a deployment.

        Args:
            target: the deployment.
            needed: the names of the versions without which nothing changes.
            is_kept: whether the store has it.
        """
        kept = target
        # A change, such as a rollback, waits for no files that are away: `_follow` tries them.
        failed = {} if is_kept else self._failed()
        async with self._versions.added(target, needed, failed) as missing:
            target = target.identified(self._versions.digests)
            here = served_part(target, missing)
            if here is None:
                raise missing.get(target.live) or next(iter(missing.values()))
            if not is_kept:
                await self._stored.write(target)
        self._stored.known = kept if is_kept else target
        self._note_missing(missing)
        if (target, here) != (self.deployment, self._served):
            self._move_traffic(target, here)
        return target

    def _failed(self) -> Mapping[str, PolicyServerError]:
        return {name: DeploymentError(reason) for name, reason in self.slot.failures.items()}

    def _note_missing(self, missing: Mapping[str, PolicyServerError]) -> None:
        """List the versions that could not be loaded, log what is new, and try them again."""
        known = dict(self.slot.failures)
        self.slot.failures.clear()
        for name, error in missing.items():
            self.slot.failures[name] = error.message
            if known.get(name) != error.message:
                log_not_served(self.slot.name, name, error)
        if missing:
            assert self._stored.known is not None, "it was carried out"
            self._stored.postpone(self._stored.known)

    def _move_traffic(self, target: Deployment, here: Deployment) -> None:
        self.slot.route(here.percents, shadows=here.shadows)
        self.deployment, self._served = target, here
        logger.info(
            "deployment_changed",
            extra={
                "policy": self.slot.name,
                "live": target.live,
                "traffic": dict(here.percents),
                "reason": target.reason,
            },
        )
        for name in [name for name in self.slot.versions if name not in target.names]:
            if name not in self.draining:
                self.draining.begin(name)

    async def _unload_for_good(self, name: str) -> None:
        """Unload a version that is not deployed any more, and remove its files."""
        version = await self._versions.unload(name)
        if all(version.model != item.model for item in self.deployment or ()):
            await asyncio.to_thread(self._forget, version)

    async def _is_expected(self, name: str, digest: str) -> bool:
        """Return whether a version is deployed that is not loaded here yet.

        A client asks, who can do nothing about a store that can't be read: what was read last
        decides then.
        """
        try:
            kept = await self._stored.read()
        except DeploymentError:
            kept = self._stored.known
        loaded = self.slot.versions.get(name)
        return (
            kept is not None
            and (self._stored.is_newer(kept) or kept == self._stored.in_force)
            and (loaded is None or loaded.digest != digest)
            and (name, digest) in {(version.name, version.digest) for version in kept}
        )

    async def _follow(self) -> None:
        """Carry out what another process has decided, and try what could not be loaded again.

        Other changes are carried out while versions are loaded. An address that does not answer
        may take minutes, so that the next decision breaks off what is only tried again.
        """
        kept = await self._stored.due()
        if kept is None:
            return
        if self._stored.is_newer(kept):
            await self._try_no_more()
            await self._take_over(kept)
        elif self._trying is None or self._trying.done():
            self._trying = asyncio.create_task(self._logged("try again", self._take_over(kept)))

    async def _try_no_more(self) -> None:
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.wait([self._trying])
            self._trying = None

    async def _take_over(self, kept: Deployment) -> None:
        """Carry out a deployment that the store has, unless it has another one by then."""
        try:
            async with self._versions.followed(kept), self._changing:
                if kept == await self._stored.due():
                    await self._carry_out(kept, (), is_kept=True)
        except Exception:
            self._stored.postpone(kept)
            raise

    async def _weigh(self) -> None:
        """Promote a version that has shown what was asked, or take it back."""
        weighed = self._served
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
