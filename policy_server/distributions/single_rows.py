"""One row of `action_dist_inputs`, read in Python's own numbers.

Sums, products and comparisons of Python's floats are those of float64, to the last bit; logarithms
and their like are NumPy's, whose last digits may differ from the C library's. So the numbers are
those of `component_rows` and `continuous_rows`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, islice
from typing import Protocol

import numpy as np

from policy_server.distributions.action_bounds import ActionBounds, DimensionBounds, clipped
from policy_server.distributions.continuous_rows import LOG_2, LOG_2_PI, LOG_STD_BOUNDS
from policy_server.policy import LARGEST, ActionComponent

__all__ = [
    "BestChoices",
    "Choices",
    "FixedNumbers",
    "NormalNumbers",
    "OddRowError",
    "RowFields",
    "RowPart",
]

# A call of NumPy with one number costs a sixth of a microsecond, one with an array a whole one.
_FEWEST_IN_ARRAY = 6
# From so many numbers on, NumPy adds in another order than one after the other.
_FEWEST_IN_BLOCKS = 8


RowFields = dict[str, list[float]]
"""The numbers of one component's distribution by their names: `{"mean": [0.5], "std": [2.0]}`."""


class OddRowError(Exception):
    """A row is no distribution, or one that only `ActionDistribution` can answer."""


class RowPart(Protocol):
    """Some components of a distribution."""

    def answer(self, row: list[float], noise: list[float] | None, actions: list[float]) -> float:
        """Write one row's answer, and return its log-probability.

        Args:
            row: K numbers, `action_dist_inputs`.
            noise: a number for each of A columns; None for the mode.
            actions: A numbers, into whose columns the answer is written.

        Raises:
            OddRowError: if the row is no distribution.
        """

    def describe(self, row: list[float]) -> list[tuple[int, RowFields]]:
        """Return the fields of each component's distribution, as `ComponentDistribution` has them.

        Args:
            row: K numbers, `action_dist_inputs`.

        Returns:
            The index of each component's first column, with the component's fields.

        Raises:
            OddRowError: if the row is no distribution.
        """


class Choices:
    """All categorical components of a distribution, as `CategoricalRows` reads them."""

    def __init__(self, parts: Sequence[ActionComponent]) -> None:
        """Work out where the parts lie.

        Args:
            parts: the categorical components in order, at least one.
        """
        self._places = [
            (part.first_input, part.first_input + part.size, part.first_column, part.temperature)
            for part in parts
        ]
        self._exp = _function(np.exp, sum(part.size for part in parts))

    def answer(self, row: list[float], noise: list[float] | None, actions: list[float]) -> float:
        """Write the choices of one row; see `RowPart`."""
        shifted = self._shifted(row)
        weights = self._exp(shifted)
        start, total = 0, 0.0
        for first, end, column, _ in self._places:
            stop = start + end - first
            cumulated = list(accumulate(weights[start:stop]))
            weight_sum = _checked(cumulated[-1])
            if noise is None:
                logits = row[first:end]
                choice = logits.index(max(logits))
            else:
                choice = bisect_right(cumulated, noise[column] * weight_sum)
            actions[column] = float(choice)
            total += shifted[start + choice] - float(np.log(weight_sum))
            start = stop
        return total

    def describe(self, row: list[float]) -> list[tuple[int, RowFields]]:
        """Return the probabilities of all choices; see `RowPart`."""
        shifted = self._shifted(row)
        weights = self._exp(shifted)
        logarithms: list[float] = []
        for first, end, _, _ in self._places:
            start, stop = len(logarithms), len(logarithms) + end - first
            weight_sum = _checked(list(accumulate(weights[start:stop]))[-1])
            log_sum = float(np.log(weight_sum))
            logarithms += [logit - log_sum for logit in shifted[start:stop]]
        chances = iter(self._exp(logarithms))
        return [
            (column, {"probabilities": list(islice(chances, end - first))})
            for first, end, column, _ in self._places
        ]

    def _shifted(self, row: list[float]) -> list[float]:
        """Return the logits of all parts, each less the largest of its part."""
        shifted: list[float] = []
        for first, end, _, temperature in self._places:
            logits = row[first:end]
            if temperature != 1.0:
                logits = [logit / temperature for logit in logits]
            largest = max(logits)
            shifted += [logit - largest for logit in logits]
        return shifted


class BestChoices:
    """The categorical components of a greedy policy."""

    def __init__(self, parts: Sequence[ActionComponent]) -> None:
        """Work out where the parts lie; see `Choices`."""
        self._places = [
            (part.first_input, part.first_input + part.size, part.first_column) for part in parts
        ]

    def answer(self, row: list[float], noise: list[float] | None, actions: list[float]) -> float:  # noqa: ARG002 -- a greedy policy draws nothing
        """Write the best choices of one row; see `RowPart`."""
        for first, end, column in self._places:
            actions[column] = float(_best(row[first:end]))
        return 0.0

    def describe(self, row: list[float]) -> list[tuple[int, RowFields]]:
        """Return 1 for each best choice and 0 for the others; see `RowPart`."""
        found = []
        for first, end, column in self._places:
            chances = [0.0] * (end - first)
            chances[_best(row[first:end])] = 1.0
            found.append((column, {"probabilities": chances}))
        return found


class FixedNumbers:
    """A deterministic component."""

    def __init__(self, part: ActionComponent, bounds: ActionBounds | None) -> None:
        """Work out where its numbers lie, and their limits.

        Args:
            part: the component.
            bounds: schema.yaml's bounds.
        """
        self._inputs = slice(part.first_input, part.first_input + part.size)
        self._column = part.first_column
        self._clip = _clipping(part.mean_bounds)
        self._bounds = _by_dimension(part, bounds)

    def answer(self, row: list[float], noise: list[float] | None, actions: list[float]) -> float:  # noqa: ARG002 -- nothing is drawn
        """Write the numbers of one row; see `RowPart`."""
        actions[self._column : self._column + len(self._bounds)] = self._numbers(row)
        return 0.0

    def describe(self, row: list[float]) -> list[tuple[int, RowFields]]:
        """Return the numbers; see `RowPart`."""
        return [(self._column, {"value": self._numbers(row)})]

    def _numbers(self, row: list[float]) -> list[float]:
        numbers = []
        for value, bounds in zip(row[self._inputs], self._bounds, strict=True):
            if not math.isfinite(value):
                raise OddRowError
            number = value if self._clip is None else self._clip(value)
            numbers.append(number if bounds is None else bounds.apply(number))
        return numbers


class NormalNumbers:
    """A normal or squashed normal component, as `ContinuousRows` reads it."""

    def __init__(self, part: ActionComponent, bounds: ActionBounds | None) -> None:
        """Work out where its numbers lie, and their limits; see `FixedNumbers`."""
        middle = part.first_input + part.size
        self._means = slice(part.first_input, middle)
        self._log_stds = slice(middle, middle + part.size)
        self._column = part.first_column
        self._clip_mean = _clipping(part.mean_bounds)
        self._clip_log_std = _clipping(part.log_std_bounds)
        self._std_floor = part.std_floor
        self._is_squashed = part.kind == "squashed_normal"
        self._has_unsquashed_mode = part.has_unsquashed_mode
        self._bounds = _by_dimension(part, bounds)
        self._functions = {
            function: _function(function, part.size)
            for function in (np.exp, np.log, np.log1p, np.tanh)
        }

    def answer(self, row: list[float], noise: list[float] | None, actions: list[float]) -> float:
        """Write the numbers of one row; see `RowPart`."""
        if noise is None and self._has_unsquashed_mode:
            raise OddRowError
        means, stds = self._read(row)
        column = self._column
        if noise is None:
            values = means
        else:
            drawn = noise[column : column + len(means)]
            values = [
                clipped(mean + std * normal, -LARGEST, LARGEST)
                for mean, std, normal in zip(means, stds, drawn, strict=True)
            ]
        densities = self._log_densities(values, means, stds)
        answers = self._functions[np.tanh](values) if self._is_squashed else values
        for place, bounds in enumerate(self._bounds):
            answer = answers[place]
            if bounds is not None:
                answer = bounds.apply(answer)
                densities[place] = bounds.log_density(
                    densities[place], answer, mean=means[place], std=stds[place]
                )
            actions[column + place] = answer
        return _sum(densities)

    def describe(self, row: list[float]) -> list[tuple[int, RowFields]]:
        """Return means and deviations, and the masses at bounds that cut; see `RowPart`."""
        means, stds = self._read(row)
        fields: RowFields = {"mean": means, "std": stds}
        pairs = list(zip(means, stds, self._bounds, strict=True))
        bounded = [(mean, std, bounds) for mean, std, bounds in pairs if bounds is not None]
        if bounded and not self._is_squashed:
            fields["mean"] = [
                clipped(bounds.rescale(mean), -LARGEST, LARGEST) for mean, _, bounds in bounded
            ]
            fields["std"] = [
                min(std if bounds.scale is None else std * bounds.scale, LARGEST)
                for _, std, bounds in bounded
            ]
        if bounded and bounded[0][2].is_cutting:
            masses = [bounds.log_masses(mean=mean, std=std) for mean, std, bounds in bounded]
            for name, logarithms in zip(
                ("mass_at_low", "mass_at_high"), zip(*masses, strict=True), strict=True
            ):
                fields[name] = self._functions[np.exp](list(logarithms))
        return [(self._column, fields)]

    def _read(self, row: list[float]) -> tuple[list[float], list[float]]:
        means, log_stds = row[self._means], row[self._log_stds]
        for mean, log_std in zip(means, log_stds, strict=True):
            if not math.isfinite(mean) or math.isnan(log_std):
                raise OddRowError
        if self._clip_mean is not None:
            means = [self._clip_mean(mean) for mean in means]
        if self._clip_log_std is not None:
            log_stds = [self._clip_log_std(log_std) for log_std in log_stds]
        stds = self._functions[np.exp]([clipped(value, *LOG_STD_BOUNDS) for value in log_stds])
        if self._std_floor:
            stds = [min(std + self._std_floor, LARGEST) for std in stds]
        return means, stds

    def _log_densities(
        self, values: list[float], means: list[float], stds: list[float]
    ) -> list[float]:
        densities = []
        log_stds = self._functions[np.log](stds)
        for value, mean, std, log_std in zip(values, means, stds, log_stds, strict=True):
            distance = (value - mean) / std
            densities.append(-0.5 * (distance * distance + LOG_2_PI) - log_std)
        if not self._is_squashed:
            return densities
        sizes = [abs(value) for value in values]
        tails = self._functions[np.log1p](self._functions[np.exp]([-2 * size for size in sizes]))
        return [
            density - 2 * (LOG_2 - size - tail)
            for density, size, tail in zip(densities, sizes, tails, strict=True)
        ]


def _checked(weight_sum: float) -> float:
    """Return the sum of a softmax's weights, of which the largest is 1."""
    # This is false for NaN.
    if not weight_sum >= 1.0:
        raise OddRowError
    return weight_sum


def _best(values: list[float]) -> int:
    if math.isnan(sum(values)):
        raise OddRowError
    return values.index(max(values))


def _function(function: np.ufunc, count: int) -> Callable[[list[float]], list[float]]:
    """Return a function of NumPy's as one of so many numbers."""
    if count < _FEWEST_IN_ARRAY:
        return lambda numbers: [float(function(number)) for number in numbers]
    return lambda numbers: function(np.array(numbers)).tolist()


def _by_dimension(
    part: ActionComponent, bounds: ActionBounds | None
) -> Sequence[DimensionBounds | None]:
    return [None] * part.size if bounds is None else bounds.by_dimension()


def _clipping(bounds: tuple[float | None, float | None] | None) -> Callable[[float], float] | None:
    if bounds is None:
        return None
    low = -math.inf if bounds[0] is None else bounds[0]
    high = math.inf if bounds[1] is None else bounds[1]
    return lambda value: clipped(value, low, high)


def _sum(numbers: list[float]) -> float:
    """Return the sum as `row_sums` has it."""
    if len(numbers) < _FEWEST_IN_BLOCKS:
        return list(accumulate(numbers))[-1]
    return float(np.add.reduce(np.array(numbers)))
