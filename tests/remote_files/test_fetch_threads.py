"""Downloads beside an event loop, which end when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path

import pytest

from policy_server.errors import ModelError
from policy_server.remote_files import (
    fetch_files,
    fetch_in_thread,
    parse_uri,
    run_in_waiting_loop,
)
from policy_server.settings import Settings
from tests.support.stores import pass_any
from tests.support.waiting import until


def _fetching() -> bool:
    return any(thread.name == "fetch-files" for thread in threading.enumerate())


async def test_cancelled_download_stops_and_leaves_no_files(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        model = parse_uri(f"http://127.0.0.1:{silent.getsockname()[1]}/policy.zip", name="URI")
        fetching = asyncio.create_task(
            fetch_in_thread(lambda: fetch_files(settings, model=model, schema=None, check=pass_any))
        )
        await until(lambda: (settings.home / ".incoming").exists())
        began = time.monotonic()
        fetching.cancel()
        await asyncio.wait([fetching])
        lasted = time.monotonic() - began

    assert fetching.cancelled()
    assert lasted < 4
    assert not (settings.home / ".incoming").exists()
    await until(lambda: not _fetching())


async def test_result_and_error_of_the_work_are_the_callers() -> None:
    def fail() -> None:
        raise ModelError("no policy")

    assert await fetch_in_thread(lambda: 7) == 7
    with pytest.raises(ModelError, match="no policy"):
        await fetch_in_thread(fail)


async def test_coroutine_of_the_thread_is_cancelled_with_its_wait() -> None:
    here = asyncio.get_running_loop()
    seen: list[object] = []

    async def wait() -> None:
        seen.append(asyncio.get_running_loop() is here)
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("ended")

    working = asyncio.create_task(fetch_in_thread(lambda: run_in_waiting_loop(wait())))
    await until(lambda: seen == [True])
    working.cancel()
    await asyncio.wait([working])

    assert working.cancelled()
    assert seen == [True, "ended"]
    await until(lambda: not _fetching())


def test_coroutine_of_a_thread_that_no_loop_waits_for_has_a_loop_of_its_own() -> None:
    async def seven() -> int:
        return 7

    assert run_in_waiting_loop(seven()) == 7
