"""Calls to a replica by themselves: `python -m benchmarks.calls`.

A replica in a process of its own answers a constant, so that what is left is the way to it and
back: by a UNIX socket, as on one machine, and by a port, as on a cluster. The floor is a bare
protocol on a UNIX socket that sends and receives as many bytes and reads none of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple, cast

import numpy as np
import uvloop

from benchmarks.arguments import parser_of
from benchmarks.failures import BenchmarkError
from benchmarks.own_process import ENVIRONMENT
from benchmarks.progress import say
from benchmarks.subjects import ROOT
from benchmarks.workplace import clean_environment
from policy_server.backends.ray.call_frames import answer_frame, call_frame
from policy_server.backends.ray.call_server import CallServer
from policy_server.backends.ray.direct_calls import DirectCalls
from policy_server.backends.ray.replica_list import ReplicaAddress
from policy_server.policy import PolicyInputs, PolicyOutputs

_WIDTH = 6
_ROWS = (1, 32, 1024)
_WAYS = ("floor", "unix", "tcp")
_ROUNDS = 3
_BLOCK_S = 0.5
_WARM_UP = 200
_IN_FLIGHT = 3
_TIMEOUT_S = 30.0
_POLL_S = 0.02
_APPLICATION, _REPLICA, _KEY = "policy-bench-0123456789ab", "replica", b"k" * 32

Call = Callable[[], Awaitable[object]]


class _Figures(NamedTuple):
    """The figures of one way and number of rows, in microseconds a call.

    Attributes:
        round_trip: the median time to the answer, one call in flight.
        web: processor time of the process that asks, several calls in flight.
        replica: processor time of the other process, several calls in flight.
    """

    round_trip: float
    web: float
    replica: float


def main() -> None:
    """Measure each way in turn, several times, and print a table of medians."""
    parser = parser_of("benchmarks.calls", __doc__)
    # The process that this one starts, as a replica.
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    if (replicas_folder := parser.parse_args().folder) is not None:
        uvloop.run(_serve(replicas_folder))
        return
    found: dict[tuple[int, str], list[_Figures]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder, _replica(folder) as pid:
            for turn in range(_ROUNDS):
                say(f"round {turn + 1} of {_ROUNDS}")
                for rows, way in product(_ROWS, _WAYS):
                    figures = uvloop.run(_measure(way, rows, Path(folder), pid))
                    found.setdefault((rows, way), []).append(figures)
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    sys.stdout.write("| us a call | round trip | web process | replica |\n")
    sys.stdout.write("| --- | ---: | ---: | ---: |\n")
    for (rows, way), each in found.items():
        parts = zip(*each, strict=True)
        cells = "".join(f" {median(values):,.0f} |" for values in parts)
        sys.stdout.write(f"| {rows} rows, {way} |{cells}\n")


def _inputs(rows: int) -> PolicyInputs:
    return PolicyInputs.of(np.zeros((rows, _WIDTH), np.float32), wants_distribution=False)


def _constant(inputs: PolicyInputs) -> PolicyOutputs:
    rows = len(inputs)
    return PolicyOutputs(np.zeros((rows, 1)), np.zeros(rows), None)


async def _serve(folder: Path) -> None:
    """Be the replica, until the process is ended."""
    loop = asyncio.get_running_loop()
    for rows in _ROWS:
        answer = b"".join(answer_frame(1, _constant(_inputs(rows))))
        length = len(b"".join(call_frame(1, _inputs(rows))))
        bare = partial(_Bare, length, answer)
        await loop.create_unix_server(bare, str(folder / f"floor-{rows}"))
    servers = [
        CallServer(_constant, application=_APPLICATION, replica=_REPLICA, key=_KEY)
        for _ in range(2)
    ]
    by_path = await servers[0].listen(folder=folder)
    by_port = await servers[1].listen("127.0.0.1")
    (folder / "new").write_text(json.dumps({"unix": by_path.path, "tcp": by_port.port}))
    (folder / "new").rename(folder / "places")
    await asyncio.Event().wait()


class _Bare(asyncio.Protocol):
    """One side of the floor: for so many bytes received it sends an answer, or tells of it."""

    def __init__(self, length: int, answer: bytes, done: Callable[[], None] | None = None) -> None:
        self._length = length
        self._answer = answer
        self._done = done
        self._received = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        while self._received >= self._length:
            self._received -= self._length
            if self._done is not None:
                self._done()
            else:
                self.send()

    def send(self) -> None:
        assert self.transport is not None
        self.transport.write(self._answer)


async def _measure(way: str, rows: int, folder: Path, pid: int) -> _Figures:
    call, end = await (
        _connect_bare(folder, rows) if way == "floor" else _connect(way, folder, rows)
    )
    try:
        await _repeat(call, _WARM_UP)
        times, until = [], time.perf_counter() + _BLOCK_S
        while (began := time.perf_counter()) < until:
            await call()
            times.append(time.perf_counter() - began)
        count = len(times) // _IN_FLIGHT
        before = time.process_time(), _processor_s(pid)
        await asyncio.gather(*(_repeat(call, count) for _ in range(_IN_FLIGHT)))
        used = time.process_time() - before[0], _processor_s(pid) - before[1]
    finally:
        await end()
    web, replica = (seconds / (count * _IN_FLIGHT) * 1e6 for seconds in used)
    return _Figures(median(times) * 1e6, web, replica)


@contextmanager
def _replica(folder: str) -> Iterator[int]:
    """Start the replica, and give its process's number once it takes calls."""
    command = [sys.executable, "-m", "benchmarks.calls", folder]
    environment = {**clean_environment(), **ENVIRONMENT}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:  # noqa: S603 -- ours
        try:
            deadline = time.monotonic() + _TIMEOUT_S
            while not Path(folder, "places").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkError("the replica did not start")
                time.sleep(_POLL_S)
            yield process.pid
        finally:
            process.kill()


async def _connect(way: str, folder: Path, rows: int) -> tuple[Call, Callable[[], Awaitable[None]]]:
    """Connect to the replica; give the function that makes a call, and the one that ends."""
    places = json.loads((folder / "places").read_text())
    path = places["unix"] if way == "unix" else ""
    address = ReplicaAddress(_APPLICATION, _REPLICA, "127.0.0.1", places["tcp"], path, _KEY)
    calls = DirectCalls(_Listed(address), replicas=1, timeout_s=_TIMEOUT_S)
    calls.on_lost = say
    await calls.open()
    inputs = _inputs(rows)
    return lambda: calls.infer(inputs), calls.aclose


async def _connect_bare(folder: Path, rows: int) -> tuple[Call, Callable[[], Awaitable[None]]]:
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []
    inputs = _inputs(rows)
    length = len(b"".join(answer_frame(1, _constant(inputs))))
    question = b"".join(call_frame(1, inputs))
    bare = _Bare(length, question, lambda: waiting.pop(0).set_result(None))
    transport, _ = await loop.create_unix_connection(lambda: bare, str(folder / f"floor-{rows}"))

    def call() -> Awaitable[object]:
        waiting.append(loop.create_future())
        bare.send()
        return waiting[-1]

    async def end() -> None:
        transport.close()

    return call, end


class _Listed:
    """A list of one replica; see `ReplicaSource`."""

    def __init__(self, address: ReplicaAddress) -> None:
        self._address = address

    async def addresses(self) -> Sequence[ReplicaAddress]:
        return [self._address]

    async def remove_dead(self, address: ReplicaAddress) -> None:
        raise BenchmarkError(f"the replica at {address.path or address.port} is not reached")


async def _repeat(call: Call, count: int) -> None:
    for _ in range(count):
        await call()


def _processor_s(pid: int) -> float:
    """Return the processor time of another process, by the clock that Linux has for it."""
    return time.clock_gettime((~pid << 3) | 2)


if __name__ == "__main__":
    main()
