"""Servers that are stopped, killed, started again, and that run side by side."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.faults.expectations import TARGET, Expectation, connections_lost
from tests.faults.load import EXPORT, OK, Load, Streams, modes
from tests.faults.measuring import Fault, Scene, temporary
from tests.faults.processes import pids_of
from tests.support.processes import descendants
from tests.support.server_processes import (
    Server,
    compiled_home_of,
    running_server,
    started_server,
)
from tests.support.servers import free_port, status_of

__all__ = ["FAULTS"]

_STREAMS = 8
_START_TIMEOUT_S = 150.0
# A busy machine may take most of it to start a Ray.
_AGAIN_S, _READY_AGAIN_S = 60.0, 55.0


@contextmanager
def _stopping(
    folder: Path,
    number: signal.Signals,
    *,
    backend: str,
    workers: int = 1,
    is_to_all: bool = False,
) -> Iterator[Scene]:
    """Serve requests and streams, until a signal to the server, or to its processes too."""
    home = compiled_home_of(EXPORT, folder / "home")
    arguments = [] if workers == 1 else ["--workers", str(workers)]
    environment = _environment(folder, backend)
    with running_server(home, *arguments, environment=environment) as server:
        server.child.wait_until(lambda: server.output().count("startup complete") == workers)
        loads = {
            "requests": Load(server.url, modes()),
            "streams": Streams(server.url, modes(), _STREAMS),
        }
        yield Scene(
            server, loads, partial(_signal, server, number, is_to_all=is_to_all), is_last=True
        )


@contextmanager
def _stopping_at_unix_socket(folder: Path, *, workers: int) -> Iterator[Scene]:
    """Serve requests at a UNIX socket, until SIGTERM."""
    home, path = compiled_home_of(EXPORT, folder / "home"), temporary(folder) / "s"
    environment = _environment(folder, "local")
    starting = started_server(
        *(home, "--workers", str(workers)), environment=environment, bind=f"--uds {path}"
    )
    with starting as server:
        server.child.wait_until(
            lambda: server.output().count("startup complete") == workers,
            timeout_s=_START_TIMEOUT_S,
        )
        load = Load(server.url, modes(), uds=path)
        yield Scene(
            server, {"": load}, partial(_signal, server, _TERM, is_to_all=False), is_last=True
        )


@contextmanager
def _starting_again(
    folder: Path, *, backend: str, workers: int = 1, is_parent_alone: bool = False
) -> Iterator[Scene]:
    """Kill a server's web processes, and start another one at once on its port and its folders."""
    home, port = compiled_home_of(EXPORT, folder / "home"), free_port()
    arguments = [] if workers == 1 else ["--workers", str(workers)]

    def start() -> Server:
        environment = _environment(folder, backend)
        starting = started_server(home, *arguments, environment=environment, port=port)
        return running.enter_context(starting)

    def happen() -> None:
        web = [] if is_parent_alone else pids_of(scene.server, "spawn_main")
        for pid in (scene.server.process.pid, *web):
            os.kill(pid, _KILL)
        scene.server.process.wait()
        scene.server = start()

    with ExitStack() as running:
        scene = Scene(start(), {}, happen, after_s=_AGAIN_S)
        first = scene.server
        first.child.wait_until(_is_ready(first), timeout_s=_START_TIMEOUT_S)
        first.child.wait_until(lambda: first.output().count("startup complete") == workers)
        scene.loads = {"": Load(scene.server.url, modes())}
        yield scene


@contextmanager
def _side_by_side(folder: Path) -> Iterator[Scene]:
    """Serve by two servers, of which one is killed."""
    homes = [compiled_home_of(EXPORT, folder / name) for name in ("home", "other")]
    environment = _environment(folder, "ray")
    with (
        running_server(homes[0], environment=environment) as server,
        running_server(homes[1], environment=environment) as other,
    ):
        yield Scene(server, {"": Load(server.url, modes())}, other.process.kill)


def _signal(server: Server, number: signal.Signals, *, is_to_all: bool) -> None:
    below = descendants(server.process.pid) if is_to_all else []
    for pid in (server.process.pid, *below):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _environment(folder: Path, backend: str) -> dict[str, str]:
    return {"TMPDIR": str(temporary(folder)), "POLICY_SERVER_BACKEND": backend}


def _is_ready(server: Server) -> Callable[[], bool]:
    return lambda: status_of(f"{server.url}/readyz") == OK


def _stop(
    told: str, number: signal.Signals, backend: str, workers: int = 1, *, is_to_all: bool = False
) -> Fault:
    staged = partial(
        _stopping, number=number, backend=backend, workers=workers, is_to_all=is_to_all
    )
    lost = {"requests": connections_lost(), "streams": connections_lost(clients=_STREAMS)}
    return Fault(told, staged, Expectation(lost) if number == _KILL else TARGET)


def _again(told: str, backend: str, workers: int = 1, *, is_parent_alone: bool = False) -> Fault:
    staged = partial(
        _starting_again, backend=backend, workers=workers, is_parent_alone=is_parent_alone
    )
    lost = {} if is_parent_alone else {"": connections_lost()}
    return Fault(told, staged, Expectation(lost, ready_s=_READY_AGAIN_S))


_TERM, _KILL = signal.SIGTERM, signal.SIGKILL

FAULTS = {
    "term": _stop("SIGTERM", _TERM, "ray"),
    "term-local": _stop("SIGTERM, BACKEND=local", _TERM, "local"),
    "term-workers": _stop("SIGTERM, two web processes", _TERM, "ray", 2),
    "term-uds": Fault(
        "SIGTERM, UNIX socket, BACKEND=local", partial(_stopping_at_unix_socket, workers=1)
    ),
    "term-uds-workers": Fault(
        "SIGTERM, UNIX socket, two web processes, BACKEND=local",
        partial(_stopping_at_unix_socket, workers=2),
    ),
    "term-all": _stop("SIGTERM to Ray's processes too", _TERM, "ray", is_to_all=True),
    "term-all-workers": _stop(
        "SIGTERM to two web processes, their parent and Ray's", _TERM, "ray", 2, is_to_all=True
    ),
    "int-all": _stop("SIGINT to Ray's processes too", signal.SIGINT, "ray", is_to_all=True),
    "kill": _stop("the server killed", _KILL, "ray"),
    "again": _again("the server killed, and another started at once", "ray"),
    "again-local": _again("the same start, BACKEND=local", "local"),
    "again-workers": _again(
        "two web processes and their parent killed, and others started at once", "ray", 2
    ),
    "again-parent": _again(
        "the parent of two web processes killed, and others started at once",
        "ray",
        2,
        is_parent_alone=True,
    ),
    "neighbour": Fault("one of two servers on a machine killed: the other one", _side_by_side),
}
