"""schema.yaml's bounds of continuous actions, and the probability that they cut one.

An action beyond a bound is answered as the bound. The bound is thus drawn with a probability above
zero: the normal distribution's mass beyond it. A dimension whose bounds are equal has one answer,
with the probability 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.component_rows import clip
from policy_server.distributions.continuous_rows import LOG_2_PI, ContinuousRows
from policy_server.policy import ActionComponent, Float64Array

__all__ = ["ActionBounds", "DimensionBounds", "clipped", "log_normal_probability"]

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
        self._is_locked = self._low == self._high
        self._has_locked = bool(self._is_locked.any())
        self._log_scale = np.log(np.where(self._is_locked, 1.0, self.scale))
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
        self._cut_low[self._is_locked] = self._low[self._is_locked]

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

    def by_dimension(self) -> list[DimensionBounds]:
        """Return the bounds of each dimension, for single numbers."""
        scales = [None] * len(self._low) if self._scale is None else self._scale.tolist()
        return [
            DimensionBounds(
                scale=scales[place],
                low=float(self._low[place]),
                high=float(self._high[place]),
                log_scale=float(self._log_scale[place]),
                lowest=float(self._lowest[place]),
                highest=float(self._highest[place]),
                cut_low=float(self._cut_low[place]),
                cut_high=float(self._cut_high[place]),
                is_cutting=self.is_cutting,
                is_locked=bool(self._is_locked[place]),
            )
            for place in range(len(self._low))
        ]

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
            Where the two are equal, the lower one has it all.
        """
        low = np.where(self._is_locked, np.inf, (self._lowest - rows.mean) / rows.std)
        high = np.where(self._is_locked, -np.inf, (rows.mean - self._highest) / rows.std)
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
            float64[B, size]; densities in the environment's units. 0 where the bounds are equal.
        """
        logarithms = rows.log_densities(values) - self._log_scale
        if self.is_cutting:
            is_low, is_high = self.is_at(answers)
            is_cut = is_low | is_high
            if is_cut.any():
                beyond = np.where(is_low, self._lowest - rows.mean, rows.mean - self._highest)
                logarithms[is_cut] = _log_probabilities(beyond[is_cut] / rows.std[is_cut])
        if self._has_locked:
            logarithms[:, self._is_locked] = 0.0
        return logarithms


@dataclass(frozen=True)
class DimensionBounds:
    """The bounds of one dimension of a component; `ActionBounds` has those of all.

    Attributes:
        scale: the environment's units in one of the policy's; None where actions are only cut.
        low: the lower bound in the environment's units.
        high: the upper bound.
        log_scale: the logarithm of `scale`, or 0.
        lowest: the lower bound in the policy's own numbers, before the tanh.
        highest: the upper bound.
        cut_low: `low` where the distribution goes beyond it, else NaN.
        cut_high: the same for `high`.
        is_cutting: the distribution goes beyond a bound of the component.
        is_locked: the bounds are equal, so that every answer is the same.
    """

    scale: float | None
    low: float
    high: float
    log_scale: float
    lowest: float
    highest: float
    cut_low: float
    cut_high: float
    is_cutting: bool
    is_locked: bool

    def apply(self, value: float) -> float:
        """Return an action as it is answered; see `ActionBounds.apply`.

        Args:
            value: a number in the policy's own space.
        """
        if self.scale is None:
            return clipped(value, self.low, self.high)
        inside = clipped(value, -1.0, 1.0)
        if inside == 1.0:
            return self.high
        rescaled = self.rescale(inside)
        return rescaled if rescaled < self.high else self.high

    def rescale(self, value: float) -> float:
        """Return a number in the environment's units, before it is cut.

        Args:
            value: a number in the policy's own space.
        """
        return value if self.scale is None else self.low + (value + 1.0) * self.scale

    def log_masses(self, *, mean: float, std: float) -> tuple[float, float]:
        """Return the logarithm of the probability at each bound; see `ActionBounds.log_masses`.

        Args:
            mean: the mean in the policy's own space, before the tanh.
            std: the deviation.
        """
        if self.is_locked:
            return 0.0, -math.inf
        return (
            log_normal_probability((self.lowest - mean) / std),
            log_normal_probability((mean - self.highest) / std),
        )

    def log_density(self, density: float, answer: float, *, mean: float, std: float) -> float:
        """Return the logarithm of the mass at a bound that cut an answer, else of its density.

        Args:
            density: the logarithm of the density in the policy's own space.
            answer: the action, as `apply` returns it.
            mean: the mean in the policy's own space, before the tanh.
            std: the deviation.
        """
        if self.is_locked:
            return 0.0
        if self.is_cutting:
            if answer == self.cut_low:
                return log_normal_probability((self.lowest - mean) / std)
            if answer == self.cut_high:
                return log_normal_probability((mean - self.highest) / std)
        return density - self.log_scale


def clipped(value: float, low: float, high: float) -> float:
    """Return a number cut to bounds, as `clip` cuts arrays: of two zeros it takes the bound.

    Args:
        value: the number, not NaN.
        low: the lower bound.
        high: the upper bound.
    """
    cut = value if value > low else low
    return cut if cut < high else high


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
        return -0.5 * (value * value + LOG_2_PI) - math.log(-value) + math.log(series)
    # Of the two tails the smaller one has all its digits.
    tail = math.erfc(abs(value) / math.sqrt(2)) / 2
    return math.log1p(-tail) if value > 0 else math.log(tail)


def _log_probabilities(values: Float64Array) -> Float64Array:
    # NumPy has no `erfc`, and for a few numbers a loop costs less than its arrays.
    logarithms = [log_normal_probability(value) for value in values.ravel().tolist()]
    return np.array(logarithms).reshape(values.shape)
