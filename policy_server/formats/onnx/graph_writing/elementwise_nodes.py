"""The engine's operations number by number, as nodes of ONNX's operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from policy_server.errors import ExportError
from policy_server.formats.onnx.graph_writing.graph_writer import GraphWriter, Value

__all__ = ["ELEMENTWISE", "Translation"]

Translation = Callable[..., str]

_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805
# The types that runtimes compare.
_COMPARED = ("bool", "float32", "float64", "int32", "int64")


def _same(operator: str, **attributes: Any) -> Translation:  # noqa: ANN401 -- as ONNX has them
    """Return the translation to one operator, whose inputs have the result's type."""

    def translate(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
        return writer.add(operator, *(writer.cast(one, result.dtype) for one in x), **attributes)

    return translate


def _folded(operator: str) -> Translation:
    def translate(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
        first, *others = (writer.cast(one, result.dtype) for one in x)
        for other in others:
            first = writer.add(operator, first, other)
        return first

    return translate


def _comparison(operator: str) -> Translation:
    def translate(writer: GraphWriter, x: Sequence[Value], _result: Value) -> str:
        return writer.add(operator, *_alike(writer, x))

    return translate


def _alike(writer: GraphWriter, x: Sequence[Value]) -> list[str]:
    """Return the names of values in one type that runtimes compare."""
    dtype = np.result_type(*(one.dtype for one in x))
    if str(dtype) not in _COMPARED:
        dtype = np.dtype(np.int64 if dtype.kind in "iu" else np.float32)
    return [writer.cast(one, dtype) for one in x]


def _not_equal(writer: GraphWriter, x: Sequence[Value], _result: Value) -> str:
    return writer.add("Not", writer.add("Equal", *_alike(writer, x)))


def _logical(operator: str) -> Translation:
    def translate(writer: GraphWriter, x: Sequence[Value], _result: Value) -> str:
        return writer.add(operator, *(writer.cast(one, np.bool_) for one in x))

    return translate


def _relu(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    if result.dtype.kind == "f":
        return writer.add("Relu", x[0].name)
    return writer.add("Max", x[0].name, writer.keep(np.array(0, result.dtype)))


def _gelu(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    def number(value: float) -> str:
        return writer.keep(np.array(value, result.dtype))

    erf = writer.add("Erf", writer.add("Mul", x[0].name, number(math.sqrt(0.5))))
    half = writer.add("Mul", writer.add("Add", erf, number(1)), number(0.5))
    return writer.add("Mul", x[0].name, half)


def _square(writer: GraphWriter, x: Sequence[Value], _result: Value) -> str:
    return writer.add("Mul", x[0].name, x[0].name)


def _squared_difference(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    difference = writer.add("Sub", *(writer.cast(one, result.dtype) for one in x))
    return writer.add("Mul", difference, difference)


def _rsqrt(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    return writer.add("Reciprocal", writer.add("Sqrt", writer.cast(x[0], result.dtype)))


def _cast(writer: GraphWriter, x: Sequence[Value], _result: Value, *, dtype: str) -> str:
    return writer.cast_name(x[0].name, dtype)


def _leaky_relu(writer: GraphWriter, x: Sequence[Value], _result: Value, *, alpha: float) -> str:
    return writer.add("LeakyRelu", x[0].name, alpha=float(alpha))


def _where(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    condition, *branches = x
    names = [writer.cast(one, result.dtype) for one in branches]
    return writer.add("Where", writer.cast(condition, np.bool_), *names)


def _select(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    """Choose by a condition that may be one a row, as TensorFlow 1 has it."""
    condition, *branches = x
    chosen = writer.cast(condition, np.bool_)
    if condition.rank == 1 and branches[0].rank > 1:
        chosen = writer.unsqueeze(chosen, range(1, branches[0].rank))
    return writer.add("Where", chosen, *(writer.cast(one, result.dtype) for one in branches))


def _power(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    if result.dtype.kind == "f":
        return writer.add("Pow", x[0].name, writer.cast(x[1], result.dtype))
    power = writer.add("Pow", *(writer.cast(one, np.float64) for one in x))
    return writer.cast_name(power, result.dtype)


def _refuse_zero(divisor: Value) -> None:
    """Refuse a division of integers that ends some runtimes where an observation makes it by 0."""
    if divisor.constant is None or not np.all(divisor.constant):
        raise ExportError("it divides integers by a number that may be 0, which ONNX leaves open")


def _divide(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    if result.dtype.kind != "f":
        _refuse_zero(x[1])
    return writer.add("Div", *(writer.cast(one, result.dtype) for one in x))


def _floor_divide(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    first, second = (writer.cast(one, result.dtype) for one in x)
    if result.dtype.kind == "f":
        return writer.add("Floor", writer.add("Div", first, second))
    _refuse_zero(x[1])
    # ONNX divides integers towards zero: one less where signs differ and something is left.
    quotient = writer.add("Div", first, second)
    rest = writer.add("Sub", first, writer.add("Mul", quotient, second))
    is_less = _needs_turn(writer, rest, second, result.dtype)
    return writer.add("Sub", quotient, writer.cast_name(is_less, result.dtype))


def _needs_turn(writer: GraphWriter, rest: str, divisor: str, dtype: np.dtype[Any]) -> str:
    """Return whether the rest of a division has another sign than the divisor."""
    zero = writer.keep(np.array(0, dtype))
    differs = writer.add("Xor", writer.add("Less", rest, zero), writer.add("Less", divisor, zero))
    return writer.add("And", differs, writer.add("Not", writer.add("Equal", rest, zero)))


def _modulo(writer: GraphWriter, x: Sequence[Value], result: Value, *, is_fmod: bool) -> str:
    first, second = (writer.cast(one, result.dtype) for one in x)
    if result.dtype.kind != "f":
        _refuse_zero(x[1])
        return writer.add("Mod", first, second, fmod=int(is_fmod))
    rest = writer.add("Mod", first, second, fmod=1)
    if is_fmod:
        return rest
    is_turned = _needs_turn(writer, rest, second, result.dtype)
    return writer.add("Where", is_turned, writer.add("Add", rest, second), rest)


ELEMENTWISE: Mapping[str, Translation] = {
    "Abs": _same("Abs"),
    "Add": _same("Add"),
    "AddN": _folded("Add"),
    "AddV2": _same("Add"),
    "BiasAdd": _same("Add"),
    "Cast": _cast,
    "Cos": _same("Cos"),
    "Elu": _same("Elu"),
    "Equal": _comparison("Equal"),
    "Exp": _same("Exp"),
    "FloorDiv": _floor_divide,
    "Gelu": _gelu,
    "Greater": _comparison("Greater"),
    "GreaterEqual": _comparison("GreaterOrEqual"),
    "LeakyRelu": _leaky_relu,
    "Less": _comparison("Less"),
    "LessEqual": _comparison("LessOrEqual"),
    "Log": _same("Log"),
    "LogicalAnd": _logical("And"),
    "LogicalNot": _logical("Not"),
    "LogicalOr": _logical("Or"),
    "Maximum": _same("Max"),
    "Minimum": _same("Min"),
    "Mul": _same("Mul"),
    "Neg": _same("Neg"),
    "NotEqual": _not_equal,
    "PlainEqual": _comparison("Equal"),
    "PlainGreater": _comparison("Greater"),
    "PlainGreaterEqual": _comparison("GreaterOrEqual"),
    "PlainLess": _comparison("Less"),
    "PlainLessEqual": _comparison("LessOrEqual"),
    "PlainNotEqual": _not_equal,
    "PlainRealDiv": _same("Div"),
    "Pow": _same("Pow"),
    "RealDiv": _same("Div"),
    "Relu": _relu,
    "Rsqrt": _rsqrt,
    "Select": _select,
    "SelectV2": _where,
    "Selu": _same("Selu", alpha=_SELU_ALPHA, gamma=_SELU_GAMMA),
    "Sigmoid": _same("Sigmoid"),
    "Sin": _same("Sin"),
    "Softplus": _same("Softplus"),
    "Softsign": _same("Softsign"),
    "Sqrt": _same("Sqrt"),
    "Square": _square,
    "SquaredDifference": _squared_difference,
    "Sub": _same("Sub"),
    "Tanh": _same("Tanh"),
    "acos": _same("Acos"),
    "acosh": _same("Acosh"),
    "asin": _same("Asin"),
    "asinh": _same("Asinh"),
    "atan": _same("Atan"),
    "atanh": _same("Atanh"),
    "ceil": _same("Ceil"),
    "cosh": _same("Cosh"),
    "divide": _divide,
    "equal": _comparison("Equal"),
    "erf": _same("Erf"),
    "floor": _same("Floor"),
    "greater": _comparison("Greater"),
    "greater_equal": _comparison("GreaterOrEqual"),
    "is_nan": lambda writer, x, _result: writer.add("IsNaN", x[0].name),
    "less": _comparison("Less"),
    "less_equal": _comparison("LessOrEqual"),
    "log": _same("Log"),
    "logical_xor": _logical("Xor"),
    "modulo": _modulo,
    "not_equal": _not_equal,
    "power": _power,
    "round": _same("Round"),
    "sign": _same("Sign"),
    "sinh": _same("Sinh"),
    "tan": _same("Tan"),
    "where": _where,
}
"""The translation of each operation: from its inputs and result to the name of the result."""
