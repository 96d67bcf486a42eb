"""The actions of TF-Agents' policies, as the structure of other policies has them.

PolicySaver clips an action to its bounds, which changes no choice and no squashed draw; a squashed
draw is rescaled to the bounds before; and a normal draw has its deviation in a tensor of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.saved_model.agent_shapes import NOISE, shapes_of, with_plain_shapes
from policy_server.formats.saved_model.graph import (
    ACTIONS,
    DISTRIBUTION_INPUTS,
    Q_VALUES,
    LoadedGraph,
)
from policy_server.formats.saved_model.graph_nodes import add_constant, add_node
from policy_server.formats.saved_model.nodes import GraphNodes
from policy_server.formats.saved_model.runner import GraphRunner
from policy_server.formats.saved_model.tf_agents import STEP_TYPE
from policy_server.policy import PolicySignature

__all__ = ["is_of_tf_agents", "plain_actions", "with_bounds"]

Bounds = tuple[NDArray[Any], NDArray[Any]]
_SOME_ROWS = 3
_CHOOSING = ("ArgMax", "Multinomial")
_PASSING = ("Cast", "ExpandDims", "Identity", "Reshape", "Squeeze", "Transpose")


def is_of_tf_agents(loaded: LoadedGraph) -> bool:
    """Return whether a graph is a policy of TF-Agents.

    Args:
        loaded: the frozen graph.
    """
    return any(item.name == STEP_TYPE for item in loaded.inputs)


def plain_actions(
    loaded: LoadedGraph, runner: GraphRunner, width: int
) -> tuple[LoadedGraph, Bounds | None]:
    """Return the graph with plain shapes, and with the distribution's inputs as an output.

    Args:
        loaded: the frozen graph.
        runner: runs it.
        width: how many numbers one observation has.

    Returns:
        The graph; and the bounds that a squashed draw is rescaled to, which the graph then leaves
        out: low and high, one number or one a dimension. None for no such draw.
    """
    return _with_plain_ends(with_plain_shapes(loaded, runner, width), runner, width)


def with_bounds(signature: PolicySignature, bounds: Bounds | None) -> PolicySignature:
    """Return the signature with the bounds that its one component is rescaled to.

    Args:
        signature: the signature of the graph that `plain_actions` gave.
        bounds: as it gave them; None for none.
    """
    if bounds is None or signature.components is None:
        return signature
    (part,) = signature.components
    low, high = (tuple(map(float, np.broadcast_to(side, (part.size,)))) for side in bounds)
    return replace(signature, components=(replace(part, low=low, high=high),))


def _with_plain_ends(
    loaded: LoadedGraph, runner: GraphRunner, width: int
) -> tuple[LoadedGraph, Bounds | None]:
    nodes = GraphNodes(loaded.graph_def)
    names = [name for name in loaded.fetches if name.startswith(ACTIONS)]
    fetches, bounds = dict(loaded.fetches), None
    for name in names:
        chosen = _without_clip(nodes, runner, fetches[name], width)
        fetches[name] = chosen or fetches[name]
        values = _greedy_values(nodes, fetches[name])
        if len(names) == 1 and values is not None:
            fetches[Q_VALUES] = values
    if len(names) == 1:
        (name,) = names
        squashed = _squashed(nodes, fetches[name])
        if squashed is not None:
            fetches[name], bounds = squashed
        elif (root := _joined_normal(loaded.graph_def, runner, fetches[name], width)) is not None:
            fetches[DISTRIBUTION_INPUTS] = root
    return replace(loaded, fetches=fetches), bounds


def _squashed(nodes: GraphNodes, tensor: str) -> tuple[str, Bounds] | None:
    """Return a drawn action before it is rescaled from [-1, 1] to its bounds, and the bounds."""
    found = []
    current = nodes.source(tensor)
    for operation in ("Maximum", "Minimum", "AddV2", "Mul"):
        node = nodes.node(current)
        if operation == "AddV2" and node.op == "Mul":
            # A sum with zeros was left out.
            found.append(np.zeros(()))
            continue
        value = nodes.constant(node.input[1]) if node.op == operation else None
        if value is None:
            return None
        found.append(value.astype(np.float64))
        current = nodes.source(node.input[0])
    low, high, middle, half = np.broadcast_arrays(*found)
    fits = np.allclose(middle, (low + high) / 2) and np.allclose(half, (high - low) / 2)
    if nodes.node(current).op != "Tanh" or not fits or not _is_noisy(nodes, current):
        return None
    return current, (np.ravel(low), np.ravel(high))


def _is_noisy(nodes: GraphNodes, tensor: str) -> bool:
    waiting, seen = [tensor], {tensor}
    while waiting:
        node = nodes.node(waiting.pop())
        if node.op == NOISE:
            return True
        following = [item for item in nodes.inputs_of(node) if item not in seen]
        waiting += following
        seen.update(following)
    return False


def _joined_normal(graph: Any, runner: GraphRunner, tensor: str, width: int) -> str | None:  # noqa: ANN401 -- TensorFlow is untyped
    """Lead mean and deviation of a draw through one tensor, as `action_dist_inputs`; return it."""
    nodes = GraphNodes(graph)
    draw = nodes.node(nodes.source(tensor))
    if draw.op != "AddV2":
        return None
    is_noisy = [_is_noisy(nodes, nodes.source(item)) for item in draw.input]
    if sum(is_noisy) != 1:
        return None
    at = is_noisy.index(False)
    product = nodes.node(nodes.source(draw.input[1 - at]))
    parts = [_is_noisy(nodes, nodes.source(item)) for item in product.input]
    if product.op != "Mul" or sum(parts) != 1:
        return None
    place = parts.index(False)
    pair = [nodes.source(draw.input[at]), nodes.source(product.input[place])]
    shapes = shapes_of(runner, pair, _SOME_ROWS, width)
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        return None
    size, name = shapes[0][1], "policy_server"
    logarithm = add_node(graph, f"{name}/log_std", "Log", [pair[1]], T="float32")
    axis = add_constant(graph, f"{name}/axis", 1)
    root = add_node(
        graph,
        f"{name}/normal",
        "ConcatV2",
        [pair[0], logarithm, axis],
        N=2,
        T="float32",
        Tidx="int32",
    )
    sizes = add_constant(graph, f"{name}/sizes", [-1, size])
    halves = [
        add_node(
            graph,
            f"{name}/half_{index}",
            "Slice",
            [root, add_constant(graph, f"{name}/begin_{index}", [0, index * size]), sizes],
            T="float32",
            Index="int32",
        )
        for index in (0, 1)
    ]
    draw.input[at] = halves[0]
    product.input[place] = add_node(graph, f"{name}/std", "Exp", [halves[1]], T="float32")
    return root


def _without_clip(nodes: GraphNodes, runner: GraphRunner, tensor: str, width: int) -> str | None:
    """Return an integer action before a clip to all of its choices; None where there is none."""
    bounds = []
    current = nodes.source(tensor)
    for operation in ("Maximum", "Minimum"):
        node = nodes.node(current)
        bound = nodes.scalar(node.input[1]) if node.op == operation else None
        if bound is None:
            return None
        bounds.append(bound)
        current = nodes.source(node.input[0])
    chosen = _chosen(nodes, current)
    if chosen is None:
        return None
    values = nodes.inputs_of(nodes.node(chosen))[0]
    choices = runner.evaluate(values, np.ones((1, width)), is_exploring=True).shape[-1]
    return current if bounds[0] <= 0 and bounds[1] >= choices - 1 else None


def _chosen(nodes: GraphNodes, tensor: str) -> str | None:
    while nodes.node(tensor).op in _PASSING:
        tensor = nodes.inputs_of(nodes.node(tensor))[0]
    return tensor if nodes.node(tensor).op in _CHOOSING else None


def _greedy_values(nodes: GraphNodes, tensor: str) -> str | None:
    chosen = _chosen(nodes, nodes.source(tensor))
    if chosen is None or nodes.node(chosen).op != "ArgMax":
        return None
    return nodes.inputs_of(nodes.node(chosen))[0]
