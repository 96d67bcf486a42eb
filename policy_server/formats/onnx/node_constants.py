"""The constants of a graph: its initializers, and those that its nodes hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.onnx.model_file import Node, OnnxModel

__all__ = ["constant_value", "constants_of"]

Array = NDArray[Any]
_NUMBERS = ("value_float", "value_floats", "value_int", "value_ints")


def constant_value(node: Node) -> Array | None:
    """Return the value that a node holds; None for text, and for a node that computes.

    Args:
        node: any node.
    """
    if node.operator != "Constant":
        return None
    if "value" in node.attributes:
        return np.asarray(node.attributes["value"])
    for name in _NUMBERS:
        if name in node.attributes:
            dtype = np.float32 if "float" in name else np.int64
            return np.asarray(node.attributes[name], dtype)
    return None


def constants_of(model: OnnxModel) -> dict[str, Array]:
    """Return the values of a graph's constants by their names.

    Args:
        model: the graph.
    """
    found = dict(model.constants)
    for node in model.nodes:
        if (value := constant_value(node)) is not None:
            found[node.outputs[0]] = value
    return found
