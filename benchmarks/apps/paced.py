"""This server over a policy of a known speed: `uvicorn --factory benchmarks.apps.paced:paced`.

Its calls take 2 ms a row, one call at a time, whatever the machine does meanwhile. Everything in
front of it is the server's own: protocols, gate, scheduler, metrics, logs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.apps.floor import ConstantBackend
from policy_server.access_keys import KeyRing
from policy_server.http_server import (
    ConnectionLimits,
    ConnectionWatch,
    exported_metrics,
    find_http_server,
)
from policy_server.metrics import Metrics
from policy_server.policy import DEFAULT_POLICY, PolicyInputs, PolicyOutputs
from policy_server.schema import ServerSchema
from policy_server.serving import OpenedPolicy, PolicyRegistry, PolicySlot
from policy_server.settings import read_settings
from policy_server.telemetry import configure_logging
from policy_server.web import Application, create_app

__all__ = ["ROW_S", "paced"]

ROW_S = 0.002


class _PacedBackend(ConstantBackend):
    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        async with self._turn:
            await asyncio.sleep(ROW_S * len(inputs))
            return await super().infer(inputs)


def paced() -> Application:
    """Build the application, as settings say."""
    settings = read_settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    metrics, keys = Metrics(), KeyRing()

    @asynccontextmanager
    async def open_paced() -> AsyncIterator[OpenedPolicy]:
        yield OpenedPolicy(_PacedBackend(), "paced")

    slot = PolicySlot(
        DEFAULT_POLICY, ServerSchema(), open_paced, settings=settings, metrics=metrics
    )
    registry = PolicyRegistry([slot])

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        server = find_http_server()
        assert server is not None, "uvicorn runs it"
        server.keep_alive(settings.keep_alive_s)
        watch = ConnectionWatch(ConnectionLimits.of(settings), metrics)
        server.use_protocols(watch, app, app.hot_routes)
        async with exported_metrics(settings, metrics, None), registry.running():
            yield

    app = create_app(registry, settings, api_key=None, keys=keys, metrics=metrics, running=running)
    return app
