"""The policies of schema.yaml: a registry, and the backends that they compute in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from policy_server.backends.opening import Backends, open_backends
from policy_server.backends.replica_counts import ReplicaCounts
from policy_server.backends.shared_records import SharedRecords
from policy_server.errors import SettingsError
from policy_server.formats.model_files import identify_model
from policy_server.metrics import Metrics
from policy_server.remote_files import fetch_in_thread
from policy_server.schema import PolicySection, SchemaFile, named_as_example
from policy_server.server_keys import keys_of
from policy_server.serving import (
    ALL_TRAFFIC,
    DeployedVersion,
    Deployer,
    Deployment,
    DeploymentStore,
    OpenedPolicy,
    PlannedVersion,
    PolicyRegistry,
    PolicySlot,
    VersionOpener,
    check_files,
)
from policy_server.serving.administration import Administration
from policy_server.serving.deployment_file import DeploymentFile
from policy_server.serving.deployment_store import Bases, one_basis
from policy_server.serving.session_stores import session_store
from policy_server.serving.shared_deployments import SharedDeployments
from policy_server.settings import ENV_PREFIX, Settings
from policy_server.version_files import Fetch, VersionFiles

__all__ = ["Policies"]

logger = logging.getLogger(__name__)

BackendsOpener = Callable[[], AbstractAsyncContextManager[Backends]]


class Policies:
    """The policies that a home folder describes.

    Attributes:
        registry: their slots.
        metrics: counts questions and answers, by policy.
        administration: changes versions on request; None where no admin key is set.
    """

    def __init__(
        self,
        settings: Settings,
        file: SchemaFile,
        *,
        opening: BackendsOpener | None = None,
        is_alone: bool = True,
        share_bases: Callable[[Mapping[str, str]], Bases] = one_basis,
    ) -> None:
        """Own the registry and, while `running`, the backends; nothing is loaded yet.

        Args:
            settings: the folder of the policies' files, the backend, and limits.
            file: the contents of schema.yaml.
            opening: opens backends that others use too; None opens those that the settings name.
            is_alone: whether no other web process answers at the same address.
            share_bases: tells the server's other web processes the digests of schema.yaml and the
                policies' files that this one has found, by the policies' names, and returns the
                bases that all of them have found.

        Raises:
            SettingsError: if a setting names the model of one policy, and there are several, or if
                the address of the sessions' store can't be used.
            MissingPackageError: if the client of that store is not installed.
        """
        if file.is_named and settings.model_uri is not None:
            raise SettingsError(
                f"{ENV_PREFIX}MODEL_URI: is for one policy, and {file.source} has policies:; give "
                "the address as the model of its policy there"
            )
        self.metrics = Metrics()
        self._settings = settings
        self._open_backends = opening or partial(open_backends, settings)
        self._backends: Backends | None = None
        self._deployers: list[Deployer] = []
        self._files = VersionFiles(settings)
        self._share_bases = share_bases
        self._sections = {section.name: section for section in file}
        self._file = file
        self._sessions = session_store(settings, self.metrics, is_alone=is_alone)
        slots = [
            PolicySlot(
                section.name,
                section.schema,
                [
                    PlannedVersion(
                        version.name,
                        self._opener(section, _not_fetched)(version),
                        version.model,
                        version.percent,
                        version.is_shadow,
                    )
                    for version in _versions_of(section)
                ],
                settings=settings,
                metrics=self.metrics,
                sessions=self._sessions,
            )
            for section in file
        ]
        self.registry = PolicyRegistry(
            slots, default=file.default, is_named=file.is_named, agents=file.agents
        )
        self.administration = (
            Administration(self._files, self._settings)
            if any("admin" in key.scopes for key in keys_of(settings, file))
            else None
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Backends]:
        """Open the backends and load the policies; they answer until the block ends.

        Yields:
            The backends.

        Raises:
            PolicyServerError: if no policy can be loaded.
        """
        async with self._open_backends() as backends, AsyncExitStack() as stack:
            self._backends = backends
            await stack.enter_async_context(self._sessions.running())
            found = await asyncio.to_thread(self._files.basis, self._file)
            bases = await asyncio.to_thread(self._share_bases, found)
            changed = await asyncio.to_thread(
                lambda: {name for name in found if len(bases(name)) > 1}
            )
            store = self._store_of(bases, await backends.shared_records())
            self._deployers = deployers = [
                self._deployer(slot, store, has_other_files=slot.name in changed)
                for slot in self.registry
            ]
            for deployer in deployers:
                await asyncio.to_thread(deployer.plan)
            await stack.enter_async_context(self.registry.running())
            for deployer in deployers:
                deployer.adopt()
                if deployer.slot.name in changed:
                    _warn_of_other_files(deployer.slot)
                section = self._sections[deployer.slot.name]
                named = partial(store.named, section.name)
                await asyncio.to_thread(self._files.clear, section, named)
                stack.push_async_callback(deployer.aclose)
                await stack.enter_async_context(_in_background(deployer.run()))
            if self.administration is not None:
                self.administration.serve(deployers)
            yield backends

    def note_ending(self) -> None:
        """End deploys that are not carried out yet, and uploads that are not received.

        See also `PolicyRegistry.note_ending`.
        """
        self.registry.note_ending()
        if self.administration is not None:
            self.administration.end_uploads()
        for deployer in self._deployers:
            deployer.end_deploys()

    def _store_of(self, bases: Bases, records: SharedRecords | None) -> DeploymentStore:
        """Return the store of the deployments: the cluster's, else that of the server's folder."""
        file = DeploymentFile(self._settings.home, bases)
        if records is None:
            return file

        def uploads(policy: str, deployment: Deployment) -> Mapping[str, Path]:
            return self._files.uploads(self._sections[policy], deployment)

        return SharedDeployments(records, file, bases, uploads)

    def _deployer(
        self, slot: PolicySlot, store: DeploymentStore, *, has_other_files: bool
    ) -> Deployer:
        opener = self._opener(self._sections[slot.name], partial(store.fetch, slot.name))
        return Deployer(
            slot,
            opener,
            store,
            forget=partial(self._files.forget, slot.name),
            session_drain_s=self._settings.session_drain_s,
            has_other_files=has_other_files,
        )

    def _opener(self, section: PolicySection, fetch: Fetch) -> VersionOpener:
        return lambda version: partial(self._open, section, version, fetch)

    @asynccontextmanager
    async def _open(
        self, section: PolicySection, version: DeployedVersion, fetch: Fetch
    ) -> AsyncIterator[OpenedPolicy]:
        assert self._backends is not None, "the registry runs while they are open"
        folder = await fetch_in_thread(partial(self._files.prepare, section, version, fetch))
        model = await asyncio.to_thread(identify_model, folder)
        # Before it is loaded: it is tried again and again.
        check_files(version, model.version)
        schema = await asyncio.to_thread(self._files.schema_of, version)
        metrics = self.metrics.of(section.name)
        replicas = ReplicaCounts.of(self._settings, section)
        async with AsyncExitStack() as stack:
            with named_as_example(self._settings.schema_path):
                opening = self._backends.open(model, schema or section.schema, metrics, replicas)
                backend = await stack.enter_async_context(opening)
            yield OpenedPolicy(backend, model.version, schema)


def _versions_of(section: PolicySection) -> list[DeployedVersion]:
    """Return the versions that schema.yaml names for a policy; its only model has no name."""
    return [
        DeployedVersion(item.name, item.model, item.traffic, is_shadow=item.is_shadow)
        for item in section.versions
    ] or [DeployedVersion("", section.model, ALL_TRAFFIC)]


def _warn_of_other_files(slot: PolicySlot) -> None:
    """Log that a web process began after files were replaced, and what it serves."""
    logger.warning(
        "policy_files_changed",
        extra={
            "policy": slot.name,
            "live": None if slot.live is None else slot.live.label,
            "reason": "schema.yaml or the policy's files were replaced while the server runs: this "
            "web process serves what is deployed, or the files that lie there now where that can't "
            "be had; one that began before serves the old files in their place. Deploy a version, "
            "which all serve and the next start too, or start the server again with the new files",
        },
    )


def _not_fetched(_model: str, _target: Path) -> bool:
    """Fetch nothing: no version of schema.yaml is an uploaded one."""
    return False


@asynccontextmanager
async def _in_background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run a coroutine while the block runs."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
