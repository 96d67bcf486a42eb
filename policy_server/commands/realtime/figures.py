"""The figures of a closed loop: round trips, jitter, missed deadlines, and a histogram."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.commands.realtime.ticks import Ticks

__all__ = ["Bar", "LoopFigures", "PolicyFigures", "Spread", "figures_of"]

_OK = 200
_BARS = 20
Times = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """How some times are spread, in milliseconds."""

    p50: float
    p90: float
    p99: float
    worst: float

    @classmethod
    def of(cls, times_s: Times) -> Spread:
        """Return the spread of times.

        Args:
            times_s: float64[N], at least one, in seconds.
        """
        shares = np.percentile(times_s * 1000, [50, 90, 99, 100])
        return cls(*(round(float(share), 4) for share in shares))


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram.

    Attributes:
        low_ms: its lower end.
        high_ms: its upper end.
        count: how many round trips took so long.
    """

    low_ms: float
    high_ms: float
    count: int


@dataclass(frozen=True)
class PolicyFigures:
    """The figures of one policy.

    Attributes:
        policy: its name.
        answers: how many answers it gave.
        errors: how many were errors, by status.
        round_trip_ms: from asking until the answer is there.
        answer_jitter_ms: how far the time from one answer to the next is from a period.
        histogram: the round trips.
    """

    policy: str
    answers: int
    errors: dict[str, int]
    round_trip_ms: Spread
    answer_jitter_ms: Spread
    histogram: list[Bar]


@dataclass(frozen=True)
class LoopFigures:
    """The figures of a whole loop.

    Attributes:
        transport: how the server was asked.
        hz: the rate that was asked for.
        ticks: how many were driven.
        planned: how many should have been.
        deadline_ms: until when after its schedule a tick has to be answered.
        missed: how many ticks were answered later, or by an error.
        start_jitter_ms: how long after its schedule a tick began.
        answered_ms: from a tick's schedule until all its answers are there.
        policies: the figures of each policy.
    """

    transport: str
    hz: float
    ticks: int
    planned: int
    deadline_ms: float
    missed: int
    start_jitter_ms: Spread
    answered_ms: Spread
    policies: list[PolicyFigures]

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


def figures_of(
    ticks: Ticks, names: list[str], *, transport: str, deadline_s: float | None
) -> LoopFigures | None:
    """Return the figures of what was driven; None where no tick was answered.

    Args:
        ticks: the times.
        names: those of the policies, in their order.
        transport: how the server was asked.
        deadline_s: until when a tick has to be answered, in seconds; None for a period.
    """
    if not len(ticks):
        return None
    deadline_s = 1 / ticks.hz if deadline_s is None else deadline_s
    late_s = ticks.answered.max(axis=1) - ticks.scheduled
    is_missed = (late_s > deadline_s) | (ticks.statuses != _OK).any(axis=1)
    return LoopFigures(
        transport=transport,
        hz=ticks.hz,
        ticks=len(ticks),
        planned=ticks.planned,
        deadline_ms=round(deadline_s * 1000, 4),
        missed=int(is_missed.sum()),
        start_jitter_ms=Spread.of(ticks.begun - ticks.scheduled),
        answered_ms=Spread.of(late_s),
        policies=[_policy(ticks, index, name) for index, name in enumerate(names)],
    )


def _policy(ticks: Ticks, index: int, name: str) -> PolicyFigures:
    round_trips = ticks.answered[:, index] - ticks.asked[:, index]
    between = np.diff(ticks.answered[:, index])
    errors = Counter(ticks.statuses[ticks.statuses[:, index] != _OK, index].tolist())
    return PolicyFigures(
        policy=name,
        answers=len(ticks),
        errors={str(status): count for status, count in sorted(errors.items())},
        round_trip_ms=Spread.of(round_trips),
        answer_jitter_ms=Spread.of(np.abs(between - 1 / ticks.hz) if len(between) else np.zeros(1)),
        histogram=_histogram(round_trips * 1000),
    )


def _histogram(times_ms: Times) -> list[Bar]:
    """Return bars that are equally wide on a logarithmic scale, since the tail is long."""
    low, high = float(times_ms.min()), float(times_ms.max())
    edges = np.geomspace(low, max(high, low * 1.01), _BARS + 1)
    # The outermost hold what rounding would leave out.
    counts, _ = np.histogram(times_ms, [0, *edges[1:-1], np.inf])
    return [
        Bar(round(float(first), 4), round(float(last), 4), int(count))
        for first, last, count in zip(edges, edges[1:], counts, strict=False)
    ]
