"""Ticks: a schedule that no late answer moves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from policy_server.commands.realtime import ticks as ticks_module
from policy_server.commands.realtime.connections import Connection
from policy_server.commands.realtime.ticks import Asked, Ticks, drive
from policy_server.errors import ServerAnswerError

HZ = 200.0


class Clock:
    """A clock of the test's own, so that no busy machine makes a tick late.

    Attributes:
        now: the time; each look takes a microsecond.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Have ticks, and the connections of this module, read a clock of the test's own."""
    clock = Clock()
    monkeypatch.setattr(ticks_module, "time", clock)
    return clock


class Scripted(Connection):
    """A connection without a server, whose answers take as long as a script says.

    Attributes:
        asked: what it was asked.
    """

    def __init__(self, clock: Clock, seconds_of: Callable[[int], float]) -> None:
        self._clock = clock
        self._seconds_of = seconds_of
        self.asked: list[bytes] = []

    def encode(self, body: bytes) -> bytes:
        return body

    def ask(self, request: bytes) -> tuple[int, bytes]:
        self._clock.sleep(self._seconds_of(len(self.asked)))
        self.asked.append(request)
        return 200, b"{}"


def driven(*connections: Connection, seconds: float = 0.1) -> Ticks:
    """Drive connections, each with two requests."""
    policies = [Asked("a policy", item, [b"first", b"second"]) for item in connections]
    return drive(policies, hz=HZ, seconds=seconds, spin_s=0.0002)


def test_ticks_begin_at_their_schedule_and_ask_in_turn(clock: Clock) -> None:
    connection = Scripted(clock, lambda _: 0)

    ticks = driven(connection)

    assert len(ticks) == ticks.planned == 20
    assert (ticks.begun >= ticks.scheduled).all()
    assert np.diff(ticks.scheduled) == pytest.approx(1 / HZ)
    assert connection.asked == [b"first", b"second"] * 10
    assert (ticks.statuses == 200).all()


def test_ticks_behind_a_late_answer_are_asked_and_count_from_their_schedule(clock: Clock) -> None:
    connection = Scripted(clock, lambda number: 0.04 if number == 0 else 0)

    ticks = driven(connection)

    assert len(connection.asked) == 20
    late = ticks.begun - ticks.scheduled
    # The answer to the first took eight periods: the second began seven of them late.
    assert late[1] >= 0.034
    assert (np.diff(late[1:7]) < 0).all()


def test_policies_of_a_tick_are_asked_one_after_another(clock: Clock) -> None:
    first, second = Scripted(clock, lambda _: 0.001), Scripted(clock, lambda _: 0)

    ticks = driven(first, second)

    assert ticks.answered.shape == (20, 2)
    assert (ticks.asked[:, 1] >= ticks.answered[:, 0]).all()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ServerAnswerError("it is gone")])
def test_ticks_that_end_early_are_those_that_were_answered(
    clock: Clock, error: KeyboardInterrupt | ServerAnswerError
) -> None:
    def fail(number: int) -> float:
        if number == 5:
            raise error
        return 0

    ticks = driven(Scripted(clock, fail))

    assert len(ticks) == 5
    assert ticks.ended is error
    assert ticks.answered.shape == (5, 1)


def test_first_tick_of_a_slow_rate_is_not_waited_for(clock: Clock) -> None:
    before = clock.now

    drive([], hz=0.05, seconds=1, spin_s=0.0)

    assert clock.now - before == pytest.approx(0.1, abs=0.01)
