"""A fault under load, from the start of its servers to its lines of the table."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.load import OK, Load
from tests.support.processes import command_line, descendants, is_running
from tests.support.server_processes import Server
from tests.support.servers import status_of
from tests.support.waiting import wait_until

__all__ = ["HEADS", "Fault", "Scene", "measure"]

COUNTS = ("fault", "requests", "answered", "503", "failed", "wrong", "lost")
TIMES = ("slowest", "last trouble", "ready again", "stop", "left behind")
HEADS = (*COUNTS, *TIMES)
_BEFORE_S = 3.0
_AFTER_S = 25.0
_STOP_TIMEOUT_S = 90.0
_UNAVAILABLE = 503
_SUCCESSES = range(200, 300)


@dataclass
class Scene:
    """A server under load, and what happens to it.

    Attributes:
        server: the server whose readiness and end are measured; the fault may start another.
        loads: the clients, by what they are called in the table.
        happen: the fault.
        is_last: whether the fault ends the server.
        after_s: how long the load goes on afterwards, in seconds.
    """

    server: Server
    loads: Mapping[str, Load]
    happen: Callable[[], None]
    is_last: bool = False
    after_s: float = _AFTER_S


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        told: its name in the table.
        staged: starts the servers in a folder, and ends them.
    """

    told: str
    staged: Callable[[Path], AbstractContextManager[Scene]]


@dataclass
class Course:
    """What was seen of a server from the fault to its end, in seconds after the fault."""

    happened: float
    ready_s: float = 0.0
    stop_s: float = 0.0
    pids: set[int] = field(default_factory=set)


def measure(fault: Fault) -> list[str]:
    """Let a fault happen under load, and return its lines of the table."""
    # Ray's sockets lie in there, whose paths have to be short.
    with tempfile.TemporaryDirectory(prefix="f") as place:
        folder = Path(place)
        with fault.staged(folder) as scene:
            course = _course(scene)
            left = _left(course.pids, folder)
        names = list(scene.loads)
        told = [fault.told if len(names) == 1 else f"{fault.told}: {name}" for name in names]
        return [
            _line(told, load, course, left, is_last=scene.is_last)
            for told, load in zip(told, scene.loads.values(), strict=True)
        ]


def _course(scene: Scene) -> Course:
    first = scene.server.process
    with ExitStack() as asking:
        for load in scene.loads.values():
            asking.enter_context(load.running())
        time.sleep(_BEFORE_S)
        course = Course(time.monotonic(), pids={first.pid, *descendants(first.pid)})
        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(_look, scene, course)
            scene.happen()
            looking.result()
        if scene.is_last:
            first.wait(_STOP_TIMEOUT_S)
            course.stop_s = time.monotonic() - course.happened
    if not scene.is_last:
        stopped = time.monotonic()
        scene.server.process.terminate()
        scene.server.process.wait(_STOP_TIMEOUT_S)
        course.stop_s = time.monotonic() - stopped
    return course


def _look(scene: Scene, course: Course) -> None:
    """See whether the server is ready, from the fault on."""
    while not scene.is_last and time.monotonic() < course.happened + scene.after_s:
        if status_of(f"{scene.server.url}/readyz") != OK:
            course.ready_s = time.monotonic() - course.happened
        course.pids |= {scene.server.process.pid, *descendants(scene.server.process.pid)}
        time.sleep(0.1)


def _left(pids: set[int], folder: Path) -> str:
    """Return what is still there three seconds after the end."""
    with suppress(AssertionError):
        wait_until(
            lambda: not any(map(is_running, pids)) and not list(folder.glob("ps-ray-*")),
            timeout_s=3,
        )
    processes = [command_line(pid)[:30] for pid in pids if is_running(pid)]
    return ", ".join([*processes, *(path.name for path in folder.glob("ps-*"))]) or "nothing"


def _line(told: str, load: Load, course: Course, left: str, *, is_last: bool) -> str:
    statuses = [asked.status for asked in load.sent]
    answered = sum(status in _SUCCESSES for status in statuses)
    known = answered + statuses.count(_UNAVAILABLE) + statuses.count(0)
    troubles = [
        asked.at + asked.seconds - course.happened
        for asked in load.sent
        if asked.status not in _SUCCESSES
    ]
    cells: Sequence[object] = (
        told,
        f"{len(load.sent):,}",
        f"{answered:,}",
        statuses.count(_UNAVAILABLE),
        len(statuses) - known,
        sum(not asked.is_right for asked in load.sent),
        statuses.count(0),
        f"{max(asked.seconds for asked in load.sent):.2f} s",
        "none" if not troubles else f"{max(troubles):.1f} s",
        _ready(course, is_last=is_last),
        f"{course.stop_s:.1f} s",
        left,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _ready(course: Course, *, is_last: bool) -> str:
    if is_last:
        return "-"
    return "always" if not course.ready_s else f"{course.ready_s:.1f} s"
