"""Action distributions in NumPy: probabilities, mode, draws and log-probabilities of many rows.

`ActionDistribution` turns rows of `action_dist_inputs` into whole actions; what the rows of one
part mean stands in `component_rows` and `continuous_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.component_rows import (
    CategoricalLayout,
    CategoricalRows,
    clip,
    refuse_nan,
)
from policy_server.continuous_rows import ContinuousRows, center_of, row_sums, unsquashed
from policy_server.policy import (
    LARGEST,
    ActionComponent,
    Float32Array,
    Float64Array,
    Int64Array,
    PolicyOutputs,
)

__all__ = ["ActionDistribution", "ComponentDistribution", "noise"]

_NORMAL = ("normal", "squashed_normal")


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
    is_seeded = seeds >= 0
    if np.count_nonzero(is_seeded):
        for row in np.flatnonzero(is_seeded):
            seeded = np.random.default_rng(int(seeds[row]))
            for part, draw in zip(components, draws, strict=True):
                draw[row] = _draw(seeded, part, 1)[0]
    return draws


def _draw(generator: np.random.Generator, part: ActionComponent, rows: int) -> Float64Array:
    shape = (rows, part.columns)
    return (
        generator.random(shape) if part.kind == "categorical" else generator.standard_normal(shape)
    )


@dataclass(frozen=True)
class _Reading:
    """The distributions of B rows, each part read once however much is asked of it.

    Attributes:
        inputs: float[B, K].
        categorical: all categorical parts; None where there is none.
        normals: each (squashed) normal part by its place among the components.
    """

    inputs: NDArray[np.floating[Any]]
    categorical: CategoricalRows | None
    normals: Mapping[int, ContinuousRows]


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
        places = range(len(components))
        self._categorical = [i for i in places if components[i].kind == "categorical"]
        self._normal = [i for i in places if components[i].kind in _NORMAL]
        self._squashed = [part for part in components if part.kind == "squashed_normal"]
        self._fixed = [part for part in components if part.kind == "deterministic"]
        chosen = [components[place] for place in self._categorical]
        self._layout = CategoricalLayout(chosen) if chosen else None
        self._columns = sum(part.columns for part in components)
        self._has_bounds = any(part.low is not None for part in components)
        scales = [_scale(part) for part in components if part.kind != "deterministic"]
        self._log_scale = sum(float(np.log(scale).sum()) for scale in scales if scale is not None)
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
        if self.is_greedy:
            actions = self.in_environment_units(self.mode(inputs))
            return PolicyOutputs(actions, np.zeros(len(inputs)), inputs)
        reading = self._read(inputs)
        modes = np.count_nonzero(is_deterministic)
        if modes == len(is_deterministic):
            values = self._unsquashed_modes(inputs)
        else:
            values = self._unsquashed_draws(reading, noise(self.components, seeds, self._generator))
            if modes:
                values[is_deterministic] = self._unsquashed_modes(inputs[is_deterministic])
        log_probability = self._log_probability(reading, values)
        actions = self.in_environment_units(self._squash(values))
        return PolicyOutputs(actions, log_probability, inputs)

    def mode(self, inputs: NDArray[np.floating[Any]]) -> Float64Array:
        """Return each row's deterministic action, as RLlib takes it with exploration off.

        Args:
            inputs: float[B, K], `action_dist_inputs`.

        Returns:
            float64[B, A].
        """
        return self._squash(self._unsquashed_modes(inputs))

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
        return self._squash(self._unsquashed_draws(self._read(inputs), draws))

    def log_probability(
        self, inputs: NDArray[np.floating[Any]], actions: Float64Array
    ) -> Float64Array:
        """Return the logarithm of the joint probability, or density, of whole actions.

        It is that of the stated distribution, near the bounds of a squashed normal too.

        Args:
            inputs: float[B, K], `action_dist_inputs`.
            actions: float64[B, A] in the policy's own space.

        Returns:
            float64[B], finite; a density is that in the units that actions are answered in. 0 for
            a greedy policy and for deterministic components.

        Raises:
            DistributionError: if a row is no distribution.

        Source: RLlib `MultiActionDistribution.logp`: the sum over the components.
        """
        if self.is_greedy:
            return np.zeros(len(inputs))
        return self._log_probability(self._read(inputs), self._unsquash(actions))

    def rllib_log_probability(
        self, inputs: NDArray[np.floating[Any]], actions: Float64Array
    ) -> Float64Array:
        """Return the log-probability of whole actions by RLlib's arithmetic, to compare with its.

        Args:
            inputs: float[B, K], `action_dist_inputs`.
            actions: float64[B, A] in the policy's own space.

        Returns:
            float64[B]; a density is that in the policy's own space.

        Raises:
            DistributionError: if a row is no distribution.
        """
        if self.is_greedy:
            return np.zeros(len(inputs))
        reading = self._read(inputs)
        total = self._log_choices(reading, actions)
        for place, rows in reading.normals.items():
            values = _values_of(self.components[place], actions)
            total += row_sums(rows.rllib_log_densities(values))
        return total

    def _read(self, inputs: NDArray[np.floating[Any]]) -> _Reading:
        return _Reading(
            inputs,
            None if self._layout is None else CategoricalRows(self._layout, inputs),
            {place: ContinuousRows(self.components[place], inputs) for place in self._normal},
        )

    def _unsquashed_modes(self, inputs: NDArray[np.floating[Any]]) -> Float64Array:
        actions = np.empty((len(inputs), self._columns))
        for part in self.components:
            if part.kind == "categorical":
                values = inputs[:, part.first_input : part.first_input + part.size]
                refuse_nan(values)
                actions[:, part.first_column] = values.argmax(axis=1)
            else:
                _set(actions, part, center_of(part, inputs))
        return actions

    def _unsquashed_draws(self, reading: _Reading, draws: Sequence[Float64Array]) -> Float64Array:
        actions = np.empty((len(reading.inputs), self._columns))
        if reading.categorical is not None and self._layout is not None:
            uniform = np.array([draws[place][:, 0] for place in self._categorical])
            actions[:, self._layout.columns] = reading.categorical.draw(uniform).T
        for place, rows in reading.normals.items():
            _set(actions, self.components[place], rows.draw(draws[place]))
        for part in self._fixed:
            _set(actions, part, center_of(part, reading.inputs))
        return actions

    def _squash(self, actions: Float64Array) -> Float64Array:
        return self._with_squashed(np.tanh, actions)

    def _unsquash(self, actions: Float64Array) -> Float64Array:
        return self._with_squashed(unsquashed, actions)

    def _with_squashed(
        self, function: Callable[[Float64Array], Float64Array], actions: Float64Array
    ) -> Float64Array:
        """Return actions of which a function has changed the squashed parts."""
        if not self._squashed:
            return actions
        changed = actions.copy()
        for part in self._squashed:
            _set(changed, part, function(_values_of(part, actions)))
        return changed

    def _log_probability(self, reading: _Reading, actions: Float64Array) -> Float64Array:
        """Return the log-probability of actions before the tanh, in the units of the answer."""
        total = self._log_choices(reading, actions)
        for place, rows in reading.normals.items():
            total += row_sums(rows.log_densities(_values_of(self.components[place], actions)))
        if self._log_scale:
            total -= self._log_scale
        return total

    def _log_choices(self, reading: _Reading, actions: Float64Array) -> Float64Array:
        if reading.categorical is None or self._layout is None:
            return np.zeros(len(actions))
        chosen = actions[:, self._layout.columns].T.astype(np.intp)
        return reading.categorical.log_probability(chosen)

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
                rescaled = _rescale(part, _values_of(part, actions))
                _set(scaled, part, clip(rescaled, part.low, part.high))
        return scaled

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
        if self.is_greedy:
            best = self.mode(inputs).astype(np.intp)
            return [
                ComponentDistribution(
                    part, probabilities=np.eye(part.size)[best[:, part.first_column]]
                )
                for part in self.components
            ]
        reading = self._read(inputs)
        return [self._describe(place, reading) for place in range(len(self.components))]

    def _describe(self, place: int, reading: _Reading) -> ComponentDistribution:
        part = self.components[place]
        if place in reading.normals:
            return _describe_normal(part, reading.normals[place])
        if reading.categorical is None or part.kind == "deterministic":
            return _describe_value(part, reading.inputs)
        chances = reading.categorical.probabilities(self._categorical.index(place))
        return ComponentDistribution(part, probabilities=chances)


def _describe_value(
    part: ActionComponent, inputs: NDArray[np.floating[Any]]
) -> ComponentDistribution:
    value = _rescale(part, center_of(part, inputs))
    bounded = value if part.low is None else clip(value, part.low, part.high)
    return ComponentDistribution(part, value=bounded)


def _describe_normal(part: ActionComponent, rows: ContinuousRows) -> ComponentDistribution:
    mean, std = rows.mean, rows.std
    scale = _scale(part)
    if part.kind == "normal" and scale is not None:
        mean = clip(_rescale(part, mean), -LARGEST, LARGEST)
        std = np.minimum(std * scale, LARGEST)
    return ComponentDistribution(part, mean=mean, std=std)


def _values_of(part: ActionComponent, actions: Float64Array) -> Float64Array:
    return actions[:, part.first_column : part.first_column + part.size]


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
