"""The verdict on an overload: what is counted as what, and what is held to which bound."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.overload_verdict import Outcome, Run, judge

OFTEN = 100
HELD = Run(
    0.1,
    before=Outcome(answered=[0.003] * 50),
    loaded=Outcome(answered=[0.08] * OFTEN, refused=[0.001] * OFTEN, late_s=0.01),
    after=Outcome(answered=[0.003] * 50),
    memory_mb=(66.0, 71.0, 71.0, 72.0),
    alone=110,
)


def test_run_that_kept_to_its_bounds_holds() -> None:
    assert judge(HELD) == []


@pytest.mark.parametrize(
    ("loaded", "told"),
    [
        (
            Outcome(answered=[0.13] * OFTEN, refused=[0.001] * OFTEN, late_s=0.01),
            "answered: expected a 99th percentile of 100 ms, with 20 ms for noise, got 130.0 ms",
        ),
        (
            Outcome(answered=[0.08] * OFTEN, refused=[0.05] * OFTEN, late_s=0.01),
            "refused: expected a 99th percentile of 10 ms, with 11 ms for noise, got 50.0 ms",
        ),
        (
            Outcome(answered=[0.08] * OFTEN),
            "expected some requests to be answered and some refused, got 100 and 0",
        ),
        (
            Outcome(answered=[0.08] * OFTEN, refused=[0.001], failed=[b"HTTP/1.1 500"]),
            "failed: expected 0, got 1",
        ),
        (
            Outcome(answered=[0.08], refused=[0.001] * 60_000),
            "answered: expected 55 at least, half of the 110 that the policy can do, got 1",
        ),
    ],
    ids=["late answers", "late refusals", "none refused", "failed", "collapsed"],
)
def test_load_beyond_a_bound_is_told(loaded: Outcome, told: str) -> None:
    assert judge(replace(HELD, loaded=loaded)) == [told]


def test_answers_may_be_as_late_as_their_clients() -> None:
    loaded = Outcome(answered=[0.13] * OFTEN, refused=[0.001] * OFTEN, late_s=0.03)

    assert judge(replace(HELD, loaded=loaded)) == []


@pytest.mark.parametrize("part", ["before", "loaded", "after"])
def test_clients_that_were_far_behind_their_pace_tell_nothing(part: str) -> None:
    whole = replace(getattr(HELD, part), late_s=5.0)

    assert judge(replace(HELD, **{part: whole})) == [
        f"{part}: the run tells nothing: its clients were 5000 ms behind their pace, of which 50 "
        "ms are allowed; the machine was busy"
    ]


def test_server_that_failed_before_the_load_is_told() -> None:
    before = Outcome(answered=[0.003], failed=[b"HTTP/1.1 500"] * 49)

    assert judge(replace(HELD, before=before)) == [
        "before: expected each request to be answered, got 49 that were not"
    ]


@pytest.mark.parametrize(
    ("memory_mb", "told"),
    [
        (
            (66.0, 77.0, 77.0, 77.0),
            "memory: expected 10 MB more than before at the most, got 66.0 MB before and 77.0 MB",
        ),
        (
            (66.0, 67.0, 69.0, 70.0),
            "memory: expected it to grow by 2 MB under the load at the most, got 67.0 MB and then "
            "70.0 MB",
        ),
    ],
    ids=["taken at once", "growing"],
)
def test_memory_that_is_not_flat_is_told(memory_mb: tuple[float, ...], told: str) -> None:
    assert judge(replace(HELD, memory_mb=memory_mb)) == [told]


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (
            Outcome(answered=[0.006] * 50),
            "after: expected the median of before, 3.0 ms, got 6.0 ms",
        ),
        (
            Outcome(answered=[0.003] * 49, refused=[0.001]),
            "after: expected each request to be answered, got 1 that were not",
        ),
    ],
    ids=["slow", "refused"],
)
def test_server_that_is_not_back_is_told(after: Outcome, told: str) -> None:
    assert judge(replace(HELD, after=after)) == [told]


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", (1, 0, 0)),
        (b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\r\n", (0, 1, 0)),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", (0, 0, 1)),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", (0, 0, 1)),
    ],
    ids=["200", "503", "503 without Retry-After", "500"],
)
def test_answer_is_counted_by_its_head(answer: bytes, counted: tuple[int, int, int]) -> None:
    outcome = Outcome()

    outcome.note(answer, 0.1)

    assert (len(outcome.answered), len(outcome.refused), len(outcome.failed)) == counted


def test_bodies_that_may_wait_are_no_lost_memory() -> None:
    run = replace(HELD, memory_mb=(66.0, 96.0, 96.0, 96.0))

    assert judge(replace(run, bodies_mb=30.0)) == []
    assert judge(replace(run, bodies_mb=10.0)) == [
        "memory: expected 20 MB more than before at the most, got 66.0 MB before and 96.0 MB"
    ]


@pytest.mark.parametrize(
    ("last_mb", "broken"),
    [
        (80.0, []),
        (
            80.6,
            [
                "memory: expected it to grow by 5 MB under the load at the most, got 75.5 MB and "
                "then 80.6 MB"
            ],
        ),
    ],
)
def test_bodies_that_wait_may_vary_by_a_tenth(last_mb: float, broken: list[str]) -> None:
    run = replace(HELD, memory_mb=(66.0, 75.5, 76.0, last_mb), bodies_mb=30.0)

    assert judge(run) == broken
