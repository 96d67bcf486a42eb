"""A fault under load, from the start of its servers to its lines of the table."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.faults.expectations import TARGET, Counts, Course, Expectation
from tests.faults.load import OK, Load
from tests.support.processes import command_line, descendants, is_running
from tests.support.server_processes import Server
from tests.support.servers import status_of
from tests.support.waiting import wait_until

__all__ = ["HEADS", "Fault", "Measured", "Scene", "measure", "row", "running_in"]

COUNTS = ("fault", "requests", "answered", "503", "failed", "wrong", "lost")
TIMES = ("slowest", "last trouble", "ready again", "stop", "left behind")
HEADS = (*COUNTS, *TIMES)
_BEFORE_S = 3.0
_AFTER_S = 25.0
_STOP_TIMEOUT_S = 90.0
_LOOK_EVERY_S = 0.1


@dataclass
class Scene:
    """A server under load, and what happens to it.

    Attributes:
        server: the server whose readiness and end are measured; the fault may start another.
        loads: the clients, by what they are called in the table.
        happen: the fault.
        is_last: whether the fault ends the server.
        after_s: how long the load goes on afterwards, in seconds.
        further: returns lines of tables that this fault alone has, after the end.
    """

    server: Server
    loads: Mapping[str, Load]
    happen: Callable[[], None]
    is_last: bool = False
    after_s: float = _AFTER_S
    further: Callable[[], list[str]] = list


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        told: its name in the table.
        staged: starts the servers in a folder, and ends them.
        expected: what must hold.
    """

    told: str
    staged: Callable[[Path], AbstractContextManager[Scene]]
    expected: Expectation = TARGET


class Measured(NamedTuple):
    """What was measured of a fault.

    Attributes:
        lines: its lines of the table.
        further: lines of tables of its own.
        broken: what of its expectation did not hold, in words.
    """

    lines: list[str]
    further: list[str]
    broken: list[str]


def row(cells: Iterable[object]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def measure(fault: Fault) -> Measured:
    """Let a fault happen under load, and return what was measured."""
    # Ray's sockets lie in there, whose paths have to be short.
    with tempfile.TemporaryDirectory(prefix="f") as place:
        folder = Path(place)
        with fault.staged(folder) as scene:
            course = _course(scene, folder)
            course.left = _left(course.pids, folder)
        counts = {name: Counts.of(load.sent, course.happened) for name, load in scene.loads.items()}
        lines = [
            _line(
                fault.told if len(counts) == 1 else f"{fault.told}: {name}",
                counted,
                course,
                is_last=scene.is_last,
            )
            for name, counted in counts.items()
        ]
        broken = [f"{fault.told}: {each}" for each in fault.expected.broken_by(counts, course)]
        return Measured(lines, scene.further(), broken)


def _course(scene: Scene, folder: Path) -> Course:
    first = scene.server.process
    with ExitStack() as asking:
        for load in scene.loads.values():
            asking.enter_context(load.running())
        time.sleep(_BEFORE_S)
        course = Course(time.monotonic(), pids=_pids_of(scene, folder))
        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(_look, scene, course)
            scene.happen()
            if scene.is_last:
                first.wait(_STOP_TIMEOUT_S)
                course.stop_s = time.monotonic() - course.happened
            looking.result()
    if not scene.is_last:
        course.pids |= _pids_of(scene, folder)
        stopped = time.monotonic()
        scene.server.process.terminate()
        scene.server.process.wait(_STOP_TIMEOUT_S)
        course.stop_s = time.monotonic() - stopped
    # Those that it has left may have begun in the course of the stop.
    course.pids |= set(running_in(folder))
    return course


def _look(scene: Scene, course: Course) -> None:
    """See which processes there are, and whether the server is ready, from the fault on."""
    until = course.happened + (_STOP_TIMEOUT_S if scene.is_last else scene.after_s)
    while time.monotonic() < until:
        pid = scene.server.process.pid
        course.pids |= {pid, *descendants(pid)}
        if scene.is_last:
            if not is_running(pid):
                return
        elif status_of(f"{scene.server.url}/readyz") != OK:
            course.ready_s = time.monotonic() - course.happened
        time.sleep(_LOOK_EVERY_S)


def _pids_of(scene: Scene, folder: Path) -> set[int]:
    """Return the server's processes, of which some are below no other once that has died."""
    pid = scene.server.process.pid
    return {pid, *descendants(pid), *running_in(folder)}


def running_in(folder: Path) -> list[int]:
    """Return the processes that were started with a folder for temporary files."""
    variable = f"TMPDIR={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        # Other users' can't be read, nor those of processes that have ended.
        with suppress(OSError):
            if variable in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def _left(pids: set[int], folder: Path) -> list[str]:
    """Return the processes and folders that are still there three seconds after the end."""
    with suppress(AssertionError):
        wait_until(
            lambda: not any(map(is_running, pids)) and not list(folder.glob("ps-ray-*")),
            timeout_s=3,
        )
    processes = [command_line(pid)[:30] for pid in pids if is_running(pid)]
    return [*processes, *(path.name for path in folder.glob("ps-*"))]


def _line(told: str, counts: Counts, course: Course, *, is_last: bool) -> str:
    trouble_s = counts.last_trouble_s
    cells: Sequence[object] = (
        told,
        f"{counts.requests:,}",
        f"{counts.answered:,}",
        counts.refused,
        counts.failed,
        counts.wrong,
        counts.lost,
        f"{counts.slowest_s:.2f} s",
        "none" if trouble_s is None else f"{trouble_s:.1f} s",
        _ready(course, is_last=is_last),
        f"{course.stop_s:.1f} s",
        ", ".join(course.left) or "nothing",
    )
    return row(cells)


def _ready(course: Course, *, is_last: bool) -> str:
    if is_last:
        return "-"
    return "always" if not course.ready_s else f"{course.ready_s:.1f} s"
