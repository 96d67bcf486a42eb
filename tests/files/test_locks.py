"""The lock of processes: who waits for whom, and what frees it."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from policy_server.files.locks import FileLock, is_locked, lock_if_free
from tests.support.permissions import read_only
from tests.support.processes import child
from tests.support.waiting import is_waited_for, turns, wait_until

HOLDING = """
import sys
from pathlib import Path
from policy_server.files.locks import FileLock, is_locked, lock_if_free
path = Path(sys.argv[1])
with FileLock(path, is_folder=path.is_dir()):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["file", "folder"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a file that is not there yet, or a folder."""
    return tmp_path / ".lock" if request.param == "file" else tmp_path


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the lock."""
    with child(sys.executable, "-c", HOLDING, path) as holding:
        assert holding.read_line() == "held"
        yield holding.process


def is_held(path: Path) -> bool:
    """Return whether the lock can't be had now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def open_descriptors() -> set[str]:
    return {str(item.readlink()) for item in Path("/proc/self/fd").iterdir() if item.exists()}


def test_lock_is_held_in_its_block_only(path: Path) -> None:
    with FileLock(path, is_folder=path.is_dir()):
        assert is_held(path)

    assert not is_held(path)


async def test_lock_is_held_in_its_asynchronous_block_only(path: Path) -> None:
    async with FileLock(path, is_folder=path.is_dir()):
        assert is_held(path)

    assert not is_held(path)


def test_lock_is_freed_where_the_block_fails(path: Path) -> None:
    def fail() -> None:
        with FileLock(path, is_folder=path.is_dir()):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 -- it has no text
        fail()

    assert not is_held(path)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
def test_process_waits_until_the_holder_is_gone(
    path: Path, holder: subprocess.Popen[str], end: signal.Signals
) -> None:
    order: list[str] = []

    def wait() -> None:
        with FileLock(path, is_folder=path.is_dir()):
            order.append("had")

    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(wait)
        wait_until(lambda: is_waited_for(path))
        order.append("freed")
        holder.send_signal(end)
        waiting.result(timeout=30)

    assert order == ["freed", "had"]


async def test_waiting_leaves_the_event_loop_free(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    async def wait() -> bool:
        async with FileLock(path, is_folder=path.is_dir()):
            return is_held(path)

    waiting = asyncio.create_task(wait())
    # Each of these is a turn of the loop, which a wait in it would never give.
    await turns()
    assert not waiting.done()
    holder.kill()

    assert await asyncio.wait_for(waiting, 30)
    assert not is_held(path)


async def test_cancelled_wait_leaves_nothing_open(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    async def wait() -> None:
        async with FileLock(path, is_folder=path.is_dir()):
            pytest.fail("the lock is another's")

    before = open_descriptors()
    waiting = asyncio.create_task(wait())
    await turns(1)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert open_descriptors() == before
    assert holder.poll() is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
async def test_file_system_that_cant_lock_is_worked_on_without(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    entered = []

    with FileLock(path, is_folder=path.is_dir()):
        entered.append("with")
    async with FileLock(path, is_folder=path.is_dir()):
        entered.append("async with")

    assert entered == ["with", "async with"]


def test_file_of_the_lock_stays_empty(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        """Nothing is written."""

    assert (tmp_path / ".lock").read_bytes() == b""


def test_read_only_folder_has_a_lock_and_a_new_file_in_it_is_an_error(tmp_path: Path) -> None:
    with read_only(tmp_path):
        with FileLock(tmp_path, is_folder=True):
            assert is_held(tmp_path)
        with pytest.raises(PermissionError):
            FileLock(tmp_path / ".lock")


def test_file_and_folder_are_not_taken_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "home").touch()

    with pytest.raises(NotADirectoryError):
        FileLock(tmp_path / "home" / ".lock")
    with pytest.raises(IsADirectoryError):
        FileLock(tmp_path)


@pytest.mark.parametrize("is_held_by_another", [False, True])
def test_lock_of_a_folder_is_had_only_where_nobody_has_it(
    tmp_path: Path, *, is_held_by_another: bool
) -> None:
    with ExitStack() as stack:
        if is_held_by_another:
            stack.enter_context(FileLock(tmp_path, is_folder=True))
        is_free = stack.enter_context(lock_if_free(tmp_path))
        assert is_free is not is_held_by_another
        assert is_locked(tmp_path)

    assert not is_locked(tmp_path)


def test_lock_of_a_folder_that_is_not_there_is_not_told(tmp_path: Path) -> None:
    with lock_if_free(tmp_path / "none") as is_free:
        assert is_free is None
