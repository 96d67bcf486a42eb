"""An app's lifespan, as the server that runs it hears of it."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.web import build


async def test_server_that_is_ended_at_once_gets_no_traceback() -> None:
    to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    from_app: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.ensure_future(build()(scope, to_app.get, from_app.put))
    await to_app.put({"type": "lifespan.startup"})
    begun = await from_app.get()

    task.cancel()
    await asyncio.wait([task])

    assert begun["type"] == "lifespan.startup.complete"
    assert task.cancelled()
    assert from_app.get_nowait() == {"type": "lifespan.shutdown.failed", "message": ""}
    assert from_app.empty()
