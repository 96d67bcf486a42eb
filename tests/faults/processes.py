"""Parts of a server that die or stand still."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.load import EXPORT, Load, modes
from tests.faults.measuring import Fault, Scene
from tests.support.processes import command_line, descendants
from tests.support.server_processes import Server, compiled_home_of, running_server

__all__ = ["FAULTS", "killed", "pids_of", "serving"]

_STILL_S = 8.0
_RAYLET, _GCS = "raylet/raylet", "gcs_server"


def pids_of(server: Server, words: str) -> list[int]:
    """Return the processes below a server whose command lines have these words."""
    return [pid for pid in descendants(server.process.pid) if words in command_line(pid)]


def killed(*words: str, most: int = 99, number: int = signal.SIGKILL) -> Callable[[Server], None]:
    """Return the fault that sends a signal to processes, by words of their command lines."""

    def happen(server: Server) -> None:
        found = [pid for word in words for pid in pids_of(server, word)[:most]]
        assert found, f"no process {words}"
        for pid in found:
            os.kill(pid, number)

    return happen


def _still_for_a_while(server: Server) -> None:
    """Let a replica stand still, and go on."""
    [pid, *_] = pids_of(server, "ServeReplica")
    os.kill(pid, signal.SIGSTOP)
    time.sleep(_STILL_S)
    os.kill(pid, signal.SIGCONT)


def _raylet_and_server(server: Server) -> None:
    """Kill the raylet, and stop the server while it starts the next Ray."""
    killed(_RAYLET)(server)
    server.child.wait_until(lambda: '"ray_lost"' in server.output())
    server.process.terminate()


def _web_process(server: Server, *, has_started_ray: bool) -> None:
    """Kill a web process: the one that has started Ray, or the other."""
    [event] = [line for line in server.output().splitlines() if '"event": "ray_started"' in line]
    starter = json.loads(event)["pid"]
    others = [pid for pid in pids_of(server, "spawn_main") if pid != starter]
    os.kill(starter if has_started_ray else others[0], signal.SIGKILL)


@contextmanager
def serving(
    folder: Path,
    happen: Callable[[Server], None],
    *,
    replicas: int = 1,
    workers: int = 1,
    backend: str = "ray",
    after_s: float = 25.0,
    is_last: bool = False,
) -> Iterator[Scene]:
    """Serve a policy without memory, for a fault."""
    home = compiled_home_of(EXPORT, folder / "home")
    environment = {
        "TMPDIR": str(folder),
        "POLICY_SERVER_NUM_REPLICAS": str(replicas),
        "POLICY_SERVER_BACKEND": backend,
    }
    arguments = [] if workers == 1 else ["--workers", str(workers)]
    with running_server(home, *arguments, environment=environment) as server:
        server.child.wait_until(lambda: server.output().count("startup complete") == workers)
        loads = {"": Load(server.url, modes())}
        yield Scene(server, loads, partial(happen, server), is_last, after_s)


def _fault(told: str, happen: Callable[[Server], None], **options: Any) -> Fault:  # noqa: ANN401 -- those of `serving`
    return Fault(told, partial(serving, happen=happen, **options))


_ALL = ("ray::", _RAYLET, _GCS)
_STARTER = partial(_web_process, has_started_ray=True)
_OTHER = partial(_web_process, has_started_ray=False)
_STOP = signal.SIGSTOP

FAULTS = {
    "replica": _fault("one of two replicas killed", killed("ServeReplica", most=1), replicas=2),
    "replicas": _fault("both replicas killed", killed("ServeReplica"), replicas=2),
    "frozen": _fault("one of two replicas stopped for 8 s", _still_for_a_while, replicas=2),
    "controller": _fault("Ray Serve's controller killed", killed("ServeController")),
    "raylet": _fault("Ray's raylet killed", killed(_RAYLET)),
    "raylet-term": _fault(
        "Ray's raylet killed, and SIGTERM at once", _raylet_and_server, is_last=True
    ),
    "gcs": _fault("Ray's GCS killed", killed(_GCS)),
    "both": _fault("raylet and GCS killed", killed(_GCS, _RAYLET)),
    "agent": _fault("Ray's dashboard agent killed", killed("DashboardAgent")),
    "guard": _fault("the guard of Ray killed", killed("ray_guard")),
    "all": _fault("raylet and both replicas killed", killed(_RAYLET, "ray::"), replicas=2),
    "whole": _fault("raylet, GCS and both replicas killed", killed(*_ALL), replicas=2),
    "raylet-still": _fault("raylet stopped", killed(_RAYLET, number=_STOP), after_s=40),
    "gcs-still": _fault("GCS stopped", killed(_GCS, number=_STOP), after_s=40),
    "both-still": _fault("raylet and GCS stopped", killed(_GCS, _RAYLET, number=_STOP), after_s=40),
    "starter": _fault("one of two web processes killed, which started Ray", _STARTER, workers=2),
    "worker": _fault("one of two web processes killed, the other one", _OTHER, workers=2),
}
