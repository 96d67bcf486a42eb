"""The one way to wait for something in a test, in a thread and in an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["is_waited_for", "turns", "until", "wait_until"]

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    *,
    timeout_s: float = 30.0,
    pause_s: float = 0.02,
    told: Callable[[], object] = str,
) -> T:
    """Wait until a condition holds.

    Args:
        condition: may raise an AssertionError once it can't hold any more.
        timeout_s: seconds after which the test fails.
        pause_s: seconds between two looks.
        told: gives what the failure says.

    Returns:
        What the condition returned when it held.

    Example: `wait_until(lambda: "ready" in server.output(), told=server.output)`.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not hold within {timeout_s} s; {told()}"
        time.sleep(pause_s)
    return found


async def until(
    condition: Callable[[], T], *, timeout_s: float = 30.0, pause_s: float = 0.001
) -> T:
    """Wait until a condition holds, with the event loop left free; see `wait_until`."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not hold within {timeout_s} s"
        await asyncio.sleep(pause_s)
    return found


def is_waited_for(path: Path) -> bool:
    """Return whether somebody waits for the lock of a file or folder."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f":{path.stat().st_ino} " in line for line in lines)


async def turns(count: int = 20) -> None:
    """Give the event loop its turns: whatever can go on without a timer or a socket has then."""
    for _ in range(count):
        await asyncio.sleep(0)
