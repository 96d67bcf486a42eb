"""The agreement of two policies, against distances computed by summing densities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.distributions.agreement import compare
from policy_server.policy import ActionComponent

CATEGORICAL = ActionDistribution([ActionComponent("categorical", 3, 0, 0)])
NORMAL = ActionDistribution([ActionComponent("normal", 1, 0, 0)])
FIXED = ActionDistribution([ActionComponent("deterministic", 2, 0, 0)])


def test_distance_of_choices_is_half_the_sum_of_their_differences() -> None:
    first = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], np.float32))
    second = np.log(np.array([[0.4, 0.5, 0.1], [0.1, 0.1, 0.8]], np.float32))

    found = compare(CATEGORICAL, CATEGORICAL, first, second)

    assert found.distance == pytest.approx([0.2, 0.0], abs=1e-6)
    assert found.is_same_mode.tolist() == [False, True]


@pytest.mark.parametrize("seed", range(20))
def test_distance_of_normals_is_half_the_integral_of_their_difference(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mean, log_std = generator.normal(size=2), generator.normal(size=2) / 2
    if seed % 4 == 0:
        log_std[1] = log_std[0]
    rows = np.array([mean, log_std], np.float32).T

    (found,) = compare(NORMAL, NORMAL, rows[:1], rows[1:]).distance

    points = np.linspace(-60, 60, 1_200_001)
    means, stds = rows[:, 0].astype(float), np.exp(rows[:, 1].astype(float))
    densities = [
        np.exp(-(((points - mu) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
        for mu, std in zip(means, stds, strict=True)
    ]
    assert found == pytest.approx(np.abs(densities[0] - densities[1]).sum() * 1e-4 / 2, abs=1e-5)


def test_distance_of_several_components_is_the_largest() -> None:
    parts = [ActionComponent("categorical", 2, 0, 0), ActionComponent("normal", 2, 2, 1)]
    policy = ActionDistribution(parts)
    first = np.array([[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]], np.float32)
    second = np.array([[0.1, 0.0, 0.0, 4.0, 0.0, 0.0]], np.float32)

    found = compare(policy, policy, first, second)

    assert found.distance == pytest.approx([math.erf(1.5 / math.sqrt(2))])
    assert found.is_same_mode.tolist() == [False]


def test_deterministic_actions_are_the_same_or_have_nothing_in_common() -> None:
    rows = np.array([[0.5, 1.0], [0.5, 1.0]], np.float32)

    found = compare(FIXED, FIXED, rows, np.array([[0.5, 1.0], [0.5, 2.0]], np.float32))

    assert found.distance.tolist() == [0.0, 1.0]
    assert found.is_same_mode.tolist() == [True, False]


def test_best_actions_of_values_are_compared() -> None:
    greedy = ActionDistribution([ActionComponent("categorical", 2, 0, 0)], is_greedy=True)
    rows = np.array([[1.0, 2.0], [1.0, 2.0]], np.float32)

    found = compare(greedy, greedy, rows, np.array([[0.0, 9.0], [9.0, 0.0]], np.float32))

    assert found.distance.tolist() == [0.0, 1.0]
