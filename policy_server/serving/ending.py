"""Work of a deploy that ends, with an answer, when the server ends: a load, an upload."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from policy_server.errors import NotReadyError

__all__ = ["EndableWork"]

_T = TypeVar("_T")
_ENDING = "the server is ending, and nothing is deployed; deploy again when another one answers"


class EndableWork:
    """Runs work until `end`, which breaks it off and refuses all that comes later."""

    def __init__(self) -> None:
        """Own no work yet."""
        self._running: set[asyncio.Task[Any]] = set()
        self._is_ending = False

    def begin(self) -> None:
        """Take work again, as a server that is started once more does."""
        self._is_ending = False

    def end(self) -> None:
        """Break off all work, and refuse what comes."""
        self._is_ending = True
        for task in self._running:
            task.cancel()

    def check(self) -> None:
        """Raise a NotReadyError if the server is ending."""
        if self._is_ending:
            raise NotReadyError(_ENDING)

    async def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do some work, unless the server ends first.

        Args:
            work: what is awaited.

        Returns:
            Its result.

        Raises:
            NotReadyError: if the server ends first.
        """
        if self._is_ending:
            work.close()
            self.check()
        running = asyncio.create_task(work)
        self._running.add(running)
        try:
            return await running
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                self.check()
            raise
        finally:
            self._running.discard(running)
