"""One Ray call a request: FastAPI in front of a Ray Serve handle, as many build it by hand.

The replica is Policy Server's own; only the way to it differs.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from ray import serve
from ray.serve.schema import LoggingConfig

from benchmarks.peers.observation import Answer, Observation
from policy_server.backends.ray import PolicyReplica
from policy_server.backends.ray.cluster import joined_ray
from policy_server.engine.network import CompiledPolicy
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.model_files import identify_model, prepare_model
from policy_server.policy import PolicyInputs, PolicyOutputs
from policy_server.schema import read_schema
from policy_server.settings import Settings, read_settings

__all__ = ["default", "tuned"]

_NAME = "ray-calls"
_MAX_ONGOING_REQUESTS = 1024
_MAX_BATCH_SIZE = 256

Ask = Callable[[list[float]], Awaitable[Answer]]


class BatchingReplica(PolicyReplica):
    """The replica with Ray Serve's own batching: one row a call, many rows an answer."""

    @serve.batch(max_batch_size=_MAX_BATCH_SIZE, batch_wait_timeout_s=0)
    async def draw(self, rows: list[Any]) -> list[tuple[int, float]]:
        """Draw an action for each row."""
        outputs = await self.infer(_draws(rows))
        return [_answer(outputs, index) for index in range(len(rows))]


def default() -> FastAPI:
    """Build the application with Ray Serve's defaults."""

    def ask_by(handle: Any) -> Ask:  # noqa: ANN401 -- Ray's handle is generic
        infer = handle.options(method_name="infer")

        async def ask(row: list[float]) -> Answer:
            outputs = await infer.remote(_draws([row]))
            action, probability = _answer(outputs, 0)
            return Answer(actions=[action], probability=probability)

        return ask

    return _application(PolicyReplica, ask_by)


def tuned() -> FastAPI:
    """Build the application with what was found to help: see docs/benchmarks.md."""

    def ask_by(handle: Any) -> Ask:  # noqa: ANN401 -- Ray's handle is generic
        draw = handle.options(method_name="draw", _by_reference=False)

        async def ask(row: list[float]) -> Answer:
            action, probability = await draw.remote(row)
            return Answer(actions=[action], probability=probability)

        gc.collect()
        gc.freeze()
        return ask

    return _application(BatchingReplica, ask_by)


def _draws(rows: list[Any]) -> PolicyInputs:
    return PolicyInputs.of(np.array(rows, np.float32))


def _answer(outputs: PolicyOutputs, index: int) -> tuple[int, float]:
    return int(outputs.actions[index, 0]), float(outputs.probability[index])


class _Calls:
    """The replica, deployed as Ray's documentation does it."""

    def __init__(self, replica: type[PolicyReplica], settings: Settings) -> None:
        self._replica = replica
        self._settings = settings
        self._schema = read_schema(settings.schema_path)

    async def prepare(self) -> CompiledPolicy | None:
        model = identify_model(prepare_model(self._settings))
        return await find_compiled(model, self._schema, self._settings)

    async def deploy(self, prepared: Awaitable[CompiledPolicy | None]) -> None:
        await asyncio.to_thread(self._run, await prepared)

    def _run(self, compiled: CompiledPolicy | None) -> None:
        quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
        serve.start(proxy_location="Disabled", logging_config=quiet)
        deployment = serve.deployment(
            max_ongoing_requests=_MAX_ONGOING_REQUESTS, logging_config=quiet
        )(self._replica)
        serve.run(deployment.bind(self._schema, compiled, {}), name=_NAME, route_prefix=None)


def _application(replica: type[PolicyReplica], ask_by: Callable[[Any], Ask]) -> FastAPI:
    settings = read_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with joined_ray(settings, _Calls(replica, settings)):
            app.state.ask = ask_by(serve.get_app_handle(_NAME))
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/predict")
    async def predict(observation: Observation, request: Request) -> Answer:
        ask: Ask = request.app.state.ask
        return await ask(observation.row())

    return app
