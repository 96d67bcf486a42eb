"""Memory that is not used any more goes back to the system."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from policy_server.process_memory import UnusedMemory
from tests.support.waiting import until

# Threads that allocate at the same time; arenas of threads begin at multiples of 64 MB.
ARENAS = """
import sys, threading
from policy_server.process_memory import share_arenas

share_arenas()
barrier = threading.Barrier(8)

def allocate():
    barrier.wait()
    kept = [bytes(600 + number % 7) for number in range(1000)]
    barrier.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
starts = [int(line.partition("-")[0], 16) for line in open("/proc/self/maps") if " rw-p " in line]
print(sum(start % (64 << 20) == 0 for start in starts))
"""
_LINE_BYTES = 1000
_LINES = 30_000


class _Circle:
    """An object that refers to itself, as an unloaded version's do."""

    def __init__(self) -> None:
        self.itself = self


async def test_circles_are_found_a_moment_later() -> None:
    unused = UnusedMemory(delay_s=0.0)
    gc.disable()
    try:
        circle = weakref.ref(_Circle())
        assert circle() is not None
        unused.release_soon()
        unused.release_soon()

        await until(lambda: circle() is None)
    finally:
        gc.enable()


async def test_freed_pages_go_back_to_the_system() -> None:
    lines = [bytes(_LINE_BYTES) for _ in range(_LINES)]
    # What stands above keeps the C library from giving the rest back by itself.
    last = bytes(_LINE_BYTES)
    used = _own_bytes()
    lines.clear()
    freed = _own_bytes()

    UnusedMemory(delay_s=0.0).release_soon()

    assert used - freed < _LINES * _LINE_BYTES / 2
    await until(lambda: used - _own_bytes() > _LINES * _LINE_BYTES / 2)
    assert len(last) == _LINE_BYTES


@pytest.mark.parametrize("given", [None, "8"], ids=["ours", "the-operator's"])
def test_threads_share_two_arenas_unless_told_otherwise(given: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}
    if given is not None:
        environment["MALLOC_ARENA_MAX"] = given

    ended = subprocess.run(
        [sys.executable, "-c", ARENAS], env=environment, capture_output=True, text=True, timeout=60
    )

    arenas = 1 + int(ended.stdout)  # The first one is the program's own.
    assert (arenas == 2) is (given is None), (arenas, ended.stderr)


def _own_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024
