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

_ABOUT_ONE = 1.0 + 1e-5
_ACTIVATIONS = {"Tanh": (-1.0, 1.0), "Sigmoid": (0.0, 1.0)}
_LINEAR: Mapping[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Div": np.divide,
    "Mul": np.multiply,
    "Sub": np.subtract,
}
_LIMITS: Mapping[str, Callable[[Array, Array], Array]] = {"Max": np.maximum, "Min": np.minimum}


class KeptBounds:
    """The bounds of a graph's tensors, as far as constants behind a tanh or a clipping tell them.

    CleanRL's actors end with `tanh(x) * action_scale + action_bias`, in the environment's units.
    """

    def __init__(self, model: OnnxModel, view: GraphView) -> None:
        """Own nothing but the graph's constants.

        Args:
            model: the graph.
            view: follows it.
        """
        self._view = view
        self._constants = constants_of(model)

    def part(self, tensor: str, width: int) -> KeptPart:
        """Return a tensor with the least and the most of its numbers, where they are told.

        Numbers within [-1, 1], and those that are only clipped, may be meant to be rescaled.

        Args:
            tensor: its name.
            width: how many numbers it has in one row.
        """
        with np.errstate(all="ignore"):
            low, high = self._range(tensor)
        if {low.size, high.size} - {1, width} or not np.isfinite([*low, *high]).all():
            return KeptPart(width, None)
        is_within = bool((low >= -_ABOUT_ONE).all() and (high <= _ABOUT_ONE).all())
        return KeptPart(width, (low, high), not is_within and self._is_squashed(tensor))

    def _is_squashed(self, tensor: str) -> bool:
        """Return whether a tensor is a tanh or a sigmoid that constants change."""
        node = self._view.node(tensor)
        while node is not None and node.operator in ("Clip", *_LINEAR, *_LIMITS):
            following = [name for name in node.inputs if name and self._constant(name) is None]
            node = self._view.node(following[0]) if len(following) == 1 else None
        return node is not None and node.operator in _ACTIVATIONS

    def _range(self, tensor: str) -> Bounds:
        """Return a tensor's least and most, infinite where nothing tells them."""
        node = self._view.node(tensor)
        if node is not None and node.operator in _ACTIVATIONS:
            low, high = _ACTIVATIONS[node.operator]
            return np.full(1, low), np.full(1, high)
        if node is not None and node.operator == "Clip":
            return self._clipped(node)
        if node is not None and len(node.inputs) == 2 and node.operator in (*_LINEAR, *_LIMITS):
            return self._changed(node)
        return _unknown()

    def _clipped(self, node: Node) -> Bounds:
        stated = [node.attributes.get("min"), node.attributes.get("max")]
        for place, name in enumerate(node.inputs[1:3]):
            stated[place] = self._constant(name) if name else None
        low, high = self._range(node.inputs[0])
        least, most = (
            np.full(1, rest) if value is None else np.ravel(np.asarray(value, np.float64))
            for value, rest in zip(stated, (-np.inf, np.inf), strict=True)
        )
        return _each(lambda side: np.minimum(np.maximum(side, least), most), low, high)

    def _changed(self, node: Node) -> Bounds:
        """Return the bounds behind a node of a constant and a tensor."""
        function = {**_LINEAR, **_LIMITS}[node.operator]
        first, second = map(self._constant, node.inputs)
        if second is not None:
            return _each(
                lambda side: function(side, second),
                *self._range(node.inputs[0]),
            )
        if first is None or node.operator == "Div":
            return _unknown()
        return _each(lambda side: function(first, side), *self._range(node.inputs[1]))

    def _constant(self, name: str) -> Array | None:
        value = self._constants.get(self._view.source(name))
        return None if value is None else np.ravel(np.asarray(value, np.float64))


def _unknown() -> Bounds:
    return np.full(1, -np.inf), np.full(1, np.inf)


def _each(change: Callable[[Array], Array], low: Array, high: Array) -> Bounds:
    """Return the bounds behind a change that is monotone; unknown where the sizes don't fit."""
    try:
        one, other = change(low), change(high)
    except ValueError:
        return _unknown()
    return np.minimum(one, other), np.maximum(one, other)
