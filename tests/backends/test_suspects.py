"""Observations that may end replicas, or make the policy hang: how sure that is, and how long."""

from __future__ import annotations

import time

import numpy as np
import pytest

from policy_server.backends.suspects import Suspects, Suspicion
from policy_server.errors import OverloadedError, PolicyFailedError
from policy_server.policy import PolicyInputs
from tests.support.call_replicas import inputs_of

ONE, OTHER, MANY = inputs_of(1.0), inputs_of(2.0), inputs_of(3.0, rows=4)


@pytest.mark.parametrize(
    ("inputs", "was_computed", "expected"),
    [
        (ONE, [False], Suspicion.HAD),
        (ONE, [False] * 5, Suspicion.HAD),
        (ONE, [False, True], Suspicion.COMPUTED),
        (ONE, [True], Suspicion.COMPUTED),
        (ONE, [False, True, True], Suspicion.ALONE),
        (ONE, [True, False, True, True], Suspicion.ALONE),
        # A row that was computed with others is not known to be the one.
        (MANY, [True] * 5, Suspicion.COMPUTED),
    ],
)
def test_suspicion_grows_with_the_replicas_that_ended(
    inputs: PolicyInputs,
    was_computed: list[bool],
    expected: Suspicion,
) -> None:
    suspects = Suspects()

    for was in was_computed:
        suspects.suspect(inputs, was_computed=was)

    assert suspects.of(inputs) == expected
    assert suspects.of(OTHER) == Suspicion.NONE


def test_row_is_suspected_in_any_call_until_it_is_answered() -> None:
    suspects = Suspects()
    suspects.suspect(MANY, was_computed=True)

    alone = suspects.of(inputs_of(3.0))
    suspects.clear(inputs_of(3.0))

    assert alone == Suspicion.COMPUTED
    assert suspects.of(MANY) == Suspicion.NONE


def test_same_numbers_with_another_memory_or_mask_are_another_observation() -> None:
    rows, modes, seeds = ONE.observations, ONE.is_deterministic, ONE.seeds
    calls = [
        PolicyInputs(rows, modes, seeds, state=state, masks=masks)
        for state in (None, np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32))
        for masks in (None, np.array([[True, False]]))
    ]
    suspects = Suspects()
    suspects.suspect(calls[0], was_computed=False)

    had, none = Suspicion.HAD, Suspicion.NONE
    # A memory of zeros is that of an episode's begin, which has none yet.
    assert [suspects.of(call) for call in calls] == [had, none, had, none, none, none]


def test_suspicion_ends_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    suspects, now = Suspects(), time.monotonic()
    suspects.suspect(ONE, was_computed=True)
    for was_computed in (True, True):
        suspects.suspect(OTHER, was_computed=was_computed)

    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    later = [suspects.of(ONE), suspects.of(OTHER)]
    monkeypatch.setattr(time, "monotonic", lambda: now + 1000)

    assert later == [Suspicion.NONE, Suspicion.ALONE]
    assert suspects.of(OTHER) == Suspicion.NONE


def test_number_of_suspects_is_bounded() -> None:
    suspects = Suspects()
    for number in range(20):
        rows = np.arange(1000, dtype=np.float32)[:, None] + 1000 * number
        suspects.suspect(PolicyInputs.of(rows), was_computed=False)

    assert suspects.of(PolicyInputs.of(np.zeros((1, 1), np.float32))) == Suspicion.NONE
    assert suspects.of(PolicyInputs.of(np.full((1, 1), 19_999, np.float32))) == Suspicion.HAD


def test_call_of_many_rows_is_suspected_as_a_whole() -> None:
    suspects, inputs = Suspects(), inputs_of(1.0, rows=1025)
    for was_computed in (False, True, True):
        suspects.suspect(inputs, was_computed=was_computed)

    assert suspects.of(inputs) == Suspicion.COMPUTED
    assert suspects.of(ONE) == suspects.of(inputs_of(1.0, rows=1025)) == Suspicion.NONE


def test_observation_at_which_the_policy_hangs_is_found_among_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    suspects = Suspects()
    suspects.suspect(MANY, was_computed=True, hangs=True)
    with pytest.raises(PolicyFailedError, match="took too long for one of 4 observations"):
        suspects.check(MANY)
    alone = suspects.check(inputs_of(3.0))
    suspects.suspect(inputs_of(3.0), was_computed=True, hangs=True)

    assert alone == Suspicion.COMPUTED
    with pytest.raises(OverloadedError, match=r"this observation, twice.* within 10 minutes"):
        suspects.check(inputs_of(3.0))
    # Those that are asked with it are asked alone.
    with pytest.raises(PolicyFailedError, match="one of 4"):
        suspects.check(MANY)
    assert [record.message for record in caplog.records] == ["observation_hangs"]


def test_one_observation_that_took_too_long_may_be_asked_once_more() -> None:
    suspects = Suspects()
    suspects.suspect(ONE, was_computed=True, hangs=True)

    assert suspects.check(ONE) == Suspicion.COMPUTED
    suspects.clear(ONE)
    assert suspects.check(ONE) == Suspicion.NONE


def test_long_call_that_took_too_long_is_refused_as_a_whole() -> None:
    suspects, inputs = Suspects(), inputs_of(1.0, rows=1025)
    suspects.suspect(inputs, was_computed=True, hangs=True)

    with pytest.raises(OverloadedError, match=r"too long for these 1025 .*; ask at most 1024"):
        suspects.check(inputs)
