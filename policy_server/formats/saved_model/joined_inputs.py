"""Several inputs of a graph as one observation: their numbers, one input behind another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from policy_server.errors import ModelError
from policy_server.formats.row_types import common_dtype
from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.freezing import node_of
from policy_server.formats.saved_model.graph_nodes import add_constant, add_node
from policy_server.policy import SignatureTensor

__all__ = ["JOINED", "columns_of", "join_inputs", "joined_input"]

JOINED = "policy_server/observations"
"""The placeholder of the whole observation."""


def joined_input(parts: Sequence[SignatureTensor], name: str) -> SignatureTensor:
    """Return the input that takes the whole observation.

    Args:
        parts: the inputs, in order.
        name: its name.

    Raises:
        ModelError: if the size of one is open.
    """
    for part in parts:
        if part.shape is None or part.shape[:1] != (None,) or None in part.shape[1:]:
            raise ModelError(
                f"saved_model.pb: the input '{part.name}' has the shape {part.shape}; expected "
                "fixed sizes behind the number of observations"
            )
    width = sum(width for _, width in columns_of(parts))
    return SignatureTensor(name, common_dtype([part.dtype for part in parts]), (None, width))


def columns_of(parts: Sequence[SignatureTensor]) -> tuple[tuple[str, int], ...]:
    """Return the type and the width of each input.

    Args:
        parts: the inputs, in order, of fixed sizes behind the number of observations.
    """
    return tuple(
        (part.dtype, math.prod(size for size in (part.shape or ())[1:] if size is not None))
        for part in parts
    )


def join_inputs(
    graph: Any,  # noqa: ANN401 -- TensorFlow is untyped
    parts: Mapping[str, SignatureTensor],
    whole: SignatureTensor,
) -> None:
    """Let each input be a part of one placeholder.

    Args:
        graph: the flat GraphDef, which is changed.
        parts: the inputs by their tensors, in order.
        whole: the input that takes their place.
    """
    place = graph.node.add(name=JOINED, op="Placeholder")
    place.attr["dtype"].type = tf.dtypes.as_dtype(whole.dtype).as_datatype_enum
    nodes = {node.name: node for node in graph.node}
    first = 0
    for index, (tensor, part) in enumerate(parts.items()):
        assert part.shape is not None, "joined_input has looked"
        sizes = [size for size in part.shape[1:] if size is not None]
        width, name = math.prod(sizes), f"{JOINED}/{index}"
        source = add_node(
            graph,
            f"{name}/part",
            "Slice",
            [
                f"{JOINED}:0",
                add_constant(graph, f"{name}/begin", [0, first]),
                add_constant(graph, f"{name}/size", [-1, width]),
            ],
            T=whole.dtype,
            Index="int32",
        )
        first += width
        if part.dtype != whole.dtype:
            source = add_node(
                graph, f"{name}/cast", "Cast", [source], SrcT=whole.dtype, DstT=part.dtype
            )
        shape = add_constant(graph, f"{name}/shape", [-1, *sizes])
        node = nodes[node_of(tensor)]
        node.op = "Reshape"
        node.attr.clear()
        node.input.extend([source, shape])
        node.attr["T"].type = tf.dtypes.as_dtype(part.dtype).as_datatype_enum
        node.attr["Tshape"].type = tf.dtypes.as_dtype("int32").as_datatype_enum
