"""Bounds of continuous actions: rescaling, and the masses that clipping leaves at each."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.distributions.action_bounds import ActionBounds, log_normal_probability
from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.distributions.continuous_rows import ContinuousRows
from policy_server.policy import ActionComponent, ComponentKind
from tests.support.fakes import components_of


def bounded(
    kind: ComponentKind,
    low: tuple[float, ...],
    high: tuple[float, ...],
    *,
    is_normalized: bool = True,
) -> ActionComponent:
    """Return a component with bounds that stands alone."""
    (part,) = components_of((kind, len(low)))
    return replace(part, low=low, high=high, is_normalized=is_normalized)


CUT = [
    (bounded("normal", (-2.0,), (6.0,)), (0.5, 0.0)),
    (bounded("normal", (-2.0,), (6.0,), is_normalized=False), (3.0, 1.0)),
    (bounded("squashed_normal", (-0.5,), (0.75,), is_normalized=False), (0.3, 0.0)),
]
UNCUT = [
    bounded("squashed_normal", (-2.0,), (2.0,)),
    bounded("squashed_normal", (-1.0,), (1.0,), is_normalized=False),
    bounded("deterministic", (-2.0,), (2.0,)),
    ActionComponent("normal", 1, 0, 0),
    ActionComponent("categorical", 2, 0, 0),
]
cut = pytest.mark.parametrize(
    ("part", "row"), CUT, ids=["rescaled", "clipped only", "squashed and clipped"]
)


def rows_of(row: tuple[float, ...], count: int = 1) -> NDArray[np.float32]:
    """Return `action_dist_inputs` of so many equal rows."""
    return np.tile(np.array(row, np.float32), (count, 1))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # By mpmath, with fifty digits.
        (-1000.0, -500007.8266948122),
        (-37.0, -689.0305855768906),
        (-20.0, -203.9171553710973),
        (-19.9, -201.9171677073326),
        (-1.0, -1.84102164500927),
        (0.0, -0.693147180559945),
        (8.0, -6.22096057427178e-16),
        (40.0, 0.0),
        (math.inf, 0.0),
        (-math.inf, -math.inf),
    ],
)
def test_probability_of_a_normal_number_is_exact_in_both_tails(
    value: float, expected: float
) -> None:
    assert log_normal_probability(value) == pytest.approx(expected, rel=1e-13)


@cut
def test_masses_and_density_between_make_one(part: ActionComponent, row: tuple[float, ...]) -> None:
    assert part.low is not None
    assert part.high is not None
    distribution = ActionDistribution([part])
    (described,) = distribution.describe(rows_of(row))
    assert described.mass_at_low is not None
    assert described.mass_at_high is not None
    own = (-1.0, 1.0) if part.is_normalized else (part.low[0], part.high[0])
    grid = np.linspace(*own, 20_001)[1:-1]

    density = np.exp(distribution.log_probability(rows_of(row, len(grid)), grid[:, None]))

    between = np.trapezoid(density, distribution.in_environment_units(grid[:, None])[:, 0])
    masses = described.mass_at_low[0, 0] + described.mass_at_high[0, 0]
    assert 0.05 < masses < 0.95
    assert between + masses == pytest.approx(1.0, abs=1e-3)


@cut
def test_share_of_draws_at_each_bound_is_its_mass(
    part: ActionComponent, row: tuple[float, ...]
) -> None:
    """Within five standard deviations of 20,000 draws."""
    distribution = ActionDistribution([part])
    inputs = rows_of(row, 20_000)
    (described,) = distribution.describe(inputs[:1])
    assert described.mass_at_low is not None
    assert described.mass_at_high is not None
    masses = described.mass_at_low[0, 0], described.mass_at_high[0, 0]

    outputs = distribution.answer(
        inputs, is_deterministic=np.zeros(20_000, bool), seeds=np.arange(20_000)
    )

    is_at = distribution.at_bound(outputs.actions)[:, 0]
    for bound, mass in zip((part.low, part.high), masses, strict=True):
        assert bound is not None
        drawn = outputs.actions[:, 0] == bound[0]
        assert is_at[drawn].all()
        assert drawn.mean() == pytest.approx(mass, abs=5 * math.sqrt(mass / 20_000))
        assert outputs.probability[drawn] == pytest.approx(mass)


def test_probability_is_the_product_of_masses_and_densities() -> None:
    part = bounded("normal", (0.0, 0.0, 0.0), (10.0, 10.0, 10.0))
    distribution = ActionDistribution([part])
    inputs = rows_of((-3.0, 0.0, 3.0, 0.0, 0.0, 0.0))

    outputs = distribution.answer(inputs, is_deterministic=np.array([True]), seeds=np.array([-1]))

    mass = 0.5 * math.erfc(-2 / math.sqrt(2))
    density = 1 / (5 * math.sqrt(2 * math.pi))
    assert outputs.actions.tolist() == [[0.0, 5.0, 10.0]]
    assert distribution.at_bound(outputs.actions).tolist() == [[True, False, True]]
    assert outputs.probability[0] == pytest.approx(mass * density * mass)


def test_columns_of_other_parts_are_at_no_bound() -> None:
    free, other = components_of(("categorical", 2), ("normal", 1))
    part = replace(bounded("normal", (-1.0,), (1.0,)), first_input=4, first_column=2)
    distribution = ActionDistribution([free, other, part])

    found = distribution.at_bound(np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 0.5]]))

    assert distribution.has_masses
    assert found.tolist() == [[False, False, True], [False, False, False]]


@pytest.mark.parametrize("part", UNCUT, ids=lambda part: part.kind)
def test_part_that_no_bound_cuts_has_no_masses(part: ActionComponent) -> None:
    distribution = ActionDistribution([part])
    inputs = rows_of((9.0, 9.0)[: part.inputs])

    outputs = distribution.answer(inputs, is_deterministic=np.array([True]), seeds=np.array([-1]))
    (described,) = distribution.describe(inputs)

    assert not distribution.has_masses
    assert not distribution.at_bound(outputs.actions).any()
    assert described.mass_at_low is None
    assert np.isfinite(outputs.log_probability).all()


def test_tanh_that_is_rounded_to_the_end_of_its_range_is_at_no_bound() -> None:
    part = bounded("squashed_normal", (-0.5,), (1.0,), is_normalized=False)
    distribution = ActionDistribution([part])

    outputs = distribution.answer(
        rows_of((30.0, 0.0)), is_deterministic=np.array([True]), seeds=np.array([-1])
    )

    assert outputs.actions.tolist() == [[1.0]]
    assert not distribution.at_bound(outputs.actions).any()
    assert np.isfinite(outputs.log_probability).all()


def test_bounds_beyond_the_range_of_the_tanh_hold_everything() -> None:
    part = bounded("squashed_normal", (2.0,), (3.0,), is_normalized=False)
    rows = ContinuousRows(part, rows_of((0.0, 0.0)))

    low, high = ActionBounds(part).log_masses(rows)

    assert (low[0, 0], high[0, 0]) == (0.0, -math.inf)


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.7), (-0.3, 0.1), (1e-3, 1e6 / 7), (-7.7, 3.3)])
def test_action_beyond_a_bound_is_answered_as_the_bound_itself(low: float, high: float) -> None:
    bounds = ActionBounds(bounded("normal", (low,), (high,)))

    answers = bounds.apply(np.array([[-9.0], [-1.0], [0.0], [1.0], [1.0 + 1e-15], [9.0]]))

    assert answers[:2].tolist() == [[low], [low]]
    assert answers[3:].tolist() == [[high]] * 3
    assert low < answers[2, 0] < high


LOCKED = pytest.mark.parametrize(
    ("kind", "is_normalized"),
    [
        ("squashed_normal", True),
        ("squashed_normal", False),
        ("normal", True),
        ("normal", False),
    ],
    ids=["squashed-rescaled", "squashed-clipped", "rescaled", "clipped"],
)


@LOCKED
@pytest.mark.parametrize("lock", [0.5, -1.0, 1.0])
@pytest.mark.parametrize("is_deterministic", [True, False], ids=["mode", "draw"])
def test_dimension_whose_bounds_are_equal_leaves_the_probability_to_the_others(
    kind: ComponentKind,
    is_normalized: bool,  # noqa: FBT001 -- by parametrize
    lock: float,
    is_deterministic: bool,  # noqa: FBT001 -- by parametrize
) -> None:
    both = ActionDistribution(
        [bounded(kind, (-2.0, lock), (1.5, lock), is_normalized=is_normalized)]
    )
    alone = ActionDistribution([bounded(kind, (-2.0,), (1.5,), is_normalized=is_normalized)])
    chosen, seeds = np.array([is_deterministic] * 3), np.array([3, 4, 5])
    rows = np.array([[0.3, 0.2, -1, -1], [2.5, -9, 0, 0], [-2.5, 9, 0.5, 0]], np.float32)
    of_one = rows[:, [0, 2]]

    answers = [
        (
            both.answer(rows, is_deterministic=chosen, seeds=seeds),
            alone.answer(of_one, is_deterministic=chosen, seeds=seeds),
        ),
        (
            both.answer_in_arrays(rows, is_deterministic=chosen, seeds=seeds),
            alone.answer_in_arrays(of_one, is_deterministic=chosen, seeds=seeds),
        ),
    ]

    for found, expected in answers:
        assert found.actions[:, 1].tolist() == [lock] * 3
        if is_deterministic:
            assert found.actions[:, 0] == pytest.approx(expected.actions[:, 0])
            assert found.log_probability == pytest.approx(expected.log_probability)
        assert np.isfinite(found.log_probability).all()
    assert answers[0][0].log_probability == pytest.approx(answers[1][0].log_probability)


@LOCKED
def test_dimension_whose_bounds_are_equal_has_its_whole_mass_at_one(
    kind: ComponentKind,
    is_normalized: bool,  # noqa: FBT001 -- by parametrize
) -> None:
    part = bounded(kind, (-2.0, 0.5), (1.5, 0.5), is_normalized=is_normalized)
    distribution = ActionDistribution([part])
    row = np.array([[0.3, 0.2, -1, -1]], np.float32)

    (described,) = distribution.describe(row)
    singly = distribution.few_rows.describe(row[0].tolist())

    assert singly is not None
    assert np.isfinite([*singly[0]["mean"], *singly[0]["std"]]).all()
    if part.is_clipped:
        assert described.mass_at_low is not None
        assert described.mass_at_high is not None
        assert (described.mass_at_low[0, 1], described.mass_at_high[0, 1]) == (1.0, 0.0)
        assert (singly[0]["mass_at_low"][1], singly[0]["mass_at_high"][1]) == (1.0, 0.0)
        assert distribution.at_bound(np.array([[0.1, 0.5]])).tolist() == [[False, True]]
        assert distribution.columns_at_bound([0.1, 0.5]) == [1]
