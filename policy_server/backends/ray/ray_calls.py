"""Calls of Ray in threads, none of which begins while this process changes from one Ray to another.

Ray's library ends the whole process, by `_exit(1)`, where a thread calls it and another thread has
disconnected meanwhile. Calls that wait for a dead Ray it breaks off as it disconnects, by a
SystemExit; some of the head process's it leaves waiting.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from policy_server.errors import NotReadyError

__all__ = ["ENDED", "END_TIMEOUT_S", "CallRay", "RayCalls", "call_ray"]

CallRay = Callable[..., Awaitable[Any]]

ENDED = "ray: ended meanwhile, and is started again; try again in a few seconds"
# Calls that don't wait for Ray take some milliseconds; those that wait for a dead one never end.
END_TIMEOUT_S = 2.0
"""How long the calls that are under way are waited for before a change of the Ray, in seconds."""
_POLL_S = 0.01


def call_ray(function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 -- what the function returns
    """Call a function that uses Ray, in this thread.

    Args:
        function: uses Ray.
        arguments: the function's.

    Raises:
        NotReadyError: if Ray would end the thread, as it does when it disconnects: an event loop
            that waits for the thread would end too.
    """
    with _broken_off_as_not_ready():
        return function(*arguments)


@contextmanager
def _broken_off_as_not_ready() -> Iterator[None]:
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise NotReadyError(ENDED) from error


class RayCalls:
    """The calls of Ray that this process makes in threads."""

    def __init__(self) -> None:
        """Own nothing but the count of the calls that are under way."""
        self._lock = threading.Lock()
        self._is_held = False
        self._under_way = 0

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 -- what the function returns
        """Call a function that uses Ray, in a thread of its own that no end of the process awaits.

        Args:
            function: uses Ray.
            arguments: the function's.

        Raises:
            NotReadyError: if this process has no Ray at the moment, or Ray breaks the call off.
        """
        self._begin_one()
        answered: Future[Any] = Future()
        # Whoever waits may be cancelled; the thread goes on.
        answered.set_running_or_notify_cancel()
        thread = threading.Thread(
            target=self._run, args=(answered, function, arguments), name="ray-call", daemon=True
        )
        try:
            thread.start()
        except BaseException:
            self._end_one()
            raise
        return await asyncio.wrap_future(answered)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count the block, which uses Ray in a thread of the caller's, as one call.

        Raises:
            NotReadyError: if this process has no Ray at the moment, or Ray breaks the block off.
        """
        self._begin_one()
        try:
            with _broken_off_as_not_ready():
                yield
        finally:
            self._end_one()

    @asynccontextmanager
    async def held(self, *, end_timeout_s: float = END_TIMEOUT_S) -> AsyncIterator[None]:
        """Refuse new calls while the block runs, which begins when those under way have ended.

        It does not wait long: calls that wait for a dead Ray end when this process disconnects.

        Args:
            end_timeout_s: the longest wait, in seconds.
        """
        self._is_held = True
        try:
            deadline = asyncio.get_running_loop().time() + end_timeout_s
            while self._under_way and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(_POLL_S)
            yield
        finally:
            self._is_held = False

    def _run(
        self, answered: Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        try:
            answer = call_ray(function, *arguments)
        except Exception as error:
            answered.set_exception(error)
        else:
            answered.set_result(answer)
        finally:
            self._end_one()

    def _begin_one(self) -> None:
        with self._lock:
            if self._is_held:
                raise NotReadyError(ENDED)
            self._under_way += 1

    def _end_one(self) -> None:
        with self._lock:
            self._under_way -= 1
