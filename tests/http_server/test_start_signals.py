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

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def server() -> Iterator[uvicorn.Server]:
    """A uvicorn that takes the signals of this process, as it does while it starts."""
    taken = uvicorn.Server(uvicorn.Config(app="", log_config=None))
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, taken.handle_exit)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield taken
    for number, handler in kept.items():
        signal.signal(number, handler)


async def start() -> None:
    with cancelled_by_signals():
        await asyncio.sleep(10)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_the_start_and_uvicorn_notes_it(
    server: uvicorn.Server, number: signal.Signals
) -> None:
    async def start_and_signal() -> None:
        # Where nobody takes it, as SIGHUP before, it would end the tests.
        asyncio.get_running_loop().call_soon(raise_if_taken, number)
        await start()

    with pytest.raises(NotReadyError, match=rf"^the start was ended by {number.name}$"):
        asyncio.run(start_and_signal())

    assert server.should_exit
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def raise_if_taken(number: signal.Signals) -> None:
    assert callable(signal.getsignal(number)), "nobody takes it"
    os.kill(os.getpid(), number)


def test_signal_in_the_last_moment_of_the_start_ends_it_and_nothing_behind_it(
    server: uvicorn.Server,
) -> None:
    steps: list[str] = []

    async def start_and_go_on() -> None:
        try:
            with cancelled_by_signals():
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            await asyncio.sleep(0.01)
            steps.append("cleaned up")

    with pytest.raises(NotReadyError, match=r"^the start was ended by SIGTERM$"):
        asyncio.run(start_and_go_on())

    assert steps == ["cleaned up"]
    assert server.should_exit


def test_terminal_that_closes_does_not_end_a_start_under_nohup(server: uvicorn.Server) -> None:
    async def start_and_end() -> None:
        with cancelled_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.01)

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asyncio.run(start_and_end())

    assert not server.should_exit


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
                await asyncio.sleep(10)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.01)
                steps.append("cleaned up")

    with pytest.raises(NotReadyError, match=r"^the start was ended by SIGINT$"):
        asyncio.run(start_that_cleans_up())

    assert steps == ["cleaned up"]
    assert server.force_exit
