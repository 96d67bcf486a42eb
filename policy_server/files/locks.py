"""The lock by which processes take turns at a file or a folder."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

__all__ = ["FileLock", "is_locked", "lock_if_free", "take_lock"]

_POLL_S = 0.1


class FileLock:
    """A lock that one holder has at a time, among all processes and threads of a machine.

    `with` waits for it, `async with` waits without holding the event loop up; leaving the block, or
    the end of the process, frees it. A lock is for one block. On a file system that can't lock, as
    some network ones, no process waits: there the operator has to start one process only.

    Example:
        `with FileLock(home / ".lock"): ...`
    """

    def __init__(self, path: Path, *, is_folder: bool = False) -> None:
        """Open the file or folder, and own its descriptor until the block is left.

        Args:
            path: a file, which is made if it is missing and stays empty.
            is_folder: lock a folder itself, which has to exist; no file is then left in it.

        Raises:
            OSError: if it can't be made or opened, such as a new file in a read-only folder.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_CREAT
        self._descriptor = os.open(path, flags, 0o666)

    def __enter__(self) -> Self:
        """Wait for the lock."""
        try:
            self._lock(fcntl.LOCK_EX)
        except BaseException:
            self._free()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Free the lock."""
        self._free()

    async def __aenter__(self) -> Self:
        """Wait for the lock; cancelling the wait gives it up."""
        try:
            while not self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
                await asyncio.sleep(_POLL_S)
        except BaseException:
            self._free()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Free the lock."""
        self._free()

    def _lock(self, operation: int) -> bool:
        """Return True once the lock is taken, or where this file system has no locks."""
        try:
            fcntl.flock(self._descriptor, operation)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _free(self) -> None:
        os.close(self._descriptor)


def is_locked(folder: Path) -> bool:
    """Return whether a folder's own lock is held, by whomever.

    Args:
        folder: the folder; one that is not there is not locked.
    """
    with lock_if_free(folder) as is_free:
        return is_free is False


@contextmanager
def lock_if_free(path: Path) -> Iterator[bool | None]:
    """Hold the own lock of a folder or file while the block runs, unless somebody has it already.

    Args:
        path: the folder or file.

    Yields:
        As `take_lock` returns it; None too where the path can't be opened.
    """
    try:
        # A named pipe is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    try:
        yield take_lock(descriptor)
    finally:
        os.close(descriptor)


def take_lock(descriptor: int) -> bool | None:
    """Take the lock of an open folder or file, unless somebody has it; closing it frees the lock.

    Args:
        descriptor: of the folder or file.

    Returns:
        True where it is held here; False where another process or thread holds it; None where that
        can't be told, since the file system can't lock.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
