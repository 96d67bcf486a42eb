"""Identify the family of a policy by its graph's structure, and check it by running the graph.

The structure tells the distribution that the actions are drawn from (`structure`, `families`). Then
the graph is run: its log-probabilities and its modes on probe observations, and the frequencies of
its draws on inputs of all kinds, have to be those of that distribution. Where one of these checks
is missing or fails, the family is not claimed, and the graph's own outputs are served.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import DistributionError, ModelError
from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.evidence import Evidence
from policy_server.formats.saved_model.families import RecognizedFamily
from policy_server.formats.saved_model.frequency import judge_draws, sampler_inputs
from policy_server.formats.saved_model.graph import ACTIONS, DISTRIBUTION_INPUTS, LoadedGraph
from policy_server.formats.saved_model.runner import GraphSampler
from policy_server.formats.saved_model.structure import PolicyStructure
from policy_server.policy import ActionComponent, Float64Array, PolicySignature

__all__ = ["identify_actions"]

# float32 log-probabilities of many components; squashed ones lose digits near the bounds.
_LOG_PROBABILITY_TOLERANCE, _ACTION_TOLERANCE = 1e-3, 1e-4
_USELESS_ROUNDING, _FEWEST_PROBES = 0.1, 32
# The rest may be lost to float32: a tie, or an action that it can't hold.
_PROVED_SHARE = 0.98
# By chance a right sampler fails one of its tests once in some hundred starts, and never thrice.
_TRIALS = 3
_FALLBACK = "the graph's own actions are served"


def identify_actions(
    loaded: LoadedGraph,
    evidence: Evidence,
    structure: PolicyStructure | None,
    sampler: GraphSampler | None,
    signature: PolicySignature,
) -> PolicySignature:
    """Return the signature with the components of the policy's distribution.

    Args:
        loaded: the frozen graph.
        evidence: its answers to the probes.
        structure: how its actions are computed; None where the distribution's inputs are unknown.
        sampler: draws from any inputs of the distribution; None where these are unknown.
        signature: the signature without components.

    Returns:
        The signature with components, or without where the family is not known; `findings` list
        the checks and how often each agreed.

    Raises:
        ModelError: if neither the distribution nor the graph can give actions.
    """
    problem = _why_unreadable(loaded, evidence, structure)
    if problem is not None or structure is None or structure.family is None:
        return _by_graph(loaded, signature, problem or "its family is not known")
    family = structure.family
    signature = replace(signature, is_tuple_of_one=structure.is_tuple_of_one)
    known = replace(signature, components=family.components, is_value_based=family.is_greedy)
    if structure.noise is not None or evidence.is_noisy:
        return _without_distribution(loaded, known, structure.noise or "noise")
    if structure.row_mixing is not None:
        return _by_graph(loaded, known, structure.row_mixing)
    try:
        checks = _checks(loaded, family, evidence, sampler)
    except (_Disproved, DistributionError) as error:
        return _by_graph(loaded, signature, f"not {known.family}: {error}")
    findings = [f"proved as {known.family}: {'; '.join(['by its structure', *checks])}"]
    if family.exploration is not None:
        findings.append(
            f"explores by {family.exploration}, which belongs to training and is left out"
        )
    findings += filter(None, [family.note])
    return replace(known, basis="structure", findings=tuple(findings))


def _why_unreadable(
    loaded: LoadedGraph, evidence: Evidence, structure: PolicyStructure | None
) -> str | None:
    if structure is None:
        is_listed = DISTRIBUTION_INPUTS in loaded.fetches
        return (
            f"{DISTRIBUTION_INPUTS} is no matrix"
            if is_listed
            else "nothing shows what its actions are drawn from"
        )
    assert evidence.inputs is not None, "they were found"
    if not len(evidence.inputs):
        return "no probe gave finite outputs"
    return structure.problem


def _by_graph(loaded: LoadedGraph, signature: PolicySignature, reason: str) -> PolicySignature:
    """Return a signature that leaves the answers to the graph."""
    if loaded.has_callback:
        raise ModelError(
            "saved_model.pb: its actions need a Python callback of training, which no export of "
            f"Ray 0.8.2 to 0.8.5 holds, and the rest of the file does not give them ({reason}); "
            "train and export the policy with Ray 0.8.6 or later"
        )
    finding = f"{reason}: {_FALLBACK}"
    return replace(signature, components=None, is_value_based=False, findings=(finding,))


def _without_distribution(
    loaded: LoadedGraph, known: PolicySignature, noise: str
) -> PolicySignature:
    """Return a signature that serves the draws of a noisy network as they are."""
    reason = "the network draws new noise at every pass, so its distribution has no exact form"
    if loaded.has_callback:
        return _by_graph(loaded, known, reason)
    return replace(
        known,
        components=None,
        has_deterministic_action=False,
        findings=(f"{known.family} over a noisy network ({noise})", f"{reason}: {_FALLBACK}"),
    )


class _Disproved(Exception):  # noqa: N818 -- no error: the graph's own actions are served instead
    """The evidence contradicts a family, or is too little to tell."""


def _checks(
    loaded: LoadedGraph,
    family: RecognizedFamily,
    evidence: Evidence,
    sampler: GraphSampler | None,
) -> list[str]:
    """Return a line for each check: the figures compared, and how often they agreed.

    Raises:
        _Disproved: if the graph's answers are others, or too few to tell.
        DistributionError: if its outputs are no such distribution.
    """
    distribution = ActionDistribution(family.components, is_greedy=family.is_greedy)
    if loaded.has_callback:
        return ["its actions need a Python callback of training and were not run"]
    checks: list[str] = []
    if family.is_mode_comparable and evidence.deterministic is not None:
        checks.append(_compared_modes(distribution, evidence))
    is_sure = family.is_greedy or all(part.kind == "deterministic" for part in family.components)
    if not is_sure:
        checks.append(_compared_log_probabilities(distribution, evidence))
    assert sampler is not None, "the distribution's inputs were found"
    if family.exploration is None:
        checks.append(_compared_frequencies(loaded, distribution, evidence, sampler))
    return checks


def _compared_modes(distribution: ActionDistribution, evidence: Evidence) -> str:
    assert evidence.deterministic is not None, "the caller has looked"
    agrees, worst = _agreement_of_modes(distribution, evidence)
    share = _sufficient(agrees, "probes", "its deterministic action")
    return f"modes equal on {share} (within {worst:.1e})"


def _compared_log_probabilities(distribution: ActionDistribution, evidence: Evidence) -> str:
    if evidence.log_probability is None:
        return "it gives no log-probability to compare with"
    if evidence.is_certain:
        raise _Disproved("its log-probability is always 0, though its actions are drawn")
    agrees, worst = _agreement_of_log_probabilities(distribution, evidence)
    share = _sufficient(agrees, "draws", "its log-probability")
    return f"log-probabilities equal on {share} (within {worst:.1e})"


def _sufficient(agrees: NDArray[np.bool_], unit: str, subject: str) -> str:
    """Return the number of agreements in words, such as `194 of 194 probes`.

    Raises:
        _Disproved: if it agrees on too few, or too few can be used.
    """
    count, agreed = len(agrees), int(agrees.sum())
    if count < _FEWEST_PROBES:
        raise _Disproved(f"only {count} {unit} can be used, of {_FEWEST_PROBES} that are needed")
    if agreed < _PROVED_SHARE * count:
        raise _Disproved(f"{subject} differs on {count - agreed} of {count} {unit}")
    return f"{agreed} of {count} {unit}"


def _compared_frequencies(
    loaded: LoadedGraph,
    distribution: ActionDistribution,
    evidence: Evidence,
    sampler: GraphSampler,
) -> str:
    """Draw from inputs of all kinds, and compare the frequencies with the distribution."""
    assert evidence.inputs is not None, "the caller has looked"
    generator = np.random.default_rng()
    width = evidence.inputs.shape[1]
    draws, is_enough = 0, False
    for kind, inputs in sampler_inputs(distribution.components, width, evidence.inputs):
        for trial in range(_TRIALS):
            drawn = _drawn(loaded, sampler, inputs)
            if drawn is None:
                break
            # Draws beyond float32 can't be judged; the others have to fit.
            kept = np.isfinite(drawn).all(axis=1)
            found = judge_draws(distribution, inputs[kept], drawn[kept], generator)
            if found.problem is None:
                draws += found.draws
                is_enough |= found.is_enough
                break
            if trial == _TRIALS - 1:
                raise _Disproved(f"{found.problem}, on {kind} inputs")
    if not is_enough:
        raise _Disproved("its sampler gives too few draws to judge their frequencies")
    return f"frequencies of {draws} draws fit"


def _drawn(loaded: LoadedGraph, sampler: GraphSampler, inputs: NDArray[Any]) -> Float64Array | None:
    """Return the graph's draws, a row each; None where it fails on such inputs."""
    names = [name for name in loaded.fetches if name.startswith(ACTIONS)]
    try:
        arrays = sampler.run(names, inputs, is_exploring=True)
    except (tf.errors.OpError, ValueError):
        return None
    columns = [array.reshape(len(inputs), -1).astype(np.float64) for array in arrays]
    drawn: Float64Array = np.concatenate(columns, axis=1)
    return drawn if np.isfinite(drawn).all(axis=1).any() else None


def _agreement_of_modes(
    distribution: ActionDistribution, evidence: Evidence
) -> tuple[NDArray[np.bool_], float]:
    """Return for each probe whether the mode is the graph's, and how far these differ at most."""
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
    rows: NDArray[np.bool_] = np.logical_and.reduce(agrees, axis=1)
    return rows, float(difference[rows].max(initial=0.0))


def _agreement_of_log_probabilities(
    distribution: ActionDistribution, evidence: Evidence
) -> tuple[NDArray[np.bool_], float]:
    """Return for each draw that float32 can tell whether its log-probability is the graph's."""
    inputs, theirs, drawn = evidence.inputs, evidence.log_probability, evidence.drawn
    assert inputs is not None, "why_unreadable has looked"
    assert theirs is not None, "the caller has looked"
    rounding = np.zeros(len(inputs))
    for part in distribution.components:
        values = drawn[:, part.first_column : part.first_column + part.columns]
        if part.kind == "categorical" and ((values < 0).any() or (values >= part.size).any()):
            return np.zeros(len(drawn), bool), np.inf
        if part.kind in ("normal", "squashed_normal"):
            rounding += _rounding(
                part, inputs[:, part.first_input : part.first_input + part.inputs], values
            )
    # Where float32 leaves nothing of the log-probability, it proves nothing.
    rows = rounding < _USELESS_ROUNDING
    ours = distribution.rllib_log_probability(inputs[rows], drawn[rows])
    difference = np.abs(ours - theirs[rows])
    agrees = difference <= _LOG_PROBABILITY_TOLERANCE * (1 + np.abs(theirs[rows])) + rounding[rows]
    # The graph has drawn an action that it calls impossible.
    agrees &= np.isfinite(theirs[rows])
    return agrees, float(difference[agrees].max(initial=0.0))


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
