"""Signals during a start: uvicorn notes them and goes on until the application is up."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from policy_server.errors import NotReadyError

__all__ = ["cancelled_by_signals", "ended_by_signals"]


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let signals end a download: while uvicorn imports the application, it only notes them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in noted.items():
            signal.signal(number, handler)


@contextmanager
def cancelled_by_signals() -> Iterator[None]:
    """Let signals end the start: until it is over, uvicorn only notes them.

    Raises:
        NotReadyError: if a signal came, or uvicorn has noted one before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None, "a lifespan is a task"
    noting = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _end_if_noted(noting[signal.SIGTERM])
    came: list[signal.Signals] = []

    def cancel(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        # A second one must not break off what the first one's end has begun.
        loop.call_soon_threadsafe(task.cancel if len(came) == 1 else _pass)
        note = noting[came[-1]]
        if callable(note):
            note(number, frame)

    for number in noting:
        signal.signal(number, cancel)
    try:
        yield
    except asyncio.CancelledError:
        if not came:
            raise
        task.uncancel()
        raise NotReadyError(f"the start was ended by {came[0].name}") from None
    finally:
        for number, handler in noting.items():
            signal.signal(number, handler)


def _pass() -> None:
    """Wake the event loop."""


def _end_if_noted(handler: object) -> None:
    """End a start whose end uvicorn has noted already, while it imported the application."""
    if getattr(getattr(handler, "__self__", None), "should_exit", False):
        raise NotReadyError("the start was ended by a signal")


def _end(number: int, _frame: object) -> None:
    # A shell's exit code of a program that a signal ended.
    sys.exit(128 + number)
