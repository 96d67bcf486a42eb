"""Draws judged by their frequencies: right ones pass, wrong ones of each kind fail."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.distributions.action_distribution import ActionDistribution, noise
from policy_server.formats.saved_model.frequency import judge_draws, sampler_inputs
from policy_server.policy import ActionComponent

CATEGORICAL = (ActionComponent("categorical", 4, 0, 0), ActionComponent("categorical", 3, 4, 1))
NORMAL = (ActionComponent("normal", 2, 0, 0),)
SQUASHED = (ActionComponent("squashed_normal", 2, 0, 0, log_std_bounds=(-5.0, 2.0)),)
FAMILIES = {"categorical": CATEGORICAL, "normal": NORMAL, "squashed": SQUASHED}


def width_of(components: tuple[ActionComponent, ...]) -> int:
    """Return how many inputs a family takes."""
    return sum(part.inputs for part in components)


def draws(components: tuple[ActionComponent, ...], inputs: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return right draws, rounded to float32 as a graph's are."""
    distribution = ActionDistribution(components)
    generator = np.random.default_rng(seed)
    drawn = distribution.sample(inputs, noise(components, np.full(len(inputs), -1), generator))
    return drawn.astype(np.float32).astype(np.float64)


def problem_of(
    components: tuple[ActionComponent, ...], inputs: np.ndarray, actions: np.ndarray
) -> str | None:
    """Return what is said against draws."""
    distribution = ActionDistribution(components)
    return judge_draws(distribution, inputs, actions, np.random.default_rng(1001)).problem


@pytest.mark.parametrize("family", FAMILIES)
def test_right_draws_pass_on_inputs_of_every_kind(family: str) -> None:
    components = FAMILIES[family]
    kinds = sampler_inputs(components, width_of(components), np.zeros((3, width_of(components))))

    assert len(kinds) == (5 if family == "categorical" else 4)
    for seed, (name, inputs) in enumerate(kinds):
        found = judge_draws(
            ActionDistribution(components),
            inputs,
            draws(components, inputs, seed),
            np.random.default_rng(1000 + seed),
        )
        assert found.problem is None, name
        assert name == "saturated" or found.is_enough


@pytest.mark.parametrize("scale", [0.8, 1.25], ids=["too shy", "too bold"])
@pytest.mark.parametrize("family", ["categorical", "normal", "squashed"])
def test_draws_of_another_width_fail(family: str, scale: float) -> None:
    components = FAMILIES[family]
    inputs = np.random.default_rng(3).normal(size=(4096, width_of(components)))
    wrong = inputs.copy()
    if family == "categorical":
        wrong *= scale
    else:
        wrong[:, 2:] += np.log(scale)

    problem = problem_of(components, inputs, draws(components, wrong))

    assert problem is not None
    assert "its draws are distributed otherwise" in problem


def test_choice_of_probability_zero_fails_at_once() -> None:
    inputs = np.array([[0.0, -np.inf, 0.0, 0.0, 0.0, 0.0, 0.0]] * 300)

    for choice in (1, 4, -1):
        actions = np.full((300, 2), 2.0)
        actions[7, 0] = choice
        assert problem_of(CATEGORICAL, inputs, actions) == "a choice of probability 0 was drawn"


def test_parts_that_follow_each_other_fail() -> None:
    inputs = np.zeros((2048, 7))
    actions = draws(CATEGORICAL, inputs)
    actions[:, 1] = np.minimum(actions[:, 0], 2)

    assert problem_of(CATEGORICAL, inputs, actions) is not None


def test_dimensions_that_share_their_noise_fail() -> None:
    inputs = np.zeros((2048, 4))
    actions = draws(NORMAL, inputs)
    actions[:, 1] = actions[:, 0]

    problem = problem_of(NORMAL, inputs, actions)

    assert problem == "its parts are not drawn independently (correlation 1.00)"


def test_action_that_is_computed_has_to_be_equal() -> None:
    components = (ActionComponent("deterministic", 2, 0, 0),)
    inputs = np.random.default_rng(2).normal(size=(300, 2))

    assert problem_of(components, inputs, inputs) is None
    assert problem_of(components, inputs, inputs + 0.01) is not None


def test_too_few_draws_are_told() -> None:
    inputs = np.zeros((100, 4))

    found = judge_draws(
        ActionDistribution(NORMAL), inputs, draws(NORMAL, inputs), np.random.default_rng(0)
    )

    assert found.problem is None
    assert not found.is_enough
