"""The figures of a loop, of times that are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from policy_server.commands.realtime.figures import LoopFigures, figures_of
from policy_server.commands.realtime.ticks import Ticks


def ticks_of(round_trips_ms: list[float], *, late_ms: float = 0, status: int = 200) -> Ticks:
    """Return ticks at 100 Hz whose round trips took so long; the last one has a status."""
    count = len(round_trips_ms)
    begun = np.arange(count) / 100 + late_ms / 1000
    statuses = np.full((count, 1), 200)
    statuses[-1] = status
    answered = (begun + np.array(round_trips_ms) / 1000)[:, None]
    return Ticks(100.0, 2 * count, begun, begun[:, None], answered, statuses)


def measured(ticks: Ticks, deadline_s: float | None = None) -> LoopFigures:
    """Return the figures of ticks that were answered."""
    figures = figures_of(ticks, ["lift"], transport="http over TCP", deadline_s=deadline_s)
    assert figures is not None
    return figures


def test_round_trips_and_jitter_are_spread() -> None:
    figures = measured(ticks_of([*range(1, 100), 200], late_ms=0.5))
    policy = figures.policies[0]

    assert (policy.round_trip_ms.p50, policy.round_trip_ms.worst) == (50.5, 200)
    assert figures.start_jitter_ms.worst == pytest.approx(0.5)
    assert figures.answered_ms.worst == pytest.approx(200.5)
    # The last answer came 101 ms later in its tick than the one before it.
    assert policy.answer_jitter_ms.p50 == pytest.approx(1)
    assert policy.answer_jitter_ms.worst == pytest.approx(101)
    assert (figures.ticks, figures.planned) == (100, 200)


def test_tick_is_missed_that_is_answered_after_the_next_one_began_or_by_an_error() -> None:
    ticks = ticks_of([1, 9.9, 10.1, 30, 1], status=503)

    assert measured(ticks).missed == 3
    assert measured(ticks, deadline_s=0.02).missed == 2
    assert measured(ticks).policies[0].errors == {"503": 1}


def test_histogram_holds_every_round_trip() -> None:
    histogram = measured(ticks_of([0.3, 0.3, 0.31, 4, 250])).policies[0].histogram

    assert sum(bar.count for bar in histogram) == 5
    assert histogram[0].low_ms == pytest.approx(0.3)
    assert histogram[-1].high_ms == pytest.approx(250)
    assert [bar.count for bar in histogram][-1] == 1


def test_loop_without_an_answer_has_no_figures() -> None:
    ticks = Ticks(100.0, 5, np.zeros(0), np.zeros((0, 1)), np.zeros((0, 1)), np.zeros((0, 1), int))

    assert figures_of(ticks, ["lift"], transport="http", deadline_s=None) is None


def test_figures_are_json() -> None:
    figures = measured(ticks_of([1, 2]))

    assert json.loads(json.dumps(figures.as_json()))["policies"][0]["policy"] == "lift"
