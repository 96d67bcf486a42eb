"""Signals during a start: uvicorn notes them and goes on until the application is up."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from policy_server.errors import NotReadyError

__all__ = ["cancelled_by_signals", "end_if_noted", "ended_by_signals", "is_told_to_end"]

_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let signals end a download: while uvicorn imports the application, it only notes them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted = {number: signal.signal(number, _end) for number in _heard()}
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
    end_if_noted()
    start = _Start({number: signal.getsignal(number) for number in _heard()})
    for number in start.noting:
        signal.signal(number, start.cancel)
    try:
        yield
    except asyncio.CancelledError:
        if not start.signals:
            raise
        start.task.uncancel()
    finally:
        start.is_over = True
        for number, handler in start.noting.items():
            signal.signal(number, handler)
    if start.signals:
        raise NotReadyError(f"the start was ended by {start.signals[0].name}")


class _Start:
    """The task that starts the application, and the signals that came meanwhile."""

    def __init__(self, noting: Mapping[signal.Signals, Any]) -> None:
        """Own nothing; to be made in the task.

        Args:
            noting: the handlers by which uvicorn notes signals.
        """
        task = asyncio.current_task()
        assert task is not None, "a lifespan is a task"
        self.task = task
        self.noting = noting
        self.signals: list[signal.Signals] = []
        self.is_over = self._is_cancelled = False
        self._loop = asyncio.get_running_loop()

    def cancel(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(signal.Signals(number))
        self._loop.call_soon_threadsafe(self._end)
        # uvicorn knows no SIGHUP.
        note = self.noting[signal.SIGTERM if number == signal.SIGHUP else self.signals[-1]]
        if callable(note):
            note(number, frame)

    def _end(self) -> None:
        # A second one must not break off what the first one's end has begun. One in the last moment
        # has ended the start already.
        if not self.is_over and not self._is_cancelled:
            self._is_cancelled = True
            self.task.cancel()


def end_if_noted() -> None:
    """End a start of which uvicorn has noted already that it is to end.

    Raises:
        NotReadyError: if it has.
    """
    if is_told_to_end():
        raise NotReadyError("the start was ended by a signal")


def is_told_to_end() -> bool:
    """Return whether a signal has come that ends uvicorn, which has noted it."""
    handler = signal.getsignal(signal.SIGTERM)
    return bool(getattr(getattr(handler, "__self__", None), "should_exit", False))


def _heard() -> list[signal.Signals]:
    """Return the signals that end a server; not that of a closing terminal under `nohup`."""
    is_free = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    return [*_ENDING, *([signal.SIGHUP] if is_free else [])]


def _end(number: int, _frame: object) -> None:
    # A shell's exit code of a program that a signal ended.
    sys.exit(128 + number)
