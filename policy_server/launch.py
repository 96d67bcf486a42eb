"""The composition root: settings and schema become an application over the chosen backend."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from policy_server.errors import SettingsError
from policy_server.model_store import prepare_model
from policy_server.policy import PolicyBackend
from policy_server.schema import ServerSchema, read_schema
from policy_server.settings import Settings, read_settings
from policy_server.telemetry import configure_logging
from policy_server.web import create_app

__all__ = ["build_app", "resolve_api_key"]

logger = logging.getLogger(__name__)


def build_app() -> FastAPI:
    """Build the application from the environment, `.env` and schema.yaml.

    Returns:
        The application; the policy is loaded when its lifespan starts.

    Raises:
        PolicyServerError: if settings or schema can't be used.
    """
    settings = read_settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    schema = read_schema(settings.schema_path)
    api_key = resolve_api_key(settings, schema)

    @asynccontextmanager
    async def open_backend() -> AsyncIterator[PolicyBackend]:
        async with _open_backend(settings, schema) as backend:
            _report(settings, schema, backend)
            yield backend

    return create_app(schema, settings, open_backend, api_key=api_key)


def resolve_api_key(settings: Settings, schema: ServerSchema) -> str | None:
    """Return the access key: the environment's, else schema.yaml's.

    Args:
        settings: how the server is deployed.
        schema: what schema.yaml says.

    Returns:
        The key; None where everybody is let in on purpose.

    Raises:
        SettingsError: if there is no key and nobody said that there should be none.
    """
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    if schema.api_key is not None or settings.allow_anonymous:
        return schema.api_key
    raise SettingsError(
        f"{schema.source}: parameters.api_key: is missing; set it, or POLICY_SERVER_API_KEY, or let everybody in with "
        "POLICY_SERVER_ALLOW_ANONYMOUS=true"
    )


@asynccontextmanager
async def _open_backend(settings: Settings, schema: ServerSchema) -> AsyncIterator[PolicyBackend]:
    folder = prepare_model(settings)
    # Each backend brings what the other must not need: TensorFlow here, Ray there.
    if settings.backend == "local":
        from policy_server.local_backend import open_local_backend

        async with open_local_backend(folder, schema) as local:
            yield local
    else:
        from policy_server.ray_backend import open_ray_backend

        async with open_ray_backend(folder, schema, settings) as replicas:
            yield replicas


def _report(settings: Settings, schema: ServerSchema, backend: PolicyBackend) -> None:
    signature = backend.signature
    for finding in signature.findings:
        logger.info("policy_identified", extra={"finding": finding})
    logger.info(
        "policy_loaded",
        extra={"family": signature.family, "width": signature.observation_width, "backend": settings.backend},
    )
