"""The sizes of a graph's tensors for one observation, held before anything computes them.

A few bytes ask for any amount of memory, and a runtime takes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from policy_server.errors import ModelError
from policy_server.formats.onnx.function_attributes import with_inner
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.formats.onnx.node_constants import constant_value, constants_of

__all__ = ["MOST_NUMBERS", "check_sizes"]

MOST_NUMBERS = 50_000_000
"""The most numbers that a tensor may have for one observation.

One that is computed of constants alone may have as many as the file holds, if these are more.
"""

# Constants that may state a size; of others the shape suffices.
_MOST_IN_SHAPE = 1_000


def check_sizes(model: OnnxModel) -> None:
    """Refuse a graph that makes a tensor too large to compute, for one observation.

    ONNX's own rules tell the shapes from the constants. Sizes that the graph computes are not known
    here: the memory of the process that compiles a policy is bounded, and that of a call where
    calls are made.

    Args:
        model: the graph.

    Raises:
        ModelError: if a tensor has more than `MOST_NUMBERS`, and one of constants alone more than
            the file too.
    """
    from onnx import shape_inference
    from onnx.checker import ValidationError

    try:
        # Sizes that it computes stay unknown: to compute them (data_prop) may take any memory too.
        inferred = shape_inference.infer_shapes(_for_one(model))
    except (RuntimeError, ValidationError, shape_inference.InferenceError):
        # A runtime says what is wrong, or computes it none the less.
        return
    most_of_constants = max(MOST_NUMBERS, _held(model))
    varying = {item.name for item in model.inputs}
    for graph in _graphs(inferred.graph):
        sizes = {item.name: _numbers(item) for item in (*graph.value_info, *graph.output)}
        for node in graph.node:
            most = most_of_constants
            if varying.intersection(name for one in with_inner([node]) for name in one.input):
                varying.update(node.output)
                most = MOST_NUMBERS
            if any(sizes.get(name, 0) > most for name in node.output):
                raise ModelError(
                    f"{model.name}: its {node.op_type} makes a tensor of more than {most} "
                    "numbers; export the network without it"
                )


def _held(model: OnnxModel) -> int:
    """Return how many numbers the file holds: its initializers, and what its nodes hold."""
    inner = (constant_value(one) for node in model.nodes for one in node.inner)
    return sum(value.size for value in (*constants_of(model).values(), *inner) if value is not None)


def _for_one(model: OnnxModel) -> Any:  # noqa: ANN401 -- onnx is untyped
    """Return the graph's message for one observation, without the numbers of its weights."""
    import onnx

    source = model.proto.graph
    proto = onnx.ModelProto(ir_version=model.proto.ir_version)
    proto.opset_import.extend(model.proto.opset_import)
    graph = proto.graph
    graph.node.extend(source.node)
    graph.input.extend(item for item in source.input if item.name not in model.constants)
    for item in graph.input:
        for size in item.type.tensor_type.shape.dim:
            if size.WhichOneof("value") != "dim_value":
                size.dim_value = 1
    for item in source.initializer:
        if math.prod(item.dims) > _MOST_IN_SHAPE:
            graph.input.append(
                onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims)
            )
        else:
            graph.initializer.append(item)
    graph.output.extend(onnx.ValueInfoProto(name=item.name) for item in source.output)
    return proto


def _graphs(graph: Any) -> Iterator[Any]:  # noqa: ANN401 -- onnx is untyped
    """Yield a graph and those of its operations, such as the branches of an If, at any depth."""
    yield graph
    for node in graph.node:
        for item in node.attribute:
            for inner in (item.g, *item.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _numbers(item: Any) -> int:  # noqa: ANN401 -- onnx is untyped
    """Return how many numbers a tensor has at least: sizes that are not known count as one."""
    return math.prod(max(size.dim_value, 1) for size in item.type.tensor_type.shape.dim)
