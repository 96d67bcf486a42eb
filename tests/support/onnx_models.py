"""Small ONNX models, made node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["Shape", "actor", "node", "tensor", "weights", "write_model"]

Array = NDArray[Any]
Shape = Sequence[int | str]


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:  # noqa: ANN401 -- onnx is untyped
    """Return one operation."""
    return helper.make_node(operator, list(inputs), list(outputs), **attributes)


def tensor(name: str, shape: Shape | None, dtype: str = "float32") -> Any:  # noqa: ANN401 -- onnx is untyped
    """Return the description of an input or output."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)


def weights(*shape: int, seed: int = 0) -> Array:
    """Return random weights, the same at every call."""
    return (np.random.default_rng(seed).standard_normal(shape) * 0.7).astype(np.float32)


def write_model(
    folder: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    name: str = "policy.onnx",
    metadata: Mapping[str, str] | None = None,
    functions: Sequence[Any] = (),
) -> Path:
    """Write a model, and return its path."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        list(inputs),
        list(outputs),
        [numpy_helper.from_array(value, key) for key, value in (constants or {}).items()],
    )
    opsets = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(f.domain, 1) for f in functions),
    ]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=8, producer_name="test", functions=list(functions)
    )
    if metadata:
        helper.set_model_props(model, dict(metadata))
    path = folder / name
    onnx.save(model, path)
    return path


def actor(
    folder: Path,
    *ending: Any,  # noqa: ANN401 -- onnx is untyped
    output: str = "logits",
    width: int = 4,
    actions: int = 3,
    batch: int | str = "batch",
    outputs: Sequence[Any] | None = None,
    opset: int = 17,
) -> Path:
    """Write a network of two layers, whose last tensor `net` the ending turns into outputs.

    Without an ending, `net` is the output by the name that is given.
    """
    last = "net" if ending else output
    nodes = [
        node("Gemm", ["obs", "w0", "b0"], ["layer"]),
        node("Tanh", ["layer"], ["hidden"]),
        node("Gemm", ["hidden", "w1", "b1"], [last]),
        *ending,
    ]
    constants = {
        "w0": weights(width, 8),
        "b0": weights(8, seed=1),
        "w1": weights(8, actions, seed=2),
        "b1": weights(actions, seed=3),
    }
    return write_model(
        folder,
        nodes,
        [tensor("obs", [batch, width])],
        [tensor(output, [batch, actions])] if outputs is None else outputs,
        constants,
        opset=opset,
    )
