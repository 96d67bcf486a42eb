"""Nodes of a Ray cluster, each started as `ray start` does it, and ended as by a power failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import child, descendants, is_running

__all__ = ["OPEN", "end_node", "running_node"]

OPEN = {"RAY_AUTH_MODE": "disabled"}
"""What lets whoever reaches a node use it."""

# Ray moves objects to a disk only while less than so much of it is used: 0.95 unless told, which
# may be reached on a machine with room for all tests.
_DISK = "RAY_local_fs_capacity_threshold"
_ANY_DISK, _NO_DISK = "0.999", "0.0001"
# A node gives up a start whose agents take 15 s: it starts nothing beside them that no test needs.
_LEAN = {"RAY_enable_worker_prestart": "0"}
_START_TIMEOUT_S = 120.0


def end_node(node: subprocess.Popen[str]) -> None:
    """End a node as a power failure would."""
    below = descendants(node.pid)
    node.kill()
    node.wait(30)
    for pid in filter(is_running, below):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def running_node(
    address: str,
    log: Path,
    *arguments: str,
    before: Sequence[str] = (),
    is_disk_full: bool = False,
) -> Iterator[subprocess.Popen[str]]:
    """Run a node with one core as `ray start` does, and end it as a power failure would.

    Args:
        address: the node's own address.
        log: the file for what it prints.
        *arguments: more of `ray start`.
        before: the words that its command starts with, such as those that enter a namespace.
        is_disk_full: have Ray find its disk too full for objects.
    """
    command = (
        f"-m ray.scripts.scripts start --block --num-cpus=1 --node-ip-address={address} "
        "--object-store-memory=100000000 --disable-usage-stats --include-log-monitor=false"
    )
    words = (*before, sys.executable, *command.split(), *arguments)
    # A Ray that a test has started in this process has turned clusters off.
    clusters = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    disk = {_DISK: _NO_DISK if is_disk_full else _ANY_DISK}
    environment = {**os.environ, **OPEN, **_LEAN, **clusters, **disk}
    with child(*words, log=log, environment=environment) as node:
        node.wait_until(lambda: "Ray runtime started" in node.output(), timeout_s=_START_TIMEOUT_S)
        try:
            yield node.process
        finally:
            if node.process.poll() is None:
                end_node(node.process)
