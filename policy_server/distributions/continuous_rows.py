"""Rows of `action_dist_inputs`, read as the continuous families that RLlib draws actions from.

A row holds mean | log_std of a Gaussian (the same before a tanh for SAC), or the action itself
(`ray.rllib.models.tf.tf_action_dist`). All arithmetic is in float64.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from policy_server.distributions.component_rows import Rows, clip, refuse_nan
from policy_server.errors import DistributionError
from policy_server.policy import LARGEST, ActionComponent, Float64Array

__all__ = [
    "LOG_2",
    "LOG_2_PI",
    "LOG_STD_BOUNDS",
    "ContinuousRows",
    "center_of",
    "row_sums",
    "unsquashed",
]

LOG_STD_BOUNDS = (math.log(float(np.finfo(np.float32).tiny)), math.log(LARGEST))
LOG_2, LOG_2_PI = math.log(2), math.log(2 * math.pi)
# RLlib: SMALL_NUMBER in ray.rllib.utils.numpy.
_SMALL_NUMBER = 1e-6
_MAX_SQUASHED_LOG_PROBABILITY = 100.0
_LARGEST_TANH = math.nextafter(1.0, 0.0)


class ContinuousRows:
    """One normal or squashed normal component of B rows.

    Attributes:
        mean: float64[B, size]; before the tanh where it is squashed.
        std: float64[B, size], of the same normal distribution as `mean`.
    """

    def __init__(self, part: ActionComponent, inputs: Rows) -> None:
        """Read the rows.

        Args:
            part: the component.
            inputs: float[B, K], `action_dist_inputs`.

        Raises:
            DistributionError: if the mean is no number, or the deviation NaN.
        """
        self._is_squashed = part.kind == "squashed_normal"
        self.mean = center_of(part, inputs)
        first = part.first_input + part.size
        log_std = inputs[:, first : first + part.size].astype(np.float64)
        refuse_nan(log_std)
        if part.log_std_bounds is not None:
            log_std = _between(log_std, part.log_std_bounds)
        self.std: Float64Array = np.exp(clip(log_std, *LOG_STD_BOUNDS))
        if part.std_floor:
            self.std = np.minimum(self.std + part.std_floor, LARGEST)

    def draw(self, normal: Float64Array) -> Float64Array:
        """Return the actions that standard normal numbers give.

        Args:
            normal: float64[B, size].

        Returns:
            float64[B, size]; before the tanh where it is squashed.
        """
        return clip(self.mean + self.std * normal, -LARGEST, LARGEST)

    def log_densities(self, values: Float64Array) -> Float64Array:
        """Return the logarithm of the density of each dimension.

        Args:
            values: float64[B, size], actions; before the tanh where it is squashed, so that no
                digit is lost near the bounds.

        Returns:
            float64[B, size], finite; the density of the action after the tanh.

        Source: log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), as in TensorFlow Probability's
        `Tanh.forward_log_det_jacobian`.
        """
        densities = self._log_normal(values)
        if self._is_squashed:
            size = np.abs(values)
            densities -= 2 * (LOG_2 - size - np.log1p(np.exp(-2 * size)))
        return densities

    def rllib_log_densities(self, values: Float64Array) -> Float64Array:
        """Return the logarithm of the density of each dimension as RLlib computes it.

        It differs from `log_densities` near the bounds of a squashed normal, where RLlib clips the
        action and adds a small number.

        Args:
            values: float64[B, size], actions, after the tanh.

        Returns:
            float64[B, size].

        Source: RLlib `DiagGaussian.logp` and `SquashedGaussian.logp`.
        """
        if not self._is_squashed:
            return self._log_normal(values)
        unsquashed = np.arctanh(clip(values, -1 + _SMALL_NUMBER, 1 - _SMALL_NUMBER))
        limit = _MAX_SQUASHED_LOG_PROBABILITY
        correction = np.log(1 - np.tanh(unsquashed) ** 2 + _SMALL_NUMBER)
        return clip(self._log_normal(unsquashed), -limit, limit) - correction

    @functools.cached_property
    def _log_std(self) -> Float64Array:
        return np.log(self.std)

    def _log_normal(self, values: Float64Array) -> Float64Array:
        parts: Float64Array = (
            -0.5 * (((values - self.mean) / self.std) ** 2 + LOG_2_PI) - self._log_std
        )
        return parts


def center_of(part: ActionComponent, inputs: Rows) -> Float64Array:
    """Return the mean of a component, or the action itself where that is deterministic.

    Args:
        part: the component, not categorical.
        inputs: float[B, K], `action_dist_inputs`.

    Returns:
        float64[B, size].

    Raises:
        DistributionError: if one is NaN or infinite.
    """
    center = inputs[:, part.first_input : part.first_input + part.size].astype(np.float64)
    if not np.isfinite(center).all():
        refuse_nan(center)
        raise DistributionError(
            "the policy's outputs hold infinity; check the observation and the model"
        )
    return center if part.mean_bounds is None else _between(center, part.mean_bounds)


def unsquashed(values: Float64Array) -> Float64Array:
    """Return the numbers whose tanh the values are.

    Args:
        values: float64[...] in [-1, 1]; a bound itself is taken as the number next to it.

    Returns:
        float64[...], finite.
    """
    return np.arctanh(clip(values, -_LARGEST_TANH, _LARGEST_TANH))


def row_sums(values: Float64Array) -> Float64Array:
    """Return the sum of each row; NumPy's own costs more where a row holds one number.

    Args:
        values: float64[B, size].
    """
    sums: Float64Array = values[:, 0] if values.shape[1] == 1 else np.add.reduce(values, axis=1)
    return sums


def _between(values: Float64Array, bounds: tuple[float | None, float | None]) -> Float64Array:
    low, high = bounds
    return clip(values, -math.inf if low is None else low, math.inf if high is None else high)
