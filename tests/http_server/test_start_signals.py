"""Signals during a start: they end it, those too that uvicorn has noted before."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
import uvicorn

from policy_server.errors import NotReadyError
from policy_server.http_server import cancelled_by_signals


@pytest.fixture
def server() -> Iterator[uvicorn.Server]:
    """A uvicorn that takes the signals of this process, as it does while it starts."""
    taken = uvicorn.Server(uvicorn.Config(app="", log_config=None))
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in kept:
        signal.signal(number, taken.handle_exit)
    yield taken
    for number, handler in kept.items():
        signal.signal(number, handler)


async def start() -> None:
    with cancelled_by_signals():
        await asyncio.sleep(100)


def test_signal_ends_the_start_and_uvicorn_notes_it(server: uvicorn.Server) -> None:
    async def start_and_signal() -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await start()

    with pytest.raises(NotReadyError, match=r"^the start was ended by SIGTERM$"):
        asyncio.run(start_and_signal())

    assert server.should_exit


def test_signal_that_uvicorn_noted_before_ends_the_start_as_it_begins(
    server: uvicorn.Server,
) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert server.should_exit

    with pytest.raises(NotReadyError, match=r"^the start was ended by a signal$"):
        asyncio.run(start())


def test_second_signal_lets_the_start_clean_up(server: uvicorn.Server) -> None:
    steps: list[str] = []

    async def start_that_cleans_up() -> None:
        with cancelled_by_signals():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(100)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.01)
                steps.append("cleaned up")

    with pytest.raises(NotReadyError, match=r"^the start was ended by SIGINT$"):
        asyncio.run(start_that_cleans_up())

    assert steps == ["cleaned up"]
    assert server.force_exit
