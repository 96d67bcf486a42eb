"""The sessions of one process: when those that nobody asks for are forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from policy_server.metrics import Metrics
from policy_server.serving import process_sessions
from policy_server.serving.process_sessions import ProcessSessions
from policy_server.serving.session_store import SessionRecord
from policy_server.settings import Settings


class Clock:
    """A clock that a test moves, with the timers that were set by it."""

    def __init__(self) -> None:
        """Begin at a moment."""
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def monotonic(self) -> float:
        """Tell the time in seconds."""
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Take a timer."""
        self.timers.append((self.now + delay_s, callback))

    def ring(self) -> None:
        """Go to the next timer's moment, and ring it."""
        self.now, callback = self.timers.pop(0)
        callback()


async def test_session_is_forgotten_as_soon_as_it_was_idle_for_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(process_sessions, "time", clock)
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", clock.call_later)
    store = ProcessSessions(Settings(session_idle_s=60.0), Metrics())

    await store.add(SessionRecord("early", "default", "v1", "12", np.zeros(1, np.float32)))
    clock.now += 59.0
    async with store.held("default", "early"):
        pass
    clock.ring()
    looked_again_after_s = clock.timers[0][0] - clock.now
    kept_until_then = await store.count("default", "v1", "12")
    while clock.timers:
        clock.ring()

    assert (looked_again_after_s, kept_until_then) == (59.0, 1)
    assert await store.count("default", "v1", "12") == 0
    assert clock.now == pytest.approx(219.0, abs=0.1)
