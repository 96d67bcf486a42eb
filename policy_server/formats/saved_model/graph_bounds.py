"""The bounds that the last operations of a graph keep its numbers in, such as a scaled tanh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.saved_model.nodes import GraphNodes
from policy_server.formats.scaled_actions import TENSORFLOW_CHANGES, Bounds

__all__ = ["base_of", "kept_bounds"]

Array = NDArray[Any]

_LIMITS = {
    "Relu6": Bounds(np.asarray(0.0), np.asarray(6.0)),
    "Sigmoid": Bounds.of(0, 1),
    "Softmax": Bounds.of(0, 1),
    "Softsign": Bounds.of(-1, 1),
    "Tanh": Bounds.of(-1, 1),
}
# A dense layer ends with its bias, or with the product where it has none.
_LAYERS = ("Add", "AddV2", "BiasAdd", "MatMul")
_Change = Callable[[Array], Array]


def base_of(nodes: GraphNodes, tensor: str) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the node that gives a tensor's numbers before constants scale and clip them.

    Args:
        nodes: the graph's.
        tensor: its name.
    """
    return _followed(nodes, tensor)[0]


def kept_bounds(nodes: GraphNodes, tensor: str) -> Bounds | None:
    """Return the bounds that a tensor's numbers are kept in; None where nothing tells them.

    Args:
        nodes: the graph's.
        tensor: its name.
    """
    node, changes = _followed(nodes, tensor)
    found = _LIMITS.get(node.op, Bounds.of_none())
    if node.op == "ConcatV2" and not changes:
        found = _joined(nodes, node)
    for change in reversed(changes):
        found = found.changed(change)
    return found if found.is_known else None


def _joined(nodes: GraphNodes, node: Any) -> Bounds:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the bounds of parts that are joined, where layers tell how wide each is."""
    parts = []
    for tensor in node.input[:-1]:
        width = _width(nodes, base_of(nodes, tensor))
        found = kept_bounds(nodes, tensor)
        if width is None or found is None:
            return Bounds.of_none()
        parts.append((found, width))
    return Bounds.joined(parts)


def _followed(nodes: GraphNodes, tensor: str) -> tuple[Any, list[_Change]]:
    """Return the node before the constants, and the changes that these make, the last one first."""
    changes: list[_Change] = []
    node = nodes.node(nodes.source(tensor))
    while (following := _change(nodes, node)) is not None:
        tensor, change = following
        changes.append(change)
        node = nodes.node(nodes.source(tensor))
    return node, changes


def _change(nodes: GraphNodes, node: Any) -> tuple[str, _Change] | None:  # noqa: ANN401 -- as above
    """Return the tensor that constants change, and the change; None for another node."""
    if node.op == "ClipByValue":
        least, most = (nodes.constant(name) for name in node.input[1:3])
        if least is None or most is None:
            return None
        return node.input[0], lambda side: np.minimum(np.maximum(side, least), most)
    function = TENSORFLOW_CHANGES.get(node.op)
    if function is None:
        return None
    first, second = (nodes.constant(name) for name in node.input[:2])
    if second is not None:
        second = second.astype(np.float64)
        return node.input[0], lambda side: function(side, second)
    if first is None or node.op == "RealDiv":
        return None
    first = first.astype(np.float64)
    return node.input[1], lambda side: function(first, side)


def _width(nodes: GraphNodes, node: Any) -> int | None:  # noqa: ANN401 -- as above
    """Return how many numbers the layer before a function gives; None where none is there."""
    if node.op not in _LIMITS:
        return None
    layer = nodes.node(nodes.source(node.input[0]))
    weights = nodes.constant(layer.input[1]) if layer.op in _LAYERS else None
    if weights is None or not weights.ndim:
        return None
    is_turned = layer.op == "MatMul" and layer.attr["transpose_b"].b
    return int(weights.shape[0 if is_turned else -1])
