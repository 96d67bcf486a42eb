"""The wait that questions are accepted for, under loads that are drawn and counted."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.serving.wait_bound import WaitBound

_BOUND_S = 0.1
_ROW_S = 0.002


def overload(
    bound: WaitBound, *, noise: float, calls: int = 3000, times: float = 4.0
) -> list[float]:
    """Ask a policy that takes 2 ms a row for more than it can do, and give the answers' waits.

    Args:
        bound: accepts the questions, and gives those up that would be late.
        noise: the standard deviation of the logarithm of a call's time.
        calls: for how many calls.
        times: how many times as many questions come as it could answer.
    """
    drawn = np.random.default_rng(0)
    waits: list[float] = []
    queue: list[float] = []
    now = 0.0
    for _ in range(calls):
        while queue and bound.is_too_late(now - queue[0], len(queue)):
            queue.pop(0)
        queue = queue or [now]
        took = len(queue) * _ROW_S * float(np.exp(noise * drawn.standard_normal()))
        started, now = now, now + took
        waits += [now - asked for asked in queue]
        bound.observe(len(queue), asked=queue[0], started=started, ended=now)
        called, queue = len(queue), []
        for asked in np.arange(started, now, _ROW_S / times):
            if called + len(queue) + 1 <= bound.fitting:
                queue.append(float(asked))
    return waits


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3, 0.6])
def test_answers_keep_to_the_bound_at_four_times_the_load(noise: float) -> None:
    waits = np.array(overload(WaitBound(_BOUND_S), noise=noise))

    assert np.quantile(waits, 0.99) <= _BOUND_S
    # Nothing is gained by accepting next to nobody.
    assert np.quantile(waits, 0.5) >= 0.25 * _BOUND_S


def test_everything_is_accepted_before_the_rate_is_known() -> None:
    assert WaitBound(_BOUND_S).fitting == float("inf")


def test_bound_is_used_whole_where_calls_are_in_time() -> None:
    bound = WaitBound(_BOUND_S)
    for call in range(50):
        bound.observe(5, asked=call, started=call, ended=call + 5 * _ROW_S)

    assert bound.fitting == pytest.approx(0.9 * _BOUND_S / _ROW_S)


def test_less_is_accepted_than_is_in_time_where_it_is_told_so() -> None:
    bound = WaitBound(0.1, accepted_share=0.5)

    for call in range(1000):
        bound.observe(10, asked=call * 0.02 - 0.04, started=call * 0.02 - 0.02, ended=call * 0.02)

    assert bound.accepted_s == pytest.approx(0.05)
    assert not bound.is_late(0.089)
    assert bound.is_late(0.091)


def test_late_calls_let_fewer_in_and_calls_in_time_more_again() -> None:
    bound = WaitBound(_BOUND_S)
    for call in range(30):
        bound.observe(5, asked=call - 0.1, started=call, ended=call + 5 * _ROW_S)
    after_late_ones = bound.fitting
    for call in range(30, 5000):
        bound.observe(5, asked=call, started=call, ended=call + 5 * _ROW_S)

    assert 1 <= after_late_ones < 0.2 * _BOUND_S / _ROW_S
    assert bound.fitting == pytest.approx(0.9 * _BOUND_S / _ROW_S)


def test_question_that_has_just_come_is_never_too_late() -> None:
    bound = WaitBound(_BOUND_S)
    for call in range(20):
        bound.observe(1, asked=call, started=call, ended=call + 1.0)

    assert not bound.is_too_late(0.04, 1)
    assert bound.is_too_late(0.06, 1)
