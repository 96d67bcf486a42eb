"""Calls of Ray in threads, while one Ray follows another."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest

from policy_server.backends.ray.ray_calls import RayCalls
from policy_server.errors import NotReadyError
from tests.support.processes import run
from tests.support.waiting import until

ENDED = "ray: ended meanwhile"


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Return an event that ends the calls of a test, at its end at the latest."""
    event = threading.Event()
    yield event
    event.set()


async def test_call_gives_what_its_function_returns_or_raises() -> None:
    calls = RayCalls()

    with pytest.raises(ValueError, match="invalid literal"):
        await calls.call(int, "a")

    assert await calls.call(int, "7") == 7


async def test_exit_that_ray_raises_is_an_error_and_ends_no_event_loop() -> None:
    # As Ray breaks off a call that waits while this process disconnects.
    with pytest.raises(NotReadyError, match=ENDED) as caught:
        await RayCalls().call(sys.exit, 0)

    assert isinstance(caught.value.__cause__, SystemExit)


async def test_call_for_which_no_thread_begins_is_none_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = RayCalls()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            await calls.call(int, "7")

    # Where it counted, this would wait for ten minutes.
    async with asyncio.timeout(60), calls.held(end_timeout_s=600.0):
        pass


async def test_change_of_ray_waits_for_the_calls_under_way(released: threading.Event) -> None:
    calls = RayCalls()
    waiting = asyncio.create_task(calls.call(released.wait))
    is_held = asyncio.Event()

    async def change() -> bool:
        async with calls.held(end_timeout_s=60.0):
            is_held.set()
            return waiting.done()

    changing = asyncio.create_task(change())
    for _ in range(20):
        await asyncio.sleep(0)
    began_before = is_held.is_set()
    released.set()

    await changing
    assert await waiting
    assert not began_before


async def test_change_of_ray_waits_for_no_call_for_ever(released: threading.Event) -> None:
    calls = RayCalls()
    waiting = asyncio.create_task(calls.call(released.wait))
    await asyncio.sleep(0)

    async with calls.held(end_timeout_s=0.05):
        was_done = waiting.done()
    released.set()

    assert await waiting
    assert not was_done


async def test_calls_are_refused_during_a_change_of_ray_and_made_after_it() -> None:
    calls = RayCalls()

    async with calls.held():
        with pytest.raises(NotReadyError, match=f"{ENDED}, and is started again; try again"):
            await calls.call(int, "7")

    assert await calls.call(int, "7") == 7


async def test_call_that_nobody_awaits_any_more_still_counts(released: threading.Event) -> None:
    calls = RayCalls()
    began = threading.Event()

    def wait() -> None:
        began.set()
        released.wait()

    waiting = asyncio.create_task(calls.call(wait))
    await until(began.is_set)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    threading.Timer(0.1, released.set).start()

    async with calls.held(end_timeout_s=60.0):
        assert released.is_set()


def test_call_that_never_ends_holds_no_end_of_the_process_up() -> None:
    lines = """
import asyncio, threading
from policy_server.backends.ray.ray_calls import RayCalls

async def main():
    asyncio.create_task(RayCalls().call(threading.Event().wait))
    await asyncio.sleep(0.1)

asyncio.run(main())
"""

    run(sys.executable, "-c", lines)
