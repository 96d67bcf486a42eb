"""Two hosts on this machine: network namespaces with a cable between them, as root on Linux."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks.failures import BenchmarkError

__all__ = ["FIRST", "LINKS", "SECOND", "Namespaces", "entered", "two_hosts"]

FIRST, SECOND = "10.77.0.1", "10.77.0.2"
# The network devices of the first host and of the second, at the ends of the cable.
LINKS = ("host0", "host1")

Namespaces = Sequence[str]
Cable = Callable[[Namespaces], AbstractContextManager[None]]

_CLONE_NEWNET = 0x40000000


@contextmanager
def _kernels_cable(namespaces: Namespaces) -> Iterator[None]:
    """Lay a cable that loses nothing, and takes no time."""
    here, there = namespaces
    first, second = LINKS
    words = ("link", "add", first, "netns", here, "type", "veth", "peer", second, "netns", there)
    _ip(*words)
    yield


@contextmanager
def two_hosts(cable: Cable = _kernels_cable) -> Iterator[list[str]]:
    """Move this thread to a host of its own while the block runs, and what it starts.

    Args:
        cable: makes the devices `LINKS` in the two network namespaces, and joins them.

    Yields:
        The words that a command on the other host starts with.

    Raises:
        BenchmarkError: if that needs other rights, or programs.
    """
    if shutil.which("ip") is None or os.geteuid() != 0:
        raise BenchmarkError("network namespaces need root and iproute2 (apt-get install iproute2)")
    namespaces = [f"ps-{os.getpid()}-{end}" for end in "ab"]
    try:
        for name in namespaces:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        with cable(namespaces):
            for name, link, address in zip(namespaces, LINKS, (FIRST, SECOND), strict=True):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", link)
                _ip("-n", name, "link", "set", link, "up")
            with entered(Path("/run/netns", namespaces[0])):
                yield ["ip", "netns", "exec", namespaces[1]]
    finally:
        for name in namespaces:
            _run_ip("netns", "delete", name)


@contextmanager
def entered(namespace: Path) -> Iterator[None]:
    """Enter a network namespace with this thread while the block runs.

    Args:
        namespace: its file.

    Raises:
        BenchmarkError: if that is not possible.
    """
    with Path("/proc/thread-self/ns/net").open() as before:
        with namespace.open() as file:
            _enter(file.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        raise BenchmarkError(f"network namespace: {os.strerror(ctypes.get_errno())}")


def _ip(*arguments: str) -> None:
    done = _run_ip(*arguments)
    if done.returncode != 0:
        raise BenchmarkError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _run_ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["ip", *arguments]
    return subprocess.run(command, capture_output=True, text=True)  # noqa: S603 -- the command is ours
