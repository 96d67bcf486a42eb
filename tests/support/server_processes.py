"""Real servers for tests: uvicorn, Ray and TensorFlow in processes and on ports of their own."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from policy_server.engine.cache import OUTCOME_FILE, write_outcome
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.model_files import identify_model
from policy_server.formats.unpacking import unpack_model
from policy_server.schema import read_schema
from policy_server.settings import Settings
from tests.support import asking
from tests.support.folders import EXPORTS, ROOT
from tests.support.pages import summed
from tests.support.processes import Child, child
from tests.support.servers import free_port, status_of

__all__ = [
    "KEY",
    "Server",
    "compiled_home_of",
    "home_of",
    "running_server",
    "started_server",
]

KEY = "1234567asdfgh"
_UVICORN = (sys.executable, "-m", "uvicorn", "app:app")
_START_TIMEOUT_S = 150.0


@dataclass(frozen=True)
class Server:
    """A server process and how to reach it."""

    child: Child
    url: str
    metrics_url: str

    @property
    def process(self) -> subprocess.Popen[str]:
        """Return the server's own process, above its workers and Ray."""
        return self.child.process

    def client(self) -> httpx.Client:
        """Return a client with the access key."""
        return asking.client(base_url=self.url, headers={"access-token": KEY}, timeout=60)

    def figure(self, name: str) -> float | None:
        """Return a number of the metrics page; None while no process has its port."""
        page = self.metrics()
        return summed(page, name) if page else None

    def metrics(self, path: str = "") -> str:
        """Return the metrics page, or one below it; empty while no process has its port."""
        try:
            return asking.get(f"{self.metrics_url}{path}", timeout=30).text
        except httpx.TransportError:
            return ""

    def output(self) -> str:
        """Return what the server has printed so far."""
        return self.child.output()


def home_of(export: str, folder: Path) -> Path:
    """Make a home folder that serves one of the real exports."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("schema.yaml", "saved_model.zip"):
        shutil.copy(EXPORTS / export / name, folder / name)
    return folder


def compiled_home_of(export: str, folder: Path) -> Path:
    """Make a home folder as an earlier start leaves it, for tests of what comes after a start."""
    write_outcome(_unpack(home_of(export, folder)), _outcome_of(export))
    return folder


@cache
def _outcome_of(export: str) -> bytes:
    """Compile a real export, in seconds, as the first start of a server does."""
    with tempfile.TemporaryDirectory() as folder:
        models = _unpack(home_of(export, Path(folder)))
        schema = read_schema(EXPORTS / export / "schema.yaml")
        settings = Settings(home=Path(folder))
        asyncio.run(find_compiled(identify_model(models), schema, settings, is_quiet=True))
        return (models / OUTCOME_FILE).read_bytes()


def _unpack(home: Path) -> Path:
    return unpack_model(home / "saved_model.zip", home / "models", max_bytes=10**9)


@contextmanager
def started_server(
    home: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
    command: Sequence[str] = _UVICORN,
    bind: str = "--port {port}",
    cwd: Path = ROOT,
    descriptors: Sequence[int] = (),
) -> Iterator[Server]:
    """Start `uvicorn app:app` as a user would; it may still be starting, or have failed.

    It and the processes below it are ended with the block. It has the test's descriptors, such as a
    socket to listen on.
    """
    port, metrics_port = port or free_port(), free_port()
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
    words = (*command, *bind.format(port=port).split(), *arguments)
    log = home / "server.log"
    with child(
        *words, log=log, folder=cwd, environment=variables, descriptors=descriptors
    ) as started:
        yield Server(
            started, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics"
        )


@contextmanager
def running_server(
    home: Path,
    *arguments: str,
    **options: Any,  # noqa: ANN401 -- those of `started_server`
) -> Iterator[Server]:
    """Start a server, wait until it is ready, and stop it as an operator would."""
    with started_server(home, *arguments, **options) as server:
        ready = f"{server.url}/readyz"
        server.child.wait_until(
            lambda: status_of(ready) == httpx.codes.OK, timeout_s=_START_TIMEOUT_S
        )
        yield server
