"""Graphs of TensorFlow Probability without the shapes that it works out.

Its distributions reshape and broadcast every sample to a shape that they compute from others. Where
that leaves the numbers as they are, the shape becomes a constant, so that the structure of a policy
can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.saved_model.graph import LoadedGraph
from policy_server.formats.saved_model.graph_nodes import add_constant, add_node
from policy_server.formats.saved_model.nodes import GraphNodes
from policy_server.formats.saved_model.runner import GraphRunner

__all__ = ["NOISE", "shapes_of", "with_plain_shapes"]

NOISE = "RandomStandardNormal"
_SIZES = (3, 5, 7)
_SHAPING = ("BroadcastTo", "Reshape")


def with_plain_shapes(loaded: LoadedGraph, runner: GraphRunner, width: int) -> LoadedGraph:
    """Return the graph with constant shapes, and without sums with zeros.

    Args:
        loaded: the frozen graph.
        runner: runs it.
        width: how many numbers one observation has.
    """
    graph = type(loaded.graph_def)()
    graph.CopyFrom(loaded.graph_def)
    nodes = GraphNodes(graph)
    for node in list(graph.node):
        place = 0 if node.op == NOISE else 1
        if node.op not in (NOISE, *_SHAPING) or nodes.constant(node.input[place]) is not None:
            continue
        tensors = (node.name if node.op == NOISE else node.input[0], node.name)
        plain = _plain_shape([shapes_of(runner, tensors, size, width) for size in _SIZES])
        if plain is not None and node.op == NOISE:
            _make_sized(graph, node, plain, loaded)
        elif plain is not None:
            _make_reshape(graph, node, plain)
    nodes = GraphNodes(graph)
    for node in graph.node:
        kept = _beside_zeros(nodes, node) if node.op == "AddV2" else None
        if kept is None:
            continue
        before, after = shapes_of(runner, (kept, node.name), _SIZES[0], width)
        if before == after:
            _make_identity(node, kept)
    return replace(loaded, graph_def=graph)


def shapes_of(
    runner: GraphRunner, tensors: Sequence[str], size: int, width: int
) -> list[tuple[int, ...]]:
    """Return the shapes of tensors for a batch.

    Args:
        runner: runs the graph.
        tensors: their names, with or without the port.
        size: how many observations the batch has.
        width: how many numbers one has.
    """
    rows = np.ones((size, width))
    return [
        runner.evaluate(name if ":" in name else f"{name}:0", rows, is_exploring=True).shape
        for name in tensors
    ]


def _plain_shape(shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[int] | None:
    """Return a result's shape with -1 for the batch; None where it repeats numbers."""
    if any(np.prod(before) != np.prod(after) for before, after in shapes):
        return None
    results = [np.array(after) for _, after in shapes]
    if len({len(result) for result in results}) > 1:
        return None
    is_open: NDArray[Any] = np.any([result != results[0] for result in results], axis=0)
    if np.count_nonzero(is_open) > 1:
        return None
    return [-1 if varies else int(size) for varies, size in zip(is_open, results[0], strict=True)]


def _make_reshape(graph: Any, node: Any, shape: list[int]) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    constant = add_constant(graph, f"{node.name}/plain_shape", np.array(shape, np.int32))
    source, dtype = node.input[0], node.attr["T"].type
    node.op = "Reshape"
    del node.input[:]
    node.input.extend([source, constant])
    node.attr.clear()
    node.attr["T"].type = dtype
    node.attr["Tshape"].type = graph.node[-1].attr["dtype"].type


def _make_sized(graph: Any, node: Any, shape: list[int], loaded: LoadedGraph) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    """Give noise a shape with the number of observations where it has -1."""
    name, dtype = f"{node.name}/plain_shape", loaded.observation_input.dtype
    whole = add_node(
        graph, f"{name}/rows", "Shape", [loaded.observations], T=dtype, out_type="int32"
    )
    bounds = [add_constant(graph, f"{name}/{at}", [at]) for at in (0, 1)]
    rows = add_node(
        graph,
        f"{name}/count",
        "StridedSlice",
        [whole, bounds[0], bounds[1], bounds[1]],
        T="int32",
        Index="int32",
        shrink_axis_mask=1,
    )
    sizes = [
        rows if size == -1 else add_constant(graph, f"{name}/size_{place}", size)
        for place, size in enumerate(shape)
    ]
    node.input[0] = add_node(graph, name, "Pack", sizes, N=len(sizes), T="int32", axis=0)
    node.attr["T"].type = graph.node[-1].attr["T"].type


def _beside_zeros(nodes: GraphNodes, node: Any) -> str | None:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the term of a sum to which zeros are added; None for another sum."""
    for place, other in ((0, 1), (1, 0)):
        term = nodes.node(nodes.source(node.input[place]))
        is_filled = term.op == "Fill" and nodes.scalar(term.input[1]) == 0
        if is_filled or nodes.scalar(node.input[place]) == 0:
            return str(node.input[other])
    return None


def _make_identity(node: Any, kept: str) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    node.op = "Identity"
    del node.input[:]
    node.input.append(kept)
