"""A policy inside somebody's own program: an application to mount, which leaves its host alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from policy_server.http_server import exported_metrics
from policy_server.policies import Policies
from policy_server.remote_files import bring_files
from policy_server.schema import read_schema
from policy_server.servable import check_servable, resolve_api_key
from policy_server.settings import read_settings
from policy_server.web import Application
from policy_server.web import create_app as create_web_app

__all__ = ["create_app"]

_METRICS_PORT = "metrics_port"


def create_app(
    home: str | Path | None = None,
    **settings: Any,  # noqa: ANN401 -- each setting has a type of its own, which is checked
) -> Application:
    """Build an application that serves one policy, to be mounted in another one.

    It is a FastAPI application, and any number of them may stand in one process. The policy is
    loaded in its lifespan, which a host has to run, since mounting alone doesn't:

        policy = create_app("policies/lpoc")
        host = FastAPI(lifespan=policy.lifespan)
        host.mount("/lpoc", policy)

    Logging, signals, garbage collection and the HTTP server stay as the host has set them.

    Args:
        home: the folder with schema.yaml and saved_model.zip; POLICY_SERVER_HOME, else the working
            directory, if left out.
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
    known = read_settings(**{"backend": "local", **given})
    bring_files(known, check=partial(check_servable, settings=known))
    schema = read_schema(known.schema_path)
    policies = Policies(known, schema)

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            exporter = None
            if _METRICS_PORT in settings:
                exporting = exported_metrics(known, policies.metrics, None)
                exporter = await stack.enter_async_context(exporting)
            backends = await stack.enter_async_context(policies.running())
            if exporter is not None:
                exporter.foreign_url = backends.metrics_url
            yield

    return create_web_app(
        policies.registry,
        known,
        running=running,
        api_key=resolve_api_key(known, schema),
        root_path=schema.root_path,
        metrics=policies.metrics,
    )
