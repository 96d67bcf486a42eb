"""Private folders among the temporary files, each shared by the processes that one parent started.

Any user of a machine may take such a folder's name before it is made: by a link, so that the files
are written to another folder, or by a folder in which others read and write.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from policy_server.errors import SettingsError

__all__ = ["SharedFolder", "beginning_of", "share_folder"]

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class SharedFolder:
    """A folder that only this user's processes can look into.

    Attributes:
        path: where it is.
        is_new: whether this process made it, before any other process.
    """

    path: Path
    is_new: bool


def share_folder(purpose: str, *, parent: int) -> SharedFolder:
    """Make the folder that a parent's processes share, or join those that have it.

    Who makes it removes those of parents that were killed with all of their processes.

    Example:
        `share_folder("metrics", parent=4711).path` is `/tmp/ps-metrics-4711-90210-4026531836` in
        each process that 4711 started: 90210 is when it began, since process ids come again, and
        containers that share a temporary folder count processes apart (pid_namespaces(7)).

    Args:
        purpose: the middle of its name.
        parent: the process id of the parent.

    Raises:
        SettingsError: if somebody else has that name, or others may look into the folder.
    """
    name = f"ps-{purpose}-{parent}-{beginning_of(parent) or 0}-{_namespace()}"
    path = Path(tempfile.gettempdir(), name)
    is_new = False
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=stat.S_IRWXU)
            is_new = True
        found = path.lstat()
    except OSError as error:
        raise SettingsError(
            f"{path}: can't be made: {error.strerror}; set TMPDIR to a folder of your own"
        ) from error
    if (fault := _fault_of(found)) is not None:
        raise SettingsError(
            f"{path}: expected a folder of this user's alone, got {fault}; "
            "remove it, or set TMPDIR to a folder of your own"
        )
    if is_new:
        _remove_dead(purpose)
    return SharedFolder(path, is_new)


def _remove_dead(purpose: str) -> None:
    """Remove the folders of parents that have ended, where none of their processes is left."""
    name = re.compile(rf"ps-{purpose}-(\d+)-([1-9]\d*)-{_namespace()}")
    for path in Path(tempfile.gettempdir()).glob(f"ps-{purpose}-*"):
        found = name.fullmatch(path.name)
        if found is None or beginning_of(int(found[1])) == found[2]:
            continue
        with suppress(OSError):
            if _fault_of(path.lstat()) is None and not any(map(_is_in_use, path.iterdir())):
                shutil.rmtree(path, ignore_errors=True)


def _is_in_use(entry: Path) -> bool:
    """Return whether an entry is named after a process that runs, such as `serving-4712`."""
    process = entry.name.rpartition("-")[2]
    return process.isdecimal() and beginning_of(int(process)) is not None


def _namespace() -> int:
    """Return the number of this process's namespace of process ids; 0 where the system has none."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def beginning_of(process: int) -> str | None:
    """Return when a process began, which tells it from later ones of its process id.

    Returns:
        The kernel's ticks (proc(5), field 22), "0" on a system without those, and None where the
        process has ended.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        """It is another user's."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "0"


def _fault_of(found: os.stat_result) -> str | None:
    """Return why an entry of that name is no private folder; None where it is one."""
    if stat.S_ISLNK(found.st_mode):
        return "a link"
    if not stat.S_ISDIR(found.st_mode):
        return "a file"
    if found.st_uid != os.getuid():
        return f"a folder of user {found.st_uid}"
    if found.st_mode & _OTHERS:
        return f"mode {stat.S_IMODE(found.st_mode):04o}"
    return None
