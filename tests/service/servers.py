"""Real servers for tests: uvicorn, Ray and TensorFlow in processes and on ports of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

__all__ = [
    "KEY",
    "Server",
    "command_line",
    "descendants",
    "free_port",
    "home_of",
    "is_running",
    "running_server",
    "started_server",
    "wait_until",
]

KEY = "1234567asdfgh"
ROOT = Path(__file__).parents[2]
EXPORTS = ROOT / "tests" / "data" / "exports"
_UVICORN = (sys.executable, "-m", "uvicorn", "app:app")
_START_TIMEOUT_S = 150.0
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Server:
    """A server process and how to reach it."""

    process: subprocess.Popen[str]
    url: str
    metrics_url: str
    log: Path

    def client(self) -> httpx.Client:
        """Return a client with the access key."""
        return httpx.Client(base_url=self.url, headers={"access-token": KEY}, timeout=60)

    def output(self) -> str:
        """Return what the server has printed so far."""
        return self.log.read_text()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def home_of(export: str, folder: Path) -> Path:
    """Make a home folder that serves one of the real exports."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("schema.yaml", "saved_model.zip"):
        shutil.copy(EXPORTS / export / name, folder / name)
    return folder


@contextmanager
def started_server(
    home: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
    command: Sequence[str] = _UVICORN,
    cwd: Path = ROOT,
) -> Iterator[Server]:
    """Start `uvicorn app:app` as a user would; it may still be starting, or have failed.

    Whatever is left of it afterwards is killed by its process id.
    """
    port, metrics_port = port or free_port(), free_port()
    log = home / "server.log"
    variables = {
        **{
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("POLICY_SERVER_", "RAY_"))
        },
        "POLICY_SERVER_HOME": str(home),
        "POLICY_SERVER_METRICS_PORT": str(metrics_port),
        "POLICY_SERVER_DASHBOARD_PORT": "0",
        **(environment or {}),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), *arguments],
            cwd=cwd,
            env=variables,
            stdout=output,
            stderr=output,
            text=True,
        )
    server = Server(
        process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics", log
    )
    try:
        yield server
    finally:
        children = descendants(process.pid)
        _stop(process)
        for pid in children:
            _kill(pid)


@contextmanager
def running_server(
    home: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
    command: Sequence[str] = _UVICORN,
    cwd: Path = ROOT,
) -> Iterator[Server]:
    """Start a server, wait until it is ready, and stop it as an operator would."""
    starting = started_server(
        home, *arguments, environment=environment, port=port, command=command, cwd=cwd
    )
    with starting as server:
        _wait_until_ready(server)
        yield server


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise AssertionError(
                f"the server ended with {server.process.returncode}:\n{server.output()}"
            )
        try:
            if httpx.get(f"{server.url}/readyz", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"the server was not ready in {_START_TIMEOUT_S} s:\n{server.output()}")


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> bool:
    """Wait for something that comes soon, and return whether it came."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def command_line(pid: int) -> str:
    """Return a process's command line; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below one, which Ray's are."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
