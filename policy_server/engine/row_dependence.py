"""The observations of a batch that each number of a network depends on.

A network answers each observation by itself only if no number of its row depends on another row.
That is followed through the graph, operation by operation, with a set of observations for each
number: bit i of a byte stands for observation i. Probes alone might miss such a dependence.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine import array_operations
from policy_server.engine.operations import OPERATIONS

__all__ = ["FOLLOWED", "ROWS", "dependence", "is_row_wise", "of_observations"]

FOLLOWED: Mapping[str, Callable[..., Array]] = {
    "Acos": np.arccos,
    "Asin": np.arcsin,
    "Atan": np.arctan,
    "Atan2": np.arctan2,
    "Ceil": np.ceil,
    "ClipByValue": np.clip,
    "Cosh": np.cosh,
    "Erf": np.vectorize(math.erf, otypes=[np.float32]),
    "Erfc": np.vectorize(math.erfc, otypes=[np.float32]),
    "Expm1": np.expm1,
    "Floor": np.floor,
    "FloorMod": np.mod,
    "Inv": np.reciprocal,
    "IsFinite": np.isfinite,
    "IsInf": np.isinf,
    "IsNan": np.isnan,
    "Log1p": np.log1p,
    "LogicalXor": np.logical_xor,
    "Mod": np.fmod,
    "Reciprocal": np.reciprocal,
    "Relu6": lambda x: np.clip(x, 0, 6),
    "Rint": np.rint,
    "Round": np.rint,
    "Sign": np.sign,
    "Sinh": np.sinh,
    "Tan": np.tan,
}
"""Operations number by number that the engine does not serve, but whose rows can be followed."""

ROWS = 3
"""How many observations are followed."""

Array = NDArray[Any]
_ALL = np.uint8(2**ROWS - 1)
_ELEMENTWISE = frozenset(
    [
        *array_operations.ELEMENTWISE,
        "Abs",
        "Add",
        "AddN",
        "AddV2",
        "BiasAdd",
        "Cast",
        "Cos",
        "Elu",
        "Equal",
        "Exp",
        "FloorDiv",
        "Gelu",
        "Greater",
        "GreaterEqual",
        "LeakyRelu",
        "Less",
        "LessEqual",
        "Log",
        "LogicalAnd",
        "LogicalNot",
        "LogicalOr",
        "Maximum",
        "Minimum",
        "Mul",
        "Neg",
        "NotEqual",
        "Pow",
        "RealDiv",
        "Relu",
        "Rsqrt",
        "Select",
        "SelectV2",
        "Selu",
        "Sigmoid",
        "Sin",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Square",
        "SquaredDifference",
        "Sub",
        "Tanh",
    ]
)
# Operations that only move values: of one input, or of several.
_MOVES = frozenset(
    {
        *array_operations.MOVES,
        "ExpandDims",
        "Pad",
        "Reshape",
        "Slice",
        "Split",
        "SplitV",
        "Squeeze",
        "StridedSlice",
        "Tile",
        "Transpose",
    }
)
_JOINS = ("ConcatV2", "Pack")
_REDUCTIONS = frozenset({"Max", "Mean", "Min", "Prod", "Sum"})
_LINEAR = frozenset({*array_operations.PRODUCTS, "Conv2D", "Einsum", "MatMul"})


def of_observations(width: int) -> Array:
    """Return the sets of the observations themselves: each depends on itself.

    Args:
        width: how many numbers an observation has.

    Returns:
        uint8[ROWS, width].
    """
    return np.repeat(2 ** np.arange(ROWS, dtype=np.uint8)[:, None], width, axis=1)


def is_row_wise(sets: Array) -> bool:
    """Return whether each row of a result depends on its own observation alone.

    Args:
        sets: uint8[ROWS, ...].
    """
    own = 2 ** np.arange(ROWS, dtype=np.uint8)
    return len(sets) == ROWS and all(
        not (row & ~own[position]).any() for position, row in enumerate(sets)
    )


def dependence(
    operation: str,
    sets: Sequence[Array],
    values: Sequence[Array],
    result: Array,
    attributes: Mapping[str, Any],
) -> Array:
    """Return the observations that each number of an operation's result depends on.

    Example:
        The product of observations, whose rows have the sets 1, 2 and 4, and of weights, whose
        sets are 0, has rows of the sets 1, 2 and 4 again. Their sum over the rows has the set 7:
        it depends on all three observations.

    Args:
        operation: its name in `OPERATIONS`.
        sets: for each input, uint8 of its shape.
        values: the inputs.
        result: its result for these values.
        attributes: its constant attributes.

    Returns:
        uint8 of the result's shape: bit i stands for observation i.
    """
    if operation in _ELEMENTWISE or operation in FOLLOWED:
        found = functools.reduce(functools.partial(_joined, operation), sets)
    elif operation in _MOVES or operation in _JOINS:
        # The engine's own operation, applied to sets instead of values.
        arguments = [
            item if _is_moved(operation, position, len(sets)) else values[position]
            for position, item in enumerate(sets)
        ]
        found = np.asarray(OPERATIONS[operation](*arguments, **attributes))
        # An index, a shape or an axis that depends on observations moves everything by them.
        for position, item in enumerate(sets):
            if not _is_moved(operation, position, len(sets)):
                found = found | np.bitwise_or.reduce(item, axis=None)
    elif operation in _REDUCTIONS:
        axes = tuple(int(axis) for axis in np.ravel(values[1]))
        found = np.bitwise_or.reduce(sets[0], axis=axes, keepdims=attributes["keep_dims"])
        found = found | np.bitwise_or.reduce(sets[1], axis=None)
    elif operation in _LINEAR:
        found = _of_products(operation, sets, values, attributes)
    else:
        special = _SPECIAL.get(operation)
        # The result of an unknown operation may depend on every observation.
        found = (
            np.full(result.shape, _ALL) if special is None else special(sets, values, attributes)
        )
    return np.broadcast_to(found, result.shape)


def _is_moved(operation: str, position: int, inputs: int) -> bool:
    """Return whether an input holds values that are moved, not shapes or axes."""
    if operation == "Pack":
        return True
    if operation == "ConcatV2":
        return position < inputs - 1
    return position == (1 if operation == "Split" else 0)


def _joined(operation: str, first: Array, second: Array) -> Array:
    if operation == "Select" and first.ndim == 1 < second.ndim:
        # A condition for each row.
        first = first.reshape(-1, *(1,) * (second.ndim - 1))
    return np.bitwise_or(first, second)


def _of_products(
    operation: str, sets: Sequence[Array], values: Sequence[Array], attributes: Mapping[str, Any]
) -> Array:
    """Follow sums of products: one of ones and zeros is above zero where any factor depends."""
    total: Any = np.uint8(0)
    for row in range(ROWS):
        for position in range(len(sets)):
            marks = [
                ((item >> row) & 1).astype(np.float32)
                if at == position
                else np.ones(value.shape, "f4")
                for at, (item, value) in enumerate(zip(sets, values, strict=True))
            ]
            if marks[position].any():
                is_touched = np.asarray(OPERATIONS[operation](*marks, **attributes)) > 0
                total = total | (is_touched.astype(np.uint8) << row)
    return np.asarray(total, np.uint8)


def _softmax(sets: Sequence[Array], _values: Sequence[Array], _named: Mapping[str, Any]) -> Array:
    return np.asarray(np.bitwise_or.reduce(sets[0], axis=-1, keepdims=True))


def _normalised(sets: Sequence[Array], _values: Sequence[Array], named: Mapping[str, Any]) -> Array:
    is_channels_first = named["data_format"] == "NCHW"
    axes = (0, 2, 3) if is_channels_first else (0, 1, 2)
    shape = (1, -1, 1, 1) if is_channels_first else (-1,)
    if not named["is_training"]:
        # Scale, offset and moments may be those of the batch.
        given = np.bitwise_or.reduce([item.reshape(shape) for item in sets[1:5]], axis=0)
        return np.asarray(sets[0] | given)
    moments: Array = np.bitwise_or.reduce(sets[0], axis=axes, keepdims=True)
    scales = np.bitwise_or.reduce([item.reshape(shape) for item in sets[1:3]], axis=0)
    joined: Array = moments | scales
    return joined


def _one_hot(sets: Sequence[Array], _values: Sequence[Array], named: Mapping[str, Any]) -> Array:
    axis = named["axis"]
    own: Array = np.expand_dims(sets[0], sets[0].ndim if axis == -1 else axis)
    for item in sets[1:]:
        own = own | np.bitwise_or.reduce(item, axis=None)
    return own


def _gathered(sets: Sequence[Array], values: Sequence[Array], _named: Mapping[str, Any]) -> Array:
    table, indices, axis = sets[0], sets[1], int(values[2])
    picked: Array = np.take(
        np.broadcast_to(np.bitwise_or.reduce(table, axis=axis, keepdims=True), table.shape),
        values[1],
        axis=axis,
    )
    position = axis % table.ndim
    shape = (1,) * position + indices.shape + (1,) * (table.ndim - position - 1)
    joined: Array = picked | indices.reshape(shape) | np.bitwise_or.reduce(sets[2], axis=None)
    return joined


def _along(sets: Sequence[Array], _values: Sequence[Array], named: Mapping[str, Any]) -> Array:
    keeps = named.get("keep_dims", True)
    return np.asarray(np.bitwise_or.reduce(sets[0], axis=named["axis"], keepdims=keeps))


def _pooled(sets: Sequence[Array], _values: Sequence[Array], named: Mapping[str, Any]) -> Array:
    axes = tuple(range(-len(named["window"]), 0))
    return np.asarray(np.bitwise_or.reduce(sets[0], axis=axes, keepdims=True))


def _repeated(sets: Sequence[Array], _values: Sequence[Array], _named: Mapping[str, Any]) -> Array:
    return sets[1]


def _taken(sets: Sequence[Array], values: Sequence[Array], named: Mapping[str, Any]) -> Array:
    axis = named["axis"]
    no_set = np.zeros((), np.uint8)
    return _gathered([*sets, no_set], [*values, np.asarray(axis)], named)


_SPECIAL: Mapping[str, Callable[..., Array]] = {
    **dict.fromkeys(array_operations.REDUCTIONS, _along),
    **dict.fromkeys(array_operations.SPATIAL, _pooled),
    "repeat_rows": _repeated,
    "take": _taken,
    "FusedBatchNormV3": _normalised,
    "GatherV2": _gathered,
    "OneHot": _one_hot,
    "Softmax": _softmax,
}
