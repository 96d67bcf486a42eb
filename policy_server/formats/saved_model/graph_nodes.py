"""Adding nodes to a GraphDef."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from policy_server.formats.saved_model import slim_tensorflow as tf

__all__ = ["add_constant", "add_node"]


def add_node(
    graph: Any,  # noqa: ANN401 -- TensorFlow is untyped
    name: str,
    operation: str,
    inputs: Sequence[str],
    **attributes: str | int,
) -> str:
    """Add a node, and return the name of its first result.

    Args:
        graph: the GraphDef, which is changed.
        name: the node's, which no other has.
        operation: TensorFlow's name of it.
        inputs: the tensors that it takes.
        attributes: integers, and types by NumPy's names.
    """
    node = graph.node.add(name=name, op=operation)
    node.input.extend(inputs)
    for key, value in attributes.items():
        if isinstance(value, str):
            node.attr[key].type = tf.dtypes.as_dtype(value).as_datatype_enum
        else:
            node.attr[key].i = value
    return f"{name}:0"


def add_constant(graph: Any, name: str, value: ArrayLike) -> str:  # noqa: ANN401 -- TensorFlow is untyped
    """Add a constant, int32 for integers and float32 for others, and return its name.

    Args:
        graph: the GraphDef, which is changed.
        name: the node's, which no other has.
        value: the constant.
    """
    array = np.asarray(value)
    array = array.astype(np.int32 if array.dtype.kind in "iu" else np.float32)
    node = graph.node.add(name=name, op="Const")
    node.attr["dtype"].type = tf.dtypes.as_dtype(array.dtype.name).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array))
    return f"{name}:0"
