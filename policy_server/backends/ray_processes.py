"""Ray's processes on this machine: none is left behind.

Ray's raylet ends the processes below it. Where the raylet, the GCS (Ray's store) or the server was
killed, others stay: they are found by the files that they have open in their Ray's folder.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from policy_server.files.shared_folders import beginning_of

__all__ = [
    "GUARD",
    "RAYS_OWN",
    "Process",
    "ProcessUse",
    "UseOf",
    "agents_in",
    "end_ray_in",
    "make_rays_folder",
    "parent_of",
    "rays_of",
    "remove_dead_rays",
    "server_of",
    "stop_of",
    "use_of",
    "worker_title",
]

# The module of the process that ends what a killed server has left.
GUARD = "policy_server.backends.ray_guard"

# Ray's own folder, in that of `make_rays_folder`.
RAYS_OWN = "r"

_PREFIX = "ps-ray-"
# As `tempfile.mkdtemp` completes it. A folder that a person has named is nobody's Ray.
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")
_SERVER = "server"
# A folder without a note that is younger may be one that a server is just making.
_MADE_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.02
_END_TIMEOUT_S = 5.0
# The raylet's two agents: one has Ray's metrics, one makes environments for workers.
_AGENTS = (b"/ray/dashboard/agent.py\0", b"/ray/_private/runtime_env/agent/main.py\0")
# The titles that Ray's Python processes give themselves, and where its own programs lie.
_TITLES = (
    *(b"ray::", b"/ray/core/src/ray/", b"/ray/dashboard/"),
    *(b"/ray/_private/runtime_env/agent/", b"/ray/_private/workers/default_worker.py"),
)
# Those of the raylet's agents once they run, and of its other children: its workers.
_AGENTS_TITLES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_WORKERS_TITLE = re.compile("ray::|.*/ray/_private/workers/")
_GUARDS_TITLE = f"{GUARD}\0".encode()
_RAYLETS_TITLE = b"/ray/core/src/ray/raylet/"
# How often a process has left a processor, by itself or for others (proc(5)).
_SWITCHES = re.compile(r"ctxt_switches:\t(\d+)")


@dataclass(frozen=True)
class ProcessUse:
    """The use that a process makes of the machine.

    Attributes:
        is_stopped: whether a signal has stopped it.
        is_ready: whether its main thread computes, or waits for nothing but a processor.
        processor_s: for how long its threads have computed so far, in seconds.
    """

    is_stopped: bool
    is_ready: bool
    processor_s: float


# None where nobody can tell.
UseOf = Callable[[int], ProcessUse | None]


@dataclass(frozen=True)
class Process:
    """A process of this machine.

    Attributes:
        pid: its number.
        beginning: when it began, which tells it from later ones of its number.
    """

    pid: int
    beginning: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return a process that runs; one that has ended already never runs again."""
        return cls(pid, beginning_of(pid) or "")

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the process that `str` has written."""
        pid, _, beginning = text.partition(" ")
        return cls(int(pid), beginning)

    def __str__(self) -> str:
        """Return its number and its beginning."""
        return f"{self.pid} {self.beginning}"

    def is_running(self) -> bool:
        """Return whether it has not ended; one that nobody has waited for yet has ended."""
        return beginning_of(self.pid) == self.beginning and _state_of(self.pid) != "Z"

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended.

        Args:
            number: the signal's, such as `SIGSTOP`.
        """
        if self.is_running():
            with suppress(OSError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, unless it has ended."""
        self.signal(signal.SIGKILL)


def _server_file() -> str:
    """Return the name of the file that says which process a Ray may not outlive.

    Containers that share a temporary folder count processes apart: each sees its own Rays alone.
    """
    try:
        return f"{_SERVER}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return _SERVER


def make_rays_folder(server: int) -> Path:
    """Make the folder of a Ray.

    Args:
        server: the process that the Ray may not outlive.

    Raises:
        OSError: if the disk is full; no folder is left then.
    """
    # Ray opens its own folder to everybody; the one around it is this user's alone. Sockets
    # lie there, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        (folder / _server_file()).write_text(str(Process.of(server)))
    except OSError:
        # Nobody could tell any more whose it is.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def server_of(folder: Path) -> Process:
    """Return the process that a Ray may not outlive.

    Args:
        folder: as `make_rays_folder` returned it.

    Raises:
        OSError, ValueError: if the folder does not say.
    """
    return Process.read((folder / _server_file()).read_text())


def remove_dead_rays() -> None:
    """Remove what servers that have ended have left: folders of Ray's, and processes."""
    for folder in _folders():
        if _is_left(folder):
            end_ray_in(folder)


def rays_of(server: int) -> list[Path]:
    """Return the folders of all Rays that may not outlive a process.

    Args:
        server: the process's id.
    """
    wanted = Process.of(server)
    found = []
    for folder in _folders():
        with suppress(OSError, ValueError):
            if server_of(folder) == wanted:
                found.append(folder)
    return found


def _folders() -> Iterator[Path]:
    """Yield this user's folders that have the name of a Ray's."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            found = path.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if is_ours and _NAME.fullmatch(path.name):
                yield path


def _is_left(folder: Path) -> bool:
    """Return whether the server of a Ray's folder has ended."""
    try:
        return not server_of(folder).is_running()
    except (OSError, ValueError):
        return _is_left_without_note(folder)


def _is_left_without_note(folder: Path) -> bool:
    """Return whether a folder that does not say whose it is was left by a server that has ended.

    Agents that are left make their Ray's folder again where it was removed. A server that runs has
    lost the note where a program that clears temporary files has taken it.
    """
    try:
        names = {entry.name for entry in folder.iterdir()}
        age_s = time.time() - folder.stat().st_mtime
    except OSError:
        # It has just been removed.
        return False
    # Of a container that shares the temporary folder.
    is_others = any(name.startswith(_SERVER) for name in names - {_server_file()})
    is_rays = bool(names & {RAYS_OWN, _server_file()})
    if is_others or not is_rays or age_s < _MADE_WITHIN_S:
        return False
    titles = [title for _, title in _processes_in(folder)]
    if any(_GUARDS_TITLE in title or _RAYLETS_TITLE in title for title in titles):
        return False
    # Without either it may be that of another container, whose processes can't be seen.
    return bool(titles) or _server_file() in names


def end_ray_in(folder: Path) -> None:
    """End a Ray's processes that are left, and remove its folder.

    Where some don't end within their bound, the log names them, and the folder stays: it says
    whose they are, and the next start tries again.

    Args:
        folder: as `make_rays_folder` returned it.
    """
    killed = _killed_in(folder)
    # From here on: on a busy machine the first look alone may take longer.
    deadline = time.monotonic() + _END_TIMEOUT_S
    while killed and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
        # Those that are known need no look at all processes of the machine.
        killed = [process for process in killed if process.is_running()] or _killed_in(folder)
    if not killed:
        shutil.rmtree(folder, ignore_errors=True)
        return
    # Only here: the guard, of which there is one for each Ray, does without.
    import logging

    left = {"folder": str(folder), "pids": [process.pid for process in killed]}
    logging.getLogger(__name__).warning("ray_processes_left", extra=left)


def _killed_in(folder: Path) -> list[Process]:
    """Kill a Ray's processes, each as soon as it is found, and return them."""
    killed = []
    for process, _ in _processes_in(folder):
        process.kill()
        killed.append(process)
    return killed


def agents_in(folder: Path) -> list[int]:
    """Return the processes of a Ray's agents that have not given themselves a title yet.

    Args:
        folder: Ray's own, in that of `make_rays_folder`.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title = (path / "cmdline").read_bytes()
            if f"{folder}{os.sep}".encode() in title and any(name in title for name in _AGENTS):
                found.append(int(path.name))
    return found


def _processes_in(folder: Path) -> Iterator[tuple[Process, bytes]]:
    """Yield Ray's processes, zombies apart, that use a folder, and its guard; each with its title.

    Open files are looked at only where a title is one of Ray's: a machine has many processes.
    """
    place = f"{folder}{os.sep}"
    guards_end = f"\0{folder}\0".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title = (path / "cmdline").read_bytes()
            is_rays = any(word in title for word in _TITLES) and (
                # An agent or a worker that still imports has nothing open yet.
                place.encode() in title or _has_open(path, place)
            )
            is_guard = _GUARDS_TITLE in title and title.endswith(guards_end)
            if (is_rays or is_guard) and int(path.name) != os.getpid():
                yield Process.of(int(path.name)), title


def _has_open(process: Path, place: str) -> bool:
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):
            if str(descriptor.readlink()).startswith(place):
                return True
    return False


def use_of(pid: int) -> ProcessUse | None:
    """Return the use that a process makes of the machine; None where nobody can tell.

    Args:
        pid: the process's id.
    """
    if not (fields := _fields_of(pid)):
        return None
    ticks = int(fields[11]) + int(fields[12])
    return ProcessUse(fields[0] == "T", fields[0] == "R", ticks / os.sysconf("SC_CLK_TCK"))


def stop_of(pid: int) -> str:
    """Return the stop in which a signal (SIGSTOP) holds a process: a word of its own for each stop.

    Args:
        pid: the process's id.

    Returns:
        The word stays the same until the process goes on. It is empty where the process is not
        stopped, where a debugger holds it, and where nobody can tell.
    """
    fields = _fields_of(pid)
    if not fields or fields[0] != "T":
        return ""
    try:
        # The processor time alone is counted in ticks, and one may go on for less.
        switches = _SWITCHES.findall(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return ""
    return " ".join([fields[19], fields[11], fields[12], *switches])


def parent_of(pid: int) -> int:
    """Return the id of a process's parent; 0 where nobody can tell.

    Args:
        pid: the process's id.
    """
    return int(fields[1]) if (fields := _fields_of(pid)) else 0


def worker_title(pid: int) -> str:
    """Return the title of a worker of Ray's; empty for its agents and all other processes.

    Args:
        pid: the process's id.
    """
    try:
        title = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0")
    except OSError:
        return ""
    is_worker = _WORKERS_TITLE.match(title) and not title.startswith(_AGENTS_TITLES)
    return title.replace("\0", " ") if is_worker else ""


def _state_of(pid: int) -> str:
    """Return the letter of a process's state (proc(5)); empty where nobody can tell."""
    return fields[0] if (fields := _fields_of(pid)) else ""


def _fields_of(pid: int) -> list[str]:
    """Return the kernel's figures of a process, from its state on; none where nobody can tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
