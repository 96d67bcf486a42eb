"""Files and folders that are written whole: at every moment the old one is there, or the new one.

A new file is written beside the one that it replaces, under a hidden name, and then renamed. Until
then it is locked: so the next process can tell whether the one that made it was killed.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from policy_server.files.locks import FileLock, lock_if_free, take_lock

__all__ = [
    "UNFINISHED",
    "make_durable",
    "remove_left_behind",
    "remove_left_files",
    "scratch_folder",
    "whole_folder",
    "write_whole",
]

# The names of files that a process which is killed while it writes leaves behind.
UNFINISHED = ".unfinished-*"
# Those of `write_whole`; earlier versions of this program did not name the machine.
_UNFINISHED_FILE = re.compile(r"\.unfinished-([0-9a-f]{8}-)?[0-9a-f]{16}")

# Where no lock tells whether the process that made a folder still lives.
_LEFT_BEHIND_S = 600.0
# Linux has another one after each start; containers share their machine's.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOUNT_POINT_ERRNOS = (errno.EBUSY, errno.EXDEV)


def write_whole(path: Path, content: bytes | str, *, is_durable: bool = False) -> None:
    """Write a file whole: a reader, or a crash, never finds half of it.

    Args:
        path: the file; one that exists is replaced and keeps its permissions.
        content: its bytes, or its text in UTF-8.
        is_durable: return only when the disk has it, so that a power cut doesn't take it away.

    Raises:
        OSError: if it can't be written; the file is then as it was.
    """
    remove_left_files(path.parent)
    # Opened before the file is there: afterwards nothing fails that a caller would undo.
    folder = os.open(path.parent, os.O_RDONLY) if is_durable else None
    try:
        while not _replace(path, content, is_durable=is_durable):
            """Another process took the new file for one that was left behind."""
        if folder is not None:
            _sync(folder)
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):
                os.close(folder)


def _replace(path: Path, content: bytes | str, *, is_durable: bool) -> bool:
    """Write a new file and rename it; return False where it is not there when it is locked."""
    aside = path.with_name(UNFINISHED.replace("*", f"{_machine()}{secrets.token_hex(8)}"))
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if take_lock(descriptor) is False or not aside.exists():
            aside.unlink(missing_ok=True)
            return False
        # On NFS, closing tells of a failed write. The lock is kept until the file is renamed.
        with os.fdopen(os.dup(descriptor), "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode))
            file.write(content.encode() if isinstance(content, str) else content)
            if is_durable:
                file.flush()
                os.fsync(descriptor)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return True


def make_durable(folder: Path, *, below: Path) -> None:
    """Return when the disk has a folder, so that a power cut takes none of its files away.

    Args:
        folder: the folder, with all that lies in it.
        below: the folder that has been there before, in which this one lies.

    Raises:
        OSError: if a file can't be written to the disk.
    """
    found = [*folder.rglob("*"), folder, *folder.parents]
    for path in found[: found.index(below) + 1]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if path.is_dir():
                _sync(descriptor)
            else:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Give an empty hidden folder on the file system of a path; it is removed afterwards.

    Those that earlier processes could not remove, or were killed with, are removed before; see
    `remove_left_behind`.

    Args:
        beside: the file or folder that is worked on; its parent has to exist.

    Raises:
        OSError: if it can't be made.
    """
    remove_left_behind(beside)
    while True:
        with tempfile.TemporaryDirectory(
            prefix=_own_prefix_of(beside), dir=beside.parent, ignore_cleanup_errors=True
        ) as name:
            scratch = Path(name)
            try:
                lock = FileLock(scratch, is_folder=True)
            except FileNotFoundError:
                # Until it is locked, another process may take it for one that was left behind.
                continue
            with lock:
                if scratch.exists():
                    yield scratch
                    return


def remove_left_behind(beside: Path) -> None:
    """Remove the scratch folders of processes that were killed, and the files beside them.

    A process holds the lock of its folder as long as it lives, and all processes and containers of
    a machine see that. So a folder of this machine goes at once when nobody holds it. Others' locks
    may not be seen here, and some file systems can't lock a folder, such as NFS: there a folder
    goes once it is ten minutes old. So does one from before the machine was last started.

    Args:
        beside: as `scratch_folder` was given it.
    """
    remove_left_files(beside.parent)
    for left in beside.parent.glob(f"{glob.escape(_prefix_of(beside))}*/"):
        with lock_if_free(left) as is_free:
            if _is_nobodys(left, _own_prefix_of(beside), _prefix_of(beside), is_free=is_free):
                shutil.rmtree(left, ignore_errors=True)


def remove_left_files(folder: Path) -> None:
    """Remove the new files of processes that were killed while they wrote a file whole.

    The rules are those of `remove_left_behind`.

    Args:
        folder: the folder of the files that were written.
    """
    # What can't be listed or removed is in nobody's way.
    with contextlib.suppress(OSError):
        with os.scandir(folder) as entries:
            found = [
                folder / entry.name
                for entry in entries
                if _UNFINISHED_FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            ]
        prefix = UNFINISHED.removesuffix("*")
        for left in found:
            with lock_if_free(left) as is_free:
                if _is_nobodys(left, f"{prefix}{_machine()}", prefix, is_free=is_free):
                    left.unlink(missing_ok=True)


def _is_nobodys(left: Path, own: str, prefix: str, *, is_free: bool | None) -> bool:
    """Return whether the process that made a folder or file has ended.

    Args:
        left: the folder or file.
        own: how the names of this machine begin; as `prefix`, where it has no name.
        prefix: how all names of that kind begin.
        is_free: the result of `lock_if_free`.
    """
    is_of_this_machine = own != prefix and left.name.startswith(own)
    return (is_free is True and is_of_this_machine) or (is_free is not False and _is_old(left))


def _prefix_of(beside: Path) -> str:
    return UNFINISHED.replace("*", f"{beside.name}-")


def _own_prefix_of(beside: Path) -> str:
    """Return the prefix of this machine's scratch folders, such as `.unfinished-models-5f1c09aa-`.

    Where the system does not tell one machine from another, it is the same for all.
    """
    return f"{_prefix_of(beside)}{_machine()}"


def _machine() -> str:
    """Return the name of this machine since it was started, with a hyphen; empty where unknown."""
    try:
        return f"{_BOOT_ID.read_text()[:8]}-"
    except OSError:
        return ""


@contextlib.contextmanager
def whole_folder(folder: Path, *, key: str | None = None) -> Iterator[Path]:
    """Give an empty folder, which takes the place of another if the block succeeds.

    Example:
        `with whole_folder(Path("models")) as new: (new / "saved_model.pb").write_bytes(graph)`

    Args:
        folder: the folder to replace, or to make; its parent has to exist.
        key: the file without which the folder is nothing. Where the folder can't be renamed, since
            it is a volume, its files are replaced one by one; the key goes first and comes last,
            and is not there after an error.

    Yields:
        The folder to fill.

    Raises:
        OSError: if the new folder can't take the place of the old one, which is then as it was, a
            volume excepted.
    """
    with scratch_folder(folder) as scratch:
        new = scratch / "new"
        new.mkdir()
        yield new
        _swap(folder, new, scratch / "old", key)


def _is_old(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > _LEFT_BEHIND_S
    except OSError:
        return False


def _swap(folder: Path, new: Path, old: Path, key: str | None) -> None:
    try:
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException as error:
        # A signal may come between the two, and the old one would go with the scratch folder.
        if old.exists() and not folder.exists():
            old.rename(folder)
        if not isinstance(error, OSError) or error.errno not in _MOUNT_POINT_ERRNOS:
            raise
        _refill(folder, new, key)


def _refill(folder: Path, new: Path, key: str | None) -> None:
    """Replace the contents of a folder that can't be renamed, a volume's."""
    for path in sorted(folder.iterdir(), key=lambda item: item.name != key):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in sorted(new.iterdir(), key=lambda item: item.name == key):
        # Between file systems it is copied, which may end halfway where the volume is full.
        aside = folder / UNFINISHED.replace("*", f"moved-{secrets.token_hex(8)}")
        shutil.move(path, aside)
        aside.rename(folder / path.name)


def _sync(folder: int) -> None:
    """Have the disk take a folder's entries, by its descriptor."""
    # Some network file systems can't, and say so; the file itself is on the disk.
    with contextlib.suppress(OSError):
        os.fsync(folder)
