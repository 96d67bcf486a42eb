"""Where a request's microseconds go: each stage by itself.

Run as `python -m benchmarks.measures.stages HOME`. The stages are called in one process without
sockets, as many at once as share a call of the policy. What HTTP adds is the difference between
this and the processor time of a running server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray
from starlette.types import Message, Receive, Scope, Send

from benchmarks.apps.floor import ConstantBackend
from benchmarks.failures import BenchmarkError
from benchmarks.own_process import median_us, median_us_async, run_module
from benchmarks.progress import say
from benchmarks.results import Results, Stage
from benchmarks.subjects import KEY, OBSERVATION
from benchmarks.workplace import load_compiled
from policy_server.access_keys import AccessKey, KeyRing
from policy_server.backends.local import LocalBackend
from policy_server.client_limits import ClientLimits
from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.metrics import Metrics
from policy_server.observations import ObservationSpace
from policy_server.policy import (
    DEFAULT_POLICY,
    PolicyBackend,
    PolicyInputs,
    PolicyOutputs,
)
from policy_server.schema import ServerSchema, read_schema
from policy_server.serving import (
    Answer,
    Limits,
    OpenedPolicy,
    PolicyRegistry,
    PolicySlot,
    Question,
    Scheduler,
)
from policy_server.settings import Settings
from policy_server.telemetry import configure_logging
from policy_server.web import create_app
from policy_server.web.gate import Gate
from policy_server.web.rendering import RenderedAnswers
from policy_server.web.route_table import RouteTable

__all__ = ["LOG", "REST", "WHOLE", "measure_stages"]

_BATCHES = (1, 128)
_ROUNDS = 5
_BODY = json.dumps(OBSERVATION).encode()
WHOLE = "the whole application"
REST = "fast path, futures, turns of the event loop"
LOG = "access log, where it is on"


def measure_stages(results: Results, home: Path, environment: Mapping[str, str]) -> None:
    """Time the stages of a request.

    Args:
        results: gets them.
        home: holds schema.yaml and the policy.
        environment: what the process inherits.
    """
    try:
        document = run_module("stages", home, environment)
    except BenchmarkError as error:
        results.missing["stages"] = str(error)
        say(f"stages: left out: {error}")
        return
    results.stages = [Stage(**item) for item in document]
    for stage in results.stages:
        say(f"stage    {stage.name:<44} batch {stage.batch:>4}: {stage.us:.1f} us a request")


def _measure(home: Path) -> list[Stage]:
    compiled, schema = load_compiled(home), read_schema(home / "schema.yaml")
    configure_logging(level="WARNING", log_format="json")
    stages = []
    for batch in _BATCHES:
        # In turns, so that all see the machine's good moments.
        rounds = [_times(compiled, schema, batch) for _ in range(_ROUNDS)]
        times = {name: median(one[name] for one in rounds) for name in rounds[0]}
        between = times[WHOLE] - sum(times[name] for name in times if name not in (WHOLE, LOG))
        shown = {**times, REST: between}
        names = [*(name for name in times if name not in (WHOLE, LOG)), REST, WHOLE, LOG]
        stages += [Stage(name, batch, round(shown[name], 2)) for name in names]
    return stages


def _times(compiled: CompiledPolicy, schema: ServerSchema, batch: int) -> dict[str, float]:
    return {
        "gate: id, key, metrics": _run(_gate_us(batch)),
        "validation of the JSON": _validation_us(schema),
        "queue: batching, one call for all": _run(_queue_us(compiled, batch)),
        **_policy_us(compiled, batch),
        WHOLE: _run(_whole_us(compiled, schema, batch)),
        LOG: _log_us(),
    }


def _run(measure: Coroutine[Any, Any, float]) -> float:
    # The event loop that uvicorn takes.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measure)


def _scope() -> Scope:
    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"access-token", KEY.encode()),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(_BODY)),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "state": {},
    }


async def _receive() -> Message:
    return {"type": "http.request", "body": _BODY, "more_body": False}


async def _send(_message: Message) -> None:
    """Take an answer."""


async def _each_us(batch: int, call: Callable[[], Coroutine[Any, Any, object]]) -> float:
    """Return the microseconds of one of so many tasks at once, without those of a task itself."""

    async def nothing() -> None:
        """Do nothing."""

    def at_once(
        function: Callable[[], Coroutine[Any, Any, object]],
    ) -> Callable[[], Awaitable[Any]]:
        async def run() -> None:
            await asyncio.gather(*[asyncio.create_task(function()) for _ in range(batch)])

        return run

    whole = await median_us_async(at_once(call))
    return (whole - await median_us_async(at_once(nothing))) / batch


async def _gate_us(batch: int) -> float:
    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    settings, keys = Settings(), KeyRing([AccessKey.of("api_key", KEY)])
    gate = Gate(
        answer,
        table=RouteTable(_registry(ConstantBackend(), ServerSchema())),
        streams=answer,
        keys=keys,
        client_limits=ClientLimits(keys),
        root_path="",
        max_body_bytes=settings.max_body_bytes,
        max_batch_body_bytes=settings.max_batch_body_bytes,
        metrics=Metrics(),
    )
    return await _each_us(batch, lambda: gate(_scope(), _receive, _send))


def _validation_us(schema: ServerSchema) -> float:
    space = ObservationSpace(schema.observations)

    def validate() -> None:
        space.check_width(space.parse_named(_BODY), schema.width, is_raw=False)

    return median_us(validate)


async def _queue_us(compiled: CompiledPolicy, batch: int) -> float:
    outputs = _outputs(compiled, batch)

    class Answered:
        """Has the answer already."""

        signature = compiled.signature

        capacity = 1

        async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
            assert len(inputs) == len(outputs)
            return outputs

        async def is_ready(self) -> bool:
            return True

    limits = Limits(max_batch_size=256, max_queue_size=4096, timeout_s=30.0, max_wait_s=30.0)
    scheduler = Scheduler(Answered(), limits, Metrics().of(DEFAULT_POLICY))
    row = [float(value) for value in OBSERVATION.values()]

    async def ask() -> Answer:
        return await scheduler.ask(Question(row, "predict"))

    return await _each_us(batch, ask)


def _registry(backend: PolicyBackend, schema: ServerSchema) -> PolicyRegistry:
    @asynccontextmanager
    async def open_policy() -> AsyncIterator[OpenedPolicy]:
        yield OpenedPolicy(backend)

    slot = PolicySlot(DEFAULT_POLICY, schema, open_policy, settings=Settings(), metrics=Metrics())
    return PolicyRegistry([slot])


def _rows(batch: int) -> NDArray[np.float32]:
    return np.tile(np.array(list(OBSERVATION.values()), np.float32), (batch, 1))


def _outputs(compiled: CompiledPolicy, batch: int) -> PolicyOutputs:
    return NetworkPolicy(compiled).infer(PolicyInputs.of(_rows(batch)))


def _policy_us(compiled: CompiledPolicy, batch: int) -> dict[str, float]:
    assert compiled.signature.components is not None, "only a policy of a known family is compiled"
    distribution = ActionDistribution(compiled.signature.components)
    network, rows = compiled.network.compile(), _rows(batch)
    inputs = network(rows)
    is_deterministic, seeds = np.zeros(batch, bool), np.full(batch, -1, np.int64)
    outputs = _outputs(compiled, batch)

    def render() -> None:
        answers = RenderedAnswers(outputs, compiled.signature.action_outputs, distribution)
        for index in range(batch):
            answers.prediction(index)

    forward = median_us(lambda: network(rows))
    drawing = median_us(
        lambda: distribution.answer(inputs, is_deterministic=is_deterministic, seeds=seeds)
    )
    return {
        "policy: the network": forward / batch,
        "policy: draw and probability": drawing / batch,
        "rendering of the answers": median_us(render) / batch,
    }


async def _whole_us(compiled: CompiledPolicy, schema: ServerSchema, batch: int) -> float:
    with ThreadPoolExecutor(max_workers=1) as executor:
        backend = LocalBackend(NetworkPolicy(compiled), executor, longest_call_s=30.0)

        app = create_app(_registry(backend, schema), Settings(), api_key=KEY)
        async with app.router.lifespan_context(app):
            return await _each_us(batch, lambda: app(_scope(), _receive, _send))


def _log_us() -> float:
    """Return what one line of the access log takes, into nothing."""
    configure_logging(level="INFO", log_format="json")
    logger = logging.getLogger("policy_server.access")
    logger.setLevel(logging.INFO)
    handlers = logging.getLogger("policy_server").handlers
    fields = {
        "request_id": "0" * 32,
        "method": "POST",
        "route": "/predict",
        "status": 200,
        "duration_ms": 1.234,
        "model_version": "0" * 12,
    }
    with Path(os.devnull).open("w") as nowhere:
        for handler in handlers:
            assert isinstance(handler, logging.StreamHandler), "configure_logging makes it so"
            handler.setStream(nowhere)
        us = median_us(lambda: logger.info("request", extra=fields))
    configure_logging(level="WARNING", log_format="json")
    return us


if __name__ == "__main__":
    print(json.dumps([asdict(stage) for stage in _measure(Path(sys.argv[1]))]))
