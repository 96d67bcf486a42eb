"""schema.yaml's bounds of continuous actions, and the probability that they cut one.

An action beyond a bound is answered as the bound. The bound is thus drawn with a probability above
zero: the normal distribution's mass beyond it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.component_rows import clip
from policy_server.distributions.continuous_rows import ContinuousRows
from policy_server.policy import ActionComponent, Float64Array

__all__ = ["ActionBounds", "log_normal_probability"]

_LOG_2_PI = math.log(2 * math.pi)
# Below it the series is exact, and `erfc` would soon be 0.
_FAR, _TERMS = -20.0, 15

Bools = NDArray[np.bool_]


class ActionBounds:
    """The bounds of one continuous component, which rescale its actions and cut them.

    Attributes:
        is_cutting: the distribution goes beyond the bounds, so that each has a mass.
        scale: float64[size], the environment's units in one of the policy's.
    """

    def __init__(self, part: ActionComponent) -> None:
        """Work out the limits of one component.

        Args:
            part: the component; it has bounds.
        """
        self.is_cutting = part.is_clipped
        self._low, self._high = np.array(part.low, float), np.array(part.high, float)
        self._scale = (self._high - self._low) / 2.0 if part.is_normalized else None
        self.scale = np.ones(part.size) if self._scale is None else self._scale
        self._log_scale = np.log(self.scale)
        # The limits in the policy's own numbers, before the tanh.
        self._lowest, self._highest = self._low, self._high
        if part.is_normalized:
            self._lowest, self._highest = np.full(part.size, -1.0), np.full(part.size, 1.0)
        elif part.kind == "squashed_normal":
            with np.errstate(divide="ignore"):
                self._lowest, self._highest = (
                    np.arctanh(np.clip(limit, -1.0, 1.0)) for limit in (self._low, self._high)
                )
        # A tanh may be rounded to a bound that it can't exceed.
        self._cut_low = np.where(self._lowest == -np.inf, np.nan, self._low)
        self._cut_high = np.where(self._highest == np.inf, np.nan, self._high)

    def rescale(self, values: Float64Array) -> Float64Array:
        """Return actions in the environment's units, before they are cut.

        Args:
            values: float64[B, size], in the policy's own space.
        """
        if self._scale is None:
            return values
        rescaled: Float64Array = self._low + (values + 1.0) * self._scale
        return rescaled

    def apply(self, values: Float64Array) -> Float64Array:
        """Return actions as they are answered: rescaled and cut.

        Args:
            values: float64[B, size], in the policy's own space.

        Source: RLlib `unsquash_action` and `clip_action` in ray.rllib.utils.spaces.space_utils.
        """
        if self._scale is None:
            return clip(values, self._low, self._high)
        inside = clip(values, -1.0, 1.0)
        # The sum may round to a number beside the bound.
        return np.where(inside == 1.0, self._high, np.minimum(self.rescale(inside), self._high))

    def is_at(self, answers: Float64Array) -> tuple[Bools, Bools]:
        """Return a mask of the answers that a bound has cut.

        Args:
            answers: float64[B, size], as `apply` returns them.

        Returns:
            bool[B, size] for the lower bounds, and for the upper ones.
        """
        return answers == self._cut_low, answers == self._cut_high

    def log_masses(self, rows: ContinuousRows) -> tuple[Float64Array, Float64Array]:
        """Return the logarithm of the probability at each bound.

        Args:
            rows: the component's rows.

        Returns:
            float64[B, size] at the lower bounds, and at the upper ones; -inf where nothing is cut.
        """
        low = (self._lowest - rows.mean) / rows.std
        high = (rows.mean - self._highest) / rows.std
        return _log_probabilities(low), _log_probabilities(high)

    def log_densities(
        self, rows: ContinuousRows, values: Float64Array, answers: Float64Array
    ) -> Float64Array:
        """Return the logarithm of each dimension's mass where a bound cuts it, else of its density.

        Args:
            rows: the component's rows.
            values: float64[B, size], the actions in the policy's own space, before the tanh.
            answers: float64[B, size], as `apply` returns them.

        Returns:
            float64[B, size]; densities in the environment's units.
        """
        logarithms = rows.log_densities(values) - self._log_scale
        if self.is_cutting:
            is_low, is_high = self.is_at(answers)
            is_cut = is_low | is_high
            if is_cut.any():
                beyond = np.where(is_low, self._lowest - rows.mean, rows.mean - self._highest)
                logarithms[is_cut] = _log_probabilities(beyond[is_cut] / rows.std[is_cut])
        return logarithms


def log_normal_probability(value: float) -> float:
    """Return the logarithm of the probability that a standard normal number is at most so large.

    Args:
        value: any number, infinity too.

    Returns:
        At most 0; exact to thirteen digits in both tails.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.2.12, for the far tail.
    """
    if value < _FAR:
        inverse_square, series = 1.0 / (value * value), 1.0
        for odd in range(_TERMS, 0, -2):
            series = 1.0 - odd * inverse_square * series
        return -0.5 * (value * value + _LOG_2_PI) - math.log(-value) + math.log(series)
    # Of the two tails the smaller one has all its digits.
    tail = math.erfc(abs(value) / math.sqrt(2)) / 2
    return math.log1p(-tail) if value > 0 else math.log(tail)


def _log_probabilities(values: Float64Array) -> Float64Array:
    # NumPy has no `erfc`, and for a few numbers a loop costs less than its arrays.
    logarithms = [log_normal_probability(value) for value in values.ravel().tolist()]
    return np.array(logarithms).reshape(values.shape)
