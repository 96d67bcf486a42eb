"""The memory of this process: its bound, and the unused memory that goes back to the system.

An unloaded version of a policy leaves megabytes. Its models and validators refer to each other in
circles, which Python's collector would find after two million other objects; and the C library
keeps freed memory for later, in an arena for each thread.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from pathlib import Path

__all__ = ["UnusedMemory", "bound_further_memory", "share_arenas"]

# mallopt(3), and its M_ARENA_MAX.
_ARENA_MAX, _ARENAS = -8, 2

# Requests that had begun have ended by then, and the next one has let go of remembered versions.
_DELAY_S = 2.0


def share_arenas() -> None:
    """Have all threads allocate in two arenas (glibc), unless `MALLOC_ARENA_MAX` is set.

    By itself the C library takes another one for each thread, up to eight a processor, and keeps
    what is freed there for that thread. One thread of Python's runs at a time.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _call("mallopt", _ARENA_MAX, _ARENAS)


def bound_further_memory(further_bytes: int) -> None:
    """Let this process take so much memory more; what needs more than that is a MemoryError.

    Linux counts what a process has mapped for itself (`RLIMIT_DATA`), the stacks of its threads
    too. A lower bound that holds already stays.

    Args:
        further_bytes: the most beyond what it has now.

    Raises:
        OSError: if the system bounds no memory.
        ValueError: if it does not tell how much this process has.
    """
    try:
        import resource
    except ImportError as error:
        raise OSError("the system bounds no memory of processes") from error

    limit = _mapped_bytes() + further_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _mapped_bytes() -> int:
    """Return how much memory this process has mapped for itself alone, as `RLIMIT_DATA` counts."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, text = line.partition(":")
        if name == "VmData":
            return int(text.split()[0]) * 1024
    raise ValueError("the system does not tell VmData")


class UnusedMemory:
    """Finds unused memory, and gives it back, a moment after something was unloaded.

    Example:
        >>> unused = UnusedMemory()
        >>> slot.on_unloaded.append(unused.release_soon)
    """

    def __init__(self, *, delay_s: float = _DELAY_S) -> None:
        """Own a timer of the event loop, from `release_soon` until it has run.

        Args:
            delay_s: how long a release waits for others to ride with it, in seconds.
        """
        self._delay_s = delay_s
        self._timer: asyncio.TimerHandle | None = None

    def release_soon(self) -> None:
        """Release unused memory after the delay; called from the event loop."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._delay_s, self._release, loop)

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        # In this thread, since what is collected may belong to its event loop.
        gc.collect()
        loop.run_in_executor(None, _trim)


def _trim() -> None:
    """Give freed pages back, where the C library keeps them (glibc: malloc_trim(3))."""
    _call("malloc_trim", 0)


def _call(name: str, *numbers: int) -> None:
    """Call a function of the C library, where it has it."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*numbers)
