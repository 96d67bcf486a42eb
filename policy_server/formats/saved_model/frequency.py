"""Frequencies: whether the numbers that a graph draws are distributed as stated.

Each action value is turned into a number that is uniform in [0, 1) if, and only if, it was drawn
from the stated distribution, whatever the observation (a probability integral transform). So all
draws can be judged together, however much their distributions differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import (
    ActionDistribution,
    ComponentDistribution,
)
from policy_server.policy import ActionComponent, Float64Array

__all__ = ["FrequencyTest", "judge_draws", "sampler_inputs"]

_ROWS_A_KIND = 1024
_FLOAT32_MIN = float(np.finfo(np.float32).min)
_EPSILON = float(np.finfo(np.float32).eps)
# A right sampler fails one test by chance in 10,000; a failed one is drawn anew before it counts.
_KOLMOGOROV_LIMIT = 2.23
_BINS, _CHI_SQUARE_LIMIT = 20, 51.1
# One standard deviation is the error of a correlation of independent parts; there are many pairs.
_CORRELATION_LIMIT = 6.0
_MOST_CORRELATED = 64
# Where float32 leaves so much of a standard deviation open, a draw tells nothing.
_LARGEST_ROUNDING = 0.02
# Behind this the tanh has no digits left; all such draws are one.
_SATURATED = 1 - 4e-6
_FEWEST_DRAWS = 200
_EQUAL = 1e-4


@dataclass(frozen=True)
class FrequencyTest:
    """The result of the tests.

    Attributes:
        draws: how many draws of action values were judged.
        is_enough: whether every action value had enough of them to tell.
        problem: the first misfit in words; None where all fits.
    """

    draws: int
    is_enough: bool
    problem: str | None


def sampler_inputs(
    components: Sequence[ActionComponent], width: int, probes: NDArray[Any]
) -> list[tuple[str, NDArray[np.float32]]]:
    """Return inputs of the distribution to draw from: saturated, unsaturated and masked ones.

    Args:
        components: the distribution's components.
        width: how many numbers a row has.
        probes: float[N, width], the inputs at the probe observations.

    Returns:
        For each kind its name and float32[B, width].
    """
    generator = np.random.default_rng(11)
    size = (_ROWS_A_KIND, width)
    kinds = [
        ("flat", generator.standard_normal(size) * 0.3),
        ("common", generator.standard_normal(size) * 1.5),
        ("saturated", generator.standard_normal(size) * 12),
    ]
    if len(probes):
        kinds.append(("probed", np.resize(probes, (_ROWS_A_KIND, width)).astype(np.float64)))
    if all(part.kind == "categorical" for part in components):
        masked = generator.standard_normal(size)
        hidden = generator.random(size) < 0.4
        for part in components:
            kept = generator.integers(0, part.size, len(hidden))
            hidden[np.arange(len(hidden)), part.first_input + kept] = False
        kinds.append(("masked", np.where(hidden, _FLOAT32_MIN, masked)))
    return [(name, values.astype(np.float32)) for name, values in kinds]


def judge_draws(
    distribution: ActionDistribution,
    inputs: NDArray[Any],
    actions: Float64Array,
    generator: np.random.Generator,
) -> FrequencyTest:
    """Compare draws with the stated distribution.

    Args:
        distribution: the stated distribution.
        inputs: float[B, K], the distribution's inputs.
        actions: float64[B, A], one draw of the graph for each row.
        generator: spreads a choice over the width of its probability.
    """
    columns: list[Float64Array] = []
    for stated in distribution.describe(inputs):
        part = stated.component
        values = actions[:, part.first_column : part.first_column + part.columns]
        if part.kind == "categorical":
            scores = _categorical_scores(stated, values[:, 0], generator)
            if scores is None:
                return _failed("a choice of probability 0 was drawn")
            columns.append(scores[:, None])
        elif part.kind == "deterministic":
            assert stated.value is not None, "the component is deterministic"
            if not _are_equal(values, stated.value):
                return _failed("its draws differ from the action that is stated")
        else:
            columns.append(_normal_scores(stated, values, generator))
    if not columns:
        return FrequencyTest(len(actions), is_enough=True, problem=None)
    scores = np.concatenate(columns, axis=1)
    told = [column[~np.isnan(column)] for column in scores.T]
    problems = [problem for column in told if (problem := _why_not_uniform(column)) is not None]
    problems += filter(None, [_why_not_independent(scores)])
    return FrequencyTest(
        sum(map(len, told)),
        is_enough=min(map(len, told)) >= _FEWEST_DRAWS,
        problem=problems[0] if problems else None,
    )


def _failed(problem: str) -> FrequencyTest:
    return FrequencyTest(0, is_enough=True, problem=problem)


def _are_equal(values: Float64Array, stated: Float64Array) -> bool:
    return bool((np.abs(values - stated) <= _EQUAL * (1 + np.abs(stated))).all())


def _categorical_scores(
    stated: ComponentDistribution, chosen: Float64Array, generator: np.random.Generator
) -> Float64Array | None:
    """Return uniform scores of choices; None where one has the probability 0.

    The choices are ordered by their probability, so that a sampler which is too bold or too shy
    shows, whichever choice is the likely one.
    """
    chances = stated.probabilities
    assert chances is not None, "the component is categorical"
    rows = np.arange(len(chances))
    index = chosen.astype(np.int64)
    if ((index < 0) | (index >= chances.shape[1])).any():
        return None
    own = chances[rows, index]
    if not (own > 0.0).all():
        return None
    is_before = chances > own[:, None]
    is_before |= (chances == own[:, None]) & (np.arange(chances.shape[1]) < index[:, None])
    before = np.where(is_before, chances, 0.0).sum(axis=1)
    scores: Float64Array = before + own * generator.random(len(chances))
    return scores


def _normal_scores(
    stated: ComponentDistribution, values: Float64Array, generator: np.random.Generator
) -> Float64Array:
    """Return uniform scores of normal draws; NaN where float32 leaves nothing to tell."""
    mean, std = stated.mean, stated.std
    assert mean is not None, "the component is normal"
    assert std is not None, "the component is normal"
    rounding = _EPSILON * (np.abs(values) + np.abs(mean)) / std
    if stated.component.kind == "normal":
        scores = _normal_cdf((values - mean) / std)
        return np.where(rounding < _LARGEST_ROUNDING, scores, np.nan)
    inside = np.clip(values, -_SATURATED, _SATURATED)
    unsquashed = np.arctanh(inside)
    scores = _normal_cdf((unsquashed - mean) / std)
    edge = _normal_cdf((np.arctanh(_SATURATED) - mean) / std)
    low_edge = _normal_cdf((-np.arctanh(_SATURATED) - mean) / std)
    chance = generator.random(scores.shape)
    scores = np.where(values >= _SATURATED, edge + (1 - edge) * chance, scores)
    scores = np.where(values <= -_SATURATED, low_edge * chance, scores)
    lost = _EPSILON / (1 - inside**2) / std + _EPSILON * np.abs(mean) / std
    usable = (lost < _LARGEST_ROUNDING) | (np.abs(values) >= _SATURATED)
    return np.where(usable, scores, np.nan)


def _normal_cdf(values: Float64Array) -> Float64Array:
    below: Float64Array = np.vectorize(math.erfc, otypes=[np.float64])(-values / math.sqrt(2)) / 2
    return below


def _why_not_uniform(scores: Float64Array) -> str | None:
    """Return why scores are not uniform; None where they are, or are too few to tell."""
    count = len(scores)
    if count < _FEWEST_DRAWS:
        return None
    ordered = np.sort(scores)
    steps = np.arange(count + 1) / count
    distance = max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max())
    if distance * math.sqrt(count) > _KOLMOGOROV_LIMIT:
        return (
            f"its draws are distributed otherwise (Kolmogorov-Smirnov distance {distance:.3f} on "
            f"{count} draws)"
        )
    found = np.bincount(np.minimum((scores * _BINS).astype(int), _BINS - 1), minlength=_BINS)
    chi_square = float(((found - count / _BINS) ** 2).sum() * _BINS / count)
    if chi_square > _CHI_SQUARE_LIMIT:
        return (
            f"its draws are distributed otherwise (chi-square {chi_square:.0f} in {_BINS} bins on "
            f"{count} draws)"
        )
    return None


def _why_not_independent(scores: Float64Array) -> str | None:
    chosen = scores[~np.isnan(scores).any(axis=1)][:, :_MOST_CORRELATED]
    count = len(chosen)
    if chosen.shape[1] < 2 or count < _FEWEST_DRAWS:
        return None
    correlation = np.corrcoef(chosen.T) - np.eye(chosen.shape[1])
    largest = float(np.abs(correlation).max())
    if largest * math.sqrt(count) > _CORRELATION_LIMIT:
        return f"its parts are not drawn independently (correlation {largest:.2f})"
    return None
