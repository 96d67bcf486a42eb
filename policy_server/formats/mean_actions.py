"""An action that a network gives beside a mean: the mean itself, clipped or scaled, or its tanh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.schema import ActionValues

__all__ = ["MeanAction", "mean_action"]

Array = NDArray[Any]

_TOLERANCE = 1e-4
# Fewer points lie on a line by chance.
_FEWEST_POINTS = 8


@dataclass(frozen=True, eq=False)
class MeanAction:
    """The way from a mean to the action.

    The action is scale * f(mean) + offset, where f is a tanh or nothing; without a tanh it may be
    clipped.

    Attributes:
        is_squashed: whether f is a tanh.
        scale: one number a dimension, above 0.
        offset: one number a dimension.
    """

    is_squashed: bool
    scale: Array
    offset: Array

    @property
    def values(self) -> ActionValues:
        """Return the word of schema.yaml for the distribution around the mean."""
        return "squashed_normal" if self.is_squashed else "normal"

    @property
    def is_scaled(self) -> bool:
        """Return whether the action is scaled or moved."""
        return bool((self.scale != 1).any() or (self.offset != 0).any())


def mean_action(action: Array, mean: Array, *, has_tanh: bool) -> MeanAction | None:
    """Return the way from a mean to the action; None where it is none of the known.

    Args:
        action: float[B, D], the network's own action for some observations.
        mean: float[B, D], its mean for the same ones.
        has_tanh: whether the graph shows a tanh between the two, which is then tried first: where
            it is saturated for all observations, their numbers are those of a clipped mean too.
    """
    if action.shape != mean.shape:
        return None
    is_known = np.isfinite(action).all(axis=1) & np.isfinite(mean).all(axis=1)
    action, mean = (rows[is_known].astype(np.float64) for rows in (action, mean))
    if not len(action):
        return None
    kinds = (True, False) if has_tanh else (False, True)
    size = mean.shape[1]
    for is_squashed in kinds:
        found = MeanAction(is_squashed, np.ones(size), np.zeros(size))
        if _error(found, action, mean) <= _TOLERANCE:
            return found
    scaled = [line for one in kinds if (line := _line(action, mean, is_squashed=one)) is not None]
    best = min(scaled, key=lambda one: _error(one, action, mean), default=None)
    return best if best is not None and _error(best, action, mean) <= _TOLERANCE else None


def _error(found: MeanAction, action: Array, mean: Array) -> float:
    """Return the largest difference from the action, relative to its size above 1."""
    base = np.tanh(mean) if found.is_squashed else mean
    ours = found.scale * base + found.offset
    if not found.is_squashed:
        ours = ours.clip(action.min(axis=0), action.max(axis=0))
    largest = np.maximum(1, np.abs(action))
    return float((np.abs(ours - action) / largest).max())


def _line(action: Array, mean: Array, *, is_squashed: bool) -> MeanAction | None:
    """Return the line that each dimension lies on where nothing clips it; None for no line."""
    scale, offset = np.ones(mean.shape[1]), np.zeros(mean.shape[1])
    base = np.tanh(mean) if is_squashed else mean
    for at, (y, x) in enumerate(zip(action.T, base.T, strict=True)):
        is_inside = (y > y.min()) & (y < y.max())
        if len(np.unique(x[is_inside])) < _FEWEST_POINTS:
            return None
        # The digits behind are what float32 lost.
        line = np.polyfit(x[is_inside], y[is_inside], 1)
        scale[at], offset[at] = float(f"{line[0]:.6g}"), round(line[1], 6) + 0.0
    return MeanAction(is_squashed, scale, offset) if (scale > 0).all() else None
