"""Fetching beside an event loop, in threads that end when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from policy_server.remote_files.pump import end_with

__all__ = ["fetch_in_thread"]

T = TypeVar("T")

# A download hears of its end twice a second, or after a wait for its next attempt.
_LONGEST_END_S = 5.0


async def fetch_in_thread(work: Callable[[], T]) -> T:
    """Run work that fetches files in a thread of its own.

    When it is cancelled, downloads of the work stop and remove what they have written. Other parts
    of it can't be stopped; they don't keep the process.

    Args:
        work: the work, which may block.

    Returns:
        The work's result.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    is_ended = threading.Event()

    def settle(settled: Callable[[], None]) -> None:
        # The loop may have ended before the thread.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settled)

    def run() -> None:
        end_with(is_ended)
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
        await asyncio.wait([done], timeout=_LONGEST_END_S)
        # Its error is nobody's any more.
        if done.done() and not done.cancelled():
            done.exception()
        raise
