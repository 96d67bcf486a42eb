"""An answer that comes later: a function is told when it is there, or a coroutine waits."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

__all__ = ["Pending"]


class Pending(ABC):
    """The answer to a request or a frame, until it is there."""

    @abstractmethod
    def wait(self, then: Callable[[], None]) -> bool:
        """Ask for the answer, unless that was done; return whether it is there.

        Args:
            then: called once when the answer is there, if it is not there yet; it raises nothing.

        Raises:
            PolicyServerError: if the policy takes no question now.
        """

    @abstractmethod
    def finish(self) -> bytes:
        """Return the JSON of the answer, which has to be there.

        Raises:
            PolicyServerError: if the policy can't answer.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Take the questions out of the queue: their answer is not wanted any more."""

    async def fetch(self) -> bytes:
        """Wait for the JSON of the answer; a cancelled wait takes its questions out of the queue.

        Raises:
            PolicyServerError: if the policy can't answer.
        """
        is_there = asyncio.get_running_loop().create_future()

        def then() -> None:
            if not is_there.done():
                is_there.set_result(None)

        if not self.wait(then):
            try:
                await is_there
            except asyncio.CancelledError:
                self.abandon()
                raise
        return self.finish()
