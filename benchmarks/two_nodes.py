"""A Ray cluster of two hosts on this machine: `python -m benchmarks.two_nodes`, as root on Linux.

Each host is a network namespace with an address of its own, so that what goes from one to the other
crosses a network, though a fast one. The cores are the same two: it shows what crossing costs, and
that replicas on both hosts serve one deployment, not that two machines are faster than one.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.arguments import parser_of
from benchmarks.failures import BenchmarkError
from benchmarks.load import Load, Request, check_answered, check_wrk, drive, post
from benchmarks.processes import RunningServer, started
from benchmarks.progress import say
from benchmarks.subjects import ROOT
from benchmarks.subjects.ours import OURS
from benchmarks.two_hosts import FIRST, SECOND, two_hosts
from benchmarks.workplace import clean_environment, fill_home

_GCS_PORT, _HTTP_PORT = 6379, 8000
_CONNECTIONS = (1, 32, 128)
_SECONDS = 3.0
_REPEATS = 3
_TIMEOUT_S = 90.0
_POLL_S = 0.2
# Cores that Ray may use on the first host and on the second, and replicas.
_ARRANGEMENTS = {
    "one host": (1, None, 1),
    "two hosts, the replica on the other": (0, 1, 1),
    "two hosts, a replica on each": (1, 1, 2),
}


def main() -> None:
    """Measure each arrangement, and print a table."""
    parser_of("benchmarks.two_nodes", __doc__).parse_args()
    try:
        check_wrk()
        with two_hosts() as other:
            rows = {name: _measure(name, other) for name in _ARRANGEMENTS}
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    heads = "".join(f" {count} |" for count in _CONNECTIONS)
    sys.stdout.write(f"| req/s (p50 / p99 ms) at connections |{heads}\n")
    sys.stdout.write("| --- |" + " ---: |" * len(_CONNECTIONS) + "\n")
    for name, loads in rows.items():
        cells = (f" {x.requests_per_s:,.0f} ({x.p50_ms:.2f} / {x.p99_ms:.1f}) |" for x in loads)
        sys.stdout.write(f"| {name} |{''.join(cells)}\n")


def _measure(name: str, other: Sequence[str]) -> list[Load]:
    first, second, replicas = _ARRANGEMENTS[name]
    say(f"{name}: starting")
    # Ray puts sockets there, whose paths may have 107 characters.
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    environment = {**clean_environment(), "RAY_AUTH_MODE": "disabled"}
    try:
        fill_home(scratch / "home")
        with ExitStack() as running:

            def start(log: str, command: Sequence[str], **variables: str) -> RunningServer:
                return running.enter_context(
                    started(
                        command,
                        environment={**environment, **variables},
                        folder=ROOT,
                        log=scratch / log,
                    )
                )

            start_node = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
            start_node += ["--disable-usage-stats", "--object-store-memory=100000000"]
            head = ["--head", f"--port={_GCS_PORT}", f"--node-ip-address={FIRST}"]
            head += ["--include-dashboard=false", f"--temp-dir={scratch}/ray"]
            node = start("first.log", [*start_node, *head, f"--num-cpus={first}"])
            _wait(node, lambda: "Ray runtime started" in node.log.read_text())
            if second is not None:
                joining = [f"--address={FIRST}:{_GCS_PORT}", f"--node-ip-address={SECOND}"]
                joining += [f"--num-cpus={second}"]
                far = start("second.log", [*other, *start_node, *joining])
                _wait(far, lambda: "Ray runtime started" in far.log.read_text())
            serve = [sys.executable, "-m", "uvicorn", "app:app", "--host", FIRST]
            server = start(
                "server.log",
                [*serve, "--port", str(_HTTP_PORT), "--no-access-log"],
                RAY_ADDRESS=f"{FIRST}:{_GCS_PORT}",
                POLICY_SERVER_HOME=str(scratch / "home"),
                POLICY_SERVER_METRICS_PORT="0",
                POLICY_SERVER_NUM_REPLICAS=str(replicas),
            )
            return _load(name, server)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load(name: str, server: RunningServer) -> list[Load]:
    url, request = f"http://{FIRST}:{_HTTP_PORT}", OURS[0].request
    _wait(server, lambda: _answers(url, request))
    server.settle()
    say(f"{name}: under load")
    rounds = [
        [
            check_answered(drive(url, request, connections=count, seconds=_SECONDS))
            for count in _CONNECTIONS
        ]
        for _ in range(_REPEATS)
    ]
    # The round with the median throughput, by the number of connections.
    return [
        sorted(loads, key=lambda load: load.requests_per_s)[_REPEATS // 2]
        for loads in zip(*rounds, strict=True)
    ]


def _answers(url: str, request: Request) -> bool:
    try:
        post(url, request)
    except BenchmarkError:
        return False
    return True


def _wait(server: RunningServer, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        server.check_alive()
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{server.log.name}: not ready in {_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main()
