"""One Ray call a request: FastAPI in front of a Ray Serve handle, as many build it by hand.

The replica is Policy Server's own; only the way to it differs.
"""

import asyncio
import gc
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from ray import serve
from ray.serve.schema import LoggingConfig

from benchmarks.peers.observation import Answer, Observation
from policy_server.backends.ray.ledger import FilesHere
from policy_server.backends.ray.own_ray import OwnRay
from policy_server.backends.ray.replicas import PolicyReplica
from policy_server.engine.cache import Outcome, encode
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.finding import prepare_model
from policy_server.formats.model_files import identify_model
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
        outputs = self.infer(_draws(rows))
        return [_answer(outputs, index) for index in range(len(rows))]


def default() -> FastAPI:
    """Build the application with Ray Serve's defaults."""

    def ask_by(handle: Any) -> Ask:  # noqa: ANN401 -- Ray's handle is generic
        call = handle.options(method_name="answer")

        async def ask(row: list[float]) -> Answer:
            outputs = await call.remote(_draws([row]))
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


def _run(replica: type[PolicyReplica], settings: Settings, folder: Path) -> None:
    """Deploy the replica as Ray's documentation does it."""
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    serve.start(proxy_location="Disabled", logging_config=quiet)
    deployment = serve.deployment(max_ongoing_requests=_MAX_ONGOING_REQUESTS, logging_config=quiet)(
        replica
    )
    schema = read_schema(settings.schema_path)
    bound = deployment.bind(FilesHere(folder), schema.policy_part(), "")
    serve.run(bound, name=_NAME, route_prefix=None)


def _application(replica: type[PolicyReplica], ask_by: Callable[[Any], Ask]) -> FastAPI:
    settings = read_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model = identify_model(prepare_model(settings))
        compiled = await find_compiled(model, read_schema(settings.schema_path), settings)
        assert compiled is not None, "the policies that are measured are computed by NumPy"
        own = OwnRay(settings, server=os.getpid())
        with (
            tempfile.TemporaryDirectory() as folder,
            ThreadPoolExecutor(max_workers=1) as executor,
        ):
            file = Path(folder, PolicyReplica.COMPILED_FILE)
            file.write_bytes(encode(Outcome(compiled), ""))
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(executor, own.start)
                await asyncio.to_thread(_run, replica, settings, Path(folder))
                app.state.ask = ask_by(serve.get_app_handle(_NAME))
                yield
            finally:
                await loop.run_in_executor(executor, own.end)

    app = FastAPI(lifespan=lifespan)

    @app.post("/predict")
    async def predict(observation: Observation, request: Request) -> Answer:
        ask: Ask = request.app.state.ask
        return await ask(observation.row())

    return app
