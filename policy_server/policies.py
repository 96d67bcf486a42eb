"""The policies of schema.yaml: a registry, and the backends that they compute in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

from policy_server.backends.opening import Backends, open_backends
from policy_server.formats.finding import prepare_model
from policy_server.formats.model_files import identify_model
from policy_server.metrics import Metrics
from policy_server.policy import DEFAULT_POLICY
from policy_server.schema import ServerSchema, named_as_example
from policy_server.serving import OpenedPolicy, PolicyRegistry, PolicySlot
from policy_server.settings import Settings

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
        schema: ServerSchema,
        *,
        opening: BackendsOpener | None = None,
    ) -> None:
        """Own the registry and, while `running`, the backends; nothing is loaded yet.

        Args:
            settings: the folder of the policies' files, the backend, and limits.
            schema: the contents of schema.yaml.
            opening: opens backends that others use too; None opens those that the settings name.
        """
        self.metrics = Metrics()
        self._settings = settings
        self._schema = schema
        self._open_backends = opening or partial(open_backends, settings)
        self._backends: Backends | None = None
        slot = PolicySlot(
            DEFAULT_POLICY,
            schema,
            self._open_default,
            settings=settings,
            metrics=self.metrics,
        )
        self.registry = PolicyRegistry([slot])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Backends]:
        """Open the backends and load the policies; they answer until the block ends.

        Yields:
            The backends.

        Raises:
            PolicyServerError: if a policy can't be loaded.
        """
        async with self._open_backends() as backends:
            self._backends = backends
            async with self.registry.running():
                yield backends

    @asynccontextmanager
    async def _open_default(self) -> AsyncIterator[OpenedPolicy]:
        assert self._backends is not None, "the registry runs while they are open"
        model = identify_model(prepare_model(self._settings))
        metrics = self.metrics.of(DEFAULT_POLICY)
        async with AsyncExitStack() as stack:
            with named_as_example(self._settings.schema_path):
                opening = self._backends.open(model, self._schema, metrics)
                backend = await stack.enter_async_context(opening)
            yield OpenedPolicy(backend, model.version)
