"""Where a request's microseconds go: what each stage adds to those before it.

Run as `python -m benchmarks.measures.stages HOME`. The stages of a request are done in one process
without sockets, for as many requests at once as share a call of the policy: the first of them, the
first two, and so on to the whole request, which the server's own protocol reads and answers. A
stage is the difference of two such times, so that all stages together are the whole, and each has
the processor's caches as a request finds them. What sockets add is the difference between the whole
and the processor time of a running server. The floor's requests are timed beside them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TextIO

import uvloop

from benchmarks.hot_connections import FloorConnections, HotConnections
from benchmarks.own_process import BLOCK_S, median_us, median_us_async, run_module
from benchmarks.progress import say
from benchmarks.request_way import Way
from benchmarks.results import Results, Stage
from benchmarks.subjects import KEY
from benchmarks.workplace import load_compiled
from policy_server.backends.call_limit import CallLimit
from policy_server.backends.local import LocalBackend
from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.metrics import Metrics
from policy_server.policy import DEFAULT_POLICY
from policy_server.schema import ServerSchema, read_schema
from policy_server.serving import OpenedPolicy, PolicyRegistry, PolicySlot
from policy_server.settings import Settings
from policy_server.telemetry import (
    ACCESS_LOGGER,
    HoldingHandler,
    configure_logging,
    new_formatter,
)
from policy_server.web import create_app

__all__ = ["FLOOR", "LOG", "WHOLE", "measure_stages", "stages_of"]

_BATCHES = (1, 32, 128)
_ROUNDS = 5
# As a server sets it (policy_server/launch.py).
_GC_THRESHOLDS = (10_000, 10, 20)
WHOLE = "the whole request, from its bytes to its answer's"
LOG = "the access log, where it is on: lines held, and written together"
_FIRST_HEAD = "a head that comes for the first time: parsed and decided"
FLOOR = "the floor's whole request: read, validated, a constant written"
# What is no stage of a request.
_APART = (_FIRST_HEAD, FLOOR)


def measure_stages(results: Results, home: Path, environment: Mapping[str, str]) -> None:
    """Time the stages of a request.

    Args:
        results: gets them.
        home: holds schema.yaml and the policy.
        environment: what the process inherits.
    """
    document = run_module("stages", home, environment, results)
    if document is None:
        return
    results.stages = [Stage(**item) for item in document]
    for stage in results.stages:
        say(f"stage    {stage.name:<66} batch {stage.batch:>4}: {stage.us:.1f} us a request")


def _measure(home: Path) -> list[Stage]:
    compiled, schema = load_compiled(home), read_schema(home / "schema.yaml")
    configure_logging(level="WARNING", log_format="json")
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    stages = []
    # A regular file, as servers under test have it: a pipe is written in small pieces.
    with tempfile.TemporaryFile("w") as log:
        for batch in _BATCHES:
            # The event loop that uvicorn takes.
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                stages += runner.run(stages_of(compiled, schema, batch, log=log))
    return stages


async def stages_of(
    compiled: CompiledPolicy,
    schema: ServerSchema,
    batch: int,
    *,
    log: TextIO,
    rounds: int = _ROUNDS,
    block_s: float = BLOCK_S,
) -> list[Stage]:
    """Return the stages of a request in processor time, in their order.

    Args:
        compiled: the policy.
        schema: its schema.yaml.
        batch: how many connections send a request at once, one each.
        log: takes the lines of the access log, and is emptied.
        rounds: how often each time is measured; a stage is the difference of two medians.
        block_s: how long each of a measurement's blocks takes, in seconds.

    Returns:
        The stages that `WHOLE` is the sum of; `WHOLE`; what `LOG` adds to it where it is on; what a
        head costs that is not known yet; and `FLOOR`.

    Raises:
        BenchmarkError: if a request is not answered by the server's own protocol.
    """
    metrics, settings = Metrics(), Settings()
    backend = LocalBackend(NetworkPolicy(compiled), CallLimit(settings.request_timeout_s))
    registry = _registry(backend, schema, settings, metrics)
    app = create_app(registry, settings, api_key=KEY, metrics=metrics)
    async with app.router.lifespan_context(app):
        connections = HotConnections(app, batch)
        await connections.check()
        way = Way(connections, compiled, backend, batch)
        floor = FloorConnections(schema, batch)
        # In turns, so that all see the machine's good moments.
        found = [await _times(way, connections, floor, log, block_s) for _ in range(rounds)]
        await connections.check()
        connections.close()
    backend.close()
    return _differences({name: median(one[name] for one in found) for name in found[0]}, batch)


def _differences(times: Mapping[str, float], batch: int) -> list[Stage]:
    """Return the stages of times that have all stages before them too."""
    stages, before = [], 0.0
    for name, us in times.items():
        if name in _APART:
            stages.append(Stage(name, batch, round(us, 2)))
            continue
        if name == LOG:
            stages.append(Stage(WHOLE, batch, round(before, 2)))
        stages.append(Stage(name, batch, round(us - before, 2)))
        before = us
    return stages


async def _times(
    way: Way, connections: HotConnections, floor: FloorConnections, log: TextIO, block_s: float
) -> dict[str, float]:
    """Return the microseconds of a request up to each stage, that stage too."""
    batch = way.batch

    async def us(call: Callable[[], Awaitable[object]]) -> float:
        return await median_us_async(call, block_s=block_s) / batch

    times = {name: await us(call) for name, call in way.stages.items()}
    times["connection: its bytes read, ids, heads of answers, writes"] = await us(connections.ask)
    with _logging_to(log):
        times[LOG] = await us(connections.ask)
    times[_FIRST_HEAD] = median_us(connections.decide_head, block_s=block_s)
    times[FLOOR] = median_us(floor.ask, block_s=block_s) / batch
    return times


def _registry(
    backend: LocalBackend, schema: ServerSchema, settings: Settings, metrics: Metrics
) -> PolicyRegistry:
    @asynccontextmanager
    async def open_policy() -> AsyncIterator[OpenedPolicy]:
        yield OpenedPolicy(backend)

    slot = PolicySlot(DEFAULT_POLICY, schema, open_policy, settings=settings, metrics=metrics)
    return PolicyRegistry([slot])


@contextmanager
def _logging_to(stream: TextIO) -> Iterator[None]:
    """Log requests as a server does, and empty the stream at the end."""
    own, access = logging.getLogger("policy_server"), logging.getLogger(ACCESS_LOGGER)
    before, level = (own.handlers, own.propagate), access.level
    handler = HoldingHandler(stream)
    handler.setFormatter(new_formatter("json"))
    own.handlers, own.propagate = [handler], False
    access.setLevel(logging.INFO)
    try:
        yield
        handler.flush()
    finally:
        own.handlers, own.propagate = before
        access.setLevel(level)
        stream.seek(0)
        stream.truncate()


if __name__ == "__main__":
    print(json.dumps([asdict(stage) for stage in _measure(Path(sys.argv[1]))]))
