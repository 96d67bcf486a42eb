"""Facts that only the weights show: the input's width, and networks that are no policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.saved_model.graph import LoadedGraph
from policy_server.formats.saved_model.nodes import SHAPE_OPS, GraphNodes

__all__ = ["find_width", "is_feature_layer", "is_untrained"]

_ACTIVATION_OPS = (
    "Relu",
    "Relu6",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Tanh",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Erf",
    "Erfc",
)
# Operations between a layer and its activation: swish is x * sigmoid(x), GELU holds an Erf,
# hard ones clip.
_ELEMENTWISE_OPS = (
    "Mul",
    "Add",
    "AddV2",
    "Sub",
    "Neg",
    "RealDiv",
    "Reshape",
    "Squeeze",
    "ExpandDims",
    "Cast",
    "Maximum",
    "Minimum",
    "ClipByValue",
)
_JOINING_OPS = ("ConcatV2", "Pack")
_NORM_TOLERANCE = 1e-5


def find_width(loaded: LoadedGraph) -> int | None:
    """Return how many numbers an observation has, by the weights of the first layer.

    Args:
        loaded: the frozen graph.

    Returns:
        The width; None where the observation does not go straight into a layer.
    """
    nodes = GraphNodes(loaded.graph_def)
    waiting = deque([nodes.source(loaded.observations)])
    seen: set[str] = set()
    while waiting:
        tensor = waiting.popleft()
        for node in nodes.consumers_of(tensor):
            if node.op == "MatMul" and nodes.inputs_of(node)[0] == tensor:
                weights = nodes.constant(node.input[1])
                if weights is not None:
                    return int(weights.shape[1 if node.attr["transpose_b"].b else 0])
            following = f"{node.name}:0"
            if node.op in _ELEMENTWISE_OPS and following not in seen:
                seen.add(following)
                waiting.append(following)
    return None


def is_feature_layer(loaded: LoadedGraph, output: str) -> bool:
    """Return whether an output is a layer of features, as logits never are.

    Args:
        loaded: the frozen graph.
        output: a key of the signature.

    Returns:
        True if it comes straight out of an activation function, or if another output, such as the
        value, is computed from it.
    """
    nodes = GraphNodes(loaded.graph_def)
    tensor = nodes.source(loaded.fetches[output])
    others = [name for name in loaded.fetches if name != output]
    if any(_depends_on(nodes, nodes.source(loaded.fetches[name]), tensor) for name in others):
        return True
    return _is_activated(nodes, tensor)


def _is_activated(nodes: GraphNodes, tensor: str) -> bool:
    """Return whether a tensor comes straight out of an activation function.

    Each tensor is looked at once: x * x, repeated, has a path for each of its factors.
    """
    found: dict[str, bool] = {}
    waiting = [tensor]
    while waiting:
        current = waiting[-1]
        node = nodes.node(current)
        parts = _parts(nodes, node)
        if missing := [item for item in parts if item not in found]:
            waiting += missing
            continue
        waiting.pop()
        told = [found[item] for item in parts]
        is_joined = node.op in _JOINING_OPS and bool(told) and all(told)
        is_changed = node.op in _ELEMENTWISE_OPS and any(told)
        found[current] = node.op in _ACTIVATION_OPS or is_joined or is_changed
    return found[tensor]


def _parts(nodes: GraphNodes, node: Any) -> list[str]:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the tensors that tell whether a node's result comes out of an activation."""
    if node.op in _JOINING_OPS:
        return [item for item in nodes.inputs_of(node) if nodes.constant(item) is None]
    return nodes.inputs_of(node) if node.op in _ELEMENTWISE_OPS else []


def _depends_on(nodes: GraphNodes, tensor: str, searched: str) -> bool:
    waiting, seen = [tensor], {searched}
    while waiting:
        current = waiting.pop()
        node = nodes.node(current)
        following = [] if node.op in SHAPE_OPS else nodes.inputs_of(node)
        if searched in following:
            return True
        waiting += [item for item in following if item not in seen]
        seen.update(following)
    return False


def is_untrained(loaded: LoadedGraph) -> bool:
    """Return whether every weight still has the value that RLlib started from.

    Ray 2.1 and later with `framework="tf"` writes the Keras model from a session of its own, with
    new weights.

    Args:
        loaded: the frozen graph.

    Source: RLlib `normc_initializer`, which gives every column of a kernel the norm 1.0 or 0.01;
        biases start at 0.
    """
    kernels = list(_kernels(loaded))
    return bool(kernels) and all(_is_initial(*pair) for pair in kernels)


def _kernels(loaded: LoadedGraph) -> Iterator[tuple[NDArray[Any], NDArray[Any] | None]]:
    """Yield each dense layer's kernel, its inputs along the first axis, with its bias."""
    nodes = GraphNodes(loaded.graph_def)
    for node in loaded.graph_def.node:
        kernel = nodes.constant(node.input[1]) if node.op == "MatMul" else None
        if kernel is None:
            continue
        biases = [
            nodes.constant(item.input[1])
            for item in nodes.consumers_of(f"{node.name}:0")
            if item.op in ("BiasAdd", "Add", "AddV2")
        ]
        yield kernel.T if node.attr["transpose_b"].b else kernel, next(iter(biases), None)


def _is_initial(kernel: NDArray[Any], bias: NDArray[Any] | None) -> bool:
    norms = np.linalg.norm(kernel.astype(np.float64), axis=0)
    is_normed = any(np.allclose(norms, norm, rtol=_NORM_TOLERANCE, atol=0) for norm in (1.0, 0.01))
    return is_normed and (bias is None or not bias.any())
