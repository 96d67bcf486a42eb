"""Memory that is not used any more goes back to the system."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

from policy_server.process_memory import UnusedMemory
from tests.support.waiting import until

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


def _own_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024
