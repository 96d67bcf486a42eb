"""Identify the family of a policy, and prove it on probe observations.

A hypothesis is a list of action components over the distribution's inputs. It is proved when our NumPy log-probability of
the actions that the graph draws equals the graph's own, and our mode equals the graph's action with exploration off. What
no hypothesis explains is left to the graph's own outputs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from policy_server.actions import ActionDistribution
from policy_server.errors import DistributionError, ModelError
from policy_server.policy import ActionComponent, ActionOutput, ComponentKind, PolicySignature
from policy_server.saved_model.graph import GraphRunner, LoadedGraph
from policy_server.saved_model.structure import DISTRIBUTION_INPUTS, GraphStructure, Segment

__all__ = ["Evidence", "gather_evidence", "identify_actions", "probe_rows"]

logger = logging.getLogger(__name__)

_PROBES_A_KIND = 32
# Two draws tell a random action from a drawn one; more tell epsilon-greedy from random.
_DRAWS = 4
# float32 log-probabilities of many components; squashed ones lose digits near the bounds.
_LOG_PROBABILITY_TOLERANCE, _ACTION_TOLERANCE = 1e-3, 1e-4
_USELESS_ROUNDING, _FEWEST_PROBES = 0.1, 16
_PROVED_SHARE = 0.98
_GREEDY_SHARE = 0.8
_LARGEST_FINITE = 1e30


@dataclass(frozen=True)
class Evidence:
    """What the graph answered to the probes.

    Attributes:
        inputs: float[N, K], `action_dist_inputs`; None where the graph gives none.
        drawn: the actions it drew, float64[N, A].
        log_probability: float64[N] of them; None where it gives neither `action_logp` nor `action_prob`.
        deterministic: its actions with exploration off, float64[M, A]; None where it has no such switch.
        deterministic_inputs: `action_dist_inputs` of the same pass, since a noisy network gives others in the next.
        actions: the action outputs in numeric order.
    """

    inputs: NDArray[Any] | None
    drawn: NDArray[np.float64]
    log_probability: NDArray[np.float64] | None
    deterministic: NDArray[np.float64] | None
    deterministic_inputs: NDArray[Any] | None
    actions: tuple[ActionOutput, ...]


def probe_rows(width: int, dtype: type[np.float32] | type[np.float64]) -> NDArray[Any]:
    """Return observations of many kinds, so that masks, one-hots, counts and continuous values all occur.

    Args:
        width: how many numbers an observation has.
        dtype: the rows' type.

    Returns:
        float[N, width], the same at every call.
    """
    generator = np.random.default_rng(20)
    size = (_PROBES_A_KIND, width)
    kinds = (
        generator.standard_normal(size),
        generator.random(size),
        generator.integers(0, 2, size),
        generator.integers(0, 5, size),
        generator.standard_normal(size) * 10,
        np.eye(width)[generator.integers(0, width, _PROBES_A_KIND)],
        np.ones((1, width)),
        np.zeros((1, width)),
    )
    return np.concatenate([np.asarray(kind, dtype) for kind in kinds])


def gather_evidence(loaded: LoadedGraph, runner: GraphRunner, rows: NDArray[Any]) -> Evidence:
    """Ask the graph for its answers to the probes.

    Args:
        loaded: the frozen graph, which has `actions_*` outputs.
        runner: the same graph, ready to run.
        rows: the probes.

    Returns:
        The answers to those probes that the policy answers with finite numbers.

    Raises:
        ModelError: if the graph fails on an observation of its own width.
    """
    names = [item.name for item in loaded.outputs]
    action_names = [name for name in names if name.startswith("actions_")]
    chance = next((name for name in ("action_logp", "action_prob") if name in names), None)
    extra = [name for name in (DISTRIBUTION_INPUTS, chance) if name in names]
    rows = _answered(runner, [*action_names, *extra], rows)
    runs = [_run(runner, [*action_names, *extra], rows, is_exploring=True) for _ in range(_DRAWS)]
    if loaded.exploring is not None:
        runs.append(_run(runner, [*action_names, *extra], rows, is_exploring=False))
    actions = tuple(_action_output(name, runs[0][name]) for name in action_names)
    passes = [_Pass.read(run, action_names, chance) for run in runs]
    drawn, sure = _join(passes[:_DRAWS]), (passes[_DRAWS] if loaded.exploring is not None else None)
    return Evidence(
        inputs=drawn.inputs,
        drawn=drawn.actions,
        log_probability=drawn.log_probability,
        deterministic=None if sure is None else sure.actions,
        deterministic_inputs=None if sure is None else sure.inputs,
        actions=actions,
    )


@dataclass(frozen=True)
class _Pass:
    """One run over the probes, without those that no policy has to answer, such as a mask of halves."""

    inputs: NDArray[Any] | None
    actions: NDArray[np.float64]
    log_probability: NDArray[np.float64] | None

    @classmethod
    def read(cls, run: dict[str, NDArray[Any]], action_names: Sequence[str], chance: str | None) -> _Pass:
        columns = [run[name].reshape(len(run[name]), -1).astype(np.float64) for name in action_names]
        actions = np.concatenate(columns, axis=1)
        keep = np.isfinite(actions).all(axis=1)
        inputs, logp = run.get(DISTRIBUTION_INPUTS), None
        if inputs is not None and inputs.ndim == 2:
            # float32 min is what RLlib adds to masked logits; twice that is -inf.
            keep &= ~np.isnan(inputs).any(axis=1) & (inputs.max(axis=1) > -_LARGEST_FINITE) & (inputs.max(axis=1) < np.inf)
        if chance is not None:
            values = run[chance].reshape(len(actions)).astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                logp = values if chance == "action_logp" else np.log(values)
            keep &= np.isfinite(logp)
        return cls(
            None if inputs is None else inputs[keep], actions[keep], None if logp is None else logp[keep]
        )


def _join(passes: Sequence[_Pass]) -> _Pass:
    inputs = [item.inputs for item in passes if item.inputs is not None]
    chances = [item.log_probability for item in passes if item.log_probability is not None]
    return _Pass(
        np.concatenate(inputs) if inputs else None,
        np.concatenate([item.actions for item in passes]),
        np.concatenate(chances) if chances else None,
    )


def _answered(runner: GraphRunner, names: list[str], rows: NDArray[Any]) -> NDArray[Any]:
    """Return the probes on which the graph does not fail, as a sampler does on a mask that leaves nothing."""
    try:
        _run(runner, names, rows, is_exploring=True)
    except ModelError:
        # A row of the wrong kind fails the whole batch; one that always fails says what is wrong.
        kept = [row for row in rows if _is_answered(runner, names, row[None])]
        if not kept:
            raise
        return np.stack(kept)
    return rows


def _is_answered(runner: GraphRunner, names: list[str], row: NDArray[Any]) -> bool:
    try:
        _run(runner, names, row, is_exploring=True)
    except ModelError:
        return False
    return True


def _run(runner: GraphRunner, names: list[str], rows: NDArray[Any], *, is_exploring: bool) -> dict[str, NDArray[Any]]:
    try:
        return dict(zip(names, runner.run(names, rows, is_exploring=is_exploring), strict=True))
    except (tf.errors.OpError, ValueError) as error:
        reason = " ".join(str(getattr(error, "message", error)).split())[:200]
        raise ModelError(f"saved_model.pb: the policy fails on an observation of {rows.shape[1]} values: {reason}") from error


def _action_output(name: str, values: NDArray[Any]) -> ActionOutput:
    columns = int(np.prod(values.shape[1:], dtype=np.int64))
    return ActionOutput(name, np.issubdtype(values.dtype, np.integer), columns, values.ndim > 1)


def identify_actions(loaded: LoadedGraph, evidence: Evidence, signature: PolicySignature) -> PolicySignature:
    """Find the hypothesis that the evidence proves.

    Args:
        loaded: the frozen graph.
        evidence: its answers to the probes.
        signature: what is known so far.

    Returns:
        The signature with components, or without where nothing could be proved; `findings` say what was tried.
    """
    if evidence.inputs is None:
        return replace(signature, findings=("the model gives no action_dist_inputs: the graph's own actions are served",))
    if not len(evidence.inputs):
        return replace(signature, findings=("no probe gave finite outputs: the graph's own actions are served",))
    if evidence.inputs.ndim != 2:
        return replace(signature, findings=("action_dist_inputs is no matrix: the graph's own actions are served",))
    structure = GraphStructure(loaded, distribution=DISTRIBUTION_INPUTS, width=evidence.inputs.shape[1])
    has_q_values = any(item.name == "q_values" for item in loaded.outputs)
    failures: list[str] = []
    for components in _hypotheses(structure, evidence):
        is_greedy = _is_greedy(components, evidence, has_q_values=has_q_values)
        verdict = _prove(components, evidence, is_greedy=is_greedy)
        proved = replace(signature, components=components, is_value_based=is_greedy, is_proved=True)
        if verdict.is_proved:
            return replace(proved, findings=(f"proved as {proved.family}: {verdict.text}",))
        failures.append(f"not {proved.family}: {verdict.text}")
    reason = failures or ["the graph does not tell the sizes of the action components"]
    return replace(signature, findings=(*reason[:3], "the family can't be proved: the graph's own actions are served"))


@dataclass(frozen=True)
class _Verdict:
    is_proved: bool
    text: str


def _prove(components: tuple[ActionComponent, ...], evidence: Evidence, *, is_greedy: bool) -> _Verdict:
    assert evidence.inputs is not None, "without inputs there is no hypothesis"
    distribution = ActionDistribution(components, is_greedy=is_greedy)
    checks: list[str] = []
    try:
        if evidence.deterministic is not None:
            share, worst = _agreement_of_modes(distribution, evidence)
            if share < _PROVED_SHARE:
                return _Verdict(is_proved=False, text=f"its deterministic action differs on {1 - share:.0%} of the probes")
            checks.append(f"deterministic actions equal on {len(evidence.deterministic)} probes (within {worst:.1e})")
        needs_chance = not is_greedy and not _is_deterministic(components)
        if needs_chance and checks and evidence.log_probability is not None and not evidence.log_probability.any():
            # RLlib's `Random` and the noise of continuous policies: the log-probability is a constant 0.
            checks.append("the graph explores without its distribution, which is read from action_dist_inputs")
        elif needs_chance and evidence.log_probability is not None:
            share, worst = _agreement_of_log_probabilities(distribution, evidence)
            if share < _PROVED_SHARE:
                return _Verdict(is_proved=False, text=f"its log-probability differs on {1 - share:.0%} of the draws")
            checks.append(f"log-probabilities of its draws equal (within {worst:.1e})")
        elif needs_chance:
            return _Verdict(is_proved=False, text="the model gives no log-probability to compare with")
    except DistributionError as error:
        return _Verdict(is_proved=False, text=error.message)
    if not checks:
        return _Verdict(is_proved=False, text="the model gives nothing to compare with")
    return _Verdict(is_proved=True, text=", ".join(checks))


def _is_deterministic(components: Sequence[ActionComponent]) -> bool:
    return all(part.kind == "deterministic" for part in components)


def _agreement_of_modes(distribution: ActionDistribution, evidence: Evidence) -> tuple[float, float]:
    inputs, theirs = evidence.deterministic_inputs, evidence.deterministic
    assert inputs is not None and theirs is not None, "the caller has looked"
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


def _agreement_of_log_probabilities(distribution: ActionDistribution, evidence: Evidence) -> tuple[float, float]:
    inputs, theirs, drawn = evidence.inputs, evidence.log_probability, evidence.drawn
    assert inputs is not None and theirs is not None, "the caller has looked"
    rounding = np.zeros(len(inputs))
    for part in distribution.components:
        values = drawn[:, part.first_column : part.first_column + part.columns]
        if part.kind == "categorical" and ((values < 0).any() or (values >= part.size).any()):
            return 0.0, np.inf
        if part.kind in ("normal", "squashed_normal"):
            rounding += _rounding(part, inputs[:, part.first_input : part.first_input + part.inputs], values)
    # Where float32 leaves nothing of the log-probability, it proves nothing.
    rows = rounding < _USELESS_ROUNDING
    if rows.sum() < _FEWEST_PROBES:
        return 0.0, np.inf
    ours = distribution.log_probability(inputs[rows], drawn[rows])
    difference = np.abs(ours - theirs[rows])
    agrees = difference <= _LOG_PROBABILITY_TOLERANCE * (1 + np.abs(theirs[rows])) + rounding[rows]
    return float(agrees.mean()), float(difference[agrees].max(initial=0.0))


def _rounding(part: ActionComponent, inputs: NDArray[Any], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far float32's rounding of an action can move its log-probability, for each row."""
    mean, log_std = inputs[:, : part.size].astype(np.float64), inputs[:, part.size :].astype(np.float64)
    std = np.exp(np.clip(log_std, *(part.log_std_bounds or (-50, 50))))
    epsilon = 4 * float(np.finfo(np.float32).eps)
    if part.kind == "normal":
        deviation, error = (values - mean) / std, epsilon * (np.abs(values) + np.abs(mean)) / std
        return ((np.abs(deviation) + 1) * error).sum(axis=1)
    bounded = np.clip(np.abs(values), 0, 1 - 1e-6)
    deviation = (np.arctanh(bounded) + np.abs(mean)) / std
    error = epsilon * (1 / (1 - bounded**2) + np.abs(mean)) / std
    return ((deviation + 1) * error + epsilon / (1 - bounded**2)).sum(axis=1)


def _is_greedy(components: Sequence[ActionComponent], evidence: Evidence, *, has_q_values: bool) -> bool:
    """Tell a policy over Q values: some versions leave `q_values` out, but explore by epsilon with log-probability 0."""
    if not all(part.kind == "categorical" for part in components):
        return False
    if has_q_values:
        return True
    if evidence.log_probability is None or evidence.deterministic is None or evidence.log_probability.any():
        return False
    assert evidence.inputs is not None, "without inputs there is no hypothesis"
    mode = ActionDistribution(components).mode(evidence.inputs)
    return bool((evidence.drawn == mode).all(axis=1).mean() > _GREEDY_SHARE)


def _hypotheses(structure: GraphStructure, evidence: Evidence) -> Iterator[tuple[ActionComponent, ...]]:
    assert evidence.inputs is not None, "without inputs there is no hypothesis"
    width = evidence.inputs.shape[1]
    layouts = [_traced_layout(structure, evidence.actions)]
    layouts.append(_equal_layout(evidence.actions, width))
    seen = set()
    for layout, temperature in itertools.product(layouts, [*structure.temperatures, 1.0]):
        if layout is None:
            continue
        for kinds in itertools.product(*(_kinds(action, segments) for action, segments in zip(evidence.actions, layout, strict=True))):
            components = _components(evidence.actions, layout, kinds, structure, temperature)
            if components is not None and components not in seen:
                seen.add(components)
                yield components


def _traced_layout(structure: GraphStructure, actions: Sequence[ActionOutput]) -> list[list[Segment]] | None:
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
