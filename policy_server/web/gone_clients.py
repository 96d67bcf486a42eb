"""The end of an answer whose client has gone: nobody reads it, so nobody need compute it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Receive

__all__ = ["given_up_without_client"]


@asynccontextmanager
async def given_up_without_client(receive: Receive) -> AsyncIterator[None]:
    """Run a block that is cancelled when the client of its request goes.

    Args:
        receive: the request's; its body has been read.

    Raises:
        ClientDisconnect: if the client has gone before the block ended.
    """
    answering = asyncio.current_task()
    assert answering is not None, "an answer is a task's"
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        try:
            # Behind the body there is nothing but the end of the connection.
            is_gone = (await receive())["type"] == "http.disconnect"
        except Exception:
            # A server that tells nothing of its clients: the answer goes on.
            return
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
