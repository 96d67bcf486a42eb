"""A fault under load, from the start of its servers to its lines of the table."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

__all__ = [
    "HEADS",
    "Fault",
    "Measured",
    "Scene",
    "left_in",
    "measure",
    "row",
    "running_in",
    "temporary",
]

COUNTS = ("fault", "requests", "answered", "503", "failed", "wrong", "lost")
TIMES = ("slowest", "last trouble", "ready again", "stop", "left behind")
HEADS = (*COUNTS, *TIMES)
_BEFORE_S = 3.0
_AFTER_S = 25.0
_STOP_TIMEOUT_S = 90.0
_LOOK_EVERY_S = 0.1
_LEFT_AFTER_S = 3.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- looked at, never written
# As the scenes name them.
_HOMES = ("home", "other")


@dataclass
class Scene:
    """A server under load, and what happens to it.

    Attributes:
        server: the server whose readiness and end are measured; the fault may start another.
        loads: the clients, by what they are called in the table.
        happen: the fault.
        is_last: whether the fault ends the server.
        after_s: how long the load goes on after the fault begins, in seconds; never less than the
            fault takes.
        further: returns lines of tables that this fault alone has, after the end.
        broken: returns what did not hold of that, in words.
    """

    server: Server
    loads: Mapping[str, Load]
    happen: Callable[[], None]
    is_last: bool = False
    after_s: float = _AFTER_S
    further: Callable[[], list[str]] = list
    broken: Callable[[], list[str]] = list


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
        temporary(folder).mkdir()
        shared = _names_in(_SHARED_MEMORY)
        with fault.staged(folder) as scene:
            homes = _files_of_homes(folder)
            course = _course(scene, folder)
            course.left = left_in(folder, course.pids, homes, shared)
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
        missed = [*fault.expected.broken_by(counts, course), *scene.broken()]
        broken = [f"{fault.told}: {each}" for each in missed]
        return Measured(lines, scene.further(), broken)


def _course(scene: Scene, folder: Path) -> Course:
    first = scene.server.process
    with ExitStack() as asking:
        for load in scene.loads.values():
            asking.enter_context(load.running())
        time.sleep(_BEFORE_S)
        # On a busy machine it takes seconds to find them, which are none of the fault's.
        pids = _pids_of(scene, folder)
        course = Course(time.monotonic(), pids=pids)
        has_happened = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(_look, scene, course, has_happened)
            try:
                scene.happen()
            finally:
                has_happened.set()
            if scene.is_last:
                course.status = first.wait(_STOP_TIMEOUT_S)
                course.stop_s = time.monotonic() - course.happened
            looking.result()
    if not scene.is_last:
        course.pids |= _pids_of(scene, folder)
        stopped = time.monotonic()
        scene.server.process.terminate()
        course.status = scene.server.process.wait(_STOP_TIMEOUT_S)
        course.stop_s = time.monotonic() - stopped
    # Those that it has left may have begun in the course of the stop.
    course.pids |= set(running_in(folder))
    return course


def _look(scene: Scene, course: Course, has_happened: threading.Event) -> None:
    """See which processes there are, and whether the server is ready, from the fault on."""
    until = course.happened + (_STOP_TIMEOUT_S if scene.is_last else scene.after_s)
    while time.monotonic() < until or not has_happened.is_set():
        pid = scene.server.process.pid
        # The number of one that has ended may be another program's a minute later.
        course.pids = {*filter(is_running, course.pids), pid, *descendants(pid)}
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


def temporary(folder: Path) -> Path:
    """Return the folder for temporary files of a scene's servers, by a name as short as can be."""
    return folder / "t"


def running_in(folder: Path) -> list[int]:
    """Return the processes of a scene's servers, whatever is above them.

    They were started with its folder for temporary files, or have a file open there or in a home
    folder, or run there: Ray's processes write their titles over their variables. This one is none.

    Args:
        folder: the scene's.
    """
    variable = f"TMPDIR={temporary(folder)}".encode()
    places = [temporary(folder), *(folder / name for name in _HOMES)]
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        # Other users' can't be read, nor those of processes that have ended.
        with suppress(OSError):
            if int(path.name) != os.getpid() and (
                variable in (path / "environ").read_bytes().split(b"\0")
                or any(each.is_relative_to(place) for each in _open_files(path) for place in places)
            ):
                found.append(int(path.name))
    return found


def _open_files(process: Path) -> Iterator[Path]:
    """Give the files that a process has open, and the folder that it runs in."""
    for link in (process / "cwd", *(process / "fd").iterdir()):
        # It may be closed by now.
        with suppress(OSError):
            yield link.readlink()


def _files_of_homes(folder: Path) -> set[Path]:
    """Return the files and folders in the home folders of a scene's servers."""
    return {path for name in _HOMES for path in (folder / name).rglob("*")}


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def left_in(folder: Path, pids: set[int], homes: set[Path], shared: set[str]) -> list[str]:
    """Return what a scene's servers have left three seconds after their end.

    Args:
        folder: the scene's. All in its folder for temporary files is left behind, such as Ray's
            folders, sockets and locks.
        pids: the ids of processes that ever were theirs; those in the folder are added.
        homes: the files that were in their home folders before; others are left behind.
        shared: the names of files in shared memory before. Others are left behind, unless a process
            has them: other programs of this machine may have made those.

    Returns:
        Command lines of processes, and paths.
    """

    def find() -> list[str]:
        processes = {*filter(is_running, pids), *running_in(folder)}
        files = [
            *temporary(folder).iterdir(),
            *sorted(_files_of_homes(folder) - homes),
        ]
        return [
            *(command_line(pid)[:30] for pid in sorted(processes)),
            *(path.relative_to(folder).as_posix() for path in files),
            *sorted(_unused_shared_memory(shared)),
        ]

    with suppress(AssertionError):
        wait_until(lambda: not find(), timeout_s=_LEFT_AFTER_S)
    return find()


def _unused_shared_memory(before: set[str]) -> set[str]:
    """Return the files in shared memory that were not there before and that no process has."""
    made = {str(_SHARED_MEMORY / name) for name in _names_in(_SHARED_MEMORY) - before}
    for process in Path("/proc").glob("[0-9]*") if made else ():
        with suppress(OSError):
            made -= {*map(str, _open_files(process))}
            mapped = (process / "maps").read_text()
            made = {path for path in made if path not in mapped}
    return made


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
