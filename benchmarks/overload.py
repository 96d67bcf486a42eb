"""Four times what a server can do, over HTTP: `python -m benchmarks.overload [SECONDS]`.

The policy takes 2 ms a row (`benchmarks.apps.paced`), and requests come at an even pace, whether
others were answered or not, each on a connection that waits for no other answer. Some clients give
up after a moment and close their connection. The table has the latency of the requests that are
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
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from benchmarks.apps.paced import ROW_S
from benchmarks.arguments import parser_of
from benchmarks.failures import BenchmarkError
from benchmarks.overload_verdict import Outcome, Run, judge
from benchmarks.processes import RunningServer, free_ports, started
from benchmarks.subjects import ROOT
from benchmarks.workplace import clean_environment

__all__ = ["ask"]

_FACTOR = 4
_MAX_WAIT_S = 0.1
_TICK_S = 0.002
_PAUSE_S = 1.0
_START_TIMEOUT_S = 60.0
_LONGEST_ANSWER_S = 35.0
# One client in so many gives up, so long after it has asked.
_GIVES_UP_EACH = 50
_GIVES_UP_S = 0.02
_MEGABYTE = 1e6
_REQUEST = (
    b"POST /predict_raw HTTP/1.1\r\nhost: server\r\ncontent-length: 23\r\n\r\n"
    b'{"obs": [1,2,3,4,5, 6]}'
)


class _Client(asyncio.Protocol):
    """One connection, with one request in flight at most."""

    def __init__(self, outcome: Outcome, idle: list[_Client]) -> None:
        self._outcome = outcome
        self._idle = idle
        self._answer = b""
        self._sent: float | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, *, gives_up: bool, due: float) -> None:
        assert self._transport is not None, "it is connected"
        self._sent = due
        self._transport.write(_REQUEST)
        if gives_up:
            asyncio.get_running_loop().call_later(_GIVES_UP_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length):
            assert self._sent is not None, "it has asked"
            self._outcome.note(self._answer, time.perf_counter() - self._sent)
            self._answer, self._sent = b"", None
            self._idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sent is not None:
            self._sent = None
            self._outcome.failed.append(f"connection lost: {exc!r}".encode())
        if self in self._idle:
            self._idle.remove(self)

    def close(self) -> None:
        assert self._transport is not None, "it is connected"
        self._transport.close()

    def _give_up(self) -> None:
        if self._sent is not None:
            self._sent = None
            self._outcome.gave_up += 1
            self.close()


async def ask(port: int, seconds: float, per_second: float, *, give_up: bool) -> Outcome:
    """Send requests at an even pace, and wait for their answers.

    Args:
        port: the server's.
        seconds: for how long.
        per_second: how many.
        give_up: whether some clients close their connection before the answer.

    Returns:
        What became of them.
    """
    outcome = Outcome()
    idle: list[_Client] = []
    clients: list[_Client] = []
    opening: set[asyncio.Task[None]] = set()

    start, sent = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        outcome.late_s = max(outcome.late_s, passed - sent / per_second)
        while sent < passed * per_second:
            sent += 1
            gives_up = give_up and sent % _GIVES_UP_EACH == 0
            due = time.perf_counter()
            if idle:
                idle.pop().ask(gives_up=gives_up, due=due)
            else:
                # The pace is the clients' own: a server that is slow to accept can't hold it up.
                opened = _opened(port, outcome, idle, clients)
                task = asyncio.create_task(_ask_on(opened, gives_up=gives_up, due=due))
                opening.add(task)
                task.add_done_callback(opening.discard)
        await asyncio.sleep(_TICK_S)
    deadline = time.perf_counter() + _LONGEST_ANSWER_S
    while _told(outcome) < sent and time.perf_counter() < deadline:
        await asyncio.sleep(_TICK_S)
    for task in opening:
        task.cancel()
    for client in clients:
        client.close()
    outcome.failed += [b"no answer"] * (sent - _told(outcome))
    return outcome


async def _opened(
    port: int, outcome: Outcome, idle: list[_Client], clients: list[_Client]
) -> _Client | None:
    loop = asyncio.get_running_loop()
    try:
        _, client = await loop.create_connection(lambda: _Client(outcome, idle), "127.0.0.1", port)
    except OSError as error:
        outcome.failed.append(f"not connected: {error}".encode())
        return None
    clients.append(client)
    return client


async def _ask_on(opened: Awaitable[_Client | None], *, gives_up: bool, due: float) -> None:
    client = await opened
    if client is not None:
        client.ask(gives_up=gives_up, due=due)


def _told(outcome: Outcome) -> int:
    told = len(outcome.answered) + len(outcome.refused) + len(outcome.failed)
    return told + outcome.gave_up


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


async def _measure(server: _Server, seconds: float, bound_s: float) -> list[str]:
    """Write the lines of a bound, and return what did not hold."""
    pace = 1 / ROW_S
    before = await ask(server.port, 1.0, pace / 10, give_up=False)
    memory = [server.megabytes()]

    async def watch_memory() -> None:
        while True:
            await asyncio.sleep(seconds / 3.01)
            memory.append(server.megabytes())

    rows = server.rows_computed()
    watching = asyncio.create_task(watch_memory())
    loaded = await ask(server.port, seconds, _FACTOR * pace, give_up=True)
    watching.cancel()
    rows = server.rows_computed() - rows
    await asyncio.sleep(_PAUSE_S)
    after = await ask(server.port, 1.0, pace / 10, give_up=False)
    sizes = " ".join(f"{size:.0f}" for size in memory)
    _write(f"{_FACTOR} times, bound {bound_s:g} s", loaded, f"{rows} | {sizes}")
    _write("a second later", after, " | ")
    for answer in {*loaded.failed, *after.failed}:
        sys.stdout.write(f"failed: {answer!r}\n")
    return judge(Run(bound_s, before, loaded, after, memory, alone=round(seconds * pace)))


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


def _serve(scratch: Path, seconds: float, bound_s: float) -> list[str]:
    port, metrics_port = free_ports(2)
    environment = {
        **clean_environment(),
        "POLICY_SERVER_HOME": str(scratch),
        "POLICY_SERVER_METRICS_PORT": str(metrics_port),
        "POLICY_SERVER_MAX_WAIT_S": str(bound_s),
        "POLICY_SERVER_LOG_FORMAT": "json",
    }
    app = ["--factory", "benchmarks.apps.paced:paced", "--port", str(port)]
    command = [sys.executable, "-m", "uvicorn", *app]
    log = scratch / "server.log"
    with started(command, environment=environment, folder=ROOT, log=log) as process:
        _wait(process, port)
        broken = asyncio.run(_measure(_Server(process, port, metrics_port), seconds, bound_s))
        process.check_alive()
    return [f"bound {bound_s:g} s: {each}" for each in broken]


def _wait(process: RunningServer, port: int) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        process.check_alive()
        try:
            httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).raise_for_status()
        except httpx.HTTPError:
            time.sleep(_TICK_S)
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
        for bound_s in (_MAX_WAIT_S, 1.0):
            broken += _serve(scratch, seconds, bound_s)
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if broken:
        sys.exit("\n".join(f"benchmarks: {each}" for each in broken))


if __name__ == "__main__":
    main()
