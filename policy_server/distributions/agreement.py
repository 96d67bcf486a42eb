"""How far two policies agree about the same observations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import (
    ActionDistribution,
    ComponentDistribution,
)
from policy_server.policy import Float64Array

__all__ = ["Agreement", "compare"]

# Continuous modes that differ by less are the same action, as a share of the larger.
_SAME_ACTION = 1e-5
# Deviations that differ by less, as a share, count as equal: their densities cross once.
_SAME_DEVIATION = 1e-6
_cumulative = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2.0)), otypes=[np.float64])


@dataclass(frozen=True)
class Agreement:
    """The agreement of two policies about B observations.

    Attributes:
        is_same_mode: bool[B], whether both would take the same action with exploration off.
        distance: float64[B], from 0 to 1: the total variation distance of their distributions, of
            the component (of a continuous one the dimension) where it is largest.
    """

    is_same_mode: NDArray[np.bool_]
    distance: Float64Array


def compare(
    first: ActionDistribution,
    second: ActionDistribution,
    inputs: NDArray[np.floating[Any]],
    others: NDArray[np.floating[Any]],
) -> Agreement:
    """Return the agreement of two policies of equal components.

    The total variation distance is the largest difference in probability that any set of actions
    has: 0 for equal distributions, 1 for those without a common action. A bounded normal counts as
    it is before its bounds cut it.

    Args:
        first: one policy's distribution.
        second: the other's.
        inputs: float[B, K], `action_dist_inputs` of the first policy.
        others: float[B, L], those of the second.

    Raises:
        DistributionError: if a row is no distribution.
    """
    modes, other_modes = (
        policy.in_environment_units(policy.mode(rows))
        for policy, rows in ((first, inputs), (second, others))
    )
    largest = np.maximum(np.abs(modes), np.abs(other_modes))
    is_near = np.abs(modes - other_modes) <= _SAME_ACTION * largest
    parts = zip(first.describe(inputs), second.describe(others), strict=True)
    distance = np.max([_distance(one, other) for one, other in parts], axis=0)
    return Agreement(np.asarray(is_near.all(axis=1)), distance)


def _distance(one: ComponentDistribution, other: ComponentDistribution) -> Float64Array:
    """Return float64[B], the distance of two components."""
    if one.probabilities is not None and other.probabilities is not None:
        difference = np.abs(one.probabilities - other.probabilities)
        return np.asarray(difference.sum(axis=1) / 2)
    if one.value is not None and other.value is not None:
        return np.asarray((one.value != other.value).any(axis=1), np.float64)
    normals = (one.mean, one.std, other.mean, other.std)
    known = [values for values in normals if values is not None]
    if len(known) < len(normals):
        # A deterministic action and a distribution have no common set of actions.
        present: Sequence[Float64Array] = [
            values for values in (one.mean, one.value, one.probabilities) if values is not None
        ]
        return np.ones(len(present[0]))
    return np.asarray(_normal_distance(*known).max(axis=1))


def _normal_distance(
    mean: Float64Array, std: Float64Array, other_mean: Float64Array, other_std: Float64Array
) -> Float64Array:
    """Return the distance of normal distributions, number by number.

    Their densities cross at one point where the deviations are equal, else at two; between the
    crossings the one with the smaller deviation is larger.
    """
    is_equal = np.abs(std - other_std) <= _SAME_DEVIATION * np.maximum(std, other_std)
    middle = (other_mean - mean) / (2 * std)
    of_one_crossing = np.abs(2 * _cumulative(np.abs(middle)) - 1)
    with np.errstate(all="ignore"):
        # In units of the first: the other is normal(shift, scale).
        shift, scale = (other_mean - mean) / std, other_std / std
        square = 1 - scale**2
        root = scale * np.sqrt(np.maximum(shift**2 - 2 * square * np.log(scale), 0.0))
        low, high = np.sort([(shift + root) / square, (shift - root) / square], axis=0)
        of_two_crossings = np.abs(
            (_cumulative(high) - _cumulative(low))
            - (_cumulative((high - shift) / scale) - _cumulative((low - shift) / scale))
        )
    distance: Float64Array = np.where(is_equal, of_one_crossing, of_two_crossings)
    return distance
