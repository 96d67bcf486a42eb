"""Formulas: how each number of an action is computed from one row of a batch.

`sampler` runs the part of a graph between the distribution's inputs and the actions with symbols in
place of numbers. The result is a formula for each action, such as
`Sum(Input(0, 0), Product(Exp(Input(0, 1)), Noise(...)))`, which `families` compares with the
formulas of the families that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ELEMENTWISE",
    "PYTHON_CALLBACK",
    "Apply",
    "BatchSize",
    "Best",
    "Draw",
    "Formula",
    "Input",
    "Noise",
    "Opaque",
    "apply",
    "is_number",
    "scaled",
    "walk",
]

PYTHON_CALLBACK = "a Python callback"
Formula = Any
"""A number, or one of the classes below."""


@dataclass(frozen=True, slots=True)
class Input:
    """One number of `action_dist_inputs`.

    Attributes:
        row: the index of the observation.
        index: its index in the row.
    """

    row: int
    index: int


@dataclass(frozen=True, slots=True)
class Noise:
    """One number that a random operation gives.

    Attributes:
        operation: TensorFlow's name of the operation, such as `RandomStandardNormal`.
        node: the name of the operation's node in the graph.
        index: its index among the numbers that the node gives in one call.
    """

    operation: str
    node: str
    index: int


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw from the softmax of logits.

    Attributes:
        logits: the formulas of the logits.
        node: the name of the Multinomial node that draws.
        index: its index among the node's draws.
    """

    logits: tuple[Formula, ...]
    node: str
    index: int


@dataclass(frozen=True, slots=True)
class Best:
    """The index of the largest of some values.

    Attributes:
        values: their formulas.
    """

    values: tuple[Formula, ...]


@dataclass(frozen=True, slots=True)
class Opaque:
    """A number whose formula is not known.

    Attributes:
        source: its origin in words, such as `the observation`.
    """

    source: str


@dataclass(frozen=True, slots=True)
class BatchSize:
    """The number of observations that are asked for at once."""


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation on other formulas.

    Attributes:
        operation: TensorFlow's name, such as `Exp`.
        arguments: the formulas that it is applied to.
    """

    operation: str
    arguments: tuple[Formula, ...]


def is_number(formula: Formula) -> bool:
    """Return whether a formula is a plain number.

    Args:
        formula: any.
    """
    return isinstance(formula, int | float | np.number | np.bool_)


def walk(formula: Formula) -> Iterator[Formula]:
    """Yield a formula and all formulas in it.

    Args:
        formula: any.
    """
    waiting, seen = [formula], set[int]()
    while waiting:
        current = waiting.pop()
        # One formula may occur thousands of times: a mask that all logits share.
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, Apply):
            waiting += current.arguments
        elif isinstance(current, Draw):
            waiting += current.logits
        elif isinstance(current, Best):
            waiting += current.values


_NUMERIC: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "Div": np.divide,
    "Equal": np.equal,
    "Exp": np.exp,
    "Floor": np.floor,
    "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
    "Less": np.less,
    "LessEqual": np.less_equal,
    "Log": np.log,
    "LogicalAnd": np.logical_and,
    "LogicalNot": np.logical_not,
    "LogicalOr": np.logical_or,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Mul": np.multiply,
    "Neg": np.negative,
    "NotEqual": np.not_equal,
    "Pow": np.power,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Select": lambda condition, a, b: a if condition else b,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Sign": np.sign,
    "Softplus": lambda x: np.logaddexp(x, 0),
    "Sqrt": np.sqrt,
    "Square": np.square,
    "Sub": np.subtract,
    "Tanh": np.tanh,
}
_ALIASES = {
    "AddV2": "Add",
    "BiasAdd": "Add",
    "DivNoNan": "Div",
    "RealDiv": "Div",
    "SelectV2": "Select",
}


_NEUTRAL_BEHIND = {"Sub": 0, "Div": 1}


def apply(operation: str, *arguments: Formula) -> Formula:
    """Return an operation's result: a number where it can be worked out, else a formula.

    Operations without effect are left out: adding 0, multiplying by 1, a known `Select`.

    Example:
        `apply("Mul", 1, Input(0, 0))` is `Input(0, 0)`, and `apply("Mul", 2, 3)` is 6.

    Args:
        operation: TensorFlow's name.
        arguments: numbers and formulas.
    """
    name = _ALIASES.get(operation, operation)
    if all(map(is_number, arguments)):
        with np.errstate(all="ignore"):
            return _NUMERIC[name](*arguments)
    if name == "Select" and is_number(arguments[0]):
        return arguments[1] if arguments[0] else arguments[2]
    if name in ("Add", "Mul"):
        neutral = 0 if name == "Add" else 1
        for one, other in (arguments, arguments[::-1]):
            if is_number(one) and one == neutral:
                return other
    if is_number(arguments[-1]) and arguments[-1] == _NEUTRAL_BEHIND.get(name):
        return arguments[0]
    return Apply(name, arguments)


def _clip(value: Formula, low: Formula, high: Formula) -> Formula:
    return apply("Maximum", apply("Minimum", value, high), low)


def _add_n(*parts: Formula) -> Formula:
    total = parts[0]
    for part in parts[1:]:
        total = apply("Add", total, part)
    return total


def _elementwise(operation: str) -> Callable[..., NDArray[Any]]:
    function = {"ClipByValue": _clip, "AddN": _add_n}.get(operation)

    def run(*arrays: NDArray[Any]) -> NDArray[Any]:
        def one(*items: Formula) -> Formula:
            return apply(operation, *items) if function is None else function(*items)

        result = np.frompyfunc(one, len(arrays), 1)(*arrays)
        found = np.empty((), object)
        found[()] = result
        return result if isinstance(result, np.ndarray) else found

    return run


ELEMENTWISE = {name: _elementwise(name) for name in (*_NUMERIC, *_ALIASES, "ClipByValue", "AddN")}
"""The operations that work number by number, under TensorFlow's names, on arrays of formulas."""


def scaled(formula: Formula) -> tuple[Formula, float]:
    """Split a constant factor off a formula.

    Sums are not split: a large constant that is added and taken away again costs float32 digits.

    Example:
        `scaled(apply("Mul", 2, Input(0, 1)))` is `(Input(0, 1), 2.0)`.

    Args:
        formula: any but a number.

    Returns:
        The rest and the factor, of which no step is smaller or larger than float32 bears well.
    """
    factor = 1.0
    while isinstance(formula, Apply) and formula.operation in ("Mul", "Div", "Neg"):
        numbers = [float(item) for item in formula.arguments if is_number(item)]
        others = [item for item in formula.arguments if not is_number(item)]
        number = numbers[0] if numbers else -1.0
        is_fraction = formula.operation == "Div" and formula.arguments[0] is not others[0]
        if len(others) != 1 or is_fraction or not _SMALLEST <= abs(number) <= _LARGEST:
            break
        factor = factor / number if formula.operation == "Div" else factor * number
        formula = others[0]
    return formula, factor


_SMALLEST, _LARGEST = 1e-6, 1e6
