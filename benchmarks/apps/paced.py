"""This server over policies that overload different parts of it, by `uvicorn --factory`.

The calls of `benchmarks.apps.paced:paced` take 2 ms a row, one call at a time, whatever the machine
does meanwhile. Those of `benchmarks.apps.paced:wide` compute nothing, but an observation has 20,000
numbers: to read one takes the web process longer than all else. Everything in front of both is the
server's own: protocols, gate, scheduler, metrics, logs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from benchmarks.apps.floor import ConstantBackend
from policy_server.access_keys import KeyRing
from policy_server.http_server import (
    ConnectionLimits,
    ConnectionWatch,
    exported_metrics,
    find_http_server,
)
from policy_server.metrics import Metrics
from policy_server.policy import (
    DEFAULT_POLICY,
    PolicyBackend,
    PolicyInputs,
    PolicyOutputs,
    SignatureTensor,
)
from policy_server.schema import ServerSchema
from policy_server.serving import OpenedPolicy, PolicyRegistry, PolicySlot
from policy_server.settings import read_settings
from policy_server.telemetry import configure_logging
from policy_server.web import Application, create_app

__all__ = ["ROW_S", "WIDE", "paced", "wide"]

ROW_S = 0.002
# The numbers of a wide observation.
WIDE = 20_000


class _PacedBackend(ConstantBackend):
    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        async with self._turn:
            await asyncio.sleep(ROW_S * len(inputs))
            return await super().infer(inputs)


class _WideBackend(ConstantBackend):
    signature = replace(
        ConstantBackend.signature,
        observation_width=WIDE,
        inputs=(SignatureTensor("observations", "float32", (None, WIDE)),),
    )


def paced() -> Application:
    """Build the application whose policy is the limit, as settings say."""
    return _application(_PacedBackend(), "paced")


def wide() -> Application:
    """Build the application whose web process is the limit, as settings say."""
    return _application(_WideBackend(), "wide")


def _application(backend: PolicyBackend, digest: str) -> Application:
    settings = read_settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    metrics, keys = Metrics(), KeyRing()

    @asynccontextmanager
    async def open_policy() -> AsyncIterator[OpenedPolicy]:
        yield OpenedPolicy(backend, digest)

    slot = PolicySlot(
        DEFAULT_POLICY, ServerSchema(), open_policy, settings=settings, metrics=metrics
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
