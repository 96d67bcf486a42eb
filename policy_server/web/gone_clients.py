"""The end of an answer whose client has gone: nobody reads it, so nobody need compute it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive

__all__ = ["body_given_up_without_client", "given_up_without_client"]

# So many bytes of a body are received before somebody reads them: a batch that waits for its turn
# is whole with these, as a rule, and then the end of its connection is seen.
_BYTES_AHEAD = 65_536


@asynccontextmanager
async def given_up_without_client(receive: Receive) -> AsyncIterator[None]:
    """Run a block that is cancelled when the client of its request goes.

    Args:
        receive: the request's; its body has been read.

    Raises:
        ClientDisconnect: if the client has gone before the block ended.
    """

    async def has_gone() -> bool:
        return await _is_the_end(receive)

    async with _given_up_when(has_gone):
        yield


@asynccontextmanager
async def body_given_up_without_client(receive: Receive) -> AsyncIterator[AsyncIterator[bytes]]:
    """Run a block that reads the body of its request, and is cancelled when the client goes.

    Args:
        receive: the request's, of whose body nothing has been read.

    Yields:
        The body as it arrives. Some of it is received before it is read.

    Raises:
        ClientDisconnect: if the client has gone before the block ended.
    """
    body = _BodyAhead(receive)
    async with _given_up_when(body.receive_all):
        yield body.parts()


@asynccontextmanager
async def _given_up_when(has_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
    """Run a block that is cancelled when its client goes.

    Args:
        has_gone: waits for the client's end; returns False where nothing is told of it.

    Raises:
        ClientDisconnect: if the client has gone before the block ended.
    """
    answering = asyncio.current_task()
    assert answering is not None, "an answer is a task's"
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        is_gone = await has_gone()
        if is_gone:
            answering.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # Whoever else cancels, such as the end of the server, is not to be held up.
        if is_gone and not answering.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()


async def _is_the_end(receive: Receive) -> bool:
    """Wait for what is behind a body, and return whether it is the end of the connection."""
    try:
        # Behind the body there is nothing else.
        message = await receive()
    except Exception:
        # A server that tells nothing of its clients: the answer goes on.
        return False
    return bool(message["type"] == "http.disconnect")


class _BodyAhead:
    """A body that is received while nobody reads it yet, up to a limit."""

    def __init__(self, receive: Receive) -> None:
        """Own what was received and not read."""
        self._receive = receive
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._is_whole = False
        self._error: Exception | None = None
        self._has_changed = asyncio.Event()

    async def receive_all(self) -> bool:
        """Receive the body, and wait for the end of the connection; return whether it came."""
        try:
            while not self._is_whole:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    return True
                self._add(message.get("body", b""))
                self._is_whole = not message.get("more_body", False)
                self._has_changed.set()
                while self._size >= _BYTES_AHEAD and not self._is_whole:
                    await self._change()
        except Exception as error:
            # Such as a body that is too large: whoever reads it has to be told.
            self._error = error
            self._has_changed.set()
            return False
        return await _is_the_end(self._receive)

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body; what was wrong with it is raised behind what came before."""
        while True:
            while self._parts:
                part = self._parts.popleft()
                self._size -= len(part)
                self._has_changed.set()
                yield part
            if self._error is not None:
                raise self._error
            if self._is_whole:
                return
            await self._change()

    def _add(self, part: bytes) -> None:
        if part:
            self._parts.append(part)
            self._size += len(part)

    async def _change(self) -> None:
        """Wait until something was received or read."""
        self._has_changed.clear()
        await self._has_changed.wait()
