"""Changing a policy's versions while it answers: load beside, move the traffic, drain, unload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from policy_server.errors import DeploymentError, PolicyServerError
from policy_server.serving.deployment import DeployedVersion, Deployment, Evidence
from policy_server.serving.slot import PlannedVersion, PolicyOpener, PolicySlot
from policy_server.serving.traffic import ALL_TRAFFIC

__all__ = ["Deployer", "DeploymentStore", "VersionOpener"]

logger = logging.getLogger(__name__)

VersionOpener = Callable[[DeployedVersion], PolicyOpener]

# How often the store is looked at, evidence is weighed, and the episodes of an old version counted.
_PERIOD_S = 1.0
# A version that fails so often, of at least so many questions, is taken back.
_MOST_FAILURES = 0.01
_FEWEST_FAILURES = 5
# A version whose median call takes so many times as long as the live one's is taken back.
_MOST_SLOWER = 10.0
# Of a policy that could not be loaded: no change but a first deployment fits it.
_NOTHING = Deployment((), live="")


class DeploymentStore(Protocol):
    """Keeps deployments for the next start, and for the other processes of the server."""

    def read(self, policy: str) -> Deployment | None:
        """Return a policy's deployment; None where none was written for today's files.

        Args:
            policy: the policy's name.
        """

    def write(self, policy: str, deployment: Deployment) -> None:
        """Keep a deployment, the one that follows the one that is there.

        Args:
            policy: the policy's name.
            deployment: the new one; its `serial` is one more than that of the kept one.

        Raises:
            DeploymentError: if another process has changed the deployment meanwhile.
        """


class Deployer:
    """The deployments of one policy, one change after the other.

    A change is carried out in this order: the new version is loaded, proved and warmed beside the
    old ones; the store keeps the new deployment; the traffic moves in one step; versions that are
    not needed any more answer the questions and episodes that they have, and are unloaded. Where
    any of the first two fails, everything is as it was.

    Attributes:
        slot: the policy's slot.
        deployment: the versions that are served now.
    """

    def __init__(
        self,
        slot: PolicySlot,
        opener: VersionOpener,
        store: DeploymentStore,
        *,
        forget: Callable[[str], None] = lambda _name: None,
        period_s: float = _PERIOD_S,
    ) -> None:
        """Own the slot's versions while `run` runs; nothing is loaded yet.

        Args:
            slot: the policy's slot.
            opener: gives what loads and unloads a version.
            store: keeps deployments.
            forget: removes the files of a version that is undeployed, by its name.
            period_s: how often the store is looked at, in seconds.
        """
        self.slot = slot
        self.deployment: Deployment | None = None
        self._opener = opener
        self._store = store
        self._forget = forget
        self._period_s = period_s
        self._kept: Deployment | None = None
        self._changing = asyncio.Lock()
        self._draining: dict[str, asyncio.Task[None]] = {}

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
            self.deployment = self._loaded(self._kept)

    async def aclose(self) -> None:
        """Stop draining; the slot unloads its versions itself."""
        for task in [*self._draining.values()]:
            task.cancel()
        await asyncio.gather(*self._draining.values(), return_exceptions=True)

    async def run(self) -> None:
        """Follow the other processes of the server, and weigh evidence, for ever."""
        while True:
            await asyncio.sleep(self._period_s)
            try:
                await self._converge()
                await self._weigh()
            except PolicyServerError as error:
                logger.warning(
                    "deployment_not_followed",
                    extra={"policy": self.slot.name, "reason": error.message},
                )

    async def deploy(self, version: DeployedVersion) -> Deployment:
        """Load a version, and give it its share of the questions.

        Args:
            version: its name, model and share; with 100 per cent it is live at once.

        Raises:
            DeploymentError: if the name is taken.
            PolicyServerError: if the version can't be loaded, or is no version of this policy.
        """
        if self.deployment is None:
            # The policy could not be loaded: this is its first version.
            whole = replace(version, percent=ALL_TRAFFIC, is_shadow=False)
            first = replace(Deployment.begin([whole]), serial=self._next_serial())
            return await self._change(lambda _before: first)
        return await self._change(lambda before: before.deployed(version))

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
        """Unload a version, once it has answered what it has.

        Args:
            name: the version's name; not that of the live one.

        Raises:
            DeploymentError: if there is no such version, or it is live.
        """
        return await self._change(lambda before: before.undeployed(name))

    async def _change(self, make: Callable[[Deployment], Deployment]) -> Deployment:
        async with self._changing:
            target = make(self.deployment or _NOTHING)
            await self._carry_out(target, is_kept=False)
            return target

    def _next_serial(self) -> int:
        kept = self._store.read(self.slot.name)
        return 1 if kept is None else kept.serial + 1

    async def _carry_out(self, target: Deployment, *, is_kept: bool) -> None:
        added: list[str] = []
        try:
            for version in target:
                if await self._add(version):
                    added.append(version.name)
            if not is_kept:
                await asyncio.to_thread(self._store.write, self.slot.name, target)
        except BaseException:
            for name in added:
                await self.slot.remove(name)
            raise
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
            if name not in self._draining:
                self._draining[name] = asyncio.create_task(self._drain(name))

    async def _add(self, version: DeployedVersion) -> bool:
        """Load a version unless it is loaded, and return whether that was needed."""
        if version.name in self._draining:
            raise DeploymentError(
                f"version {version.name} still answers its last episodes; try again later, or give "
                "the new one another name"
            )
        if version.name in self.slot.versions:
            return False
        await self.slot.add(self._opener(version), name=version.name)
        return True

    async def _drain(self, name: str) -> None:
        """Unload a version when its episodes have ended."""
        try:
            while self.slot.episodes_of(name):
                await asyncio.sleep(self._period_s)
            await self.slot.remove(name)
            await asyncio.to_thread(self._forget, name)
        finally:
            del self._draining[name]

    async def _converge(self) -> None:
        """Carry out what another process has decided."""
        if self.deployment is None:
            return
        kept = await asyncio.to_thread(self._store.read, self.slot.name)
        if kept is None or kept.serial <= self.deployment.serial:
            return
        async with self._changing:
            if kept.serial > self.deployment.serial:
                await self._carry_out(kept, is_kept=True)

    async def _weigh(self) -> None:
        """Promote a version that has shown what was asked, or take it back."""
        deployment = self.deployment
        if deployment is None:
            return
        evidence = deployment.waiting_for
        trial = None if evidence is None else evidence.version
        for name in deployment.candidates:
            if name in deployment.percents or name == trial:
                fault = self._fault_of(name)
                if fault is not None:
                    await self._take_back(name, fault)
                    return
        if evidence is None:
            return
        report = self.slot.shadows[evidence.version].report()
        if report.copies < evidence.after or report.same_mode is None:
            return
        disagreement = 1.0 - report.same_mode
        shown = f"{disagreement:.2%} of {report.copies} questions have another action"
        if disagreement > evidence.max_disagreement:
            shown = f"{shown}, more than {evidence.max_disagreement:.2%}"
            await self._take_back(evidence.version, shown)
        else:
            reason = f"{evidence.version} is promoted: {shown}"
            await self._change(lambda before: before.promoted(evidence.version, reason=reason))

    async def _take_back(self, name: str, fault: str) -> None:
        reason = f"{name} is taken back: {fault}"
        logger.warning("version_taken_back", extra={"version": name, "reason": fault})
        await self._change(lambda before: before.undeployed(name, reason=reason))

    def _fault_of(self, name: str) -> str | None:
        """Return why a candidate has to be taken back; None for no reason."""
        version, live = self.slot.versions.get(name), self.slot.live
        if version is None or live is None:
            return None
        asked, failed = version.record.asked, version.record.failed
        shadow = self.slot.shadows.get(name)
        if shadow is not None:
            report = shadow.report()
            asked, failed = asked + report.copies + report.failed, failed + report.failed
        if failed >= _FEWEST_FAILURES and failed > _MOST_FAILURES * asked:
            return f"it failed on {failed} of {asked} questions"
        mine, theirs = version.record.call_seconds, live.record.call_seconds
        if mine is not None and theirs is not None and mine > _MOST_SLOWER * theirs:
            return (
                f"a call takes {mine * 1000:.1f} ms, more than {_MOST_SLOWER:g} times "
                f"the {theirs * 1000:.1f} ms of {live.label}"
            )
        return None

    def _loaded(self, kept: Deployment | None) -> Deployment:
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
