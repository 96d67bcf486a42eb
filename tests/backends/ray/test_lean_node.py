"""Ray's processes, started without those that serving does not wait for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from policy_server.backends.ray.lean_node import start_lean_node
from policy_server.backends.ray_processes import agents_in, end_ray_in
from tests.support.waiting import wait_until

_AGENTS_HANG = """
import sys, time
if any(name.endswith("agent.py") or "/agent/" in name for name in sys.orig_argv):
    time.sleep(3600)
"""
_OPTIONS = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024, "include_dashboard": False}


def test_agents_of_the_raylet_that_take_long_hold_no_start_up(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_AGENTS_HANG)
    # Paths of sockets have to be short.
    folder = Path(tempfile.mkdtemp(prefix="ps-"))
    try:
        node = start_lean_node(
            _OPTIONS,
            folder=str(folder),
            is_shared=False,
            environment={"PYTHONPATH": str(tmp_path)},
            start_timeout_s=120.0,
        )
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
    finally:
        end_ray_in(folder)

    assert len(pids) == 2
    assert niceness == [min(own + 5, 19)] * 2, "the agents go before the policy"
    named = str(folder).encode()
    commands = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _holds(path, named)]
    assert commands == [], "an agent that still imported was left"


def _state_of(pid: int) -> str:
    """Return a process's state by proc(5): T where a signal has stopped it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _holds(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:
        return False
