"""ONNX's operators number by number, in the engine's operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from policy_server.engine.building import NotCompiledError
from policy_server.formats.onnx.model_file import Node
from policy_server.formats.onnx.registers import Registers

__all__ = ["ELEMENTWISE"]

Translation = Callable[[Registers, Node, list[int]], int]

_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
# Operators with one operation of the same inputs in the engine.
_SAME = {
    "Abs": "Abs",
    "Acos": "acos",
    "Acosh": "acosh",
    "Add": "Add",
    "And": "LogicalAnd",
    "Asin": "asin",
    "Asinh": "asinh",
    "Atan": "atan",
    "Atanh": "atanh",
    "Ceil": "ceil",
    "Cos": "Cos",
    "Cosh": "cosh",
    "Div": "divide",
    "Equal": "equal",
    "Erf": "erf",
    "Exp": "Exp",
    "Floor": "floor",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "IsNaN": "is_nan",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Log": "log",
    "Mul": "Mul",
    "Neg": "Neg",
    "Not": "LogicalNot",
    "Or": "LogicalOr",
    "Pow": "power",
    "Relu": "Relu",
    "Round": "round",
    "Sigmoid": "Sigmoid",
    "Sign": "sign",
    "Sin": "Sin",
    "Sinh": "sinh",
    "Softplus": "Softplus",
    "Softsign": "Softsign",
    "Sqrt": "Sqrt",
    "Sub": "Sub",
    "Tan": "tan",
    "Tanh": "Tanh",
    "Where": "where",
    "Xor": "logical_xor",
}


def _same(registers: Registers, node: Node, x: list[int]) -> int:
    return registers.add(_SAME[node.operator], *x)


def _reciprocal(registers: Registers, _node: Node, x: list[int]) -> int:
    return registers.add("divide", registers.keep(1, like=x[0]), x[0])


def _folded(operation: str) -> Translation:
    """Return the translation of an operator that joins any number of inputs."""

    def translate(registers: Registers, _node: Node, x: list[int]) -> int:
        total, *others = x
        for item in others:
            total = registers.add(operation, total, item)
        return total

    return translate


def _mean(registers: Registers, node: Node, x: list[int]) -> int:
    total = _folded("Add")(registers, node, x)
    return registers.add("divide", total, registers.keep(len(x), like=x[0]))


def _clip(registers: Registers, node: Node, x: list[int]) -> int:
    value = x[0]
    for place, (name, operation) in enumerate((("min", "Maximum"), ("max", "Minimum")), 1):
        if len(node.inputs) > place and node.inputs[place]:
            # A lower bound that is left out is no input, and the upper one comes next.
            bound = x[place if len(x) > place else -1]
            value = registers.add(operation, value, bound)
        elif name in node.attributes:
            bound = registers.keep(node.attributes[name], like=value)
            value = registers.add(operation, value, bound)
    return value


def _cast(registers: Registers, node: Node, x: list[int]) -> int:
    import onnx

    if node.operator == "CastLike":
        return registers.cast(x[0], str(registers.builder.dtype(x[1])))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(int(node.attributes["to"]))
    return registers.cast(x[0], str(dtype))


def _affine(registers: Registers, value: int, factor: float, offset: float) -> int:
    scaled = registers.add("Mul", value, registers.keep(factor, like=value))
    return registers.add("Add", scaled, registers.keep(offset, like=value))


def _between(registers: Registers, value: int, low: float, high: float) -> int:
    value = registers.add("Maximum", value, registers.keep(low, like=value))
    return registers.add("Minimum", value, registers.keep(high, like=value))


def _hard_sigmoid(registers: Registers, node: Node, x: list[int]) -> int:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return _between(registers, _affine(registers, x[0], alpha, beta), 0, 1)


def _hard_swish(registers: Registers, _node: Node, x: list[int]) -> int:
    return registers.add(
        "Mul", x[0], _between(registers, _affine(registers, x[0], 1 / 6, 0.5), 0, 1)
    )


def _swish(registers: Registers, node: Node, x: list[int]) -> int:
    alpha = registers.keep(node.attributes.get("alpha", 1.0), like=x[0])
    return registers.add("Mul", x[0], registers.add("Sigmoid", registers.add("Mul", x[0], alpha)))


def _mish(registers: Registers, _node: Node, x: list[int]) -> int:
    return registers.add("Mul", x[0], registers.add("Tanh", registers.add("Softplus", x[0])))


def _gelu(registers: Registers, node: Node, x: list[int]) -> int:
    (value,) = x
    if node.attributes.get("approximate", "none") != "tanh":
        return registers.add("Gelu", value)
    cube = registers.add("Mul", registers.add("Square", value), value)
    inner = registers.add("Add", value, _affine(registers, cube, 0.044715, 0))
    curve = registers.add("Tanh", _affine(registers, inner, math.sqrt(2 / math.pi), 0))
    return registers.add("Mul", value, _affine(registers, curve, 0.5, 0.5))


def _exponential_below(registers: Registers, value: int, alpha: float, scale: float = 1.0) -> int:
    """Return alpha * (exp(x / scale) - 1) where x is below 0, x elsewhere."""
    divided = value if scale == 1.0 else _affine(registers, value, 1 / scale, 0)
    below = registers.add("Elu", divided)
    is_above = registers.add("greater", value, registers.keep(0, like=value))
    return registers.add("where", is_above, value, _affine(registers, below, alpha, 0))


def _elu(registers: Registers, node: Node, x: list[int]) -> int:
    alpha = node.attributes.get("alpha", 1.0)
    return (
        registers.add("Elu", x[0]) if alpha == 1.0 else _exponential_below(registers, x[0], alpha)
    )


def _celu(registers: Registers, node: Node, x: list[int]) -> int:
    alpha = node.attributes.get("alpha", 1.0)
    return _exponential_below(registers, x[0], alpha, alpha)


def _selu(registers: Registers, node: Node, x: list[int]) -> int:
    alpha = node.attributes.get("alpha", _SELU_ALPHA)
    gamma = node.attributes.get("gamma", _SELU_GAMMA)
    return _affine(registers, _exponential_below(registers, x[0], alpha), gamma, 0)


def _leaky_relu(registers: Registers, node: Node, x: list[int]) -> int:
    return registers.add("LeakyRelu", x[0], alpha=node.attributes.get("alpha", 0.01))


def _p_relu(registers: Registers, _node: Node, x: list[int]) -> int:
    is_below = registers.add("less", x[0], registers.keep(0, like=x[0]))
    return registers.add("where", is_below, registers.add("Mul", x[0], x[1]), x[0])


def _thresholded(registers: Registers, node: Node, x: list[int]) -> int:
    alpha = registers.keep(node.attributes.get("alpha", 1.0), like=x[0])
    is_above = registers.add("greater", x[0], alpha)
    return registers.add("where", is_above, x[0], registers.keep(0, like=x[0]))


def _modulo(registers: Registers, node: Node, x: list[int]) -> int:
    return registers.add("modulo", *x, is_fmod=bool(node.attributes.get("fmod", 0)))


def _is_infinite(registers: Registers, node: Node, x: list[int]) -> int:
    if not node.attributes.get("detect_negative", 1) or not node.attributes.get(
        "detect_positive", 1
    ):
        raise NotCompiledError("NumPy has no IsInf of one side")
    return registers.add("equal", registers.add("Abs", x[0]), registers.keep(np.inf, like=x[0]))


ELEMENTWISE: Mapping[str, Translation] = {
    **dict.fromkeys(_SAME, _same),
    "Cast": _cast,
    "CastLike": _cast,
    "Celu": _celu,
    "Clip": _clip,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "IsInf": _is_infinite,
    "LeakyRelu": _leaky_relu,
    "Max": _folded("Maximum"),
    "Mean": _mean,
    "Min": _folded("Minimum"),
    "Mish": _mish,
    "Mod": _modulo,
    "PRelu": _p_relu,
    "Reciprocal": _reciprocal,
    "Selu": _selu,
    "Sum": _folded("Add"),
    "Swish": _swish,
    "ThresholdedRelu": _thresholded,
}
"""The translation of each operator: from its inputs' registers to its only output's."""
