"""Work on files that an event loop waits for, and that is never left half done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import ParamSpec, TypeVar

__all__ = ["finish_in_thread", "opened_in_thread"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def finish_in_thread(work: Callable[_P, _T], /, *args: _P.args, **keywords: _P.kwargs) -> _T:
    """Do work in a thread, and return only once it is done.

    A caller that is cancelled meanwhile gets the result all the same, so that it can undo the work
    or keep to it, and ends at the next thing that it waits for.

    Example:
        `await finish_in_thread(shutil.rmtree, folder)`

    Args:
        work: is called in the thread.
        *args: its arguments.
        **keywords: its arguments by name.

    Returns:
        The work's result.

    Raises:
        asyncio.CancelledError: if the caller was cancelled, and the work failed.
    """
    working = asyncio.create_task(asyncio.to_thread(work, *args, **keywords))
    cancelled: asyncio.CancelledError | None = None
    while not working.done():
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return working.result()
    if (failure := working.exception()) is not None:
        raise cancelled from failure
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    task.cancel()
    return working.result()


@asynccontextmanager
async def opened_in_thread(block: AbstractContextManager[_T]) -> AsyncIterator[_T]:
    """Enter a context manager that works on files, and leave it, in threads.

    Args:
        block: the context manager, such as one that gives a folder and removes it.

    Yields:
        Its value.
    """
    value = await finish_in_thread(block.__enter__)
    try:
        yield value
    except BaseException as error:
        leave = block.__exit__
        if not await finish_in_thread(leave, type(error), error, error.__traceback__):
            raise
    else:
        await finish_in_thread(block.__exit__, None, None, None)
