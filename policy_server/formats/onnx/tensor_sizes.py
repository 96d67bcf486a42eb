"""The sizes that a graph states for its tensors, held before anything computes it.

A few bytes ask for any amount of memory, and a runtime takes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.onnx.model_file import Node, OnnxModel
from policy_server.formats.onnx.node_constants import constant_value, constants_of

__all__ = ["MOST_NUMBERS", "check_sizes"]

Array = NDArray[Any]

MOST_NUMBERS = 50_000_000
"""The most numbers that a tensor may have which a graph makes of a size alone."""

# The places of the inputs whose product is the number of a result's numbers, or a part of it.
_PRODUCTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Resize": (2, 3),
    "Tile": (1,),
    "Upsample": (1,),
}
_SHAPED = ("RandomNormal", "RandomUniform")


def check_sizes(model: OnnxModel) -> None:
    """Refuse a graph that states the size of a tensor too large to compute.

    Sizes that it computes of an observation are not known here; the memory of a call is bounded
    where calls are made.

    Args:
        model: the graph.

    Raises:
        ModelError: if it makes one of more than `MOST_NUMBERS`.
    """
    nodes = [one for node in model.nodes for one in (node, *node.inner)]
    constants = constants_of(model)
    for node in nodes:
        if (value := constant_value(node)) is not None:
            constants.setdefault(node.outputs[0], value)
    for node in nodes:
        if _numbers(node, constants) > MOST_NUMBERS:
            raise ModelError(
                f"{model.name}: its {node.operator} makes a tensor of more than {MOST_NUMBERS} "
                "numbers; export the network without it"
            )


def _numbers(node: Node, constants: Mapping[str, Array]) -> float:
    """Return how many numbers a node makes at least, as far as constants tell."""
    if node.operator in _SHAPED:
        return float(math.prod(node.attributes.get("shape", ())))
    if node.operator == "Range":
        bounds = [constants.get(name) for name in node.inputs]
        known = [float(np.ravel(value)[0]) for value in bounds if value is not None and value.size]
        if len(known) < 3:
            return 0.0
        start, limit, step = known
        return (limit - start) / step if step else math.inf
    if node.operator == "Pad":
        given = node.attributes.get("pads")
        if given is None and len(node.inputs) > 1:
            given = constants.get(node.inputs[1])
        return 0.0 if given is None else float(np.max(given, initial=0))
    places = _PRODUCTS.get(node.operator, ())
    sizes = [constants.get(node.inputs[at]) for at in places if at < len(node.inputs)]
    # An axis of -1 or 0 keeps the input's; the others' product is at least reached.
    products = [
        float(np.prod(np.maximum(np.abs(value.astype(np.float64)), 1)))
        for value in sizes
        if value is not None and value.dtype.kind in "iuf"
    ]
    if node.operator in ("Resize", "Upsample"):
        products += [float(math.prod(node.attributes.get("scales", ())))]
    return max(products, default=0.0)
