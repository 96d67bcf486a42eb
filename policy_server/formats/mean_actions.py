"""An action that a network gives beside a mean: the mean itself, clipped or scaled, or its tanh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from policy_server.schema import ActionValues

__all__ = ["MeanAction", "NotTold", "mean_action"]

Array = NDArray[Any]
NotTold = Literal["not told"]
"""The observations show no way, as where a clip or a tanh bounds almost all of them."""

_TOLERANCE = 1e-4
# Fewer points lie on a line by chance.
_FEWEST_POINTS = 8
# A tanh beyond it is about the bound itself, as a clip is.
_SATURATED = 0.99
# Numbers that are nearer to each other show no slope in float32.
_NARROW = 1e-3


@dataclass(frozen=True, eq=False)
class MeanAction:
    """The way from a mean to the action.

    The action is scale * f(mean) + offset, where f is a tanh or nothing; without a tanh it may be
    clipped.

    Attributes:
        is_squashed: whether f is a tanh.
        scale: one number a dimension, none 0; of a tanh above 0.
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


def mean_action(action: Array, mean: Array, *, has_tanh: bool) -> MeanAction | NotTold | None:
    """Return the way from a mean to the action; None where it is none of the known.

    Args:
        action: float[B, D], the network's own action for some observations.
        mean: float[B, D], its mean for the same ones.
        has_tanh: whether the graph shows a tanh between the two, which alone is then tried: where
            it is saturated for all observations, their numbers are those of a clipped mean too.
    """
    if action.shape != mean.shape:
        return None
    is_known = np.isfinite(action).all(axis=1) & np.isfinite(mean).all(axis=1)
    action, mean = (rows[is_known].astype(np.float64) for rows in (action, mean))
    if not len(action):
        return None
    if has_tanh:
        return _fit(action, mean, is_squashed=True)
    return _told_way(action, mean)


def _told_way(action: Array, mean: Array) -> MeanAction | NotTold | None:
    """Return the way that the numbers alone tell; None where it is none of the known."""
    squashed = _fit(action, mean, is_squashed=True)
    plain = _fit(action, mean, is_squashed=False)
    if plain is not None and squashed is not None and plain.is_scaled != squashed.is_scaled:
        # The simpler of two ways is taken.
        plain, squashed = (None, squashed) if plain.is_scaled else (plain, None)
    if plain is not None and squashed is None and _differs_from_tanh(action, mean):
        return plain
    if squashed is not None and plain is None and _is_bent(squashed, mean):
        return squashed
    if plain is not None or squashed is not None:
        return "not told"
    return _told_by_some(action, mean)


def _told_by_some(action: Array, mean: Array) -> NotTold | None:
    """Return None where the dimensions that are told show that it is another action."""
    is_free = np.array([_has_points(y, x) for y, x in zip(action.T, mean.T, strict=True)])
    if is_free.all():
        return None
    kinds = (False, True) if is_free.any() else ()
    fits = [_fit(action[:, is_free], mean[:, is_free], is_squashed=one) for one in kinds]
    return None if kinds and fits == [None, None] else "not told"


def _fit(action: Array, mean: Array, *, is_squashed: bool) -> MeanAction | None:
    """Return the way that all numbers fit, with a tanh or without; None for none."""
    size = mean.shape[1]
    found = MeanAction(is_squashed, np.ones(size), np.zeros(size))
    if _error(found, action, mean) <= _TOLERANCE:
        return found
    line = _tanh_line(action, mean) if is_squashed else _line(action, mean)
    return line if line is not None and _error(line, action, mean) <= _TOLERANCE else None


def _differs_from_tanh(action: Array, mean: Array) -> bool:
    """Return whether some actions that nothing clips tell a mean from its tanh."""
    is_inside = (action > action.min(axis=0)) & (action < action.max(axis=0))
    return bool((is_inside & (np.abs(mean - np.tanh(mean)) > _TOLERANCE)).any())


def _is_bent(found: MeanAction, mean: Array) -> bool:
    """Return whether enough means show the curve of a tanh, of one that is scaled."""
    base = np.tanh(mean)
    points = [len(np.unique(x[np.abs(x) < _SATURATED])) for x in base.T]
    return not found.is_scaled or max(points) >= _FEWEST_POINTS


def _has_points(y: Array, x: Array) -> bool:
    """Return whether a dimension has enough points that nothing clips."""
    return len(np.unique(x[(y > y.min()) & (y < y.max())])) >= _FEWEST_POINTS


def _error(found: MeanAction, action: Array, mean: Array) -> float:
    """Return the largest difference from the action, relative to its size above 1."""
    base = np.tanh(mean) if found.is_squashed else mean
    ours = found.scale * base + found.offset
    if not found.is_squashed:
        ours = ours.clip(action.min(axis=0), action.max(axis=0))
    largest = np.maximum(1, np.abs(action))
    return float((np.abs(ours - action) / largest).max())


def _line(action: Array, mean: Array) -> MeanAction | None:
    """Return the line that each dimension lies on where nothing clips it; None for no line."""
    scale, offset = np.ones(mean.shape[1]), np.zeros(mean.shape[1])
    for at, (y, x) in enumerate(zip(action.T, mean.T, strict=True)):
        is_inside = (y > y.min()) & (y < y.max())
        if not _has_points(y, x):
            return None
        scale[at], offset[at] = _through(x[is_inside], y[is_inside])
    return MeanAction(is_squashed=False, scale=scale, offset=offset) if scale.all() else None


def _tanh_line(action: Array, mean: Array) -> MeanAction | None:
    """Return the line from the tanh to each dimension; None for no line.

    A dimension whose tanh is about the same for all observations lies on the line through 0,
    as the others do.
    """
    base = np.tanh(mean)
    scale, offset = np.ones(mean.shape[1]), np.zeros(mean.shape[1])
    is_same = np.ptp(base, axis=0) <= _NARROW
    for at, (y, x) in enumerate(zip(action.T, base.T, strict=True)):
        if not is_same[at]:
            scale[at], offset[at] = _through(x, y)
        elif abs(x[0]) > _TOLERANCE:
            scale[at] = float(f"{y.mean() / x.mean():.6g}")
        else:
            return None
    if is_same.any() and np.abs(offset).max() > _TOLERANCE:
        return None
    is_scale = (scale > _TOLERANCE).all()
    return MeanAction(is_squashed=True, scale=scale, offset=offset) if is_scale else None


def _through(x: Array, y: Array) -> tuple[float, float]:
    line = np.polyfit(x, y, 1)
    # The digits behind are what float32 lost.
    return float(f"{line[0]:.6g}"), round(line[1], 6) + 0.0
