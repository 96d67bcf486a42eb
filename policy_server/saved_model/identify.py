"""Identify the family of a policy, and prove it on probe observations.

A hypothesis is a list of action components over the distribution's inputs. It is proved when our
NumPy log-probability of the actions that the graph draws equals the graph's own, and our mode
equals the graph's action with exploration off. What no hypothesis explains is left to the graph's
own outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.actions import ActionDistribution
from policy_server.errors import DistributionError
from policy_server.policy import (
    ActionComponent,
    ActionOutput,
    ComponentKind,
    PolicySignature,
)
from policy_server.saved_model.evidence import Evidence
from policy_server.saved_model.graph import DISTRIBUTION_INPUTS, LoadedGraph
from policy_server.saved_model.structure import GraphStructure, Segment

__all__ = ["identify_actions"]

# float32 log-probabilities of many components; squashed ones lose digits near the bounds.
_LOG_PROBABILITY_TOLERANCE, _ACTION_TOLERANCE = 1e-3, 1e-4
_USELESS_ROUNDING, _FEWEST_PROBES = 0.1, 16
_PROVED_SHARE = 0.98
_GREEDY_SHARE = 0.8
_FALLBACK = "the graph's own actions are served"


def identify_actions(
    loaded: LoadedGraph, evidence: Evidence, signature: PolicySignature
) -> PolicySignature:
    """Find the hypothesis that the evidence proves.

    Args:
        loaded: the frozen graph.
        evidence: its answers to the probes.
        signature: what is known so far.

    Returns:
        The signature with components, or without where nothing could be proved; `findings` say
        what was tried.
    """
    unreadable = _why_unreadable(evidence)
    if unreadable is not None:
        return replace(signature, findings=(f"{unreadable}: {_FALLBACK}",))
    assert evidence.inputs is not None, "why_unreadable has looked"
    width = evidence.inputs.shape[1]
    structure = GraphStructure(loaded, distribution=DISTRIBUTION_INPUTS, width=width)
    is_tuple_of_one = structure.is_split_into_one and len(evidence.actions) == 1
    signature = replace(signature, is_tuple_of_one=is_tuple_of_one)
    has_q_values = any(item.name == "q_values" for item in loaded.outputs)
    failures: list[str] = []
    for components in _hypotheses(structure, evidence):
        is_greedy = _is_greedy(components, evidence, has_q_values=has_q_values)
        known = replace(signature, components=components, is_value_based=is_greedy)
        try:
            checks = _prove(components, evidence, is_greedy=is_greedy)
        except (_Disproved, DistributionError) as error:
            failures.append(f"not {known.family}: {error}")
            continue
        if evidence.is_noisy:
            return _without_distribution(known)
        findings = (f"proved as {known.family}: {', '.join(checks)}",)
        return replace(known, is_proved=True, findings=findings)
    reason = failures or ["the graph does not tell the sizes of the action components"]
    return replace(signature, findings=(*reason[:3], f"the family can't be proved: {_FALLBACK}"))


def _why_unreadable(evidence: Evidence) -> str | None:
    if evidence.inputs is None:
        return f"the model gives no {DISTRIBUTION_INPUTS}"
    if not len(evidence.inputs):
        return "no probe gave finite outputs"
    if evidence.inputs.ndim != 2:
        return f"{DISTRIBUTION_INPUTS} is no matrix"
    return None


def _without_distribution(known: PolicySignature) -> PolicySignature:
    """Serve a noisy network's own draws."""
    reason = "the network draws new noise at every pass, so its distribution has no exact form"
    return replace(
        known,
        components=None,
        has_deterministic_action=False,
        findings=(f"{known.family} over a noisy network", f"{reason}: {_FALLBACK}"),
    )


class _Disproved(Exception):  # noqa: N818 -- no error: the next hypothesis is tried
    """The evidence contradicts a hypothesis, or can't decide it."""


def _prove(
    components: tuple[ActionComponent, ...], evidence: Evidence, *, is_greedy: bool
) -> list[str]:
    """Return what was found equal.

    Raises:
        _Disproved: if the graph's answers are others, or too few to tell.
        DistributionError: if its outputs are no such distribution.
    """
    distribution = ActionDistribution(components, is_greedy=is_greedy)
    checks: list[str] = []
    if evidence.deterministic is not None:
        checks.append(_prove_modes(distribution, evidence))
    if not is_greedy and not _is_deterministic(components):
        checks.append(_prove_log_probabilities(distribution, evidence))
    if not checks:
        raise _Disproved("the model gives nothing to compare with")
    return checks


def _prove_modes(distribution: ActionDistribution, evidence: Evidence) -> str:
    assert evidence.deterministic is not None, "the caller has looked"
    share, worst = _agreement_of_modes(distribution, evidence)
    if share < _PROVED_SHARE:
        raise _Disproved(f"its deterministic action differs on {1 - share:.0%} of the probes")
    count = len(evidence.deterministic)
    return f"deterministic actions equal on {count} probes (within {worst:.1e})"


def _prove_log_probabilities(distribution: ActionDistribution, evidence: Evidence) -> str:
    if evidence.log_probability is None:
        raise _Disproved("the model gives no log-probability to compare with")
    if evidence.deterministic is not None and not evidence.log_probability.any():
        # RLlib's `Random` and the noise of continuous policies: the log-probability is always 0.
        return "the graph explores without its distribution, which is read from action_dist_inputs"
    share, worst = _agreement_of_log_probabilities(distribution, evidence)
    if share < _PROVED_SHARE:
        raise _Disproved(f"its log-probability differs on {1 - share:.0%} of the draws")
    return f"log-probabilities of its draws equal (within {worst:.1e})"


def _is_deterministic(components: Sequence[ActionComponent]) -> bool:
    return all(part.kind == "deterministic" for part in components)


def _agreement_of_modes(
    distribution: ActionDistribution, evidence: Evidence
) -> tuple[float, float]:
    inputs, theirs = evidence.deterministic_inputs, evidence.deterministic
    assert inputs is not None, "why_unreadable has looked"
    assert theirs is not None, "the caller has looked"
    difference = np.abs(distribution.mode(inputs) - theirs)
    agrees = difference <= _ACTION_TOLERANCE * (1 + np.abs(theirs))
    for part in distribution.components:
        if part.kind == "categorical":
            # A tie may go either way: float32 division by the temperature can make one.
            values = inputs[:, part.first_input : part.first_input + part.size].astype(np.float64)
            chosen = np.clip(theirs[:, part.first_column].astype(np.int64), 0, part.size - 1)
            lag = values.max(axis=1) - np.take_along_axis(values, chosen[:, None], axis=1)[:, 0]
            agrees[:, part.first_column] |= lag <= 1e-6 * (1 + np.abs(values.max(axis=1)))
    rows = agrees.all(axis=1)
    return float(rows.mean()), float(difference[rows].max(initial=0.0))


def _agreement_of_log_probabilities(
    distribution: ActionDistribution, evidence: Evidence
) -> tuple[float, float]:
    inputs, theirs, drawn = evidence.inputs, evidence.log_probability, evidence.drawn
    assert inputs is not None, "why_unreadable has looked"
    assert theirs is not None, "the caller has looked"
    rounding = np.zeros(len(inputs))
    for part in distribution.components:
        values = drawn[:, part.first_column : part.first_column + part.columns]
        if part.kind == "categorical" and ((values < 0).any() or (values >= part.size).any()):
            return 0.0, np.inf
        if part.kind in ("normal", "squashed_normal"):
            rounding += _rounding(
                part, inputs[:, part.first_input : part.first_input + part.inputs], values
            )
    # Where float32 leaves nothing of the log-probability, it proves nothing.
    rows = rounding < _USELESS_ROUNDING
    if rows.sum() < _FEWEST_PROBES:
        return 0.0, np.inf
    ours = distribution.rllib_log_probability(inputs[rows], drawn[rows])
    difference = np.abs(ours - theirs[rows])
    agrees = difference <= _LOG_PROBABILITY_TOLERANCE * (1 + np.abs(theirs[rows])) + rounding[rows]
    return float(agrees.mean()), float(difference[agrees].max(initial=0.0))


def _rounding(
    part: ActionComponent, inputs: NDArray[Any], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far float32's rounding of an action can move its log-probability, for each row."""
    mean, log_std = (
        inputs[:, : part.size].astype(np.float64),
        inputs[:, part.size :].astype(np.float64),
    )
    low, high = part.log_std_bounds or (None, None)
    bounds = (-50 if low is None else low, 50 if high is None else high)
    std = np.exp(np.clip(log_std, *bounds)) + part.std_floor
    epsilon = 4 * float(np.finfo(np.float32).eps)
    if part.kind == "normal":
        deviation, error = (values - mean) / std, epsilon * (np.abs(values) + np.abs(mean)) / std
        terms = (np.abs(deviation) + 1) * error
    else:
        bounded = np.clip(np.abs(values), 0, 1 - 1e-6)
        deviation = (np.arctanh(bounded) + np.abs(mean)) / std
        error = epsilon * (1 / (1 - bounded**2) + np.abs(mean)) / std
        terms = (deviation + 1) * error + epsilon / (1 - bounded**2)
    rounding: NDArray[np.float64] = terms.sum(axis=1)
    return rounding


def _is_greedy(
    components: Sequence[ActionComponent], evidence: Evidence, *, has_q_values: bool
) -> bool:
    """Tell a policy over Q values.

    Some versions leave `q_values` out, but explore by epsilon with log-probability 0.
    """
    if not all(part.kind == "categorical" for part in components):
        return False
    if has_q_values:
        return True
    if (
        evidence.log_probability is None
        or evidence.deterministic is None
        or evidence.log_probability.any()
    ):
        return False
    assert evidence.inputs is not None, "without inputs there is no hypothesis"
    mode = ActionDistribution(components).mode(evidence.inputs)
    return bool((evidence.drawn == mode).all(axis=1).mean() > _GREEDY_SHARE)


def _hypotheses(
    structure: GraphStructure, evidence: Evidence
) -> Iterator[tuple[ActionComponent, ...]]:
    assert evidence.inputs is not None, "without inputs there is no hypothesis"
    width = evidence.inputs.shape[1]
    layouts = [_traced_layout(structure, evidence.actions)]
    layouts.append(_equal_layout(evidence.actions, width))
    seen = set()
    for layout, temperature in itertools.product(layouts, [*structure.temperatures, 1.0]):
        if layout is None:
            continue
        for kinds in itertools.product(
            *(
                _kinds(action, segments)
                for action, segments in zip(evidence.actions, layout, strict=True)
            )
        ):
            components = _components(evidence.actions, layout, kinds, structure, temperature)
            if components is not None and components not in seen:
                seen.add(components)
                yield components


def _traced_layout(
    structure: GraphStructure, actions: Sequence[ActionOutput]
) -> list[list[Segment]] | None:
    layout = [structure.segments_of(action.name) for action in actions]
    return layout if all(layout) else None


def _equal_layout(actions: Sequence[ActionOutput], width: int) -> list[list[Segment]] | None:
    """Guess for a single action whose sizes the graph hides: equal parts."""
    if len(actions) != 1:
        return None
    columns = actions[0].columns if actions[0].is_integer else 1
    if columns < 1 or width % columns:
        return None
    return [[(index * width // columns, width // columns) for index in range(columns)]]


def _kinds(action: ActionOutput, segments: Sequence[Segment]) -> list[ComponentKind]:
    if action.is_integer:
        return ["categorical"]
    width = sum(length for _, length in segments)
    if width == 2 * action.columns:
        return ["normal", "squashed_normal"]
    return ["deterministic"] if width == action.columns else []


def _components(
    actions: Sequence[ActionOutput],
    layout: Sequence[Sequence[Segment]],
    kinds: Sequence[ComponentKind],
    structure: GraphStructure,
    temperature: float,
) -> tuple[ActionComponent, ...] | None:
    components: list[ActionComponent] = []
    column = 0
    for action, segments, kind in zip(actions, layout, kinds, strict=True):
        start = segments[0][0]
        if kind == "categorical":
            if len(segments) != action.columns:
                return None
            parts = [
                ActionComponent("categorical", length, first, column + index, temperature)
                for index, (first, length) in enumerate(segments)
            ]
        else:
            clip = structure.clip_of((start + action.columns, action.columns))
            parts = [ActionComponent(kind, action.columns, start, column, log_std_bounds=clip)]
        components += parts
        column += action.columns
    return tuple(components)
