"""Draws and modes of few rows, in Python's own numbers.

An array operation costs a third of a microsecond and more for a single number, and a row takes
dozens of them. `single_rows` computes the same, so that a row's answer is the same, bit for bit, as
`ActionDistribution` gives among many rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_bounds import ActionBounds
from policy_server.distributions.single_rows import (
    BestChoices,
    Choices,
    FixedNumbers,
    NormalNumbers,
    OddRowError,
    RowFields,
    RowPart,
)
from policy_server.policy import ActionComponent, Float32Array, Float64Array, Int64Array

__all__ = ["FewRows"]

# Microseconds of one row, and those of arrays for any few rows: `python -m benchmarks.few_rows`
# measures them. Only their ratios matter.
_ARRAYS_US, _ROW_US = 25.0, 2.0
_PART_US = {"categorical": 1.5, "deterministic": 1.0, "normal": 3.0, "squashed_normal": 3.0}
_NUMBER_US = {"categorical": 0.12, "deterministic": 0.2, "normal": 1.0, "squashed_normal": 2.5}


class FewRows:
    """The draws and modes of a distribution, row by row.

    Attributes:
        most_rows: so many rows cost no more here than in arrays.
    """

    def __init__(
        self,
        components: Sequence[ActionComponent],
        bounds: Mapping[int, ActionBounds],
        *,
        is_greedy: bool,
    ) -> None:
        """Own the plan of a row, for as long as the policy lives.

        Args:
            components: the distribution's components, ordered by column.
            bounds: schema.yaml's bounds, by the index of their component.
            is_greedy: the best action is taken, with probability 1.
        """
        self._columns = sum(part.columns for part in components)
        self._knows_probability = is_greedy or all(part.has_probability for part in components)
        choices = [part for part in components if part.kind == "categorical"]
        parts: list[RowPart] = []
        if choices:
            parts.append(BestChoices(choices) if is_greedy else Choices(choices))
        parts += [
            FixedNumbers(part, bounds.get(place))
            if part.kind == "deterministic"
            else NormalNumbers(part, bounds.get(place))
            for place, part in enumerate(components)
            if part.kind != "categorical"
        ]
        self._parts = parts
        self._cuts = [
            (components[place].first_column + index, found)
            for place, limits in bounds.items()
            for index, found in enumerate(limits.by_dimension())
            if limits.is_cutting
        ]
        self._is_greedy = is_greedy
        # The kinds of noise in the order of the columns, each with the number of its columns.
        kinds = [part.kind == "categorical" for part in components for _ in range(part.columns)]
        self._noise = [(is_uniform, len(list(run))) for is_uniform, run in groupby(kinds)]
        row_us = _ROW_US + sum(
            _PART_US[part.kind] + part.size * _NUMBER_US[part.kind] for part in components
        )
        self.most_rows = int(_ARRAYS_US / row_us)

    def answer(
        self,
        inputs: Float32Array,
        *,
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
        generator: np.random.Generator,
    ) -> tuple[Float64Array, Float64Array] | None:
        """Answer each row with its draw or its mode.

        Args:
            inputs: float32[B, K], `action_dist_inputs`.
            is_deterministic: bool[B]; True takes the mode, False a draw.
            seeds: int64[B]; the seed of a row's draw, or -1 for an independent one.
            generator: draws the rows without a seed.

        Returns:
            float64[B, A], the actions in the units that they are answered in, and float64[B], their
            log-probabilities; None where a row is no distribution.
        """
        answers, logarithms = [], []
        options = zip(inputs.tolist(), is_deterministic.tolist(), seeds.tolist(), strict=True)
        try:
            for row, is_mode, seed in options:
                noise = None
                if not is_mode and not self._is_greedy:
                    noise = self._draw(generator if seed < 0 else np.random.default_rng(seed))
                actions = [0.0] * self._columns
                total = 0.0
                for part in self._parts:
                    total += part.answer(row, noise, actions)
                answers.append(actions)
                logarithms.append(total if self._knows_probability else math.nan)
        except OddRowError:
            return None
        return np.array(answers), np.array(logarithms)

    def describe(self, row: list[float]) -> list[RowFields] | None:
        """Return the fields of each component's distribution; see `ActionDistribution.describe`.

        Args:
            row: K numbers, `action_dist_inputs`.

        Returns:
            One a component, in order; None where the row is no distribution.
        """
        try:
            found = [described for part in self._parts for described in part.describe(row)]
        except OddRowError:
            return None
        return [fields for _, fields in sorted(found, key=itemgetter(0))]

    def columns_at_bound(self, answer: list[float]) -> list[int]:
        """Return the columns whose numbers a bound has cut; see `ActionDistribution.at_bound`.

        Args:
            answer: A numbers, in the units that actions are answered in.
        """
        return [
            column
            for column, bounds in self._cuts
            if answer[column] in (bounds.cut_low, bounds.cut_high)
        ]

    def _draw(self, generator: np.random.Generator) -> list[float]:
        """Return a number for each column, in the order in which `noise` draws them."""
        numbers: list[float] = []
        for is_uniform, count in self._noise:
            draw = generator.random if is_uniform else generator.standard_normal
            if count == 1:
                numbers.append(draw())
            else:
                numbers += draw(count).tolist()
        return numbers
