"""What stays in the web process of connections that have gone: `python -m benchmarks.memory`.

Each round opens and closes 1,000 web sockets that compress their frames, as Python's clients and
browsers offer it, 1,000 connections of one request each, and sends 20,000 requests on another one.
A server that keeps nothing shows the same figure from the second round on.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from websockets.sync.client import connect

from benchmarks.arguments import parser_of
from benchmarks.failures import BenchmarkError
from benchmarks.load import post
from benchmarks.processes import RunningServer, free_ports, started
from benchmarks.subjects import ROOT
from benchmarks.subjects.ours import KEY, OURS
from benchmarks.workplace import clean_environment, fill_home

_ROUNDS = 8
_CONNECTIONS = 1_000
_OPEN_AT_ONCE = 50
_REQUESTS = 20_000
_PIPELINED = 50
_TIMEOUT_S = 90.0
_PAUSE_S = 1.0
_MEGABYTE = 1e6


def main() -> None:
    """Measure the backend that is named, and print a table."""
    parser = parser_of("benchmarks.memory", __doc__)
    parser.add_argument("backend", nargs="?", choices=("local", "ray"), default="local")
    backend = parser.parse_args().backend
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        fill_home(scratch / "home")
        (port,) = free_ports(1)
        environment = {
            **clean_environment(),
            "POLICY_SERVER_HOME": str(scratch / "home"),
            "POLICY_SERVER_BACKEND": backend,
            "POLICY_SERVER_METRICS_PORT": "0",
            "POLICY_SERVER_DASHBOARD_PORT": "0",
            "POLICY_SERVER_LOG_LEVEL": "WARNING",
        }
        command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
        log = scratch / "server.log"
        with started(command, environment=environment, folder=ROOT, log=log) as server:
            _wait(server, port)
            _report(server, port)
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _report(server: RunningServer, port: int) -> None:
    sys.stdout.write("| MB of the web process after | web sockets | connections | requests |\n")
    sys.stdout.write("| --- | ---: | ---: | ---: |\n")
    sys.stdout.write(f"| the first answer | {_resident_mb(server):.1f} | | |\n")
    for number in range(1, _ROUNDS + 1):
        cells = []
        for part in (_open_web_sockets, _open_connections, _ask):
            part(port)
            # What is closed on this side is closed on the other a moment later.
            time.sleep(_PAUSE_S)
            server.check_alive()
            cells.append(f" {_resident_mb(server):.1f} |")
        sys.stdout.write(f"| round {number} |{''.join(cells)}\n")
        sys.stdout.flush()


def _open_web_sockets(port: int) -> None:
    observation = OURS[0].request.body.decode()
    for _ in range(_CONNECTIONS // _OPEN_AT_ONCE):
        with ExitStack() as opened:
            streams = [
                opened.enter_context(
                    connect(
                        f"ws://127.0.0.1:{port}/predict/stream",
                        additional_headers={"access-token": KEY},
                        proxy=None,
                    )
                )
                for _ in range(_OPEN_AT_ONCE)
            ]
            for stream in streams:
                stream.send(observation)
                stream.recv()


def _open_connections(port: int) -> None:
    for _ in range(_CONNECTIONS):
        _send(port, 1, 1)


def _ask(port: int) -> None:
    _send(port, _REQUESTS, _PIPELINED)


def _send(port: int, count: int, at_once: int) -> None:
    """Send requests on one connection, some at once, and read their answers."""
    asked = OURS[0].request
    headers = {**asked.headers, "host": "127.0.0.1", "content-length": str(len(asked.body))}
    lines = [f"POST {asked.path} HTTP/1.1", *(f"{name}: {it}" for name, it in headers.items())]
    request = "\r\n".join([*lines, "", ""]).encode() + asked.body
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as link:
        for _ in range(count // at_once):
            link.sendall(request * at_once)
            answered = 0
            while answered < at_once:
                received = link.recv(1 << 16)
                if not received:
                    raise BenchmarkError("the server closed a connection")
                answered += received.count(b"HTTP/1.1 200")


def _resident_mb(server: RunningServer) -> float:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MEGABYTE


def _wait(server: RunningServer, port: int) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        server.check_alive()
        try:
            post(f"http://127.0.0.1:{port}", OURS[0].request)
        except BenchmarkError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)
        else:
            return


if __name__ == "__main__":
    main()
