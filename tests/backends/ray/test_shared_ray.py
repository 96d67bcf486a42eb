"""The Ray that uvicorn's workers share, after the worker that started it was killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from policy_server.backends.ray.shared_ray import SharedRay
from policy_server.backends.ray_processes import make_rays_folder
from policy_server.errors import NotReadyError
from policy_server.files.locks import FileLock
from policy_server.files.shared_folders import share_folder
from tests.support.ray_clusters import SETTINGS, processes_of
from tests.support.waiting import turns

pytestmark = pytest.mark.service

# A lock is looked at every tenth of a second.
_SEVERAL_LOOKS_S = 0.5


def _ended_process() -> int:
    """Return the id of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def _called(
    executor: Executor,
    function: Callable[..., Any],
    *arguments: Any,  # noqa: ANN401 -- what the function takes
) -> Awaitable[Any]:
    return asyncio.get_running_loop().run_in_executor(executor, function, *arguments)


@asynccontextmanager
async def joined_ray(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[tuple[SharedRay, Path, Path]]:
    """Give a worker's Ray that serves, with the folders of the workers and of the Ray."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared = share_folder("workers", parent=os.getppid()).path
    used = make_rays_folder(os.getppid())
    with ThreadPoolExecutor(max_workers=1) as executor:
        ray = SharedRay(SETTINGS, partial(_called, executor))
        # Nothing of it is joined or started.
        monkeypatch.setattr(ray, "_join_others", lambda: True)
        await ray.join()
        await ray.has_served()
        yield ray, shared, used


async def test_worker_that_waits_for_one_that_fails_can_be_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared = share_folder("workers", parent=os.getppid()).path
    with ThreadPoolExecutor(max_workers=1) as executor:
        ray = SharedRay(SETTINGS, partial(_called, executor))
        with FileLock(shared / "lock"):
            joining = asyncio.create_task(ray.join())
            await turns()
            # As a worker does whose policy can't be served.
            shutil.rmtree(shared)
        # Longer than a look at the lock takes to come.
        done, _ = await asyncio.wait([joining], timeout=_SEVERAL_LOOKS_S)
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        await ray.leave()

    assert not done
    assert list(tmp_path.iterdir()) == []


async def test_worker_that_is_stopped_before_its_turn_leaves_the_ray_that_another_one_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared = share_folder("workers", parent=os.getppid()).path
    started = make_rays_folder(os.getppid())
    with ThreadPoolExecutor(max_workers=1) as executor:
        ray = SharedRay(SETTINGS, partial(_called, executor))
        with FileLock(shared / "lock"):
            joining = asyncio.create_task(ray.join())
            await turns()
            joining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await joining
            await ray.leave()

    assert started.exists()
    assert shared.exists()


async def test_worker_waits_for_another_that_leaves_no_longer_than_its_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # One that stands still as it leaves; the guard ends Ray with the server.
    monkeypatch.setattr("policy_server.backends.ray.shared_ray._LEFT_AFTER_S", 0.2)
    async with joined_ray(monkeypatch, tmp_path) as (ray, shared, used):
        with FileLock(shared, is_folder=True):
            async with asyncio.timeout(30):
                await ray.leave()
        are_left = used.exists(), shared.exists()

    assert are_left == (True, True)


async def test_worker_that_ends_leaves_the_ray_that_another_one_joins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A process whose Ray ends while it connects to it waits for a minute, and so does its stop.
    async with joined_ray(monkeypatch, tmp_path) as (ray, shared, used):
        with FileLock(shared / "lock"):
            await ray.leave()
        are_left = used.exists(), shared.exists()
        await ray.leave()

    assert are_left == (True, True)
    assert list(tmp_path.iterdir()) == []


async def test_worker_whose_folder_goes_while_it_waits_to_join_again_tries_anew_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared = share_folder("workers", parent=os.getppid()).path
    with ThreadPoolExecutor(max_workers=1) as executor:
        ray = SharedRay(SETTINGS, partial(_called, executor))
        monkeypatch.setattr(ray, "_join_others", lambda: True)
        await ray.join()
        await ray.has_served()
        monkeypatch.setattr(ray, "is_alive", lambda: False)
        with FileLock(shared / "lock"):
            joining = asyncio.create_task(ray.rejoin())
            await asyncio.sleep(_SEVERAL_LOOKS_S)
            shutil.rmtree(shared)

        with pytest.raises(NotReadyError, match="folder that the workers share was removed"):
            await asyncio.wait_for(joining, timeout=10)
        await ray.rejoin()
        await ray.leave()

    assert list(tmp_path.iterdir()) == []


async def test_worker_starts_another_ray_and_removes_the_folder_of_the_dead_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The paths of Ray's sockets have to be short.
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        orphan = Path(folder, "ps-ray-orphan")
        orphan.mkdir()
        (orphan / "log").touch()
        shared = share_folder("workers", parent=os.getppid()).path
        known = {
            "watched": [f":0 {_ended_process()} 1"],
            "address": "",
            "token": "",
            "addresses": {},
            "folder": str(orphan),
        }
        (shared / "ray.json").write_text(json.dumps(known))

        with ThreadPoolExecutor(max_workers=1) as executor:
            ray = SharedRay(SETTINGS, partial(_called, executor))
            await ray.join()
            rays = len(processes_of("gcs_server"))
            # The dead one's stays until its replicas are not needed any more.
            [own] = set(Path(folder).glob("ps-ray-*")) - {orphan}
            mode = stat.S_IMODE(own.stat().st_mode)
            await ray.has_served()
            await ray.leave()

        assert (rays, mode) == (1, 0o700)
        assert not orphan.exists()
        assert list(Path(folder).iterdir()) == []


async def test_worker_starts_another_ray_where_all_temporary_files_have_been_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with ThreadPoolExecutor(max_workers=1) as executor:
            ray = SharedRay(SETTINGS, partial(_called, executor))
            await ray.join()
            await ray.has_served()
            for path in Path(folder).iterdir():
                shutil.rmtree(path)
            await asyncio.wait_for(ray.lost(), timeout=60)

            await ray.rejoin()
            is_alive = ray.is_alive()
            await ray.has_served()
            entries = list(Path(folder).glob("ps-workers-*/member-*"))
            await ray.leave()

        assert is_alive
        assert len(entries) == 1
        assert list(Path(folder).iterdir()) == []
        assert processes_of("gcs_server") == []
