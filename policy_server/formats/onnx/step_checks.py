"""Holding a recurrent graph that takes sequences against itself, step by step and at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.onnx.graph_runs import GraphRuns
from policy_server.formats.onnx.plan import Feed, Plan
from policy_server.formats.onnx.runtimes import GraphRunError, Runtime, open_runtime

__all__ = ["check_steps"]

Array = NDArray[Any]

_LENGTHS = (3, 5)
_TOLERANCE = 1e-5


def check_steps(graph: GraphRuns, plan: Plan) -> None:
    """Refuse a graph of sequences whose last answer needs more of them than state and last step.

    A policy is asked for one step at a time, and a convolution or a mean over the steps of a
    sequence would see that one alone.

    Args:
        graph: runs the graph.
        plan: its inputs and results, for one step.

    Raises:
        ModelError: if a sequence at once gives another answer than its steps one by one.
    """
    observed = {item.name for item in graph.roles.observations}
    sequences = {
        item.name
        for item in graph.model.inputs
        if item.name in observed and len(item.shape or ()) > 2 and (item.shape or ())[1] is None
    }
    if not graph.roles.states or not sequences:
        return
    tensors = [item.tensor for item in plan.pieces if item.tensor not in graph.model.constants]
    runtime = open_runtime(graph.model, tensors)
    for length in _LENGTHS:
        rows = _rows(plan, sequences, length)
        try:
            alone = _one_by_one(graph, plan, runtime, rows)
            whole = runtime.run(_at_once(graph, plan, sequences, rows))
        except GraphRunError:
            # The graph takes one step alone, whatever its shapes say.
            return
        if not all(_ends_alike(whole[name], alone[name]) for name in tensors):
            raise ModelError(
                f"{graph.model.name}: answers {length} steps at once otherwise than one after "
                "another, as by a convolution or a mean over the steps; export it for one step, "
                "with all that it remembers as state"
            )


def _rows(plan: Plan, sequences: set[str], length: int) -> Array:
    """Return the steps of a sequence, of which only its own inputs differ from step to step."""
    generator = np.random.default_rng(length)
    # No negative number, which an unsigned integer does not hold.
    rows = generator.uniform(0, 1, (length, plan.width)).astype(np.float32)
    for feed in plan.feeds:
        if feed.first is not None and feed.name not in sequences:
            rows[:, _columns(feed)] = rows[0, _columns(feed)]
        elif feed.first is not None and not feed.dtype.startswith("float"):
            rows[:, _columns(feed)] = rows[:, _columns(feed)].round()
    return rows


def _columns(feed: Feed) -> slice:
    assert feed.first is not None, "a row fills it"
    return slice(feed.first, feed.first + feed.width)


def _one_by_one(graph: GraphRuns, plan: Plan, runtime: Runtime, rows: Array) -> Mapping[str, Array]:
    """Return the values after the last step, each step with the state of the one before."""
    states = plan.pieces[len(plan.pieces) - len(graph.roles.states) :]
    width = graph.roles.observation_width
    state, values = rows[:1, width:], dict[str, Array]()
    for index in range(len(rows)):
        row = np.concatenate([rows[index : index + 1, :width], state], axis=1)
        values = dict(runtime.run({feed.name: feed.of(row) for feed in plan.feeds}))
        known = {**graph.model.constants, **values}
        state = np.concatenate([piece.of(known[piece.tensor], 1) for piece in states], axis=1)
    return values


def _at_once(graph: GraphRuns, plan: Plan, sequences: set[str], rows: Array) -> Mapping[str, Array]:
    """Return the graph's inputs for a whole sequence."""
    mask = None if graph.roles.mask is None else graph.roles.mask.name
    found = {}
    for feed in plan.feeds:
        steps = [feed.of(rows[index : index + 1]) for index in range(len(rows))]
        is_length = feed.first is None and feed.value == 1.0 and feed.dtype.startswith("int")
        if feed.name in sequences:
            found[feed.name] = np.concatenate(steps, axis=1)
        elif is_length and feed.name != mask:
            found[feed.name] = replace(feed, value=float(len(rows))).of(rows[:1])
        else:
            found[feed.name] = steps[0]
    return found


def _ends_alike(whole: Array, last: Array) -> bool:
    """Return whether a tensor of one row ends with another, whose steps lie one after another."""
    theirs, ours = whole.reshape(-1)[-last.size :], last.reshape(-1)
    if theirs.size != ours.size:
        return False
    largest = max(1.0, float(np.abs(theirs).max(initial=0.0)))
    return np.allclose(ours, theirs, rtol=0, atol=_TOLERANCE * largest, equal_nan=True)
