"""The Ray that uvicorn's workers share, after the worker that started it was killed."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from policy_server.backends.ray.shared_ray import SharedRay
from policy_server.files.shared_folders import share_folder
from tests.support.ray_clusters import SETTINGS, processes_of

pytestmark = pytest.mark.service


def _ended_process() -> int:
    """Return the id of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


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

            def call(function: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:  # noqa: ANN401 -- what the function takes
                loop = asyncio.get_running_loop()
                return loop.run_in_executor(executor, function, *arguments)

            ray = SharedRay(SETTINGS, call)
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
