"""Action distributions in NumPy: probabilities, mode, draws and log-probabilities of many rows.

`ActionDistribution` reads rows of `action_dist_inputs` as RLlib does
(`ray.rllib.models.tf.tf_action_dist`): categorical logits, mean | log_std of a Gaussian, the same
before a tanh for SAC, or the action itself. All arithmetic is in float64, so that answers are exact
to the float32 precision of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import DistributionError
from policy_server.policy import (
    ActionComponent,
    Float32Array,
    Float64Array,
    Int64Array,
    PolicyOutputs,
)

__all__ = ["ActionDistribution", "ComponentDistribution", "categorical_log_probabilities", "noise"]

_LOG_2_PI = float(np.log(2 * np.pi))
# RLlib: SMALL_NUMBER in ray.rllib.utils.numpy.
_SMALL_NUMBER = 1e-6
_MAX_SQUASHED_LOG_PROBABILITY = 100.0
# Answers are 32-bit floats, and JSON has no infinity.
_FLOAT32 = np.finfo(np.float32)
_LARGEST = float(_FLOAT32.max)
_LOG_STD_BOUNDS = (math.log(float(_FLOAT32.tiny)), math.log(_LARGEST))


@dataclass(frozen=True)
class ComponentDistribution:
    """The distribution of one component for B observations.

    Attributes:
        component: which one.
        probabilities: float64[B, size] where it is categorical.
        mean: float64[B, size] where it is (squashed) normal; before the tanh where it is squashed.
        std: float64[B, size], likewise.
        value: float64[B, size] where it is deterministic.
    """

    component: ActionComponent
    probabilities: Float64Array | None = None
    mean: Float64Array | None = None
    std: Float64Array | None = None
    value: Float64Array | None = None


def categorical_log_probabilities(logits: NDArray[np.floating[Any]]) -> Float64Array:
    """Return the logarithm of each row's softmax.

    Args:
        logits: float[B, K]; -inf or float32 min marks a masked action.

    Returns:
        float64[B, K]; the exponentials of a row sum to 1.

    Raises:
        DistributionError: if a row holds NaN or +inf, or masks every action by -inf.

    Source: RLlib `Categorical`, whose `action_dist_inputs` are logits.
    """
    shifted = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted -= shifted.max(axis=1, keepdims=True)
    if np.isnan(shifted).any():
        raise DistributionError(
            "the policy's logits hold NaN, or mask every action; check the observation and the "
            "model"
        )
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    log_probabilities: Float64Array = shifted - np.log(total)
    return log_probabilities


def noise(
    components: Sequence[ActionComponent], seeds: Int64Array, generator: np.random.Generator
) -> list[Float64Array]:
    """Draw what `ActionDistribution.sample` turns into actions.

    Args:
        components: the distribution's parts.
        seeds: int64[B]; the seed of a row's draw, or -1 for an independent one. A seeded row is the
            same in any batch.
        generator: draws the rows without a seed.

    Returns:
        One float64[B, columns] a component: uniform in [0, 1) where it is categorical, standard
        normal elsewhere.
    """
    draws = [_draw(generator, part, len(seeds)) for part in components]
    for row in np.flatnonzero(seeds >= 0):
        seeded = np.random.default_rng(int(seeds[row]))
        for part, draw in zip(components, draws, strict=True):
            draw[row] = _draw(seeded, part, 1)[0]
    return draws


def _draw(generator: np.random.Generator, part: ActionComponent, rows: int) -> Float64Array:
    shape = (rows, part.columns)
    return (
        generator.random(shape) if part.kind == "categorical" else generator.standard_normal(shape)
    )


class ActionDistribution:
    """The distribution of whole actions, given rows of `action_dist_inputs`.

    Actions are float64[B, A] in columns, integers exact. `in_environment_units` applies
    schema.yaml's bounds; everything else is in the policy's own space.
    """

    def __init__(self, components: Sequence[ActionComponent], *, is_greedy: bool = False) -> None:
        """Keep the parts.

        Args:
            components: the distribution's parts, ordered by column.
            is_greedy: take the best action with probability 1, as a policy over Q values does.
        """
        self.components = tuple(components)
        self.is_greedy = is_greedy
        self._columns = sum(part.columns for part in components)
        self._has_bounds = any(part.low is not None for part in components)
        self._generator = np.random.default_rng()

    def answer(
        self,
        inputs: Float32Array,
        *,
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
    ) -> PolicyOutputs:
        """Answer rows of one forward pass, each with its draw or its mode.

        Args:
            inputs: float32[B, K], `action_dist_inputs`.
            is_deterministic: bool[B]; True takes the mode, False a draw.
            seeds: int64[B]; the seed of a row's draw, or -1 for an independent one.

        Returns:
            The answers, in the units that actions are answered in.

        Raises:
            DistributionError: if a row is no distribution.
        """
        if is_deterministic.all():
            actions = self.mode(inputs)
        else:
            actions = self.sample(inputs, noise(self.components, seeds, self._generator))
            if is_deterministic.any():
                actions[is_deterministic] = self.mode(inputs[is_deterministic])
        probability = self.probability(self.log_probability(inputs, actions))
        return PolicyOutputs(self.in_environment_units(actions), probability, inputs)

    def mode(self, inputs: NDArray[np.floating[Any]]) -> Float64Array:
        """Return each row's deterministic action, as RLlib takes it with exploration off.

        Args:
            inputs: float[B, K], `action_dist_inputs`.

        Returns:
            float64[B, A].
        """
        actions = np.empty((len(inputs), self._columns))
        for part in self.components:
            if part.kind == "categorical":
                actions[:, part.first_column] = _slice(inputs, part).argmax(axis=1)
                continue
            center = _center(inputs, part)
            _set(actions, part, np.tanh(center) if part.kind == "squashed_normal" else center)
        return actions

    def sample(
        self, inputs: NDArray[np.floating[Any]], draws: Sequence[Float64Array]
    ) -> Float64Array:
        """Turn noise into actions.

        Args:
            inputs: float[B, K], `action_dist_inputs`.
            draws: what `noise` gave for these components and B rows.

        Returns:
            float64[B, A]. An action of probability 0 is never drawn.

        Raises:
            DistributionError: if a row is no distribution.
        """
        if self.is_greedy:
            return self.mode(inputs)
        actions = np.empty((len(inputs), self._columns))
        for part, draw in zip(self.components, draws, strict=True):
            if part.kind == "categorical":
                cumulated = np.exp(_log_probabilities(inputs, part)).cumsum(axis=1)
                chosen = (cumulated <= draw * cumulated[:, -1:]).sum(axis=1)
                actions[:, part.first_column] = chosen
            elif part.kind == "deterministic":
                _set(actions, part, _center(inputs, part))
            else:
                mean, std = _mean_and_std(inputs, part)
                value = np.clip(mean + std * draw, -_LARGEST, _LARGEST)
                _set(actions, part, np.tanh(value) if part.kind == "squashed_normal" else value)
        return actions

    def log_probability(
        self, inputs: NDArray[np.floating[Any]], actions: Float64Array
    ) -> Float64Array:
        """Return the logarithm of the joint probability, or density, of whole actions.

        Args:
            inputs: float[B, K], `action_dist_inputs`.
            actions: float64[B, A] in the policy's own space.

        Returns:
            float64[B]; 0 for a greedy policy and for deterministic components.

        Raises:
            DistributionError: if a row is no distribution.

        Source: RLlib `MultiActionDistribution.logp`: the sum over the components.
        """
        total = np.zeros(len(inputs))
        if self.is_greedy:
            return total
        for part in self.components:
            if part.kind == "categorical":
                index = actions[:, part.first_column].astype(np.int64)[:, None]
                chances = _log_probabilities(inputs, part)
                total += np.take_along_axis(chances, index, axis=1)[:, 0]
            elif part.kind != "deterministic":
                values = actions[:, part.first_column : part.first_column + part.size]
                mean, std = _mean_and_std(inputs, part)
                total += (_normal if part.kind == "normal" else _squashed_normal)(values, mean, std)
        return total

    def in_environment_units(self, actions: Float64Array) -> Float64Array:
        """Rescale and clip bounded actions to schema.yaml's `low` and `high`.

        Args:
            actions: float64[B, A] in the policy's own space.

        Returns:
            float64[B, A]; columns without bounds stay as they are.

        Source: RLlib `unsquash_action` and `clip_action` in ray.rllib.utils.spaces.space_utils.
        """
        if not self._has_bounds:
            return actions
        scaled = actions.copy()
        for part in self.components:
            if part.low is not None and part.high is not None:
                values = actions[:, part.first_column : part.first_column + part.size]
                _set(scaled, part, np.clip(_rescale(part, values), part.low, part.high))
        return scaled

    def probability(self, log_probability: Float64Array) -> Float64Array:
        """Return probabilities, or densities in the units that actions are answered in.

        Args:
            log_probability: float64[B], in the policy's own space.

        Returns:
            float64[B]; finite: a density beyond float32 is cut to its largest value.
        """
        scales = [_scale(part) for part in self.components if part.kind != "deterministic"]
        log_scale = sum(float(np.log(scale).sum()) for scale in scales if scale is not None)
        density = np.exp(np.minimum(log_probability - log_scale, math.log(_LARGEST)))
        return np.minimum(density, _LARGEST)

    def describe(self, inputs: NDArray[np.floating[Any]]) -> list[ComponentDistribution]:
        """Return every component's exact distribution.

        Args:
            inputs: float[B, K], `action_dist_inputs`.

        Returns:
            One a component, in order; (squashed) normal and deterministic ones in the units that
            actions are answered in, except that a squashed normal's `mean` and `std` are those
            before the tanh.

        Raises:
            DistributionError: if a row is no distribution.
        """
        return [self._describe(part, inputs) for part in self.components]

    def _describe(
        self, part: ActionComponent, inputs: NDArray[np.floating[Any]]
    ) -> ComponentDistribution:
        if part.kind == "categorical":
            if self.is_greedy:
                best = _slice(inputs, part).argmax(axis=1)
                return ComponentDistribution(part, probabilities=np.eye(part.size)[best])
            chances = np.exp(_log_probabilities(inputs, part))
            return ComponentDistribution(part, probabilities=chances)
        if part.kind == "deterministic":
            value = _rescale(part, _center(inputs, part))
            bounded = value if part.low is None else np.clip(value, part.low, part.high)
            return ComponentDistribution(part, value=bounded)
        mean, std = _mean_and_std(inputs, part)
        scale = _scale(part)
        if part.kind == "normal" and scale is not None:
            mean = np.clip(_rescale(part, mean), -_LARGEST, _LARGEST)
            std = np.minimum(std * scale, _LARGEST)
        return ComponentDistribution(part, mean=mean, std=std)


def _slice(inputs: NDArray[np.floating[Any]], part: ActionComponent) -> NDArray[np.floating[Any]]:
    values = inputs[:, part.first_input : part.first_input + part.inputs]
    if np.isnan(values).any():
        raise DistributionError(
            "the policy's outputs hold NaN; check the observation and the model"
        )
    return values


def _log_probabilities(inputs: NDArray[np.floating[Any]], part: ActionComponent) -> Float64Array:
    # In float64, since float32 min over a temperature below 1 is no float32.
    logits = _slice(inputs, part).astype(np.float64)
    return categorical_log_probabilities(logits / part.temperature)


def _center(inputs: NDArray[np.floating[Any]], part: ActionComponent) -> Float64Array:
    center = _slice(inputs, part)[:, : part.size].astype(np.float64)
    if np.isinf(center).any():
        raise DistributionError(
            "the policy's outputs hold infinity; check the observation and the model"
        )
    return center


def _mean_and_std(
    inputs: NDArray[np.floating[Any]], part: ActionComponent
) -> tuple[Float64Array, Float64Array]:
    log_std = _slice(inputs, part)[:, part.size :].astype(np.float64)
    if part.log_std_bounds is not None:
        log_std = np.clip(log_std, *part.log_std_bounds)
    return _center(inputs, part), np.exp(np.clip(log_std, *_LOG_STD_BOUNDS))


def _set(actions: Float64Array, part: ActionComponent, values: NDArray[np.floating[Any]]) -> None:
    actions[:, part.first_column : part.first_column + part.size] = values


def _scale(part: ActionComponent) -> Float64Array | None:
    """Return the environment's units in one of the policy's; None where they are the same."""
    if part.low is None or part.high is None or not part.is_normalized:
        return None
    scale: Float64Array = (np.array(part.high) - np.array(part.low)) / 2.0
    return scale


def _rescale(part: ActionComponent, values: Float64Array) -> Float64Array:
    scale = _scale(part)
    if scale is None:
        return values
    scaled: Float64Array = np.array(part.low) + (values + 1.0) * scale
    return scaled


def _normal(values: Float64Array, mean: Float64Array, std: Float64Array) -> Float64Array:
    """Source: RLlib `DiagGaussian.logp`."""
    parts = -0.5 * (((values - mean) / std) ** 2 + _LOG_2_PI) - np.log(std)
    total: Float64Array = parts.sum(axis=1)
    return total


def _squashed_normal(values: Float64Array, mean: Float64Array, std: Float64Array) -> Float64Array:
    """Source: RLlib `SquashedGaussian.logp`, with its clipping and its small number."""
    unsquashed = np.arctanh(np.clip(values, -1 + _SMALL_NUMBER, 1 - _SMALL_NUMBER))
    parts = -0.5 * (((unsquashed - mean) / std) ** 2 + _LOG_2_PI) - np.log(std)
    parts = np.clip(parts, -_MAX_SQUASHED_LOG_PROBABILITY, _MAX_SQUASHED_LOG_PROBABILITY)
    correction = np.log(1 - np.tanh(unsquashed) ** 2 + _SMALL_NUMBER)
    total: Float64Array = (parts - correction).sum(axis=1)
    return total
