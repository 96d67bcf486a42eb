"""The bounds that the last operations of a graph keep its numbers in, such as a scaled tanh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.operations import OPERATIONS
from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.graph import as_model_errors
from policy_server.formats.saved_model.nodes import GraphNodes
from policy_server.formats.scaled_actions import TENSORFLOW_CHANGES, Bounds

__all__ = ["KeptBounds", "base_of"]

Array = NDArray[Any]

_LIMITS = {
    "Relu6": Bounds(np.asarray(0.0), np.asarray(6.0)),
    "Sigmoid": Bounds.of(0, 1),
    "Softmax": Bounds.of(0, 1),
    "Softsign": Bounds.of(-1, 1),
    "Tanh": Bounds.of(-1, 1),
}
_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
# They give the numbers of their first input in another shape or type.
_PASSED = ("Cast", "ExpandDims", "Reshape", "Squeeze")
# Nested deeper than any network's actions are joined.
_MOST_NESTED = 20
_Change = Callable[[Array], Array]


def base_of(nodes: GraphNodes, tensor: str) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the node that gives a tensor's numbers before constants scale and clip them.

    Args:
        nodes: the graph's.
        tensor: its name.
    """
    return nodes.node(_followed(nodes, tensor)[0])


class KeptBounds:
    """The bounds of a graph's tensors, as far as constants behind a tanh tell them."""

    def __init__(self, graph_def: Any, nodes: GraphNodes) -> None:  # noqa: ANN401 -- TensorFlow is untyped
        """Own the sizes of the graph's tensors, once something asks for them.

        Args:
            graph_def: the flat graph.
            nodes: its nodes.
        """
        self._graph_def = graph_def
        self._nodes = nodes
        # By the name of a joining node.
        self._known: dict[str, Bounds] = {}

    def of(self, tensor: str) -> Bounds | None:
        """Return the bounds that a tensor's numbers are kept in; None where nothing tells them.

        Args:
            tensor: its name.
        """
        found = self._range(tensor)
        return found if found.is_known else None

    def _range(self, tensor: str, depth: int = 0) -> Bounds:
        changes: list[_Change] = []
        while True:
            tensor, constants = _followed(self._nodes, tensor)
            changes += constants
            node = self._nodes.node(tensor)
            first = self._chosen_from(node)
            if first is None:
                break
            changes.append(self._choice(node, tensor, first))
            tensor = first
        found = _LIMITS.get(node.op, Bounds.of_none())
        if node.op in ("ConcatV2", "Pack") and depth < _MOST_NESTED:
            # Many slices of what a node joins lead to it.
            if node.name not in self._known:
                self._known[node.name] = self._joined(node, depth)
            found = self._known[node.name]
        for change in reversed(changes):
            found = found.changed(change)
        return found

    def _chosen_from(self, node: Any) -> str | None:  # noqa: ANN401 -- as above
        """Return the tensor whose numbers a node chooses or passes on; None for another node."""
        if node.op in ("GatherV2", "SplitV", "StridedSlice"):
            places = node.input[1:]
            is_told = all(self._nodes.constant(name) is not None for name in places)
            return str(node.input[0]) if is_told else None
        if node.op == "Split":
            return str(node.input[1])
        return str(node.input[0]) if node.op in _PASSED else None

    def _choice(self, node: Any, tensor: str, first: str) -> _Change:  # noqa: ANN401 -- as above
        def taken(side: Array) -> Array:
            # Where all numbers have the same bounds, so have those that are taken.
            return side if np.size(side) == 1 else self._taken(node, tensor, first, np.ravel(side))

        return taken

    def _taken(self, node: Any, tensor: str, first: str, side: Array) -> Array:  # noqa: ANN401 -- as above
        """Return the numbers that a node takes of a row.

        Raises:
            ValueError: if they do not lie along the only axis of a row.
        """
        if node.op in _PASSED:
            return side
        if (None, side.size) != self._shape(first):
            raise ValueError(f"bounds of {side.size} numbers for another shape")
        row = side[None]
        if node.op in ("GatherV2", "StridedSlice"):
            values = [self._nodes.constant(name) for name in node.input[1:]]
            masks = {name: node.attr[name].i for name in _MASKS if node.op == "StridedSlice"}
            return np.ravel(OPERATIONS[node.op](row, *values, **masks))
        firsts = [0]
        for port in range(node.attr["num_split"].i):
            firsts.append(firsts[-1] + ((self._shape(f"{node.name}:{port}") or (0,))[-1] or 0))
        if firsts[-1] != side.size:
            raise ValueError("a split along another axis")
        port = int(tensor.partition(":")[2] or 0)
        return side[firsts[port] : firsts[port + 1]]

    def _joined(self, node: Any, depth: int) -> Bounds:  # noqa: ANN401 -- as above
        """Return the bounds of parts that are joined, where TensorFlow tells how wide each is."""
        tensors = node.input[:-1] if node.op == "ConcatV2" else node.input
        widths = []
        for tensor in tensors:
            shape = self._shape(tensor)
            # A stack joins one number of each part.
            width = shape[-1] if shape and node.op == "ConcatV2" else 1
            rank = len(("rows", "numbers")) if node.op == "ConcatV2" else 1
            if shape is None or len(shape) != rank or width is None:
                return Bounds.of_none()
            widths.append(width)
        return Bounds.joined(
            [
                (self._range(tensor, depth + 1), width)
                for tensor, width in zip(tensors, widths, strict=True)
            ]
        )

    def _shape(self, tensor: str) -> tuple[int | None, ...] | None:
        """Return a tensor's sizes, as far as TensorFlow tells them; None for an open rank."""
        name = self._nodes.source(tensor)
        shape = self._graph.get_tensor_by_name(name).shape
        return None if shape.rank is None else tuple(shape.as_list())

    @functools.cached_property
    def _graph(self) -> Any:  # noqa: ANN401 -- as above
        graph = tf.Graph()
        with as_model_errors(), graph.as_default():
            tf.import_graph_def(self._graph_def, name="")
        return graph


def _followed(nodes: GraphNodes, tensor: str) -> tuple[str, list[_Change]]:
    """Return the tensor before the constants, and the changes that these make, the last first."""
    changes: list[_Change] = []
    tensor = nodes.source(tensor)
    while (following := _change(nodes, nodes.node(tensor))) is not None:
        tensor, change = nodes.source(following[0]), following[1]
        changes.append(change)
    return tensor, changes


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
