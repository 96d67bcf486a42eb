"""Action distributions, held against scipy-free reference formulas and their own draws."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import ActionDistribution, noise
from policy_server.errors import DistributionError
from policy_server.policy import ActionComponent, ComponentKind
from tests.support.fakes import components_of

FLOAT32_MIN = float(np.finfo(np.float32).min)
HUNDREDS = components_of(*((("categorical", 100),) * 200))
FLOAT32_MAX = float(np.finfo(np.float32).max)
LOGITS = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 6)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32)
    | st.sampled_from([FLOAT32_MIN, -math.inf, 0.0]),
)


def draws_of(
    components: Sequence[ActionComponent], seeds: NDArray[np.int64]
) -> list[NDArray[np.float64]]:
    """Return noise of a generator of its own."""
    return noise(components, seeds, np.random.default_rng())


def rows(*values: Sequence[float]) -> NDArray[np.float32]:
    """Return `action_dist_inputs`."""
    return np.array(values, np.float32)


def bounded(kind: ComponentKind, *, is_normalized: bool = True) -> ActionComponent:
    """Return a continuous component of two dimensions with bounds."""
    part = ActionComponent(kind, 2, 0, 0)
    return replace(part, low=(0.0, -4.0), high=(10.0, 4.0), is_normalized=is_normalized)


@given(LOGITS)
def test_softmax_sums_to_one_wherever_an_action_is_left(logits: NDArray[np.float32]) -> None:
    logits[:, 0] = 0.0

    parts = components_of(("categorical", logits.shape[1]))

    (described,) = ActionDistribution(parts).describe(logits)

    chances = described.probabilities
    assert chances is not None
    assert chances.sum(axis=1) == pytest.approx(1.0)
    assert (chances >= 0).all()


@pytest.mark.parametrize(
    "row",
    [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]],
    ids=["NaN", "infinity", "all masked"],
)
@pytest.mark.parametrize("method", ["log_probability", "sample", "describe"])
def test_logits_that_are_no_distribution_are_refused(row: list[float], method: str) -> None:
    components = components_of(("categorical", 2))
    arguments: dict[str, tuple[Any, ...]] = {
        "log_probability": (np.zeros((1, 1)),),
        "sample": (draws_of(components, np.array([1])),),
        "describe": (),
    }

    with pytest.raises(DistributionError):
        getattr(ActionDistribution(components), method)(rows(row), *arguments[method])


def test_masked_actions_have_probability_zero_and_never_happen() -> None:
    components = components_of(("categorical", 4))
    distribution = ActionDistribution(components)
    inputs = rows([FLOAT32_MIN, 0.0, 1.0, -math.inf])

    (described,) = distribution.describe(inputs)
    extremes = [
        distribution.sample(inputs, [np.array([[draw]])])[0, 0] for draw in (0.0, 1 - 2.0**-53)
    ]

    assert described.probabilities is not None
    assert described.probabilities[0] == pytest.approx(
        [0, 1 / (1 + math.e), math.e / (1 + math.e), 0]
    )
    assert extremes == [1, 2]


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_drawn_action_has_a_positive_probability(logits: NDArray[np.float32], draw: float) -> None:
    logits[:, 0] = 0.0
    distribution = ActionDistribution(components_of(("categorical", logits.shape[1])))

    actions = distribution.sample(logits, [np.full((len(logits), 1), draw)])

    assert np.isfinite(distribution.log_probability(logits, actions)).all()


@pytest.mark.parametrize("is_greedy", [False, True], ids=["drawn", "greedy"])
def test_choices_that_a_mask_forbids_never_happen(*, is_greedy: bool) -> None:
    components = components_of(("categorical", 3), ("normal", 1), ("categorical", 2))
    distribution = ActionDistribution(components, is_greedy=is_greedy)
    inputs = np.tile(rows([5.0, 1.0, 2.0, 0.5, -0.5, -2e8, -1e8]), (200, 1))
    masks = np.tile([[False, True, True, True, False]], (200, 1))

    masked = distribution.masked(inputs, masks)
    answers = distribution.answer(
        masked, is_deterministic=np.zeros(200, np.bool_), seeds=np.full(200, -1)
    )

    assert (inputs[:, 0] == 5.0).all(), "the network's own outputs stay as they are"
    assert (masked[:, 3:5] == inputs[:, 3:5]).all(), "a mask is of integer actions only"
    first, *_, last = distribution.describe(masked)
    assert first.probabilities is not None
    assert last.probabilities is not None
    chances = [0, 0, 1] if is_greedy else [0, 1 / (1 + math.e), math.e / (1 + math.e)]
    assert first.probabilities[0] == pytest.approx(chances)
    assert last.probabilities[0].tolist() == [1.0, 0.0]
    assert set(answers.actions[:, 0]) == ({2.0} if is_greedy else {1.0, 2.0})
    assert set(answers.actions[:, 2]) == {0.0}
    assert distribution.mode(masked)[0, [0, 2]].tolist() == [2.0, 0.0]


def test_mask_that_forbids_every_choice_of_an_action_is_refused() -> None:
    distribution = ActionDistribution(components_of(("categorical", 2), ("categorical", 2)))
    masks = np.array([[True, True, True, False], [True, True, False, False]])

    with pytest.raises(DistributionError, match="forbids every choice of an action; allow at"):
        distribution.masked(np.zeros((2, 4), np.float32), masks)


def test_temperature_divides_the_logits() -> None:
    part = replace(components_of(("categorical", 3))[0], temperature=0.5)

    (described,) = ActionDistribution([part]).describe(rows([0.0, 1.0, FLOAT32_MIN]))

    assert described.probabilities is not None
    assert described.probabilities[0] == pytest.approx(
        [1 / (1 + math.e**2), 1 / (1 + math.e**-2), 0]
    )


def test_draws_have_the_stated_probabilities() -> None:
    """Chi-square over 20,000 seeded draws; 30.7 is its 1e-6 quantile at three degrees."""
    components = components_of(("categorical", 4))
    distribution = ActionDistribution(components)
    inputs = np.tile(rows([0.0, 1.0, -1.0, 2.0]), (20_000, 1))

    actions = distribution.sample(inputs, draws_of(components, np.arange(20_000)))
    (described,) = distribution.describe(inputs[:1])

    assert described.probabilities is not None
    expected = described.probabilities[0] * 20_000
    found = np.bincount(actions[:, 0].astype(int), minlength=4)
    assert ((found - expected) ** 2 / expected).sum() < 30.7


def test_normal_draws_have_the_stated_mean_and_deviation() -> None:
    components = components_of(("normal", 1))
    inputs = np.tile(rows([3.0, math.log(0.5)]), (20_000, 1))

    actions = ActionDistribution(components).sample(inputs, draws_of(components, np.arange(20_000)))

    assert actions.mean() == pytest.approx(3.0, abs=0.02)
    assert actions.std() == pytest.approx(0.5, abs=0.02)


def test_unseeded_draws_differ() -> None:
    components = components_of(("categorical", 2), ("normal", 2))

    first, second = (draws_of(components, np.full(3, -1)) for _ in range(2))

    assert [draw.shape for draw in first] == [(3, 1), (3, 2)]
    assert all((one != two).all() for one, two in zip(first, second, strict=True))
    assert len(np.unique(first[1])) == 6


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=8), st.integers(0, 2**63 - 1))
def test_seeded_draw_does_not_depend_on_the_batch(others: list[int], seed: int) -> None:
    components = components_of(("categorical", 2), ("normal", 2))

    alone = draws_of(components, np.array([seed]))
    among = draws_of(components, np.array([*others, seed, *others]))

    for one, many in zip(alone, among, strict=True):
        assert (one[0] == many[len(others)]).all()


def test_log_probability_of_a_tuple_is_the_sum_of_its_parts() -> None:
    components = components_of(("categorical", 2), ("normal", 1), ("deterministic", 1))
    distribution = ActionDistribution(components)
    inputs = rows([0.0, 1.0, 2.0, math.log(3.0), 7.0])

    logp = distribution.log_probability(inputs, np.array([[1.0, 5.0, 7.0]]))

    chance = math.log(math.e / (1 + math.e))
    density = -0.5 * ((5 - 2) / 3) ** 2 - math.log(3 * math.sqrt(2 * math.pi))
    assert logp[0] == pytest.approx(chance + density)


def test_squashed_density_integrates_to_one() -> None:
    distribution = ActionDistribution(components_of(("squashed_normal", 1)))
    grid = np.linspace(-1 + 1e-5, 1 - 1e-5, 20_001)
    inputs = np.tile(rows([0.3, -1.0]), (len(grid), 1))

    density = np.exp(distribution.log_probability(inputs, grid[:, None]))

    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("mean", [5.0, 8.0, -8.0])
def test_squashed_draw_near_a_bound_has_the_density_of_the_stated_distribution(mean: float) -> None:
    """A draw moves by tanh'(u) du where u moves by du, and its density is divided by that.

    RLlib's arithmetic, which clips the action to 1 - 1e-6, is 98 % off at mean 8.
    """
    distribution = ActionDistribution(components_of(("squashed_normal", 1)))
    inputs = np.tile(rows([mean, 0.0]), (200, 1))
    seeds = np.arange(200)

    outputs = distribution.answer(inputs, is_deterministic=np.zeros(200, bool), seeds=seeds)

    (z,) = draws_of(distribution.components, seeds)
    normal = np.exp(-0.5 * z[:, 0] ** 2) / math.sqrt(2 * math.pi)
    assert outputs.probability == pytest.approx(normal * np.cosh(mean + z[:, 0]) ** 2, rel=1e-9)


def test_given_squashed_actions_have_the_density_of_the_stated_distribution() -> None:
    """In 64 bits a tanh of 5 has digits enough to be undone."""
    distribution = ActionDistribution(components_of(("squashed_normal", 2)))
    inputs = rows([5.0, -5.0, -1.0, -1.0])

    mode = distribution.log_probability(inputs, distribution.mode(inputs))
    bounds = distribution.log_probability(inputs, np.array([[1.0, -1.0]]))

    expected = 2 * (1 - 0.5 * math.log(2 * math.pi) + 2 * math.log(math.cosh(5)))
    assert mode[0] == pytest.approx(expected, rel=1e-9)
    assert np.isfinite(bounds).all()


def test_rllibs_log_probability_differs_near_the_bounds_of_a_squashed_normal_only() -> None:
    parts = components_of(("categorical", 2), ("normal", 1), ("squashed_normal", 1))
    distribution = ActionDistribution(parts)
    inputs = rows(*[[0.0, 1.0, 2.0, 0.5, 0.3, -1.0]] * 2)
    actions = np.array([[1.0, 1.5, 0.2], [1.0, 1.5, 1 - 1e-7]])

    exact = distribution.log_probability(inputs, actions)
    rllib = distribution.rllib_log_probability(inputs, actions)

    assert rllib[0] == pytest.approx(exact[0], abs=1e-5)
    assert abs(rllib[1] - exact[1]) > 1
    greedy = ActionDistribution(parts[:1], is_greedy=True)
    assert greedy.rllib_log_probability(inputs, actions).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("categorical", [0.0, 3.0, 3.0], [1.0]),
        ("normal", [0.5, -2.0, 0.0, 9.0], [0.5, -2.0]),
        ("squashed_normal", [0.5, -2.0, 0.0, 9.0], [math.tanh(0.5), math.tanh(-2.0)]),
        ("deterministic", [0.5, -2.0], [0.5, -2.0]),
    ],
)
def test_mode_is_the_best_action_or_the_center(
    kind: ComponentKind, row: list[float], expected: list[float]
) -> None:
    size = 3 if kind == "categorical" else 2
    distribution = ActionDistribution(components_of((kind, size)))

    assert distribution.mode(rows(row))[0] == pytest.approx(expected)


def test_greedy_policy_takes_the_best_action_for_certain() -> None:
    components = components_of(("categorical", 3))
    distribution = ActionDistribution(components, is_greedy=True)
    inputs = rows([1.0, 5.0, 2.0], [9.0, 5.0, 2.0])

    actions = distribution.sample(inputs, draws_of(components, np.array([1, 2])))
    (described,) = distribution.describe(inputs)

    assert actions[:, 0].tolist() == [1, 0]
    assert distribution.log_probability(inputs, actions).tolist() == [0, 0]
    assert described.probabilities is not None
    assert described.probabilities.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("kind", ["normal", "squashed_normal", "deterministic"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_center_that_is_no_number_is_refused(kind: ComponentKind, value: float) -> None:
    components = components_of((kind, 1))
    distribution = ActionDistribution(components)
    inputs = rows([value, 0.0])[:, : components[0].inputs]

    for call in (distribution.mode, distribution.describe):
        with pytest.raises(DistributionError, match="the policy's outputs hold"):
            call(inputs)
    with pytest.raises(DistributionError):
        distribution.sample(inputs, draws_of(components, np.array([1])))


@pytest.mark.parametrize("log_std", [-1000.0, -math.inf, 1000.0, math.inf, 88.8])
@pytest.mark.parametrize("kind", ["normal", "squashed_normal"])
def test_extreme_deviation_still_gives_finite_answers(kind: ComponentKind, log_std: float) -> None:
    components = components_of((kind, 1))
    distribution = ActionDistribution(components)
    inputs = rows([3.0, log_std])

    for is_mode in (True, False):
        outputs = distribution.answer(
            inputs, is_deterministic=np.array([is_mode]), seeds=np.array([3])
        )
        assert np.isfinite(outputs.actions.astype(np.float32)).all()
        assert np.isfinite(outputs.probability.astype(np.float32)).all()
        assert np.isfinite(outputs.log_probability).all()
    (described,) = distribution.describe(inputs)
    assert described.std is not None
    assert np.isfinite(described.std.astype(np.float32)).all()
    assert (described.std > 0).all()


def test_product_that_underflows_is_known_by_its_logarithm() -> None:
    distribution = ActionDistribution(HUNDREDS)
    inputs = np.zeros((1, 20_000), np.float32)

    outputs = distribution.answer(inputs, is_deterministic=np.array([False]), seeds=np.array([1]))

    assert outputs.probability[0] == 0.0
    assert outputs.log_probability[0] == pytest.approx(-200 * math.log(100))


def test_deviation_is_clipped_as_the_graph_clips_it() -> None:
    part = replace(components_of(("squashed_normal", 1))[0], log_std_bounds=(-20.0, 2.0))

    (described,) = ActionDistribution([part]).describe(rows([0.0, 9.0]))

    assert described.std is not None
    assert described.std[0, 0] == pytest.approx(math.exp(2))


@pytest.mark.parametrize("kind", ["normal", "squashed_normal"])
def test_mode_draws_and_statement_follow_what_the_graph_clips_and_adds(
    kind: ComponentKind,
) -> None:
    part = replace(
        components_of((kind, 1))[0],
        mean_bounds=(None, 0.5),
        log_std_bounds=(-3.0, None),
        std_floor=0.2,
    )
    distribution = ActionDistribution([part])
    inputs = rows([9.0, -9.0])

    (described,) = distribution.describe(inputs)
    drawn = distribution.sample(inputs, [np.array([[1.0]])])

    std = math.exp(-3.0) + 0.2
    squash = np.tanh if kind == "squashed_normal" else float
    assert described.mean is not None
    assert described.std is not None
    assert (described.mean[0, 0], described.std[0, 0]) == pytest.approx((0.5, std))
    assert distribution.mode(inputs)[0, 0] == pytest.approx(squash(0.5))
    assert drawn[0, 0] == pytest.approx(squash(0.5 + std))


@pytest.mark.parametrize("is_normalized", [True, False], ids=["normalized", "clipped only"])
def test_actions_are_answered_in_the_environments_units(*, is_normalized: bool) -> None:
    part = bounded("normal", is_normalized=is_normalized)

    actions = ActionDistribution([part]).in_environment_units(np.array([[-0.5, 0.5], [9.0, -9.0]]))

    rescaled = [[2.5, 2.0], [10.0, -4.0]]
    clipped = [[0.0, 0.5], [9.0, -4.0]]
    assert actions.tolist() == (rescaled if is_normalized else clipped)


def test_actions_without_bounds_stay_as_they_are() -> None:
    free, bound = ActionComponent("normal", 2, 0, 0), replace(bounded("normal"), first_column=2)
    actions = np.array([[7.0, 8.0, 0.0, 0.0]])

    assert ActionDistribution([free]).in_environment_units(actions) is actions
    mixed = ActionDistribution([free, bound]).in_environment_units(actions)
    assert mixed.tolist() == [[7.0, 8.0, 5.0, 0.0]]


def test_distribution_and_density_are_in_the_environments_units() -> None:
    distribution = ActionDistribution([bounded("normal")])

    inputs = rows([0.0, 0.5, 0.0, math.log(0.5)])
    (described,) = distribution.describe(inputs)
    logarithm = distribution.log_probability(inputs, np.array([[0.0, 0.5]]))

    assert described.mean is not None
    assert described.std is not None
    assert described.mean.tolist() == [[5.0, 2.0]]
    assert described.std[0] == pytest.approx([5.0, 2.0])
    assert math.exp(logarithm[0]) == pytest.approx(1 / (2 * math.pi * 5.0 * 2.0))


@pytest.mark.parametrize(
    ("part", "field", "expected"),
    [
        (bounded("normal", is_normalized=False), "mean", [0.5, -9.0]),
        (bounded("squashed_normal"), "mean", [0.5, -9.0]),
        (bounded("deterministic"), "value", [7.5, -4.0]),
        (ActionComponent("deterministic", 2, 0, 0), "value", [0.5, -9.0]),
    ],
    ids=["clipped normal", "squashed normal", "deterministic", "without bounds"],
)
def test_each_family_states_its_own_parameters(
    part: ActionComponent, field: str, expected: list[float]
) -> None:
    distribution = ActionDistribution([part])

    (described,) = distribution.describe(rows([0.5, -9.0, 0.0, 0.0])[:, : part.inputs])

    assert getattr(described, field)[0].tolist() == expected


def test_density_of_a_squashed_normal_is_in_the_environments_units() -> None:
    inputs = rows([0.0, 0.0, 0.0, 0.0])

    logarithm = ActionDistribution([bounded("squashed_normal")]).log_probability(
        inputs, np.zeros((1, 2))
    )

    assert math.exp(logarithm[0]) == pytest.approx(1 / (2 * math.pi * 5.0 * 4.0))


def test_mean_and_deviation_beyond_float32_are_cut() -> None:
    part = replace(bounded("normal"), low=(-3e38, -3e38), high=(3e38, 3e38))

    (described,) = ActionDistribution([part]).describe(rows([3e38, -3e38, 80.0, 0.0]))

    assert described.mean is not None
    assert described.std is not None
    assert described.mean.tolist() == [[FLOAT32_MAX, -FLOAT32_MAX]]
    assert described.std[0].tolist() == [FLOAT32_MAX, 3e38]


def test_distribution_of_a_greedy_policy_needs_no_square_of_its_choices() -> None:
    greedy = ActionDistribution((ActionComponent("categorical", 30_000, 0, 0),), is_greedy=True)
    values = np.zeros((2, 30_000), np.float32)
    values[0, 7] = values[1, 29_999] = 1.0

    tracemalloc.start()
    [stated] = greedy.describe(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert stated.probabilities is not None
    assert stated.probabilities.argmax(axis=1).tolist() == [7, 29_999]
    assert stated.probabilities.sum() == 2.0
    assert peak < 50e6


@pytest.mark.parametrize(
    ("bounds", "answers"),
    [
        ({}, [[0.5, -0.25], [0.5, -1.5]]),
        ({"low": (0.0, -4.0), "high": (10.0, 4.0)}, [[7.5, -1.0], [7.5, -4.0]]),
    ],
    ids=["own numbers", "environment's units"],
)
def test_unsquashed_mode_beyond_a_squashed_normal_has_no_probability(
    bounds: dict[str, Any], answers: list[list[float]]
) -> None:
    """RLlib's new API stack evaluates by the mean, which its own draws never reach beyond 1."""
    part = ActionComponent("squashed_normal", 2, 0, 0, has_unsquashed_mode=True, **bounds)
    inputs = rows([0.5, -0.25, 0.0, 0.0], [0.5, -1.5, 0.0, 0.0])
    plain = ActionDistribution([replace(part, has_unsquashed_mode=False)])
    distribution = ActionDistribution([part])
    given = np.array([[0.5, -0.25]])

    found = distribution.answer(
        inputs, is_deterministic=np.array([True, True]), seeds=np.array([-1, -1])
    )

    assert found.actions.tolist() == answers
    assert distribution.mode(inputs).tolist() == [[0.5, -0.25], [0.5, -1.5]]
    assert found.log_probability[0] == pytest.approx(plain.log_probability(inputs[:1], given)[0])
    assert np.isnan([found.log_probability[1], found.probability[1]]).all()


def test_unsquashed_mode_at_a_bound_that_cuts_the_distribution_has_its_mass() -> None:
    part = replace(
        bounded("squashed_normal", is_normalized=False),
        low=(-0.5, -3.0),
        high=(0.25, 3.0),
        has_unsquashed_mode=True,
    )
    inputs = rows([-2.0, 0.1, 0.0, 0.0], [-2.0, 2.0, 0.0, 0.0])

    found = ActionDistribution([part]).answer(
        inputs, is_deterministic=np.array([True, True]), seeds=np.array([-1, -1])
    )

    mass = 0.5 * math.erfc((math.atanh(-0.5) + 2.0) / -math.sqrt(2))
    density = math.exp(-0.5 * (math.atanh(0.1) - 0.1) ** 2) / math.sqrt(2 * math.pi) / (1 - 0.01)
    assert found.actions == pytest.approx(np.array([[-0.5, 0.1], [-0.5, 2.0]]))
    assert found.probability[0] == pytest.approx(mass * density, rel=1e-6)
    assert np.isnan(found.probability[1])


def test_draws_beside_an_unsquashed_mode_are_those_of_the_squashed_normal() -> None:
    part = ActionComponent("squashed_normal", 1, 0, 0)
    inputs = rows(*[[1.5, -1.0]] * 3)
    is_mode, seeds = np.array([False, True, False]), np.array([3, -1, 4])

    expected, found = (
        ActionDistribution([item]).answer(inputs, is_deterministic=is_mode, seeds=seeds)
        for item in (part, replace(part, has_unsquashed_mode=True))
    )

    assert found.actions[[0, 2]].tolist() == expected.actions[[0, 2]].tolist()
    assert found.log_probability[[0, 2]].tolist() == expected.log_probability[[0, 2]].tolist()
    assert found.actions[1].tolist() == [1.5]


def test_probability_of_an_action_that_is_given_alone_is_unknown() -> None:
    part = ActionComponent("deterministic", 1, 0, 0, has_integers=True, has_probability=False)
    distribution = ActionDistribution([part])

    outputs = distribution.answer(
        rows([2.0]), is_deterministic=np.array([False]), seeds=np.array([3])
    )

    assert outputs.actions.tolist() == [[2.0]]
    assert np.isnan(outputs.log_probability).all()
