"""Fetching beside an event loop, in threads that end when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from typing import TypeVar

from policy_server.remote_files.pump import end_with

__all__ = ["fetch_in_thread", "run_in_waiting_loop"]

T = TypeVar("T")

# A download hears of its end twice a second, or after a wait for its next attempt.
_LONGEST_END_S = 5.0
_waiting: ContextVar[_WaitingLoop | None] = ContextVar("_waiting", default=None)


async def fetch_in_thread(work: Callable[[], T]) -> T:
    """Run work that fetches files in a thread of its own.

    When it is cancelled, downloads of the work stop and remove what they have written, and so do
    coroutines of `run_in_waiting_loop`. Other parts of it can't be stopped; they don't keep the
    process.

    Args:
        work: the work, which may block.

    Returns:
        The work's result.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    is_ended = threading.Event()
    waiting = _WaitingLoop(loop)

    def settle(settled: Callable[[], None]) -> None:
        # The loop may have ended before the thread.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settled)

    def run() -> None:
        end_with(is_ended)
        _waiting.set(waiting)
        try:
            result = work()
        except BaseException as error:
            failure = error
            settle(lambda: done.set_exception(failure))
        else:
            settle(lambda: done.set_result(result))

    threading.Thread(target=run, name="fetch-files", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        is_ended.set()
        waiting.end()
        await asyncio.wait([done], timeout=_LONGEST_END_S)
        # Its error is nobody's any more.
        if done.done() and not done.cancelled():
            done.exception()
        raise


def run_in_waiting_loop(work: Coroutine[None, None, T]) -> T:
    """Run a coroutine in the event loop that waits for this thread, and return its result.

    It is cancelled with `fetch_in_thread`. In any other thread it has a loop of its own.

    Args:
        work: the coroutine.

    Raises:
        asyncio.CancelledError: if nobody waits for this thread any more.
    """
    waiting = _waiting.get()
    return asyncio.run(work) if waiting is None else waiting.run(work)


class _WaitingLoop:
    """The event loop that waits for a thread, and the coroutines that the thread has it run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[object]] = set()
        self._is_ended = False

    def run(self, work: Coroutine[None, None, T]) -> T:
        """Run a coroutine; called in the thread."""
        return asyncio.run_coroutine_threadsafe(self._run(work), self._loop).result()

    async def _run(self, work: Coroutine[None, None, T]) -> T:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        if self._is_ended:
            task.cancel()
        return await task

    def end(self) -> None:
        """Cancel the coroutines, and those that come; called in the loop."""
        self._is_ended = True
        for task in self._tasks:
            task.cancel()
