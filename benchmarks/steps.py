"""Where a round trip goes in a running server: `python -m benchmarks.steps`.

One local server, with a clock at the steps of a request, is driven with one request in flight, by
POST and by a frame of a stream in turn; the floor beside it by the same two. What the steps leave
of a round trip are the event loop's system calls, the network of the machine and the client.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.apps.timed import FILE_VARIABLE, STEPS
from benchmarks.arguments import parser_of
from benchmarks.failures import BenchmarkError
from benchmarks.own_process import ENVIRONMENT
from benchmarks.processes import RunningServer, free_ports, started
from benchmarks.subjects import KEY, OBSERVATION, ROOT
from benchmarks.websocket import TEXT, connected, encode_frame
from benchmarks.workplace import clean_environment

_EXAMPLE = ROOT / "examples" / "mouse_and_cheese"
_BODY = json.dumps(OBSERVATION).encode()
_FRAME = encode_frame(TEXT, _BODY)
_HEADERS = {"access-token": KEY}
_POST = (
    b"POST /predict HTTP/1.1\r\nHost: server\r\naccess-token: %b\r\n"
    b"content-type: application/json\r\nContent-Length: %d\r\n\r\n%b"
) % (KEY.encode(), len(_BODY), _BODY)
_STREAM = "/predict/stream"
_ROUNDS = 5
_ROUND_TRIPS = 3000
_START_S = 60.0
_POLL_S = 0.05
_RECEIVE = 1 << 16
_OK = b"HTTP/1.1 200 "


def main() -> None:
    """Measure, and print a table of medians in microseconds."""
    parser_of("benchmarks.steps", __doc__).parse_args()
    try:
        found = _measure()
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    columns = list(found)
    sys.stdout.write(f"| step, µs | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}\n")
    for row in ("round trip", *STEPS):
        cells = [found[column].get(row) for column in columns]
        shown = ["" if not cell else f"{median(cell):.1f}" for cell in cells]
        sys.stdout.write(f"| {row} | {' | '.join(shown)} |\n")


def _measure() -> dict[str, dict[str, list[float]]]:
    """Return the microseconds of each round, by what was asked and by step."""
    found: dict[str, dict[str, list[float]]] = {
        name: {} for name in ("POST", "frame", "POST, floor", "frame, floor")
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        home = Path(folder)
        with _served(home) as (server, port), _floor(home) as floor:
            for _ in range(_ROUNDS):
                for name, asked, used in (
                    ("POST", _post, port),
                    ("POST, floor", _post, floor),
                    ("frame", _ask_stream, port),
                    ("frame, floor", _ask_stream, floor),
                ):
                    steps = {"round trip": asked(used)}
                    if used == port:
                        steps |= _steps_of(server, home / "steps")
                    for step, microseconds in steps.items():
                        found[name].setdefault(step, []).append(microseconds)
    return found


@contextmanager
def _served(home: Path) -> Iterator[tuple[RunningServer, int]]:
    for name in ("schema.yaml", "saved_model.zip"):
        shutil.copy(_EXAMPLE / name, home / name)
    port = free_ports(1)[0]
    command = ["uvicorn", "--factory", "benchmarks.apps.timed:timed", "--no-access-log"]
    environment = {
        "POLICY_SERVER_HOME": str(home),
        "POLICY_SERVER_BACKEND": "local",
        "POLICY_SERVER_METRICS_PORT": "0",
        FILE_VARIABLE: str(home / "steps"),
    }
    with _running([*command, "--port", str(port)], home / "log", environment) as server:
        _wait(server, port)
        yield server, port


@contextmanager
def _floor(home: Path) -> Iterator[int]:
    port = free_ports(1)[0]
    with _running(["benchmarks.floor", str(port)], home / "floor-log", {}) as server:
        _wait(server, port)
        yield port


@contextmanager
def _running(module: list[str], log: Path, environment: dict[str, str]) -> Iterator[RunningServer]:
    whole = {**clean_environment(), **ENVIRONMENT, **environment}
    command = [sys.executable, "-m", *module]
    with started(command, environment=whole, folder=ROOT, log=log) as server:
        yield server


def _wait(server: RunningServer, port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        server.check_alive()
        try:
            _post(port, round_trips=1)
        except OSError as error:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"the server did not start: {error}") from error
            time.sleep(_POLL_S)
        else:
            return


def _post(port: int, *, round_trips: int = _ROUND_TRIPS) -> float:
    """Return the median microseconds of a POST on one connection."""
    with socket.create_connection(("127.0.0.1", port), _START_S) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask() -> None:
            link.sendall(_POST)
            answer = link.recv(_RECEIVE)
            if not answer.startswith(_OK):
                raise BenchmarkError(f"POST /predict: answered {answer[:80]!r}")

        return _median_us(ask, round_trips)


def _ask_stream(port: int) -> float:
    """Return the median microseconds of a frame and its answer."""
    with connected(port, _STREAM, _HEADERS) as stream:
        return _median_us(lambda: stream.ask(_FRAME), _ROUND_TRIPS)


def _median_us(ask: Callable[[], object], round_trips: int) -> float:
    times = []
    for _ in range(round_trips):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
    return 1e6 * median(times)


def _steps_of(server: RunningServer, file: Path) -> dict[str, float]:
    """Have the server tell the medians since it was asked last, in microseconds by step."""
    file.unlink(missing_ok=True)
    server.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + _START_S
    while not file.exists():
        server.check_alive()
        if time.monotonic() > deadline:
            raise BenchmarkError("the server does not tell its times")
        time.sleep(_POLL_S)
    steps: dict[str, float] = json.loads(file.read_text())
    return steps


if __name__ == "__main__":
    main()
