"""How fast a backend answers, measured between the ends of its calls."""

from __future__ import annotations

import pytest

from policy_server.serving.service_rate import ServiceRate


def test_rate_is_unknown_before_two_calls() -> None:
    rate = ServiceRate()
    rate.observe(1, started=0.0, ended=1.0)

    assert rate.seconds_a_row == 0.0


@pytest.mark.parametrize(("replicas", "seconds"), [(1, 0.002), (2, 0.001)])
def test_call_that_waited_for_the_one_before_counts_from_its_end(
    replicas: int, seconds: float
) -> None:
    rate = ServiceRate()
    for call in range(16):
        ended = 0.02 / replicas * (call + 1)
        rate.observe(10, started=max(ended - 0.04, 0.0), ended=ended)

    assert rate.seconds_a_row == pytest.approx(seconds)


def test_time_without_questions_and_one_standstill_count_for_nothing() -> None:
    rate = ServiceRate()
    for call in range(16):
        took = 8.0 if call == 12 else 0.01
        rate.observe(2, started=call * 60.0, ended=call * 60.0 + took)

    assert rate.seconds_a_row == pytest.approx(0.005)


def test_newest_calls_alone_count() -> None:
    rate = ServiceRate()
    for call in range(40):
        rate.observe(1, started=call, ended=call + (0.5 if call < 20 else 0.1))

    assert rate.seconds_a_row == pytest.approx(0.1)
