"""Observations that a policy is compared on, and that its .onnx file carries as test vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.network import FAILURES, NetworkPolicy, NumpyNetwork
from policy_server.engine.proof import probe_rows
from policy_server.errors import DistributionError, ExportError
from policy_server.formats.onnx.policy_vectors import PolicyVectors, distances
from policy_server.policy import ObservationPart, PolicyInputs, PolicySignature

__all__ = ["probe_vectors"]

Array = NDArray[Any]

_FEWEST = 3
# Two choices that are nearly as good may come in either order from another engine.
_CLEAR = 1e-4
# float32's own rounding, beyond which engines may differ without a fault.
_ROUNDING = 2e-6
_WIDEST = 1e3
_SPREAD = 3.0


def probe_vectors(policy: NetworkPolicy, *, most: int) -> PolicyVectors:
    """Return observations of many kinds, with states and masks, and a policy's answers to them.

    Args:
        policy: the policy.
        most: how many are wanted.

    Returns:
        As many or fewer: those whose mode is clear, and whose distribution hardly depends on
        the order in which an engine adds.

    Raises:
        ExportError: if there are fewer than three.
    """
    questions = _questions(policy.signature)
    answers = _answers(policy, questions)
    exact = _exact_answers(policy.compiled.network, questions)
    chosen = [
        row
        for row, answer in enumerate(answers)
        if answer is not None
        and _is_clear(answer, policy.signature)
        and _rounding(answer, exact[row]) <= _ROUNDING
    ][:most]
    if len(chosen) < _FEWEST:
        raise ExportError(
            f"it answers fewer than {_FEWEST} of {len(questions)} random observations with numbers "
            "that can be compared"
        )
    kept = replace(
        questions,
        observations=questions.observations[chosen],
        is_deterministic=questions.is_deterministic[chosen],
        seeds=questions.seeds[chosen],
        state=None if questions.state is None else questions.state[chosen],
        masks=None if questions.masks is None else questions.masks[chosen],
    )
    outputs = policy.infer(kept)
    if outputs.state is not None:
        outputs = replace(outputs, state=_kept(policy, kept, outputs.state))
    return PolicyVectors(kept, outputs)


def _answers(policy: NetworkPolicy, questions: PolicyInputs) -> list[Array | None]:
    """Return `action_dist_inputs` and the state after one step of each; None for no numbers."""
    try:
        outputs = policy.infer(questions)
    except (*FAILURES, DistributionError):
        if len(questions) == 1:
            return [None]
        # Some observations are refused, and fail their whole batch.
        rows = range(len(questions))
        return [_answers(policy, questions.part(row, row + 1))[0] for row in rows]
    found = outputs.distribution
    assert found is not None, "the distribution was asked for"
    after: list[Array] = [] if outputs.state is None else [_kept(policy, questions, outputs.state)]
    joined: Array = np.concatenate([found, *after], axis=1)
    # Minus infinity is a forbidden choice.
    is_unknown = np.isnan(joined).any(axis=1) | np.isposinf(joined).any(axis=1)
    is_unknown |= ~np.isfinite(np.concatenate([outputs.actions, *after], axis=1)).all(axis=1)
    return [None if is_unknown[row] else joined[row] for row in range(len(joined))]


def _kept(policy: NetworkPolicy, questions: PolicyInputs, after: Array) -> Array:
    """Return the state as the network gives it: the policy itself writes its action into it."""
    places = policy.signature.noted_places
    if not places or questions.state is None:
        return after
    kept = after.copy()
    kept[:, places] = questions.state[:, places]
    return kept


def _is_clear(inputs: Array, signature: PolicySignature) -> bool:
    """Return whether the best choice of each component is so by more than rounding."""
    for part in signature.components or ():
        if part.kind == "categorical" and part.size > 1:
            best = np.sort(inputs[part.first_input : part.first_input + part.size])[-2:]
            if best[1] - best[0] <= _CLEAR * max(1.0, abs(best[1])):
                return False
    return True


def _exact_answers(network: NumpyNetwork, questions: PolicyInputs) -> list[Array | None]:
    """Return the network's results computed in float64; None for an observation that it refuses."""
    rows = questions.observations.astype(np.float64)
    if questions.state is not None:
        rows = np.concatenate([rows, questions.state], axis=1)
    run = _in_float64(network).compile()
    with np.errstate(all="ignore"):
        try:
            return list(run(rows))
        except FAILURES:
            return [_alone(run, rows[row : row + 1]) for row in range(len(rows))]


def _alone(run: Callable[[Array], Array], row: Array) -> Array | None:
    try:
        found: Array = run(row)[0]
    except FAILURES:
        return None
    return found


def _in_float64(network: NumpyNetwork) -> NumpyNetwork:
    """Return a network that computes in float64 what another computes in float32."""
    constants = {
        register: value.astype(np.float64) if value.dtype == np.float32 else value
        for register, value in network.constants.items()
    }
    steps = tuple(
        replace(
            step,
            attributes=tuple(
                (key, "float64" if value == "float32" else value) for key, value in step.attributes
            ),
        )
        for step in network.steps
    )
    return replace(network, constants=constants, steps=steps)


def _rounding(answer: Array, exact: Array | None) -> float:
    """Return how far float32 rounds an answer."""
    if exact is None:
        return math.inf
    # What a mask forbids is minus infinity in the answer alone.
    known = np.where(np.isneginf(answer), answer, exact)
    return float((distances(answer, known) / np.maximum(np.abs(known), 1.0)).max(initial=0.0))


def _questions(signature: PolicySignature) -> PolicyInputs:
    """Return observations of many kinds in no order, the first of them from the zero state."""
    width = signature.observation_width
    assert width is not None, "only a policy of a known width is compiled"
    generator = np.random.default_rng(30)
    rows = probe_rows(width, signature.row_dtype)
    if signature.observation_parts:
        columns = [_random(part, len(rows), generator) for part in signature.observation_parts]
        likely = np.concatenate(columns, axis=1).astype(signature.row_dtype)
        rows = np.concatenate([likely, rows[generator.permutation(len(rows))]])
    else:
        rows = rows[generator.permutation(len(rows))]
    if signature.observation_dtype.startswith(("int", "uint", "bool")):
        rows = np.rint(rows) if signature.observation_dtype[0] == "i" else np.abs(np.rint(rows))
    state = None
    if signature.memory:
        state = generator.uniform(-1, 1, (len(rows), signature.memory_width)).astype(np.float32)
        state[0] = 0
    masks = _random_masks(signature, len(rows), generator)
    deterministic = np.ones(len(rows), np.bool_)
    return PolicyInputs(rows, deterministic, np.full(len(rows), -1), state=state, masks=masks)


def _random(part: ObservationPart, rows: int, generator: np.random.Generator) -> Array:
    """Return numbers that the environment might give: float[rows, columns of the part]."""
    if part.kind == "one_hot":
        return np.concatenate(
            [np.eye(size)[generator.integers(0, size, rows)] for size in part.sizes], axis=1
        )
    if part.kind == "binary":
        return generator.integers(0, 2, (rows, part.columns)).astype(np.float64)
    low = -_SPREAD if part.low is None else float(np.clip(part.low, -_WIDEST, _WIDEST))
    high = _SPREAD if part.high is None else float(np.clip(part.high, -_WIDEST, _WIDEST))
    found = generator.uniform(low, max(low, high), (rows, part.columns))
    return np.rint(found) if part.is_integer else found


def _random_masks(
    signature: PolicySignature, rows: int, generator: np.random.Generator
) -> NDArray[np.bool_] | None:
    """Return masks that allow one choice of each component at least; all in the first row."""
    if signature.mask_name is None:
        return None
    masks = []
    for size in signature.mask_sizes:
        mask = generator.integers(0, 2, (rows, size)).astype(np.bool_)
        mask[np.arange(rows), generator.integers(0, size, rows)] = True
        masks.append(mask)
    found = np.concatenate(masks, axis=1)
    found[0] = True
    return found
