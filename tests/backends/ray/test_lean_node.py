"""Ray's processes, started without those that serving does not wait for."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from policy_server.backends.ray.connection import RayletEndedError
from policy_server.backends.ray.lean_node import LeanNode, start_lean_node
from policy_server.backends.ray_processes import agents_in, end_ray_in
from tests.support.waiting import wait_until

_AGENTS_HANG = """
import sys, time
if any(name.endswith("agent.py") or "/agent/" in name for name in sys.orig_argv):
    time.sleep(3600)
"""
_DASHBOARD_HANGS = """
import sys, time
if "ray.dashboard.dashboard" in sys.orig_argv:
    time.sleep(3600)
"""
_OPTIONS = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024, "include_dashboard": False}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder for a Ray, which is ended."""
    # Paths of sockets have to be short.
    folder = Path(tempfile.mkdtemp(prefix="ps-"))
    try:
        yield folder
    finally:
        end_ray_in(folder)


def started(
    folder: Path,
    environment: dict[str, str],
    *,
    is_broken_off: Callable[[], bool] = lambda: False,
) -> LeanNode:
    """Start a Ray."""
    return start_lean_node(
        _OPTIONS,
        folder=str(folder),
        is_shared=False,
        environment=environment,
        start_timeout_s=120.0,
        is_broken_off=is_broken_off,
    )


def test_agents_of_the_raylet_that_take_long_hold_no_start_up(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_AGENTS_HANG)
    node = started(folder, {"PYTHONPATH": str(tmp_path)})
    pids = node.needed_pids()
    wait_until(lambda: len(agents_in(folder)) == 2)
    node.hold_agents()
    agents = agents_in(folder)
    niceness = [os.getpriority(os.PRIO_PROCESS, pid) for pid in agents]
    wait_until(lambda: [_state_of(pid) for pid in agents] == ["T", "T"])
    node.wake_agents()
    wait_until(lambda: "T" not in [_state_of(pid) for pid in agents])
    own = os.getpriority(os.PRIO_PROCESS, pids["raylet"])
    node.end(is_graceful=False)
    end_ray_in(folder)

    assert len(pids) == 2
    assert niceness == [min(own + 5, 19)] * 2, "the agents go before the policy"
    named = str(folder).encode()
    commands = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _holds(path, named)]
    assert commands == [], "an agent that still imported was left"


def test_dashboard_is_waited_for_no_longer_than_ray_lives(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_DASHBOARD_HANGS)
    environment = {"PYTHONPATH": str(tmp_path)}
    with ThreadPoolExecutor(1) as rays_thread:
        # The kernel ends the processes with the thread that has started them.
        node = rays_thread.submit(started, folder, environment).result(120)
        starting = rays_thread.submit(node.start_dashboard, environment)
        wait_until(lambda: "dashboard" in node.all_processes)
        os.kill(node.needed_pids()["gcs_server"], signal.SIGKILL)

        with pytest.raises(RayletEndedError, match="while the dashboard started"):
            starting.result(30)
        rays_thread.submit(node.end, is_graceful=False).result(60)


def test_start_that_is_broken_off_leaves_no_process(folder: Path) -> None:
    with pytest.raises(RayletEndedError, match="the server ended while Ray started"):
        started(folder, {}, is_broken_off=lambda: True)

    named = str(folder).encode()
    assert [path for path in Path("/proc").glob("[0-9]*/cmdline") if _holds(path, named)] == []


def test_dashboard_that_nobody_needs_any_more_is_not_waited_for(
    tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_DASHBOARD_HANGS)
    environment = {"PYTHONPATH": str(tmp_path)}
    is_broken_off = threading.Event()
    with ThreadPoolExecutor(1) as rays_thread:
        start = partial(started, folder, environment, is_broken_off=is_broken_off.is_set)
        node = rays_thread.submit(start).result(120)
        starting = rays_thread.submit(node.start_dashboard, environment)
        wait_until(lambda: "dashboard" in node.all_processes)
        is_broken_off.set()

        with pytest.raises(RayletEndedError, match="while the dashboard started"):
            starting.result(30)
        rays_thread.submit(node.end, is_graceful=False).result(60)


def _state_of(pid: int) -> str:
    """Return a process's state by proc(5): T where a signal has stopped it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _holds(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:
        return False
