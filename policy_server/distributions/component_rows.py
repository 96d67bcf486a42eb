"""Rows of `action_dist_inputs`, read as the categorical distributions that RLlib draws from.

A component's values are its logits (`ray.rllib.models.tf.tf_action_dist`). All arithmetic is in
float64, so that answers are exact to the float32 precision of the inputs. Everything is computed
for many rows, and for all categorical components (here: parts), at once. `continuous_rows` reads
the other families.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import DistributionError
from policy_server.policy import ActionComponent, Float32Array, Float64Array

__all__ = [
    "CategoricalLayout",
    "CategoricalRows",
    "Rows",
    "clip",
    "refuse_nan",
]

Rows = NDArray[np.floating[Any]]
# A byte counts this many choices.
_MOST_IN_INT8 = 127


class CategoricalLayout:
    """The columns of a row that hold the P categorical parts of a distribution.

    Attributes:
        sizes: how many choices each part has.
        columns: the columns of the parts' actions: intp[P], or a slice where P is 1.
    """

    def __init__(self, parts: Sequence[ActionComponent]) -> None:
        """Work out the columns.

        Args:
            parts: the categorical components in order, at least one.
        """
        columns = [part.first_column for part in parts]
        self.columns: slice | NDArray[np.intp] = (
            slice(columns[0], columns[0] + 1) if len(parts) == 1 else np.array(columns, np.intp)
        )
        self.sizes = [part.size for part in parts]
        self._most = max(self.sizes)
        firsts = np.array([part.first_input for part in parts], np.intp)
        choices = np.arange(self._most)[:, None]
        # Parts of unequal size are filled up with choices that never happen.
        self._filled = choices >= np.array(self.sizes)
        self._index = np.where(self._filled, 0, firsts + choices)
        self._has_filled = bool(self._filled.any())
        temperatures = np.array([part.temperature for part in parts])
        self._temperatures = None if (temperatures == 1.0).all() else temperatures[:, None]
        self._slice = slice(firsts[0], firsts[0] + self._most) if len(parts) == 1 else None
        self._choices = self._index.T[~self._filled.T]
        self._starts = np.cumsum([0, *self.sizes[:-1]])

    def logits(self, inputs: Rows) -> Float64Array:
        """Return the logits over the temperature, choice by choice.

        Args:
            inputs: float[B, K], `action_dist_inputs`.

        Returns:
            float64[C, P, B], C of the largest part; -inf where a part has fewer choices.
        """
        turned = inputs.T
        if self._slice is not None:
            logits = np.array(turned[self._slice], np.float64, order="C")[:, None]
        else:
            logits = turned[self._index].astype(np.float64, order="C")
            if self._has_filled:
                logits[self._filled] = -np.inf
        if self._temperatures is not None:
            # In float64, since float32 min over a temperature below 1 is no float32.
            logits /= self._temperatures
        return logits

    def masked(self, inputs: Float32Array, masks: NDArray[np.bool_]) -> Float32Array:
        """Return the inputs with -inf in place of the logits that a mask forbids.

        Args:
            inputs: float32[B, K], `action_dist_inputs`.
            masks: bool[B, choices], those of each part after those of the one before.

        Raises:
            DistributionError: if a row forbids every choice of a part.

        Source: sb3-contrib `MaskableCategorical`, whose -1e8 in place of the logits gives the same
        probabilities, but lets a forbidden choice win against logits that are smaller still.
        """
        if not np.logical_or.reduceat(masks, self._starts, axis=1).all():
            raise DistributionError(
                "the action mask forbids every choice of an action; allow at least one"
            )
        found = inputs.copy()
        found[:, self._choices] = np.where(masks, inputs[:, self._choices], np.float32(-np.inf))
        return found


class CategoricalRows:
    """The P categorical parts of B rows.

    The softmax is kept as RLlib's `Categorical` has it, less its division. A row's numbers are the
    same to the last bit among any others.
    """

    def __init__(self, layout: CategoricalLayout, inputs: Rows) -> None:
        """Read the rows.

        Args:
            layout: where the parts lie.
            inputs: float[B, K], `action_dist_inputs`; -inf or float32 min marks a masked action.

        Raises:
            DistributionError: if a part holds NaN or +inf, or masks every action by -inf.
        """
        self._layout = layout
        shifted = layout.logits(inputs)
        largest = np.maximum.reduce(shifted, axis=0)
        if not np.isfinite(largest).all():
            refuse_nan(largest)
            raise DistributionError(
                "the policy's logits hold NaN, or mask every action; check the observation and the "
                "model"
            )
        shifted -= largest
        self._shifted = shifted
        # The running sums of the softmax's weights. NumPy's own sum adds the numbers of one row in
        # another order than those of many, and so differs in the last digit.
        self._cumulated = _cumulated(np.exp(shifted))
        self._log_total = np.log(self._cumulated[-1])

    def draw(self, uniform: Float64Array) -> NDArray[np.integer[Any]]:
        """Return the choices that numbers in [0, 1) fall on; never one of probability 0.

        Args:
            uniform: float64[P, B].

        Returns:
            int[P, B].
        """
        cumulated = self._cumulated
        is_passed = cumulated <= uniform * cumulated[-1]
        dtype = np.int8 if len(cumulated) <= _MOST_IN_INT8 else np.intp
        chosen: NDArray[np.integer[Any]] = np.add.reduce(
            is_passed.view(np.int8), axis=0, dtype=dtype
        )
        return chosen

    def log_probability(self, chosen: NDArray[np.integer[Any]]) -> Float64Array:
        """Return the logarithm of the probability of all parts' choices together.

        Args:
            chosen: int[P, B].

        Returns:
            float64[B].
        """
        index = chosen.astype(np.intp)
        index *= index.size
        index += np.arange(index.size).reshape(index.shape)
        parts: Float64Array = self._shifted.ravel().take(index)
        parts -= self._log_total
        if len(parts) == 1:
            only: Float64Array = parts[0]
            return only
        # One row too is added part by part.
        total: Float64Array = (
            parts.cumsum(axis=0)[-1] if parts.shape[1] == 1 else np.add.reduce(parts, axis=0)
        )
        return total

    def probabilities(self, part: int) -> Float64Array:
        """Return the probabilities of one part's choices.

        Args:
            part: the index of the part, below P.

        Returns:
            float64[B, size]; every row sums to 1.
        """
        size = self._layout.sizes[part]
        chances: Float64Array = np.exp(self._shifted[:size, part] - self._log_total[part])
        return np.ascontiguousarray(chances.T)


def _cumulated(weights: Float64Array) -> Float64Array:
    """Return the running sums over the first axis."""
    if weights[0].size < len(weights):
        return weights.cumsum(axis=0)
    # NumPy's own function goes along the first axis number by number, which is slower.
    sums = np.empty_like(weights)
    sums[0] = weights[0]
    for choice in range(1, len(weights)):
        np.add(sums[choice - 1], weights[choice], out=sums[choice])
    return sums


def refuse_nan(values: Rows) -> None:
    """Raise a DistributionError if one of the policy's outputs is NaN.

    Args:
        values: any of the outputs.
    """
    if np.isnan(values).any():
        raise DistributionError(
            "the policy's outputs hold NaN; check the observation and the model"
        )


def clip(values: Float64Array, low: Any, high: Any) -> Float64Array:  # noqa: ANN401 -- numbers or arrays of them
    """Return the values cut to bounds; `np.clip` costs more for a single row.

    Args:
        values: float64[...].
        low: the lower bounds.
        high: the upper bounds.
    """
    clipped: Float64Array = np.minimum(np.maximum(values, low), high)
    return clipped
