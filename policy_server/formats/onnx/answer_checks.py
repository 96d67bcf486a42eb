"""Holding what was read of a graph against its own answers: probabilities, modes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import ModelError
from policy_server.formats.onnx.action_outputs import Actions
from policy_server.formats.onnx.graph_runs import GraphRuns, RowFunction
from policy_server.formats.onnx.plan import Feed, Piece, Plan
from policy_server.formats.onnx.runtimes import GraphRunError
from policy_server.formats.onnx.state_pairs import ancestors_of
from policy_server.formats.probability_checks import (
    check_probabilities,
    refuse_hidden_probabilities,
)
from policy_server.policy import ActionComponent, PolicySignature
from policy_server.schema import ServerSchema

__all__ = [
    "check_mask",
    "check_repeats",
    "checked_actions",
    "flags_beyond_clearing",
    "needs_mask_itself",
]

Array = NDArray[Any]

_TOLERANCE = 1e-5
_MODE_TOLERANCE = 1e-4
_BARE_MODE = "the graph's own deterministic action is the mean without its tanh, and so is the mode"


def checked_actions(
    graph: GraphRuns,
    plan: Plan,
    actions: Actions,
    function: RowFunction,
    schema: ServerSchema | None,
) -> Actions:
    """Return the actions of a graph, after holding them against its probabilities and own modes.

    Args:
        graph: runs the graph.
        plan: its inputs and results.
        actions: what was read.
        function: the plan's function.
        schema: the contents of schema.yaml; None where there is none.

    Returns:
        The actions; their mode may be the mean of a squashed normal without its tanh.

    Raises:
        ModelError: if the graph's own answers differ.
    """
    rows = graph.probes
    inputs = function(rows)[:, : sum(part.inputs for part in actions.components)]
    for piece in actions.pieces:
        if piece.transform == "log" and any(p.kind == "categorical" for p in actions.components):
            check_probabilities(graph.model.name, actions.components, np.exp(inputs))
    if all(part.kind == "categorical" for part in actions.components) and actions.basis in (
        "names",
        "schema",
    ):
        is_plain = all(piece.transform == "as it is" for piece in actions.pieces)
        if is_plain and not actions.is_value_based:
            refuse_hidden_probabilities(graph.model.name, actions.components, inputs, schema)
    if not actions.modes:
        return actions
    widths = [item.columns for item in actions.outputs]
    pieces = tuple(Piece(name, size) for name, size in zip(actions.modes, widths, strict=True))
    modes = graph.function(replace(plan, pieces=pieces))(rows)
    for is_bare in (False, True):
        components = tuple(
            replace(part, has_unsquashed_mode=is_bare and part.kind == "squashed_normal")
            for part in actions.components
        )
        distribution = ActionDistribution(components)
        found = distribution.in_environment_units(distribution.mode(inputs))
        if np.allclose(found, modes, atol=_MODE_TOLERANCE):
            findings = (*actions.findings, *([_BARE_MODE] if is_bare else []))
            return replace(actions, components=components, findings=findings)
    raise ModelError(
        f"{graph.model.name}: its output {actions.modes[0]!r} differs from the mode of the "
        "distribution that it draws from; export the logits, or mean and log_std"
    )


def check_mask(graph: GraphRuns, plan: Plan, signature: PolicySignature) -> None:
    """Refuse a graph whose masked distribution is not the unmasked one over what is allowed.

    Args:
        graph: runs the graph, which takes a mask.
        plan: its inputs and results, with a mask that allows all.
        signature: the policy's signature.

    Raises:
        ModelError: if the mask has another size, or does more than to forbid choices.
    """
    assert signature.components is not None and graph.roles.mask is not None, "it takes a mask"  # noqa: PT018 -- one fact
    mask, sizes = graph.roles.mask, signature.mask_sizes
    if mask.width != sum(sizes):
        raise ModelError(
            f"{graph.model.name}: its input {mask.name!r} has {mask.width} numbers, expected one "
            f"for each of the {sum(sizes)} choices; name it otherwise if it is no action mask"
        )
    rows = graph.probes
    generator = np.random.default_rng(4)
    masks = generator.integers(0, 2, (len(rows), mask.width)).astype(bool)
    for first in np.cumsum([0, *sizes[:-1]]):
        masks[:, first] = True
    theirs = _masked(graph, plan, mask, masks)
    distribution = ActionDistribution(signature.components)
    columns = sum(part.inputs for part in signature.components)
    ours = distribution.masked(graph.function(plan)(rows)[:, :columns], masks)
    for mine, other in zip(
        distribution.describe(ours), distribution.describe(theirs[:, :columns]), strict=True
    ):
        if mine.probabilities is None or other.probabilities is None:
            continue
        if not np.allclose(mine.probabilities, other.probabilities, atol=_TOLERANCE):
            raise ModelError(
                f"{graph.model.name}: its input {mask.name!r} does not only forbid choices; name "
                "it otherwise if it is no action mask"
            )


def needs_mask_itself(graph: GraphRuns, plan: Plan, components: Sequence[ActionComponent]) -> bool:
    """Return whether the mask changes numbers that are no logits, such as an action or a state.

    Logits are masked behind the graph, which is given a mask that allows all.

    Args:
        graph: runs the graph.
        plan: its inputs and results.
        components: the distribution's components.
    """
    mask = graph.roles.mask
    if mask is None:
        return False
    logits = np.zeros(sum(piece.width for piece in plan.pieces), np.bool_)
    for part in components:
        if part.kind == "categorical":
            logits[part.first_input : part.first_input + part.inputs] = True
    first, reached = 0, False
    for piece in plan.pieces:
        others = ~logits[first : first + piece.width]
        first += piece.width
        reached |= bool(others.any()) and mask.name in ancestors_of(graph.model, [piece.tensor])
    if not reached or not logits.any():
        return reached
    masks = np.random.default_rng(8).integers(0, 2, (len(graph.probes), mask.width)).astype(bool)
    masks[:, 0] = True
    theirs = _masked(graph, plan, mask, masks)[:, ~logits]
    ours = graph.function(plan)(graph.probes)[:, ~logits]
    return not np.allclose(theirs, ours, atol=_TOLERANCE, equal_nan=True)


def flags_beyond_clearing(graph: GraphRuns, plan: Plan) -> list[str]:
    """Return the names of the graph's flags that do more, or other, than to clear the state.

    A flag that clears the state changes nothing on the zero state, and keeps another state while it
    is filled as for a step that goes on. A trained first state is none of zeros.

    Args:
        graph: runs the graph, whose flags are filled in.
        plan: its inputs and results.
    """
    rows = graph.probes
    cleared = rows.copy()
    cleared[:, graph.roles.observation_width :] = 0
    function = graph.function(plan)
    ours = function(cleared)
    if _is_alike(function(rows), ours):
        return [flag.name for flag in graph.roles.flags]
    found = []
    for flag in graph.roles.flags:
        turned = replace(flag, value=1 - flag.value)
        feeds = tuple(turned if feed.name == flag.name else feed for feed in plan.feeds)
        if not _is_alike(graph.function(replace(plan, feeds=feeds))(cleared), ours):
            found.append(flag.name)
    return found


def _is_alike(one: Array, other: Array) -> bool:
    return np.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)


def _masked(graph: GraphRuns, plan: Plan, mask: Feed, masks: NDArray[np.bool_]) -> Array:
    """Return a plan's results for the probes, each with a mask of its own."""
    fed = replace(mask, first=plan.width)
    feeds = tuple(fed if feed.name == mask.name else feed for feed in plan.feeds)
    masked = replace(plan, width=plan.width + mask.width, feeds=feeds)
    rows = np.concatenate([graph.probes, masks.astype(np.float32)], axis=1)
    return graph.function(masked)(rows)


def check_repeats(name: str, function: RowFunction, rows: Array) -> None:
    """Refuse a graph that answers the same observations otherwise a second time.

    Args:
        name: the file's name, for messages.
        function: the graph as the runtime computes it.
        rows: float[N, D], observations.

    Raises:
        ModelError: if an answer differs.
    """
    try:
        first, second = function(rows), function(rows)
    except GraphRunError:
        # One that fails for an observation says so when it is asked.
        return
    if not np.array_equal(first, second, equal_nan=True):
        raise ModelError(
            f"{name}: answers an observation otherwise each time, as by random numbers; export it "
            "in evaluation mode, without draws"
        )
