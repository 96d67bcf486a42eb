"""The functions of `keras.ops` that a Functional model may hold between its layers, as steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from policy_server.formats.keras.activation_functions import (
    ACTIVATIONS,
    elu,
    gelu,
    leaky_relu,
    tanh_gelu,
)
from policy_server.formats.keras.call_arguments import Arguments, Function
from policy_server.formats.keras.result_sizes import MOST_NUMBERS
from policy_server.formats.keras.shape_functions import SHAPING

__all__ = ["FUNCTIONS"]


def _binary(operation: str) -> Function:
    def compute(call: Arguments) -> int:
        constant = call.constant(1)
        if constant is not None:
            return call.steps.with_constant(operation, call.number(0), constant)
        if operation in ("AddV2", "Mul") and (constant := call.constant(0)) is not None:
            return call.steps.with_constant(operation, call.number(1), constant)
        return call.steps.add(operation, call.number(0), call.number(1))

    return compute


def _unary(operation: str) -> Function:
    return lambda call: call.steps.add(operation, call.number())


def _activation(name: str) -> Function:
    return lambda call: ACTIVATIONS[name](call.steps, call.number())


def _on_last_axis(name: str) -> Function:
    def compute(call: Arguments) -> int:
        x = call.number()
        axis = call.part.get("axis", int, -1)
        if call.steps.axis(x, axis) != len(call.steps.shape(x)) - 1:
            call.part.refuse(f"axis is {axis}, expected the last one")
        return ACTIVATIONS[name](call.steps, x)

    return compute


def _reduction(operation: str) -> Function:
    def compute(call: Arguments) -> int:
        x = call.number()
        call.part.expect("initial", None)
        keeps = call.part.get("keepdims", bool, default=False)
        return call.steps.reduced(operation, x, call.axes(x), keeps=keeps)

    return compute


def _clip(call: Arguments) -> int:
    low, high = (call.part.get(key, float) for key in ("x_min", "x_max"))
    x = call.number()
    x = x if low is None else call.steps.with_constant("Maximum", x, low)
    return x if high is None else call.steps.with_constant("Minimum", x, high)


def _where(call: Arguments) -> int:
    return call.steps.add("SelectV2", call.result(0), call.number(1), call.number(2))


def _argmax(call: Arguments) -> int:
    """Return the first index of the largest number of the last axis."""
    steps, x = call.steps, call.number()
    places = call.axes(x)
    if places != (len(steps.shape(x)) - 1,):
        call.part.refuse("takes another axis than the last one")
    is_largest = steps.add("GreaterEqual", x, steps.reduced("Max", x, places, keeps=True))
    count = steps.shape(x)[-1]
    index = steps.keep(np.arange(count, dtype=np.int32))
    none = steps.keep(np.full(count, count, np.int32))
    chosen = steps.add("SelectV2", is_largest, index, none)
    keeps = call.part.get("keepdims", bool, default=False)
    result = steps.reduced("Min", chosen, places, keeps=keeps)
    steps.endings[result] = ("arg_max", x)
    return result


def _one_hot(call: Arguments) -> int:
    steps, depth = call.steps, call.part.count("num_classes")
    call.part.expect("axis", -1)
    x = call.result()
    if depth * steps.size(x) > MOST_NUMBERS:
        call.part.refuse(f"num_classes is {depth}, expected fewer")
    indices = steps.add("Cast", x, dtype="int32")
    on, off = steps.numbers(1), steps.numbers(0)
    result = steps.add("OneHot", indices, steps.keep(np.array(depth)), on, off, axis=-1)
    steps.endings[result] = ("one_hot", x)
    return result


def _cast(call: Arguments) -> int:
    dtype, steps = call.part.get("dtype", str), call.steps
    if dtype == steps.dtype.name:
        return steps.number(call.result())
    if dtype not in ("bool", "int32", "int64"):
        call.part.refuse(f"casts to {dtype}, expected {steps.dtype.name}, int32, int64 or bool")
    return steps.add("Cast", call.result(), dtype=dtype)


def _gelu(call: Arguments) -> int:
    is_approximate = call.part.get("approximate", bool, default=True)
    return (tanh_gelu if is_approximate else gelu)(call.steps, call.number())


_ALIKE = ("HardSigmoid", "HardSilu", "LogSigmoid", "Relu", "Relu6", "Selu", "Sigmoid", "Silu")
_ALIKE_TOO = ("Mish", "Softplus", "Softsign", "Tanh", "TanhShrink", "HardTanh")


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


FUNCTIONS: Mapping[str, Function] = {
    **SHAPING,
    **{name: _activation(_snake(name)) for name in (*_ALIKE, *_ALIKE_TOO)},
    "Absolute": _unary("Abs"),
    "Add": _binary("AddV2"),
    "Argmax": _argmax,
    "Cast": _cast,
    "Clip": _clip,
    "Divide": _binary("RealDiv"),
    "Elu": lambda call: elu(call.steps, call.number(), call.part.get("alpha", float, 1.0)),
    "Equal": _binary("Equal"),
    "Exp": _unary("Exp"),
    "Gelu": _gelu,
    "Greater": _binary("Greater"),
    "GreaterEqual": _binary("GreaterEqual"),
    "LeakyRelu": lambda call: leaky_relu(
        call.steps, call.number(), call.part.get("negative_slope", float, 0.2)
    ),
    "Less": _binary("Less"),
    "LessEqual": _binary("LessEqual"),
    "Log": _unary("Log"),
    "LogSoftmax": _on_last_axis("log_softmax"),
    "Max": _reduction("Max"),
    "Maximum": _binary("Maximum"),
    "Mean": _reduction("Mean"),
    "Min": _reduction("Min"),
    "Minimum": _binary("Minimum"),
    "Multiply": _binary("Mul"),
    "Negative": _unary("Neg"),
    "NotEqual": _binary("NotEqual"),
    "OneHot": _one_hot,
    "Power": _binary("Pow"),
    "Softmax": _on_last_axis("softmax"),
    "Sqrt": _unary("Sqrt"),
    "Square": _unary("Square"),
    "Subtract": _binary("Sub"),
    "Sum": _reduction("Sum"),
    "TrueDivide": _binary("RealDiv"),
    "Where": _where,
}
"""Keras's class names of the functions, and the steps that compute them."""
