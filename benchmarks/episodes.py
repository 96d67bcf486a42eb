"""Streams with memory beside streams without: `python -m benchmarks.episodes`.

One server has one recurrent policy twice, with its memory and answering from the zero state, so
that the network, the process and the protocol are the same. The rounds alternate.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.apps.episodes import FORGETTING, REMEMBERING
from benchmarks.arguments import parser_of
from benchmarks.failures import BenchmarkError
from benchmarks.own_process import ENVIRONMENT
from benchmarks.processes import RunningServer, free_ports, started
from benchmarks.progress import say
from benchmarks.subjects import KEY, ROOT
from benchmarks.websocket import TEXT, Connection, connected, encode_frame
from benchmarks.workplace import clean_environment

_EXAMPLE = ROOT / "examples" / "conveyor"
_OBSERVATION = {"scanned": [False, True, False], "is_at_gate": False}
_FRAME = encode_frame(TEXT, json.dumps(_OBSERVATION).encode())
# Streams side by side, and the frames in flight on each.
_WAYS = ((1, 1), (32, 1), (1, 32))
_ROUNDS = 9
_BLOCK_S = 0.7
_START_S = 60.0
_POLL_S = 0.1


class _Figures(NamedTuple):
    """The figures of one block.

    Attributes:
        round_trips: how many a second.
        processor: the server's processor time in microseconds a frame.
    """

    round_trips: float
    processor: float


def main() -> None:
    """Measure both policies in turn, several times, and print a table of medians."""
    parser_of("benchmarks.episodes", __doc__).parse_args()
    found: dict[tuple[tuple[int, int], str], list[_Figures]] = {}
    try:
        with _served() as (server, port):
            for turn, way in product(range(_ROUNDS), _WAYS):
                # Who comes first takes turns as well.
                for name in (REMEMBERING, FORGETTING)[:: 1 - 2 * (turn % 2)]:
                    figures = _measure(server, port, name, *way)
                    found.setdefault((way, name), []).append(figures)
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    sys.stdout.write(
        "| streams | in flight on each | with memory, round trips/s | without | ratio | server, "
        "us a frame | without |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    for way in _WAYS:
        own, other = found[way, REMEMBERING], found[way, FORGETTING]
        ratio = median(a.round_trips / b.round_trips for a, b in zip(own, other, strict=True))
        rates = [median(item.round_trips for item in each) for each in (own, other)]
        costs = [median(item.processor for item in each) for each in (own, other)]
        sys.stdout.write(
            f"| {way[0]} | {way[1]} | {rates[0]:,.0f} | {rates[1]:,.0f} | {ratio:.2f} | "
            f"{costs[0]:.0f} | {costs[1]:.0f} |\n"
        )


@contextmanager
def _served() -> Iterator[tuple[RunningServer, int]]:
    """Start the server, and give it with its port once it answers."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        home, port = Path(folder), free_ports(1)[0]
        for name in ("schema.yaml", "saved_model.zip"):
            shutil.copy(_EXAMPLE / name, home / name)
        command = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.apps.episodes:both"]
        command += ["--port", str(port), "--no-access-log"]
        environment = {**clean_environment(), **ENVIRONMENT, "POLICY_SERVER_HOME": folder}
        log = home / "log"
        with started(command, environment=environment, folder=ROOT, log=log) as server:
            _wait(server, port)
            yield server, port


def _wait(server: RunningServer, port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        server.check_alive()
        try:
            with _stream(port, FORGETTING) as stream:
                stream.ask(_FRAME)
        except BenchmarkError as error:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"the server did not start: {error}") from error
            time.sleep(_POLL_S)
        else:
            say(f"the server answers on port {port}")
            return


@contextmanager
def _stream(port: int, name: str) -> Iterator[Connection]:
    path = f"/policies/{name}/predict/stream"
    with connected(port, path, {"access-token": KEY}) as stream:
        yield stream


def _measure(server: RunningServer, port: int, name: str, streams: int, in_flight: int) -> _Figures:
    with ExitStack() as stack:
        opened = [stack.enter_context(_stream(port, name)) for _ in range(streams)]
        _rate(opened, in_flight, _BLOCK_S / 5)
        before = _processor_s(server.process.pid)
        began = time.perf_counter()
        rate = _rate(opened, in_flight, _BLOCK_S)
        seconds = time.perf_counter() - began
        used = _processor_s(server.process.pid) - before
    return _Figures(rate, used / (rate * seconds) * 1e6)


def _rate(streams: Sequence[Connection], in_flight: int, seconds: float) -> float:
    """Return the round trips a second of one stream, or of many with one frame in flight each."""
    if len(streams) == 1:
        return streams[0].round_trips(_FRAME, in_flight=in_flight, seconds=seconds)[0]
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for stream in streams:
            stream.send(_FRAME)
        for stream in streams:
            stream.receive()
        count += len(streams)
    return count / (time.perf_counter() - began)


def _processor_s(pid: int) -> float:
    """Return the processor time of another process, by the clock that Linux has for it."""
    return time.clock_gettime((~pid << 3) | 2)


if __name__ == "__main__":
    main()
