"""The operations of a graph that draw random numbers, those within its branches among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from policy_server.formats.onnx.model_file import Node, OnnxModel
from policy_server.formats.onnx.node_constants import constant_value, constants_of
from policy_server.formats.onnx.state_pairs import ancestors_of

__all__ = ["RandomNodes"]

Array = NDArray[Any]

_RANDOM = frozenset(
    (
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
        # onnxruntime's own: they join a Dropout to others, or draw words.
        *("BiasDropout", "BitmaskBiasDropout", "BitmaskDropout", "Sampling"),
    )
)
# Dropout's place of its switch, since opset 12; before, it did nothing outside of training.
_SWITCH = 2


class RandomNodes:
    """The operations of a graph that give other numbers at each call."""

    def __init__(self, model: OnnxModel, fixed: Mapping[str, Array]) -> None:
        """Own nothing but the constants.

        Args:
            model: the graph.
            fixed: the inputs that always have the same value, such as `training`, by name.
        """
        self._model = model
        self._constants = {**constants_of(model), **fixed}
        for node in (inner for outer in model.nodes for inner in outer.inner):
            if (value := constant_value(node)) is not None:
                self._constants.setdefault(node.outputs[0], value)

    def before(self, tensor: str) -> list[Node]:
        """Return the nodes that draw random numbers on the way to a tensor.

        Args:
            tensor: its name.
        """
        found = ancestors_of(self._model, [tensor])
        return [
            one
            for node in self._model.nodes
            if found.intersection(node.outputs)
            for one in (node, *node.inner)
            if self.is_random(one)
        ]

    def is_random(self, node: Node) -> bool:
        """Return whether a node draws random numbers, as a Dropout does in training.

        Args:
            node: a node of the graph, or of one of its branches.
        """
        if node.operator != "Dropout":
            return node.operator in _RANDOM
        switch = node.inputs[_SWITCH] if len(node.inputs) > _SWITCH else ""
        value = self._constants.get(switch)
        return bool(switch) and (value is None or bool(value.any()))
