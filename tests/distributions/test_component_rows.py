"""Rows of several parts at once: each part reads as it does alone, few rows as many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.distributions.component_rows import (
    CategoricalLayout,
    CategoricalRows,
    clip,
)
from policy_server.errors import DistributionError
from policy_server.policy import ActionComponent
from tests.support.fakes import components_of

UNEQUAL = components_of(("categorical", 3), ("normal", 1), ("categorical", 130), ("categorical", 2))
CATEGORICAL = tuple(part for part in UNEQUAL if part.kind == "categorical")


def read(parts: Sequence[ActionComponent], inputs: NDArray[np.float32]) -> CategoricalRows:
    """Return what is read of the rows."""
    return CategoricalRows(CategoricalLayout(parts), inputs)


def inputs_of(rows: int) -> NDArray[np.float32]:
    """Return random inputs of `UNEQUAL`, with masked choices."""
    inputs = np.random.default_rng(7).normal(size=(rows, 137)).astype(np.float32)
    inputs[:, 1] = np.finfo(np.float32).min
    inputs[:, 134] = -np.inf
    return inputs


@pytest.mark.parametrize("rows", [1, 200], ids=["fewer rows than choices", "more rows"])
def test_parts_of_unequal_size_read_together_as_each_alone(rows: int) -> None:
    inputs = inputs_of(rows)
    uniform = np.random.default_rng(8).random((3, rows))

    together = read(CATEGORICAL, inputs)
    chosen = together.draw(uniform)

    alone = [read([part], inputs) for part in CATEGORICAL]
    for place, part in enumerate(alone):
        assert part.draw(uniform[[place]])[0].tolist() == chosen[place].tolist()
        assert together.probabilities(place) == pytest.approx(part.probabilities(0))
    total = sum(part.log_probability(chosen[[place]]) for place, part in enumerate(alone))
    assert together.log_probability(chosen) == pytest.approx(total)


def test_choices_are_drawn_by_the_running_sum_of_their_probabilities() -> None:
    inputs = inputs_of(200)
    uniform = np.random.default_rng(9).random((1, 200))
    uniform[0, 0] = 1 - 2.0**-53
    rows = read([CATEGORICAL[1]], inputs)

    chosen = rows.draw(uniform)[0].astype(int)

    sums = rows.probabilities(0).cumsum(axis=1)
    expected = [
        int(np.searchsorted(row, number, side="right"))
        for row, number in zip(sums[1:], uniform[0, 1:], strict=True)
    ]
    assert chosen[1:].tolist() == expected
    assert chosen[0] == 128, "the last choice that is not masked, beyond what one byte counts"


def test_probabilities_are_the_softmax_of_the_logits_over_the_temperature() -> None:
    part = replace(components_of(("categorical", 3))[0], temperature=2.0)

    chances = read([part], np.array([[0.0, 2.0, -np.inf]], np.float32)).probabilities(0)

    assert chances[0] == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e), 0.0])


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "hold NaN; check"), (math.inf, "or mask every action")],
    ids=["NaN", "infinity"],
)
def test_logits_that_are_no_numbers_are_refused_in_words(value: float, message: str) -> None:
    inputs = inputs_of(2)
    inputs[1, 2] = value

    with pytest.raises(DistributionError, match=message):
        read(CATEGORICAL, inputs)


def test_clip_cuts_to_bounds_and_keeps_nan() -> None:
    cut = clip(np.array([-9.0, 0.5, 9.0, math.nan]), -1.0, np.array([1.0, 1.0, 2.0, 1.0]))

    assert cut[:3].tolist() == [-1.0, 0.5, 2.0]
    assert np.isnan(cut[3])
