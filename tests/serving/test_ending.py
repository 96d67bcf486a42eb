"""Work that ends with the server."""

from __future__ import annotations

import asyncio

import pytest

from policy_server.errors import NotReadyError
from policy_server.serving.ending import EndableWork
from tests.support.waiting import turns


async def test_work_is_broken_off_at_the_end_and_none_is_begun_behind_it() -> None:
    work, begun = EndableWork(), list[str]()

    async def go_on(name: str) -> None:
        begun.append(name)
        await asyncio.Event().wait()

    running = asyncio.create_task(work.run(go_on("before")))
    await turns()
    work.end()
    with pytest.raises(NotReadyError, match="the server is ending"):
        await running
    with pytest.raises(NotReadyError, match="the server is ending"):
        await work.run(go_on("behind"))

    assert begun == ["before"]


async def test_work_whose_caller_goes_is_cancelled() -> None:
    work = EndableWork()
    running = asyncio.create_task(work.run(asyncio.Event().wait()))
    await turns()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
