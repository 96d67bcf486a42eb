"""Four times what a server can do, over HTTP: `python -m benchmarks.overload [SECONDS]`.

Two servers are asked (`benchmarks.apps.paced`): one whose policy takes 2 ms a row, by single
observations and by batches of ten, and one whose
observations have 20,000 numbers, which take the web process about as long to read; how many of them
it answers a second is measured first. Requests come at an even pace, whether others were answered
or not, each on a connection that waits for no other answer. Some clients give up after a moment and
close their connection. The table has the latency of the requests that are
accepted, how soon the others are refused, how far the requests were behind their pace, how many
rows were computed, the memory of the server in the course of the load, and the latency a second
later. The status is 1 if the server did not hold (`benchmarks.overload_verdict`).
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import httpx
import numpy as np

from benchmarks.apps.paced import ROW_S, WIDE
from benchmarks.arguments import parser_of
from benchmarks.failures import BenchmarkError
from benchmarks.open_loop import TICK_S, ask, ask_often
from benchmarks.overload_verdict import Outcome, Run, judge
from benchmarks.processes import RunningServer, free_ports, started
from benchmarks.subjects import ROOT
from benchmarks.workplace import clean_environment

__all__ = ["main"]

_FACTOR = 4
_MAX_WAIT_S = 0.1
_PAUSE_S = 1.0
_START_TIMEOUT_S = 60.0
_MEGABYTE = 1e6
_BATCH_ROWS = 10
_HEAD = b"POST %b HTTP/1.1\r\nhost: server\r\ncontent-length: %d\r\n\r\n"
# How long the pace of a server is measured whose speed is the machine's.
_PACE_S = 3.0


@dataclass(frozen=True)
class _Load:
    """What is sent to which server.

    Attributes:
        limit: the part of the server that is the limit, for people.
        app: the name of the application's factory.
        request: each request, whole.
        per_second: how many the server can answer a second; None where that is the machine's.
        own_s: how long the policy takes for a request, where the bound is of the wait before that.
    """

    limit: str
    app: str
    request: bytes
    per_second: float | None = None
    own_s: float = 0.0


def _request(numbers: int) -> bytes:
    body = b'{"obs": [%b]}' % b",".join([b"1"] * numbers)
    return _HEAD % (b"/predict_raw", len(body)) + body


def _batch(numbers: int) -> bytes:
    row = b'{"obs": [%b]}' % b",".join([b"1"] * numbers)
    body = b"[%b]" % b",".join([row] * _BATCH_ROWS)
    return _HEAD % (b"/predict_raw/batch", len(body)) + body


_LOADS = (
    _Load("policy", "paced", _request(6), 1 / ROW_S),
    _Load(
        "policy by batches",
        "paced",
        _batch(6),
        1 / ROW_S / _BATCH_ROWS,
        own_s=ROW_S * _BATCH_ROWS,
    ),
    _Load("web process", "wide", _request(WIDE)),
)


@dataclass(frozen=True)
class _Server:
    """The server and what can be read of it from outside."""

    process: RunningServer
    port: int
    metrics_port: int

    def megabytes(self) -> float:
        return self.process.memory_bytes()[0] / _MEGABYTE

    def rows_computed(self) -> int:
        page = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False).text
        sums = [line for line in page.splitlines() if line.startswith(_ROWS)]
        return round(sum(float(line.rpartition(" ")[2]) for line in sums))


_ROWS = "policy_server_batch_size_sum"


async def _measure(server: _Server, load: _Load, seconds: float, bound_s: float) -> list[str]:
    """Write the lines of a bound, and return what did not hold."""
    port, request = server.port, load.request
    pace = load.per_second or await ask_often(port, request, _PACE_S)
    before = await ask(port, request, 1.0, pace / 10, give_up=False)
    memory = [server.megabytes()]

    async def watch_memory() -> None:
        while True:
            await asyncio.sleep(seconds / 3.01)
            memory.append(server.megabytes())

    rows = server.rows_computed()
    watching = asyncio.create_task(watch_memory())
    loaded = await ask(port, request, seconds, _FACTOR * pace, give_up=True)
    watching.cancel()
    rows = server.rows_computed() - rows
    await asyncio.sleep(_PAUSE_S)
    after = await ask(port, request, 1.0, pace / 10, give_up=False)
    sizes = " ".join(f"{size:.0f}" for size in memory)
    _write(
        f"{_FACTOR} times the {load.limit}'s {pace:.0f} a second, bound {bound_s:g} s",
        loaded,
        f"{rows} | {sizes}",
    )
    _write("a second later", after, " | ")
    for answer in {*loaded.failed, *after.failed}:
        sys.stdout.write(f"failed: {answer!r}\n")
    bodies_mb = bound_s * pace * len(request) / _MEGABYTE
    alone = round(seconds * pace)
    return judge(Run(bound_s + load.own_s, before, loaded, after, memory, alone, bodies_mb))


def _write(name: str, outcome: Outcome, ending: str) -> None:
    cells = [
        f"{len(times)} | {1e3 * float(np.quantile(times, 0.5)):.1f} | "
        f"{1e3 * float(np.quantile(times, 0.99)):.1f}"
        if times
        else "0 | | "
        for times in (outcome.answered, outcome.refused)
    ]
    counts = f"{outcome.gave_up} | {len(outcome.failed)} | {1e3 * outcome.late_s:.0f}"
    sys.stdout.write(f"| {name} | {' | '.join(cells)} | {counts} | {ending} |\n")
    sys.stdout.flush()


def _serve(scratch: Path, load: _Load, seconds: float, bound_s: float) -> list[str]:
    port, metrics_port = free_ports(2)
    environment = {
        **clean_environment(),
        "POLICY_SERVER_HOME": str(scratch),
        "POLICY_SERVER_METRICS_PORT": str(metrics_port),
        "POLICY_SERVER_MAX_WAIT_S": str(bound_s),
        "POLICY_SERVER_LOG_FORMAT": "json",
    }
    app = ["--factory", f"benchmarks.apps.paced:{load.app}", "--port", str(port)]
    command = [sys.executable, "-m", "uvicorn", *app]
    log = scratch / "server.log"
    with started(command, environment=environment, folder=ROOT, log=log) as process:
        _wait(process, port)
        broken = asyncio.run(_measure(_Server(process, port, metrics_port), load, seconds, bound_s))
        process.check_alive()
    return [f"{load.limit}, bound {bound_s:g} s: {each}" for each in broken]


def _wait(process: RunningServer, port: int) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        process.check_alive()
        try:
            httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).raise_for_status()
        except httpx.HTTPError:
            time.sleep(TICK_S)
        else:
            return
    raise BenchmarkError(f"the server was not ready within {_START_TIMEOUT_S:g} s")


def main() -> None:
    """Measure, and print a table."""
    parser = parser_of("benchmarks.overload", __doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=30.0, help="of each load (30)")
    seconds = parser.parse_args().seconds
    times = ["p50 ms", "p99 ms"]
    columns = ["answered", *times, "refused", *times, "gave up", "failed", "late ms", "rows", "MB"]
    sys.stdout.write(f"| load | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}\n")
    broken = []
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        for load, bound_s in product(_LOADS, (_MAX_WAIT_S, 1.0)):
            broken += _serve(scratch, load, seconds, bound_s)
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if broken:
        sys.exit("\n".join(f"benchmarks: {each}" for each in broken))


if __name__ == "__main__":
    main()
