"""Small ONNX models, made node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from policy_server.errors import PolicyServerError
from policy_server.formats.known_formats import load_policy

__all__ = [
    "DEADLY",
    "FAILING",
    "HARMLESS",
    "HUNGRY",
    "LASTING",
    "UNKNOWN",
    "Shape",
    "actor",
    "failing_actor",
    "files_in",
    "node",
    "refused",
    "tensor",
    "weights",
    "write_model",
]

# Observations of `failing_actor`'s: an ordinary one, and those that it fails on, gives NaN for,
# takes 4 GB for; a lasting one computes minutes for the next one, and ends its process at the last.
HARMLESS, FAILING, UNKNOWN = [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 7e4], [0.1, 0.2, 7e4, 0.4]
HUNGRY, LASTING = [0.1, 60_100.0, 0.3, 0.4], [63_000.0, 0.2, 0.3, 0.4]
DEADLY = [0.1, 0.2, 9e4, 0.4]
_PRODUCTS = 300
Array = NDArray[Any]
Shape = Sequence[int | str]


def files_in(folder: Path) -> dict[str, Path]:
    """Return a model's files by their names, as the readers take them."""
    return {path.name: path for path in folder.iterdir()}


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


def failing_actor(folder: Path, *, is_lasting: bool = False) -> Path:
    """Write a policy that fails, or gives NaN, for numbers above 60,000, which no probe has.

    The last number is looked up in a table of that length, the one before is taken from that
    number under a root; the second one above it is the length of a tensor, times 10 million. In a
    lasting policy the first one above it is the width of matrices, of which many are multiplied;
    where the third one is 90,000 the smallest integer is divided by -1, at which the processor
    ends onnxruntime's process (SIGFPE).
    """
    nothing = [node("Identity", ["none"], [name]) for name in ("multiplied", "divided")]
    products = [*_products(), *_division()] if is_lasting else nothing
    ending = [
        *(
            node("Constant", [], [name], value_ints=[place])
            for name, place in (("second", 1), ("third", 2), ("fourth", 3), ("one", 1))
        ),
        node("Constant", [], ["size"], value_ints=[60_000, 1]),
        node("ConstantOfShape", ["size"], ["table"]),
        node("Constant", [], ["most"], value_float=6e4),
        node("Constant", [], ["none"], value_float=0.0),
        node("Constant", [], ["many"], value_float=1e7),
        node("Gather", ["obs", "fourth"], ["looked_up"], axis=1),
        node("Abs", ["looked_up"], ["positive"]),
        node("Cast", ["positive"], ["index"], to=onnx.TensorProto.INT64),
        node("Gather", ["table", "index"], ["found"], axis=0),
        node("ReduceSum", ["found", "one"], ["nothing"], keepdims=0),
        node("Gather", ["obs", "third"], ["rooted"], axis=1),
        node("Sub", ["most", "rooted"], ["left"]),
        node("Sqrt", ["left"], ["root"]),
        node("Mul", ["root", "none"], ["nothing_or_nan"]),
        node("Gather", ["obs", "second"], ["long"], axis=1),
        node("Sub", ["long", "most"], ["over"]),
        node("Relu", ["over"], ["over_or_none"]),
        node("ReduceMax", ["over_or_none"], ["largest"], keepdims=0),
        node("Mul", ["largest", "many"], ["length"]),
        node("Cast", ["length"], ["whole"], to=onnx.TensorProto.INT64),
        node("Add", ["whole", "one"], ["at_least_one"]),
        node("ConstantOfShape", ["at_least_one"], ["filled"]),
        node("ReduceSum", ["filled"], ["sum"], keepdims=0),
        *products,
        node(
            "Sum", ["net", "nothing", "nothing_or_nan", "sum", "multiplied", "divided"], ["logits"]
        ),
    ]
    return actor(folder, *ending)


def refused(folder: Path) -> str:
    """Return the one line by which the policy of a folder is refused."""
    with pytest.raises(PolicyServerError) as caught:
        load_policy(folder)
    assert "\n" not in caught.value.message
    return caught.value.message


def _products() -> list[Any]:
    """Return the product of many square matrices, which are as wide as the first number says."""
    return [
        node("Constant", [], ["first"], value_ints=[0]),
        node("Gather", ["obs", "first"], ["lasting"], axis=1),
        node("Sub", ["lasting", "most"], ["lasting_over"]),
        node("Relu", ["lasting_over"], ["lasting_or_not"]),
        node("ReduceMax", ["lasting_or_not"], ["widest"], keepdims=0),
        node("Cast", ["widest"], ["width"], to=onnx.TensorProto.INT64),
        node("Add", ["width", "one"], ["at_least_one_wide"]),
        node("Concat", ["at_least_one_wide", "at_least_one_wide"], ["square"], axis=0),
        node("ConstantOfShape", ["square"], ["product0"]),
        *(
            node("MatMul", [f"product{i}", "product0"], [f"product{i + 1}"])
            for i in range(_PRODUCTS)
        ),
        node("ReduceSum", [f"product{_PRODUCTS}"], ["multiplied"], keepdims=0),
    ]


def _division() -> list[Any]:
    """Return nothing, or the division whose result no integer of 32 bits can hold."""
    return [
        node("Constant", [], ["smallest"], value=_whole(-(2**31))),
        node("Constant", [], ["plus_one"], value=_whole(1)),
        node("Constant", [], ["two"], value=_whole(2)),
        node("Constant", [], ["deadly"], value_float=DEADLY[2]),
        node("Equal", ["rooted", "deadly"], ["is_equal"]),
        node("Cast", ["is_equal"], ["none_or_one"], to=onnx.TensorProto.INT32),
        node("Mul", ["none_or_one", "two"], ["none_or_two"]),
        node("Sub", ["plus_one", "none_or_two"], ["divisor"]),
        node("Div", ["smallest", "divisor"], ["quotient"]),
        node("Cast", ["quotient"], ["quotient_float"], to=onnx.TensorProto.FLOAT),
        node("Mul", ["quotient_float", "none"], ["divided"]),
    ]


def _whole(value: int) -> Any:  # noqa: ANN401 -- onnx is untyped
    return helper.make_tensor("value", onnx.TensorProto.INT32, [1], [value])
