"""Action distributions in NumPy: probabilities, mode, draws and log-probabilities of many rows.

`ActionDistribution` turns rows of `action_dist_inputs` into whole actions; `component_rows` and
`continuous_rows` read the columns of single components.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_bounds import ActionBounds
from policy_server.distributions.component_rows import (
    CategoricalLayout,
    CategoricalRows,
    clip,
    refuse_nan,
)
from policy_server.distributions.continuous_rows import (
    ContinuousRows,
    center_of,
    row_sums,
    unsquashed,
)
from policy_server.distributions.few_rows import FewRows
from policy_server.policy import (
    LARGEST,
    ActionComponent,
    Float32Array,
    Float64Array,
    Int64Array,
    PolicyOutputs,
)

__all__ = ["ActionDistribution", "ComponentDistribution", "noise"]

_Number = TypeVar("_Number", np.float64, np.bool_)
_NORMAL = ("normal", "squashed_normal")


@dataclass(frozen=True)
class ComponentDistribution:
    """The distribution of one component for B observations.

    Attributes:
        component: the component.
        probabilities: float64[B, size] where it is categorical.
        mean: float64[B, size] where it is (squashed) normal; before the tanh where it is squashed.
        std: float64[B, size] where there is a mean; before the tanh too.
        mass_at_low: float64[B, size], the probability that the lower bound cuts a dimension, where
            it is normal and has bounds.
        mass_at_high: float64[B, size], the same for the upper bound.
        value: float64[B, size] where it is deterministic.
    """

    component: ActionComponent
    probabilities: Float64Array | None = None
    mean: Float64Array | None = None
    std: Float64Array | None = None
    mass_at_low: Float64Array | None = None
    mass_at_high: Float64Array | None = None
    value: Float64Array | None = None


def noise(
    components: Sequence[ActionComponent], seeds: Int64Array, generator: np.random.Generator
) -> list[Float64Array]:
    """Draw the noise that `ActionDistribution.sample` turns into actions.

    Args:
        components: the distribution's components.
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
    """The distributions of B rows: each component is read once, for all that is asked of it.

    Attributes:
        inputs: float[B, K].
        categorical: all categorical components; None where there is none.
        normals: each (squashed) normal component by its index.
    """

    inputs: NDArray[np.floating[Any]]
    categorical: CategoricalRows | None
    normals: Mapping[int, ContinuousRows]


class ActionDistribution:
    """The distribution of whole actions, given rows of `action_dist_inputs`.

    Actions are float64[B, A] in columns, integers exact. `in_environment_units` applies
    schema.yaml's bounds; everything else is in the policy's own space.

    Attributes:
        components: the distribution's components, ordered by column.
        is_greedy: it takes the best action with probability 1.
        has_masses: schema.yaml's bounds cut a component, so that an answer at a bound has a mass.
        few_rows: answers few rows.
    """

    def __init__(self, components: Sequence[ActionComponent], *, is_greedy: bool = False) -> None:
        """Own the layout of a row, for as long as the policy lives.

        Args:
            components: the distribution's components, ordered by column.
            is_greedy: take the best action with probability 1, as a policy over Q values does.
        """
        self.components = tuple(components)
        self.is_greedy = is_greedy
        places = range(len(components))
        self._categorical = [i for i in places if components[i].kind == "categorical"]
        self._normal = [i for i in places if components[i].kind in _NORMAL]
        self._squashed = [part for part in components if part.kind == "squashed_normal"]
        self._bare = [part for part in components if part.has_unsquashed_mode]
        self._fixed = [part for part in components if part.kind == "deterministic"]
        chosen = [components[place] for place in self._categorical]
        self._layout = CategoricalLayout(chosen) if chosen else None
        self._columns = sum(part.columns for part in components)
        self._bounds = {
            place: ActionBounds(components[place])
            for place in places
            if components[place].low is not None
        }
        self._knows_probability = all(part.has_probability for part in components)
        self.has_masses = any(bounds.is_cutting for bounds in self._bounds.values())
        self.few_rows = FewRows(components, self._bounds, is_greedy=is_greedy)
        self._generator = np.random.default_rng()

    def masked(self, inputs: Float32Array, masks: NDArray[np.bool_]) -> Float32Array:
        """Return the inputs with the choices that a mask forbids, which then never happen.

        Args:
            inputs: float32[B, K], `action_dist_inputs`.
            masks: bool[B, choices], as `PolicyInputs.masks`.

        Returns:
            float32[B, K]; the logits of forbidden choices (their values, where the policy is
            greedy) are -inf.

        Raises:
            DistributionError: if a row forbids every choice of a component.
        """
        assert self._layout is not None, "a policy without integer actions takes no mask"
        return self._layout.masked(inputs, masks)

    def answer(
        self,
        inputs: Float32Array,
        *,
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
        wants_distribution: bool = True,
    ) -> PolicyOutputs:
        """Answer rows of one forward pass, each with its draw or its mode.

        Args:
            inputs: float32[B, K], `action_dist_inputs`.
            is_deterministic: bool[B]; True takes the mode, False a draw.
            seeds: int64[B]; the seed of a row's draw, or -1 for an independent one.
            wants_distribution: whether the answers hold `inputs`.

        Returns:
            The answers, in the units that actions are answered in.

        Raises:
            DistributionError: if a row is no distribution.
        """
        if 0 < len(inputs) <= self.few_rows.most_rows:
            found = self.few_rows.answer(
                inputs,
                is_deterministic=is_deterministic,
                seeds=seeds,
                generator=self._generator,
            )
            if found is not None:
                return PolicyOutputs(*found, inputs if wants_distribution else None)
        return self.answer_in_arrays(
            inputs,
            is_deterministic=is_deterministic,
            seeds=seeds,
            wants_distribution=wants_distribution,
        )

    def answer_in_arrays(
        self,
        inputs: Float32Array,
        *,
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
        wants_distribution: bool = True,
    ) -> PolicyOutputs:
        """Answer many rows; of a few, `few_rows` gives the same answers for less.

        Args:
            inputs: see `answer`, and so for the others.
            is_deterministic: see `answer`.
            seeds: see `answer`.
            wants_distribution: see `answer`.

        Raises:
            DistributionError: if a row is no distribution.
        """
        return self.answer_with_own(
            inputs,
            is_deterministic=is_deterministic,
            seeds=seeds,
            wants_distribution=wants_distribution,
        )[0]

    def answer_with_own(
        self,
        inputs: Float32Array,
        *,
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
        wants_distribution: bool = True,
    ) -> tuple[PolicyOutputs, Float64Array]:
        """Return the answers, and float64[B, A], their actions in the policy's own space.

        Args:
            inputs: see `answer`, and so for the others.
            is_deterministic: see `answer`.
            seeds: see `answer`.
            wants_distribution: see `answer`.

        Raises:
            DistributionError: if a row is no distribution.
        """
        kept = inputs if wants_distribution else None
        if self.is_greedy:
            own = self.mode(inputs)
            actions = self.in_environment_units(own)
            return PolicyOutputs(actions, np.zeros(len(inputs)), kept), own
        reading = self._read(inputs)
        modes = np.count_nonzero(is_deterministic)
        if modes == len(is_deterministic):
            values = self._unsquashed_modes(inputs)
        else:
            values = self._unsquashed_draws(reading, noise(self.components, seeds, self._generator))
            if modes:
                values[is_deterministic] = self._unsquashed_modes(inputs[is_deterministic])
        own = self._squash(values)
        if self._bare and modes:
            self._unsquash_modes(own, values, is_deterministic)
        actions = self.in_environment_units(own)
        chance = self._log_probability(reading, values, actions)
        return PolicyOutputs(actions, chance, kept), own

    def mode(self, inputs: NDArray[np.floating[Any]]) -> Float64Array:
        """Return each row's deterministic action, as RLlib takes it with exploration off.

        Args:
            inputs: float[B, K], `action_dist_inputs`.

        Returns:
            float64[B, A].
        """
        values = self._unsquashed_modes(inputs)
        modes = self._squash(values)
        if self._bare:
            self._unsquash_modes(modes, values, np.ones(len(inputs), np.bool_))
        return modes

    def sample(
        self, inputs: NDArray[np.floating[Any]], draws: Sequence[Float64Array]
    ) -> Float64Array:
        """Turn noise into actions.

        Args:
            inputs: float[B, K], `action_dist_inputs`.
            draws: the result of `noise` for these components and B rows.

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

        It is that of the stated distribution, near the bounds of a squashed normal too. Where
        schema.yaml's bounds cut a dimension, the factor of that is the mass at the bound.

        Args:
            inputs: float[B, K], `action_dist_inputs`.
            actions: float64[B, A] in the policy's own space.

        Returns:
            float64[B], finite; a density is that in the units that actions are answered in. 0 for
            a greedy policy and for deterministic components; NaN where a component's probability is
            unknown.

        Raises:
            DistributionError: if a row is no distribution.

        Source: RLlib `MultiActionDistribution.logp`: the sum over the components.
        """
        if self.is_greedy:
            return np.zeros(len(inputs))
        answers = self.in_environment_units(actions)
        return self._log_probability(self._read(inputs), self._unsquash(actions), answers)

    def rllib_log_probability(
        self, inputs: NDArray[np.floating[Any]], actions: Float64Array
    ) -> Float64Array:
        """Return the log-probability of whole actions as RLlib computes it, to compare the two.

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

    def _unsquash_modes(
        self, actions: Float64Array, values: Float64Array, is_mode: NDArray[np.bool_]
    ) -> None:
        """Take the mean itself as the mode, where the library does so.

        Args:
            actions: float64[B, A], squashed; the modes are written to it.
            values: float64[B, A], before the tanh; to it are written the numbers whose tanh the
                modes are, NaN where there is none.
            is_mode: bool[B]; the rows that are modes.
        """
        for part in self._bare:
            modes = _values_of(part, values)[is_mode]
            _values_of(part, actions)[is_mode] = modes
            _values_of(part, values)[is_mode] = np.where(
                np.abs(modes) < 1.0, unsquashed(modes), np.nan
            )

    def _unsquash(self, actions: Float64Array) -> Float64Array:
        return self._with_squashed(unsquashed, actions)

    def _with_squashed(
        self, function: Callable[[Float64Array], Float64Array], actions: Float64Array
    ) -> Float64Array:
        """Return the actions, with a function applied to the squashed components."""
        if not self._squashed:
            return actions
        changed = actions.copy()
        for part in self._squashed:
            _set(changed, part, function(_values_of(part, actions)))
        return changed

    def _log_probability(
        self, reading: _Reading, actions: Float64Array, answers: Float64Array
    ) -> Float64Array:
        """Return the log-probability of answers, whose actions before the tanh are given too."""
        if not self._knows_probability:
            return np.full(len(actions), np.nan)
        total = self._log_choices(reading, actions)
        for place, rows in reading.normals.items():
            part, bounds = self.components[place], self._bounds.get(place)
            values = _values_of(part, actions)
            total += row_sums(
                rows.log_densities(values)
                if bounds is None
                else bounds.log_densities(rows, values, _values_of(part, answers))
            )
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

        Source: `ActionBounds.apply`.
        """
        if not self._bounds:
            return actions
        scaled = actions.copy()
        for place, bounds in self._bounds.items():
            part = self.components[place]
            _set(scaled, part, bounds.apply(_values_of(part, actions)))
        return scaled

    def at_bound(self, answers: Float64Array) -> NDArray[np.bool_]:
        """Return a mask of the numbers of an answer that a bound has cut; each of them has a mass.

        Args:
            answers: float64[B, A], in the units that actions are answered in.

        Returns:
            bool[B, A]; False in the columns of components that no bound cuts.
        """
        found = np.zeros(answers.shape, np.bool_)
        for place, bounds in self._bounds.items():
            if bounds.is_cutting:
                part = self.components[place]
                is_low, is_high = bounds.is_at(_values_of(part, answers))
                _values_of(part, found)[:] = is_low | is_high
        return found

    def columns_at_bound(self, answer: list[float]) -> list[int]:
        """Return the columns of one row that `at_bound` marks.

        Args:
            answer: A numbers, in the units that actions are answered in.
        """
        return self.few_rows.columns_at_bound(answer)

    def describe(self, inputs: NDArray[np.floating[Any]]) -> list[ComponentDistribution]:
        """Return every component's distribution, computed in closed form.

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
                ComponentDistribution(part, _one_hot(best[:, part.first_column], part.size))
                for part in self.components
            ]
        reading = self._read(inputs)
        return [self._describe(place, reading) for place in range(len(self.components))]

    def _describe(self, place: int, reading: _Reading) -> ComponentDistribution:
        part, bounds = self.components[place], self._bounds.get(place)
        if place in reading.normals:
            return _describe_normal(part, reading.normals[place], bounds)
        if reading.categorical is None or part.kind == "deterministic":
            value = center_of(part, reading.inputs)
            return ComponentDistribution(part, value=bounds.apply(value) if bounds else value)
        chances = reading.categorical.probabilities(self._categorical.index(place))
        return ComponentDistribution(part, probabilities=chances)


def _describe_normal(
    part: ActionComponent, rows: ContinuousRows, bounds: ActionBounds | None
) -> ComponentDistribution:
    mean, std = rows.mean, rows.std
    if bounds is None:
        return ComponentDistribution(part, mean=mean, std=std)
    if part.kind == "normal":
        mean = clip(bounds.rescale(mean), -LARGEST, LARGEST)
        std = np.minimum(std * bounds.scale, LARGEST)
    if not bounds.is_cutting:
        return ComponentDistribution(part, mean=mean, std=std)
    low, high = (np.exp(masses) for masses in bounds.log_masses(rows))
    return ComponentDistribution(part, mean=mean, std=std, mass_at_low=low, mass_at_high=high)


def _values_of(part: ActionComponent, actions: NDArray[_Number]) -> NDArray[_Number]:
    return actions[:, part.first_column : part.first_column + part.size]


def _set(actions: Float64Array, part: ActionComponent, values: NDArray[np.floating[Any]]) -> None:
    actions[:, part.first_column : part.first_column + part.size] = values


def _one_hot(chosen: NDArray[np.intp], size: int) -> Float64Array:
    probabilities = np.zeros((len(chosen), size))
    probabilities[np.arange(len(chosen)), chosen] = 1.0
    return probabilities
