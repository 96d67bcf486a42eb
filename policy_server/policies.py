"""The policies of schema.yaml: a registry, and the backends that they compute in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from policy_server.backends.opening import Backends, open_backends
from policy_server.backends.replica_counts import ReplicaCounts
from policy_server.errors import ModelError, SettingsError
from policy_server.formats.finding import prepare_model, prepare_policy
from policy_server.formats.model_files import identify_model
from policy_server.metrics import Metrics
from policy_server.schema import PolicySection, SchemaFile, named_as_example
from policy_server.serving import OpenedPolicy, PlannedVersion, PolicyRegistry, PolicySlot
from policy_server.settings import ENV_PREFIX, Settings

__all__ = ["Policies"]

BackendsOpener = Callable[[], AbstractAsyncContextManager[Backends]]


class Policies:
    """The policies that a home folder describes.

    Attributes:
        registry: their slots.
        metrics: counts questions and answers, by policy.
    """

    def __init__(
        self,
        settings: Settings,
        file: SchemaFile,
        *,
        opening: BackendsOpener | None = None,
    ) -> None:
        """Own the registry and, while `running`, the backends; nothing is loaded yet.

        Args:
            settings: the folder of the policies' files, the backend, and limits.
            file: the contents of schema.yaml.
            opening: opens backends that others use too; None opens those that the settings name.

        Raises:
            SettingsError: if a setting names the model of one policy, and there are several.
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
        slots = [
            PolicySlot(
                section.name,
                section.schema,
                [
                    PlannedVersion(
                        version.name,
                        partial(self._open, section, version.name, version.model),
                        version.traffic,
                        version.is_shadow,
                    )
                    for version in section.versions
                ]
                or partial(self._open, section, "", section.model),
                settings=settings,
                metrics=self.metrics,
            )
            for section in file
        ]
        self.registry = PolicyRegistry(slots, default=file.default, is_named=file.is_named)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Backends]:
        """Open the backends and load the policies; they answer until the block ends.

        Yields:
            The backends.

        Raises:
            PolicyServerError: if no policy can be loaded.
        """
        async with self._open_backends() as backends:
            self._backends = backends
            async with self.registry.running():
                yield backends

    @asynccontextmanager
    async def _open(
        self, section: PolicySection, version: str, where: str | None
    ) -> AsyncIterator[OpenedPolicy]:
        assert self._backends is not None, "the registry runs while they are open"
        folder = await asyncio.to_thread(self._prepare, section, version, where)
        model = await asyncio.to_thread(identify_model, folder)
        metrics = self.metrics.of(section.name)
        replicas = ReplicaCounts.of(self._settings, section)
        async with AsyncExitStack() as stack:
            with named_as_example(self._settings.schema_path):
                opening = self._backends.open(model, section.schema, metrics, replicas)
                backend = await stack.enter_async_context(opening)
            yield OpenedPolicy(backend, model.version)

    def _prepare(self, section: PolicySection, version: str, where: str | None) -> Path:
        """Return the folder of a version's files; a zip is unpacked to one."""
        if where is None:
            return prepare_model(self._settings)
        target = self._settings.models_path / section.name / version
        key = f"versions.{version}.model" if version else "model"
        try:
            return prepare_policy(self._settings.home / where, target, self._settings)
        except ModelError as error:
            raise ModelError(f"{section.schema.source}: {key}: {error.message}") from error
