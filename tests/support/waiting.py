"""The one way to wait for something in a test, in a thread and in an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["turns", "until", "wait_until"]

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T], *, timeout_s: float = 30.0, told: Callable[[], object] = str
) -> T:
    """Wait until a condition holds.

    Args:
        condition: asked about every 10 ms; it may raise an AssertionError once it can't hold
            any more.
        timeout_s: seconds after which the test fails.
        told: gives what the failure says.

    Returns:
        What the condition returned when it held.

    Example: `wait_until(lambda: "ready" in server.output(), told=server.output)`.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not hold within {timeout_s} s; {told()}"
        time.sleep(0.01)
    return found


async def until(condition: Callable[[], T], *, timeout_s: float = 30.0) -> T:
    """Wait until a condition holds, with the event loop left free; see `wait_until`."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not hold within {timeout_s} s"
        await asyncio.sleep(0.001)
    return found


async def turns(count: int = 20) -> None:
    """Give the event loop its turns: whatever can go on without a timer or a socket has then."""
    for _ in range(count):
        await asyncio.sleep(0)
