"""A policy inside somebody's own program: an application to mount, which leaves its host alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from policy_server.access_keys import KeyRing
from policy_server.backends.opening import Backends, open_backends
from policy_server.http_server import exported_metrics
from policy_server.policies import Policies
from policy_server.remote_files import bring_files
from policy_server.schema import read_schema_file
from policy_server.servable import check_servable, resolve_api_key
from policy_server.server_keys import followed_keys, keys_of
from policy_server.settings import read_settings
from policy_server.web import Application
from policy_server.web import create_app as create_web_app

__all__ = ["SharedBackends", "create_app"]

_METRICS_PORT = "metrics_port"
# Settings of backends that each application's policies may have their own of.
_OF_POLICIES = ("num_replicas", "max_replicas", "replica_cpus")


class SharedBackends:
    """Backends that several applications of one process use, such as one Ray for two policies.

    They are opened when the first of the applications starts, and end with the last. What they say
    of replicas holds for each policy whose application says nothing else:

        ray = SharedBackends(backend="ray", num_replicas=2)
        door = create_app("policies/door", backends=ray)
        lift = create_app("policies/lift", backends=ray, num_replicas=1)

    Attributes:
        of_policies: the settings of replicas that were given, by their names.
    """

    def __init__(
        self,
        **settings: Any,  # noqa: ANN401 -- each setting has a type of its own, which is checked
    ) -> None:
        """Own the backends from the first application's start to the last one's end.

        Args:
            settings: those of docs/settings.md in lower case that tell of backends: `backend`,
                `num_replicas`, `dashboard_port` and so on.

        Raises:
            SettingsError: if a setting can't be used.
        """
        self._settings = read_settings(**settings)
        self.of_policies = {name: settings[name] for name in _OF_POLICIES if name in settings}
        self._stack = AsyncExitStack()
        self._backends: Backends | None = None
        self._users = 0
        self._changing = asyncio.Lock()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Backends]:
        """Use the backends while the block runs.

        Yields:
            The backends, which an application that started before may use already.
        """
        async with self._changing:
            if self._backends is None:
                opening = open_backends(self._settings)
                self._backends = await self._stack.enter_async_context(opening)
            self._users += 1
        try:
            yield self._backends
        finally:
            async with self._changing:
                self._users -= 1
                if not self._users:
                    self._backends = None
                    await self._stack.aclose()


def create_app(
    home: str | Path | None = None,
    *,
    backends: SharedBackends | None = None,
    **settings: Any,  # noqa: ANN401 -- each setting has a type of its own, which is checked
) -> Application:
    """Build an application that serves the policies of a folder, to be mounted in another one.

    It is a FastAPI application, and any number of them may stand in one process. The policy is
    loaded in its lifespan, which a host has to run, since mounting alone doesn't:

        policy = create_app("policies/lpoc")
        host = FastAPI(lifespan=policy.lifespan)
        host.mount("/lpoc", policy)

    Logging, signals, garbage collection and the HTTP server stay as the host has set them.

    Args:
        home: the folder with schema.yaml and the policy, such as saved_model.zip;
            POLICY_SERVER_HOME, else the working directory, if left out.
        backends: those that other applications use too; left out, the application has its own.
        settings: those of docs/settings.md in lower case, such as `api_key="..."`; they win over
            the environment and `.env`. `backend` is `local` unless it is given here, and metrics
            are shown on a port only if `metrics_port` is given here.

    Returns:
        The application. schema.yaml has been read, since its routes have the observations' types;
        files with an address have been fetched.

    Raises:
        PolicyServerError: if settings or schema can't be used, or remote files can't be had. What
            the model's file lacks is raised when the lifespan starts.
    """
    given = settings if home is None else {**settings, "home": Path(home)}
    shared = {} if backends is None else backends.of_policies
    known = read_settings(**{"backend": "local", **shared, **given})
    bring_files(known, check=partial(check_servable, settings=known))
    file = read_schema_file(known.schema_path)
    opening = None if backends is None else backends.opened
    keys = KeyRing(keys_of(known, file))
    policies = Policies(known, file, opening=opening)

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            exporter = None
            if _METRICS_PORT in settings:
                exporting = exported_metrics(known, policies.metrics, None, keys=keys)
                exporter = await stack.enter_async_context(exporting)
            used = await stack.enter_async_context(policies.running())
            await stack.enter_async_context(followed_keys(keys, known))
            if exporter is not None:
                exporter.foreign_url = lambda: used.metrics_url
                exporter.healthy_replicas = lambda: used.healthy_replicas
            yield

    return create_web_app(
        policies.registry,
        known,
        running=running,
        api_key=resolve_api_key(known, file),
        keys=keys,
        root_path=file.root_path,
        metrics=policies.metrics,
        administration=policies.administration,
    )
