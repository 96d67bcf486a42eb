"""ONNX's layers and reductions, in the engine's operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from policy_server.engine.building import NotCompiledError
from policy_server.formats.onnx.model_file import Node
from policy_server.formats.onnx.registers import Registers

__all__ = ["LAYERS"]

Inputs = Sequence[int | None]
Translation = Callable[[Registers, Node, Sequence[int | None]], int | Sequence[int]]

_EPSILON = 1e-5
# Since this version Softmax and its kin go along one axis, not over all from one axis on.
_ONE_AXIS = 13
_NORM_OF_VALUES = 2


def _input(x: Inputs, place: int) -> int:
    value = x[place] if len(x) > place else None
    if value is None:
        raise NotCompiledError("a layer lacks its input")
    return value


def _gemm(registers: Registers, node: Node, x: Inputs) -> int:
    factors = []
    for place, name in enumerate(("transA", "transB")):
        value = _input(x, place)
        factors.append(
            registers.transpose(value, (1, 0)) if node.attributes.get(name, 0) else value
        )
    product = _scaled(registers, registers.matmul(*factors), node.attributes.get("alpha", 1.0))
    if len(x) < 3 or x[2] is None:
        return product
    return registers.add("Add", product, _scaled(registers, x[2], node.attributes.get("beta", 1.0)))


def _scaled(registers: Registers, value: int, factor: float) -> int:
    if factor == 1.0:
        return value
    return registers.add("Mul", value, registers.keep(factor, like=value))


def _matmul(registers: Registers, _node: Node, x: Inputs) -> int:
    return registers.matmul(_input(x, 0), _input(x, 1))


def _einsum(registers: Registers, node: Node, x: Inputs) -> int:
    parts = [_input(x, place) for place in range(len(x))]
    return registers.add("Einsum", *parts, equation=str(node.attributes["equation"]))


def _windows(
    registers: Registers, node: Node, value: int, window: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Return the strides, dilations and pads of a convolution or a pool."""
    rank = len(window)
    strides = tuple(node.attributes.get("strides", (1,) * rank))
    dilations = tuple(node.attributes.get("dilations", (1,) * rank))
    pads = tuple(node.attributes.get("pads", (0,) * (2 * rank)))
    kind = node.attributes.get("auto_pad", "NOTSET")
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        sizes = registers.builder.shapes(value)[0][-rank:]
        total = [
            max((-(-size // stride) - 1) * stride + (length - 1) * dilation + 1 - size, 0)
            for size, stride, length, dilation in zip(
                sizes, strides, window, dilations, strict=True
            )
        ]
        small, large = [n // 2 for n in total], [n - n // 2 for n in total]
        pads = (*small, *large) if kind == "SAME_UPPER" else (*large, *small)
    return {"strides": strides, "dilations": dilations, "pads": pads}


def _conv(registers: Registers, node: Node, x: Inputs) -> int:
    value, filters = _input(x, 0), _input(x, 1)
    shape = registers.builder.shapes(filters)[0]
    named = _windows(registers, node, value, shape[2:])
    found = registers.add(
        "convolve", value, filters, groups=int(node.attributes.get("group", 1)), **named
    )
    result = registers.builder.shapes(found)[0]
    registers.builder.in_convolutions += math.prod(result) * math.prod(shape[1:])
    if len(x) > 2 and x[2] is not None:
        bias = registers.unsqueeze(x[2], range(1, len(shape) - 1))
        found = registers.add("Add", found, bias)
    return found


def _pool(registers: Registers, node: Node, x: Inputs) -> int:
    value, window = _input(x, 0), tuple(node.attributes["kernel_shape"])
    named = _windows(registers, node, value, window)
    dilations = named.pop("dilations")
    if node.attributes.get("ceil_mode", 0) or set(dilations) != {1} or len(node.outputs) > 1:
        raise NotCompiledError(f"NumPy has no such {node.operator}")
    kind = "max" if node.operator == "MaxPool" else "mean"
    if kind == "mean" and node.attributes.get("count_include_pad", 0):
        kind = "mean with padding"
    return registers.add("pool", value, window=window, kind=kind, **named)


def _global_pool(registers: Registers, node: Node, x: Inputs) -> int:
    value = _input(x, 0)
    kind = "Mean" if node.operator == "GlobalAveragePool" else "Max"
    return registers.reduce(kind, value, range(2, registers.rank(value)), keep_dims=True)


def _standardised(registers: Registers, value: int, axes: Sequence[int], epsilon: float) -> int:
    centered = registers.add("Sub", value, registers.reduce("Mean", value, axes, keep_dims=True))
    variance = registers.reduce("Mean", registers.add("Square", centered), axes, keep_dims=True)
    return registers.add("divide", centered, _root(registers, variance, epsilon))


def _root(registers: Registers, variance: int, epsilon: float) -> int:
    return registers.add(
        "Sqrt", registers.add("Add", variance, registers.keep(epsilon, like=variance))
    )


def _layer_norm(registers: Registers, node: Node, x: Inputs) -> int:
    value = _input(x, 0)
    rank = registers.rank(value)
    axis = int(node.attributes.get("axis", -1)) % rank
    found = _standardised(
        registers, value, range(axis, rank), node.attributes.get("epsilon", _EPSILON)
    )
    found = registers.add("Mul", found, _input(x, 1))
    return registers.add("Add", found, x[2]) if len(x) > 2 and x[2] is not None else found


def _root_mean_square_norm(registers: Registers, node: Node, x: Inputs) -> int:
    value = _input(x, 0)
    rank = registers.rank(value)
    axes = range(int(node.attributes.get("axis", -1)) % rank, rank)
    square = registers.reduce("Mean", registers.add("Square", value), axes, keep_dims=True)
    root = _root(registers, square, node.attributes.get("epsilon", _EPSILON))
    return registers.add("Mul", registers.add("divide", value, root), _input(x, 1))


def _batch_norm(registers: Registers, node: Node, x: Inputs) -> int:
    value, scale, bias, mean, variance = (_input(x, place) for place in range(5))
    if node.attributes.get("training_mode", 0) or len([name for name in node.outputs if name]) > 1:
        raise NotCompiledError("its BatchNormalization is that of training")
    root = _root(registers, variance, node.attributes.get("epsilon", _EPSILON))
    axes = range(1, registers.rank(value) - 1)
    mean, root, scale, bias = (
        registers.unsqueeze(item, axes) if axes else item for item in (mean, root, scale, bias)
    )
    found = registers.add("divide", registers.add("Sub", value, mean), root)
    return registers.add("Add", registers.add("Mul", found, scale), bias)


def _instance_norm(registers: Registers, node: Node, x: Inputs) -> int:
    value = _input(x, 0)
    rank = registers.rank(value)
    found = _standardised(
        registers, value, range(2, rank), node.attributes.get("epsilon", _EPSILON)
    )
    scale, bias = (registers.unsqueeze(_input(x, p), range(1, rank - 1)) for p in (1, 2))
    return registers.add("Add", registers.add("Mul", found, scale), bias)


def _lp_norm(registers: Registers, node: Node, x: Inputs) -> int:
    value = _input(x, 0)
    axis = int(node.attributes.get("axis", -1))
    is_of_values = node.attributes.get("p", _NORM_OF_VALUES) == 1
    kind = "ReduceL1" if is_of_values else "ReduceL2"
    norm = _reduced(registers, kind, value, (axis,), keep_dims=True)
    is_zero = registers.add("equal", norm, registers.keep(0, like=norm))
    return registers.add(
        "divide", value, registers.add("where", is_zero, registers.keep(1, like=norm), norm)
    )


def _softmax(registers: Registers, node: Node, x: Inputs) -> int:
    value = _input(x, 0)
    rank = registers.rank(value)
    is_old = registers.opset < _ONE_AXIS
    axis = int(node.attributes.get("axis", 1 if is_old else -1)) % rank
    if is_old and axis != rank - 1:
        raise NotCompiledError(f"NumPy has no {node.operator} over several axes")
    if node.operator == "Softmax":
        is_last = axis == rank - 1
        return (
            registers.add("Softmax", value)
            if is_last
            else registers.add("softmax", value, axis=axis)
        )
    if node.operator == "LogSoftmax":
        return registers.add("log_softmax", value, axis=axis)
    best = registers.add("arg_max", value, axis=axis, keep_dims=False, is_last=False, is_min=False)
    size = registers.sizes(value)[axis]
    if size is None:
        raise NotCompiledError("NumPy has no Hardmax over the rows of a batch")
    off, on = (registers.keep(number, like=value) for number in (0, 1))
    return registers.add("OneHot", best, registers.keep(np.array(size)), on, off, axis=axis)


def _arg_max(registers: Registers, node: Node, x: Inputs) -> int:
    value = _input(x, 0)
    return registers.add(
        "arg_max",
        value,
        axis=int(node.attributes.get("axis", 0)) % registers.rank(value),
        keep_dims=bool(node.attributes.get("keepdims", 1)),
        is_last=bool(node.attributes.get("select_last_index", 0)),
        is_min=node.operator == "ArgMin",
    )


def _cumulated(registers: Registers, node: Node, x: Inputs) -> int:
    if node.attributes.get("exclusive", 0) or node.attributes.get("reverse", 0):
        raise NotCompiledError("NumPy has no such CumSum")
    value = _input(x, 0)
    axis = registers.integers(_input(x, 1), "axes")[0] % registers.rank(value)
    return registers.add("cumulated", value, axis=axis)


_REDUCTIONS = {
    "ReduceMax": "Max",
    "ReduceMean": "Mean",
    "ReduceMin": "Min",
    "ReduceProd": "Prod",
    "ReduceSum": "Sum",
}


def _reduce(registers: Registers, node: Node, x: Inputs) -> int:
    value = _input(x, 0)
    given = x[1] if len(x) > 1 else None
    axes = node.attributes.get("axes") if given is None else registers.integers(given, "axes")
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return value
    axes = tuple(axes) if axes else tuple(range(registers.rank(value)))
    keep_dims = bool(node.attributes.get("keepdims", 1))
    return _reduced(registers, node.operator, value, axes, keep_dims=keep_dims)


def _reduced(
    registers: Registers, operator: str, value: int, axes: Sequence[int], *, keep_dims: bool
) -> int:
    if operator in _REDUCTIONS:
        return registers.reduce(_REDUCTIONS[operator], value, axes, keep_dims=keep_dims)
    if operator == "ReduceLogSumExp":
        return _log_sum_exp(registers, value, axes, keep_dims=keep_dims)
    before = {"ReduceL1": "Abs", "ReduceL2": "Square", "ReduceSumSquare": "Square"}.get(operator)
    inner = value if before is None else registers.add(before, value)
    total = registers.reduce("Sum", inner, axes, keep_dims=keep_dims)
    after = {"ReduceL2": "Sqrt", "ReduceLogSum": "log"}.get(operator)
    return total if after is None else registers.add(after, total)


def _log_sum_exp(registers: Registers, value: int, axes: Sequence[int], *, keep_dims: bool) -> int:
    largest = registers.reduce("Max", value, axes, keep_dims=True)
    shifted = registers.add("Exp", registers.add("Sub", value, largest))
    total = registers.add("log", registers.reduce("Sum", shifted, axes, keep_dims=True))
    found = registers.add("Add", total, largest)
    return found if keep_dims else registers.squeeze(found, axes)


LAYERS: Mapping[str, Translation] = {
    **dict.fromkeys(
        (
            *_REDUCTIONS,
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceSumSquare",
        ),
        _reduce,
    ),
    "ArgMax": _arg_max,
    "ArgMin": _arg_max,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "CumSum": _cumulated,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Hardmax": _softmax,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "LpNormalization": _lp_norm,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "RMSNormalization": _root_mean_square_norm,
    "Softmax": _softmax,
}
"""The translation of each operator: from its inputs' registers to those of its outputs."""
