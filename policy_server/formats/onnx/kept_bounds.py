"""The bounds that the last operations of a graph keep its numbers in, such as a scaled tanh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.onnx.graph_view import GraphView
from policy_server.formats.onnx.model_file import Node, OnnxModel
from policy_server.formats.onnx.node_constants import constants_of
from policy_server.formats.scaled_actions import Bounds, KeptPart

__all__ = ["KeptBounds"]

Array = NDArray[Any]

_ACTIVATIONS = {
    "HardSigmoid": Bounds.of(0, 1),
    "Sigmoid": Bounds.of(0, 1),
    "Softmax": Bounds.of(0, 1),
    "Softsign": Bounds.of(-1, 1),
    "Tanh": Bounds.of(-1, 1),
}
_LINEAR: Mapping[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Div": np.divide,
    "Mul": np.multiply,
    "Sub": np.subtract,
}
_CHOOSING = ("Gather", "Slice", "Split")
_NUMBERS_AXIS = 1
# Nested deeper than any network's actions are joined.
_MOST_NESTED = 20
_LIMITS: Mapping[str, Callable[[Array, Array], Array]] = {"Max": np.maximum, "Min": np.minimum}


class KeptBounds:
    """The bounds of a graph's tensors, as far as constants behind a tanh or a clipping tell them.

    CleanRL's actors end with `tanh(x) * action_scale + action_bias`, in the environment's units.
    """

    def __init__(self, model: OnnxModel, view: GraphView, rows_of: Callable[[str], Array]) -> None:
        """Own nothing but the graph's constants.

        Args:
            model: the graph.
            view: follows it.
            rows_of: gives a tensor's numbers for some observations, float[B, width], by its name.
        """
        self._view = view
        self._constants = constants_of(model)
        self._rows_of = rows_of
        # By what a node joins, since many slices of that may lead to it.
        self._known: dict[str, Bounds] = {}

    def part(self, tensor: str, width: int) -> KeptPart:
        """Return a tensor with the least and the most of its numbers, where they are told.

        Args:
            tensor: its name.
            width: how many numbers it has in one row.
        """
        found = self._range(tensor)
        if {found.low.size, found.high.size} - {1, width} or not found.is_known:
            return KeptPart(width, Bounds.of_shares(self._rows_of(tensor)))
        return KeptPart(width, found)

    def _joined(self, node: Node, depth: int) -> Bounds:
        """Return the bounds of parts that are joined, such as a steering's tanh and a sigmoid."""
        # One row of each part lies behind another only where a row has no other dimension.
        shapes = [self._view.shape(name) for name in node.inputs]
        if depth >= _MOST_NESTED or any(len(shape) != len(("rows", "numbers")) for shape in shapes):
            return Bounds.of_none()
        return Bounds.joined(
            [
                (self._range(name, depth + 1), shape[1])
                for name, shape in zip(node.inputs, shapes, strict=True)
            ]
        )

    def _range(self, tensor: str, depth: int = 0) -> Bounds:
        """Return a tensor's least and most, infinite where nothing tells them."""
        changes: list[Callable[[Array], Array]] = []
        found = Bounds.of_none()
        while (node := self._view.node(tensor)) is not None:
            if node.operator in _ACTIVATIONS:
                found = _ACTIVATIONS[node.operator]
                break
            if node.operator == "Concat":
                if node.outputs[0] not in self._known:
                    self._known[node.outputs[0]] = self._joined(node, depth)
                found = self._known[node.outputs[0]]
                break
            following = self._change(node, self._view.source(tensor))
            if following is None:
                break
            tensor, change = following
            changes.append(change)
        for change in reversed(changes):
            found = found.changed(change)
        return found

    def _change(self, node: Node, tensor: str) -> tuple[str, Callable[[Array], Array]] | None:
        """Return the tensor that constants change, and the change; None for another node."""
        if node.operator == "Clip":
            return node.inputs[0], self._clipping(node)
        if node.operator in _CHOOSING:
            return self._choice(node, tensor)
        function = {**_LINEAR, **_LIMITS}.get(node.operator)
        if function is None or len(node.inputs) != 2:
            return None
        first, second = map(self._constant, node.inputs)
        if second is not None:
            return node.inputs[0], lambda side: function(side, second)
        if first is None or node.operator == "Div":
            return None
        return node.inputs[1], lambda side: function(first, side)

    def _choice(self, node: Node, tensor: str) -> tuple[str, Callable[[Array], Array]]:
        """Return the tensor of which a node takes some numbers, and how they are taken."""

        def taken(side: Array) -> Array:
            # Where all numbers have the same bounds, so have those that are taken.
            return side if side.size == 1 else side[self._places(node, tensor, side.size)]

        return node.inputs[0], taken

    def _places(self, node: Node, tensor: str, width: int) -> Array:
        """Return the places, among a row's numbers, of those that a node takes.

        Raises:
            ValueError: if constants do not tell them.
        """
        shape, places = self._view.shape(node.inputs[0]), np.arange(width)
        if len(shape) != len(("rows", "numbers")) or shape[1] != width:
            raise ValueError(f"bounds of {width} numbers for a tensor of the shape {shape}")
        if node.operator == "Split":
            sizes = [self._view.shape(name)[-1] for name in node.outputs]
            chosen = np.split(places, np.cumsum(sizes[:-1]))[node.outputs.index(tensor)]
            axes = [int(node.attributes.get("axis", 0))]
        elif node.operator == "Gather":
            (indices,) = self._stated(node, "indices")
            chosen, axes = places[indices], [int(node.attributes.get("axis", 0))]
        else:
            starts, ends, axes, steps = self._stated(node, "starts", "ends", "axes", "steps")
            chosen = places[slice(*(int(one[0]) for one in (starts, ends, steps)))]
        if [axis % len(shape) for axis in axes] != [_NUMBERS_AXIS]:
            raise ValueError(f"a {node.operator} along the axes {axes}")
        return chosen

    def _stated(self, node: Node, *names: str) -> list[Any]:
        """Return whole numbers that a node has as constant inputs, or as attributes in old files.

        Raises:
            ValueError: if one is computed.
        """
        found: list[Any] = []
        for place, name in enumerate(names, start=1):
            given = node.inputs[place] if place < len(node.inputs) else ""
            value = self._constant(given) if given else node.attributes.get(name)
            if value is None and name == "steps":
                value = [1]
            if value is None:
                raise ValueError(f"{name} of a {node.operator} are computed")
            found.append(np.asarray(value).astype(np.int64))
        return found

    def _clipping(self, node: Node) -> Callable[[Array], Array]:
        stated = [node.attributes.get("min"), node.attributes.get("max")]
        for place, name in enumerate(node.inputs[1:3]):
            stated[place] = self._constant(name) if name else None
        least, most = (
            np.full(1, rest) if value is None else np.ravel(np.asarray(value, np.float64))
            for value, rest in zip(stated, (-np.inf, np.inf), strict=True)
        )
        return lambda side: np.minimum(np.maximum(side, least), most)

    def _constant(self, name: str) -> Array | None:
        value = self._constants.get(self._view.source(name))
        return None if value is None else np.ravel(np.asarray(value, np.float64))
