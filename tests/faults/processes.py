"""Parts of a server that die or stand still."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.expectations import TARGET, Expectation, Limits, connections_lost
from tests.faults.load import EXPORT, Load, modes
from tests.faults.measuring import Fault, Scene, temporary
from tests.support.processes import command_line, descendants
from tests.support.server_processes import Server, compiled_home_of, running_server
from tests.support.waiting import wait_until

__all__ = ["FAULTS", "killed", "pids_of", "serving", "stand_still"]

_STILL_S = 8.0
# What one of two replicas that stands still may cost a request.
_FROZEN_S = 2.0
# uvicorn ends a worker that has told nothing for five seconds.
_WORKER_STILL_S = 3.0
_WORKER_ENDS_S = 8.0
# How long a machine that is busy takes to let a process go on.
_WAKES_S = 2.0
_RAYLET, _GCS = "raylet/raylet", "gcs_server"
_REPLICA, _CONTROLLER = "ServeReplica", "ServeController"
_AGENTS = _AGENT, _ = "ray::DashboardAgent", "ray::RuntimeEnvAgent"
_CONNECTED = '"replica_connected"'
# What is stopped has to be so before what follows.
_STOPPED_BEFORE_S = 0.5


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


def _still(words: str, *, most: int = 99) -> Callable[[Server], None]:
    """Return the fault that lets processes stand still, and go on, by words of their lines."""

    def happen(server: Server) -> None:
        found = pids_of(server, words)[:most]
        assert found, f"no process {words}"
        stand_still(found, _STILL_S)

    return happen


def stand_still(pids: Sequence[int], seconds: float) -> None:
    """Let processes stand still for a while; the server may end them meanwhile.

    Args:
        pids: their ids.
        seconds: how long.
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _controller_and_replica(server: Server) -> None:
    """Stop Ray Serve's controller for good, and kill the only replica."""
    killed(_CONTROLLER, number=signal.SIGSTOP)(server)
    time.sleep(_STOPPED_BEFORE_S)
    killed(_REPLICA)(server)


def _replica_and_next(server: Server) -> None:
    """Kill the only replica, and stop the next one for good while it starts."""
    before = pids_of(server, _REPLICA)
    killed(_REPLICA)(server)
    [pid] = wait_until(lambda: set(pids_of(server, _REPLICA)) - {*before}, pause_s=0.001)
    os.kill(pid, signal.SIGSTOP)
    assert server.output().count(_CONNECTED) == 1, "it was connected before it was stopped"


def _agents_and_replica(server: Server) -> None:
    """Stop the raylet's two agents for good, and kill the only replica."""
    killed(*_AGENTS, number=signal.SIGSTOP)(server)
    time.sleep(_STOPPED_BEFORE_S)
    killed(_REPLICA)(server)


def _raylet_and_server(server: Server) -> None:
    """Kill the raylet, and stop the server while it starts the next Ray."""
    killed(_RAYLET)(server)
    server.child.wait_until(lambda: '"ray_lost"' in server.output())
    server.process.terminate()


def _folders_and_server(server: Server) -> None:
    """Remove all temporary folders of a server, and stop it."""
    for path in _rays_folder(server).parent.glob("ps-*"):
        shutil.rmtree(path)
    server.process.terminate()


def _without_folder(server: Server, *, number: int | None = None, is_all: bool = False) -> None:
    """Remove Ray's folder, as what clears temporary folders does, and kill the only replica.

    Args:
        server: the server.
        number: of the signal that the server gets then; None for none.
        is_all: whether the folders that web processes share are removed too.
    """
    folder = _rays_folder(server)
    for path in folder.parent.glob("ps-*") if is_all else [folder]:
        shutil.rmtree(path)
    killed(_REPLICA)(server)
    if number is not None:
        os.kill(server.process.pid, number)


def _rays_folder(server: Server) -> Path:
    """Return the folder of a server's Ray."""
    [guard] = pids_of(server, "ray_guard")
    return Path(command_line(guard).split()[-1])


def _web_process(server: Server, *, has_started_ray: bool) -> int:
    """Return a web process: the one that has started Ray, or the other."""
    [event] = [line for line in server.output().splitlines() if '"event": "ray_started"' in line]
    starter = json.loads(event)["pid"]
    others = [pid for pid in pids_of(server, "spawn_main") if pid != starter]
    return int(starter) if has_started_ray else others[0]


def _kill_web_process(server: Server, *, has_started_ray: bool) -> None:
    os.kill(_web_process(server, has_started_ray=has_started_ray), signal.SIGKILL)


def _still_web_process(server: Server, *, has_started_ray: bool, seconds: float) -> None:
    stand_still([_web_process(server, has_started_ray=has_started_ray)], seconds)


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
        "TMPDIR": str(temporary(folder)),
        "POLICY_SERVER_NUM_REPLICAS": str(replicas),
        "POLICY_SERVER_BACKEND": backend,
    }
    arguments = [] if workers == 1 else ["--workers", str(workers)]
    with running_server(home, *arguments, environment=environment) as server:
        server.child.wait_until(lambda: server.output().count("startup complete") == workers)
        if backend == "ray":
            # A replica or an agent that starts later would be spared.
            connections = replicas * workers
            server.child.wait_until(lambda: server.output().count(_CONNECTED) >= connections)
            server.child.wait_until(lambda: pids_of(server, _AGENT))
        loads = {"": Load(server.url, modes())}
        yield Scene(server, loads, partial(happen, server), is_last, after_s)


def _fault(
    told: str,
    happen: Callable[[Server], None],
    limits: Limits | None = None,
    **options: Any,  # noqa: ANN401 -- those of `serving`
) -> Fault:
    expected = TARGET if limits is None else Expectation({"": limits})
    return Fault(told, partial(serving, happen=happen, **options), expected)


def _workers_fault(
    told: str, happen: Callable[..., None], limits: Limits, **options: float
) -> dict[str, Fault]:
    """Return the fault of the web process that has started Ray, and that of the other."""
    whose = {"starter": "which started Ray", "worker": "the other one"}
    return {
        name: _fault(
            f"one of two web processes {told}, {which}",
            partial(happen, has_started_ray=name == "starter", **options),
            limits,
            workers=2,
        )
        for name, which in whose.items()
    }


_ALL = ("ray::", _RAYLET, _GCS)
_STOP = signal.SIGSTOP
_KILLED = _workers_fault("killed", _kill_web_process, connections_lost())
_FROZEN = _workers_fault(
    f"stopped for {_WORKER_STILL_S:g} s",
    _still_web_process,
    Limits(slowest_s=_WORKER_STILL_S + _WAKES_S),
    seconds=_WORKER_STILL_S,
)
_HUNG = _workers_fault(
    f"stopped for {2 * _STILL_S:g} s",
    _still_web_process,
    connections_lost(within_s=_WORKER_ENDS_S, slowest_s=_WORKER_ENDS_S),
    seconds=2 * _STILL_S,
)

FAULTS = {
    "replica": _fault("one of two replicas killed", killed(_REPLICA, most=1), replicas=2),
    "replicas": _fault("both replicas killed", killed(_REPLICA), replicas=2),
    "frozen": _fault(
        f"one of two replicas stopped for {_STILL_S:g} s",
        _still(_REPLICA, most=1),
        Limits(slowest_s=_FROZEN_S),
        replicas=2,
    ),
    "frozen-all": _fault(f"both replicas stopped for {_STILL_S:g} s", _still(_REPLICA), replicas=2),
    "frozen-for-good": _fault(
        "both replicas stopped", killed(_REPLICA, number=_STOP), replicas=2, after_s=50
    ),
    "controller": _fault("Ray Serve's controller killed", killed(_CONTROLLER)),
    "controller-frozen": _fault(
        f"Ray Serve's controller stopped for {_STILL_S:g} s", _still(_CONTROLLER)
    ),
    "controller-still": _fault(
        "Ray Serve's controller stopped, and the only replica killed",
        _controller_and_replica,
        after_s=40,
    ),
    "starting-still": _fault(
        "the only replica killed, and the next one stopped while it starts",
        _replica_and_next,
        after_s=40,
    ),
    "raylet": _fault("Ray's raylet killed", killed(_RAYLET)),
    "raylet-term": _fault(
        "Ray's raylet killed, and SIGTERM at once", _raylet_and_server, is_last=True
    ),
    "gcs": _fault("Ray's GCS killed", killed(_GCS)),
    "both": _fault("raylet and GCS killed", killed(_GCS, _RAYLET)),
    "folder": _fault("Ray's folder removed, and the only replica killed", _without_folder),
    "folder-workers": _fault(
        "Ray's folder removed and the only replica killed, two web processes",
        _without_folder,
        workers=2,
    ),
    "folder-term": _fault(
        "Ray's folder removed, the only replica killed, and SIGTERM at once",
        partial(_without_folder, number=signal.SIGTERM),
        is_last=True,
    ),
    "folder-kill": _fault(
        "Ray's folder removed, and its only replica and the server killed",
        partial(_without_folder, number=signal.SIGKILL),
        connections_lost(),
        is_last=True,
    ),
    "folders-workers": _fault(
        "all temporary folders removed and the only replica killed, two web processes",
        partial(_without_folder, is_all=True),
        workers=2,
    ),
    "folders-term": _fault(
        "all temporary folders removed, and SIGTERM at once, two web processes",
        _folders_and_server,
        workers=2,
        is_last=True,
    ),
    "folders-kill": _fault(
        "all temporary folders removed, the replica and the parent of two web processes killed",
        partial(_without_folder, is_all=True, number=signal.SIGKILL),
        connections_lost(),
        workers=2,
        is_last=True,
    ),
    "agent": _fault("Ray's dashboard agent killed", killed(_AGENT)),
    "agent-frozen": _fault(f"Ray's dashboard agent stopped for {_STILL_S:g} s", _still(_AGENT)),
    "agents-still": _fault(
        "Ray's agents stopped, and the only replica killed", _agents_and_replica, after_s=40
    ),
    "guard": _fault("the guard of Ray killed", killed("ray_guard")),
    "guard-still": _fault("the guard of Ray stopped", killed("ray_guard", number=_STOP)),
    "all": _fault("raylet and both replicas killed", killed(_RAYLET, "ray::"), replicas=2),
    "whole": _fault("raylet, GCS and both replicas killed", killed(*_ALL), replicas=2),
    "raylet-still": _fault("raylet stopped", killed(_RAYLET, number=_STOP), after_s=40),
    "gcs-still": _fault("GCS stopped", killed(_GCS, number=_STOP), after_s=40),
    "both-still": _fault("raylet and GCS stopped", killed(_GCS, _RAYLET, number=_STOP), after_s=40),
    **_KILLED,
    **{f"{name}-frozen": fault for name, fault in _FROZEN.items()},
    **{f"{name}-hung": fault for name, fault in _HUNG.items()},
}
