"""Policies in this process: they answer while Ray has died and the next one is not up.

A start of Ray takes seconds, on a busy machine tens of them. Only policies that NumPy computes
stand in: TensorFlow is never loaded in a web process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from policy_server.backends.local import LocalBackend, local_backend
from policy_server.backends.ray.applications import Application
from policy_server.backends.ray.backend import RayBackend
from policy_server.engine.network import NetworkPolicy
from policy_server.errors import PolicyServerError
from policy_server.formats.compiling_process import find_compiled
from policy_server.settings import Settings

__all__ = ["stand_ins"]

logger = logging.getLogger(__name__)


@asynccontextmanager
async def stand_ins(
    backends: Collection[RayBackend], applications: Mapping[str, Application], settings: Settings
) -> AsyncIterator[None]:
    """Let policies in this process answer while the block runs, where no replica is left.

    Args:
        backends: those that have no Ray.
        applications: the applications that they call, by name.
        settings: the engine.
    """
    standing: list[LocalBackend] = []
    loading = asyncio.create_task(_load(backends, applications, settings, standing))
    try:
        yield
    finally:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        for backend in standing:
            backend.close()


async def _load(
    backends: Collection[RayBackend],
    applications: Mapping[str, Application],
    settings: Settings,
    standing: list[LocalBackend],
) -> None:
    for backend in list(backends):
        application = applications.get(backend.application)
        if application is None:
            # It was undeployed meanwhile.
            continue
        version = application.version
        try:
            compiled = await find_compiled(version.model, version.schema, settings, is_quiet=True)
        except (OSError, PolicyServerError) as error:
            # Its requests wait for the next Ray.
            logger.warning("stand_in_not_loaded", extra={"reason": str(error)[:300]})
            continue
        if compiled is not None:
            standing.append(local_backend(NetworkPolicy(compiled), settings))
            backend.stand_in(standing[-1])
            logger.info("stand_in_loaded", extra={"application": backend.application})
