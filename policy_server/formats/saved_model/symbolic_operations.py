"""Operations of a graph on formulas in place of numbers, as `sampler` runs them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.operations import OPERATIONS
from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.attributes import attributes_of
from policy_server.formats.saved_model.nodes import SHAPE_OPS
from policy_server.formats.saved_model.symbols import (
    ELEMENTWISE,
    Apply,
    BatchSize,
    Best,
    Draw,
    Formula,
    Noise,
    apply,
    is_number,
    scaled,
    walk,
)

__all__ = ["RANDOM_OPS", "NotReadError", "draw_noise", "run_on_formulas", "shape_of"]

RANDOM_OPS = frozenset(
    {
        "Multinomial",
        "ParameterizedTruncatedNormal",
        "RandomGamma",
        "RandomPoisson",
        "RandomPoissonV2",
        "RandomShuffle",
        "RandomStandardNormal",
        "RandomUniform",
        "RandomUniformInt",
        "StatefulRandomBinomial",
        "StatefulStandardNormalV2",
        "StatefulUniform",
        "StatefulUniformInt",
        "StatelessMultinomial",
        "StatelessRandomBinomial",
        "StatelessRandomGammaV2",
        "StatelessRandomNormal",
        "StatelessRandomNormalV2",
        "StatelessRandomUniform",
        "StatelessRandomUniformInt",
        "StatelessRandomUniformV2",
        "StatelessTruncatedNormal",
        "TruncatedNormal",
    }
)
# Operations of the engine's table that only move values, and so work on symbols as they are.
_MOVES = frozenset(
    {
        "ConcatV2",
        "ExpandDims",
        "GatherV2",
        "Pack",
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
# The input of an operation that is a shape, in which the batch's size may stand.
_SHAPE_ARGUMENTS = {"BroadcastTo": 1, "Fill": 0, "Reshape": 1, "Tile": 1}
_MOST_NUMBERS = 1_000_000
_SMALLEST_FLOAT = 4

Values = NDArray[Any]


class NotReadError(Exception):
    """A step between the distribution's inputs and the actions is not understood."""


def run_on_formulas(
    node: Any,  # noqa: ANN401 -- TensorFlow is untyped
    tensor: str,
    values: Sequence[Values],
    rows: int,
) -> Values:
    """Return an operation's result on arrays that hold formulas.

    Args:
        node: the operation.
        tensor: the result that is meant.
        values: its inputs, at least one of them formulas.
        rows: how many observations there are.

    Raises:
        NotReadError: if the operation is not one that can be followed.
    """
    operation = node.op
    if operation in SHAPE_OPS:
        return _OF_THE_SHAPE[operation](values[0], rows)
    if operation in _SHAPE_ARGUMENTS:
        position = _SHAPE_ARGUMENTS[operation]
        values = [
            resolved(value, rows) if at == position else value for at, value in enumerate(values)
        ]
    if operation in ELEMENTWISE:
        return _bounded(ELEMENTWISE[operation](*values))
    if operation in _MOVES:
        return np.asarray(OPERATIONS[operation](*values, **dict(attributes_of(node, tensor))))
    if operation in _OTHERS:
        return np.asarray(_OTHERS[operation](node, tensor, values))
    raise NotReadError(f"{operation} stands between the distribution's inputs and the actions")


def draw_noise(node: Any, values: Sequence[Values], rows: int) -> Values:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the numbers that a random operation gives, each as a formula of its own.

    Args:
        node: the operation.
        values: its inputs.
        rows: how many observations there are.

    Raises:
        NotReadError: if it gives the same numbers at every call, or too many.
    """
    operation = node.op
    if operation.startswith("Stateless"):
        raise NotReadError(f"{operation} gives the same numbers wherever its seed is the same")
    dtype = tf.dtypes.as_dtype(node.attr["dtype"].type or tf.dtypes.float32)
    if dtype.is_floating and dtype.size < _SMALLEST_FLOAT:
        raise NotReadError(f"{operation} gives numbers of {dtype.name}, which are few")
    # Operations with one seed give the same numbers.
    seeds = (node.attr["seed"].i, node.attr["seed2"].i)
    name = f"seeds {seeds}" if any(seeds) else node.name
    if operation == "Multinomial":
        logits, count = np.asarray(values[0], object), int(values[1])
        draws = [
            [Draw(tuple(row), name, at * count + draw) for draw in range(count)]
            for at, row in enumerate(logits)
        ]
        return np.array(draws, object).reshape(len(logits), count)
    shape = [int(size) for size in resolved(values[0], rows)]
    numbers = int(np.prod(shape))
    if numbers > _MOST_NUMBERS:
        raise NotReadError(f"{operation} gives {numbers} numbers")
    # The inputs that bound the numbers have to be read too.
    bounds = "" if len(values) == 1 else f" {[value.tolist() for value in values[1:]]}"
    noise = np.empty(numbers, object)
    noise[:] = [Noise(operation + bounds, name, position) for position in range(numbers)]
    return noise.reshape(shape)


def resolved(shape: Values, rows: int) -> Values:
    """Return a shape in numbers.

    Args:
        shape: numbers, and multiples of the batch's size.
        rows: how many observations there are.

    Raises:
        NotReadError: if the batch's size goes in otherwise.
    """
    sizes = []
    for size in np.ravel(shape):
        rest, factor = (size, 1.0) if is_number(size) else scaled(size)
        if not is_number(rest) and not isinstance(rest, BatchSize):
            raise NotReadError("the size of the batch is reckoned with")
        sizes.append(int(rest) if is_number(rest) else round(factor * rows))
    return np.array(sizes, np.int64).reshape(np.shape(shape))


def shape_of(sizes: Sequence[int], rows: int) -> Values:
    """Return a shape in which the batch's size stands as a formula.

    Args:
        sizes: the dimensions, at so many rows.
        rows: how many observations there are; no other size is a multiple of it.
    """
    shape = np.empty(len(sizes), object)
    for position, size in enumerate(sizes):
        is_multiple = size > 0 and size % rows == 0
        shape[position] = apply("Mul", BatchSize(), size // rows) if is_multiple else size
    return shape


def _joined_shape(first: Values, second: Values) -> Values:
    """Return the shape that two shapes broadcast to."""
    length = max(len(first), len(second))
    padded = [[1] * (length - len(item)) + list(item) for item in (first, second)]
    joined = np.empty(length, object)
    for position, (one, other) in enumerate(zip(*padded, strict=True)):
        joined[position] = other if is_number(one) and one == 1 else one
    return joined


def _bounded(values: Values) -> Values:
    if values.size > _MOST_NUMBERS:
        raise NotReadError(f"a step has {values.size} numbers")
    return values


def _total(operation: str) -> Callable[[Any, str, Sequence[Values]], Values]:
    """Return the function that adds, or multiplies, a shape's sizes."""

    def total(node: Any, tensor: str, values: Sequence[Values]) -> Values:  # noqa: ANN401 -- TensorFlow is untyped
        if any(not is_number(item) and not _is_size(item) for item in values[0].flat):
            raise NotReadError(
                f"{node.op} stands between the distribution's inputs and the actions"
            )
        axes = sorted({int(axis) % max(values[0].ndim, 1) for axis in np.ravel(values[1])})
        if axes and axes != list(range(values[0].ndim)):
            raise NotReadError("the sizes of several shapes are reckoned with")
        found = np.empty((), object)
        found[()] = functools.reduce(
            functools.partial(apply, operation), values[0].flat, 1 if operation == "Mul" else 0
        )
        keeps = dict(attributes_of(node, tensor))["keep_dims"]
        return found.reshape((1,) * values[0].ndim if keeps else ())

    return total


def _is_size(formula: Formula) -> bool:
    return all(is_number(item) or isinstance(item, Apply | BatchSize) for item in walk(formula))


def _unpacked(node: Any, tensor: str, values: Sequence[Values]) -> Values:  # noqa: ANN401 -- TensorFlow is untyped
    return np.asarray(np.take(values[0], int(tensor.partition(":")[2]), axis=node.attr["axis"].i))


def _best(values: Values, axis: int) -> Values:
    moved = np.moveaxis(values, axis, -1)
    found = np.empty(moved.shape[:-1], object)
    for position in np.ndindex(*moved.shape[:-1]):
        found[position] = Best(tuple(moved[position]))
    return found


def _cast(values: Values, node: Any) -> Values:  # noqa: ANN401 -- TensorFlow is untyped
    """Leave a conversion out that keeps every value, such as int64 to int32 of a choice."""
    source = tf.dtypes.as_dtype(node.attr["SrcT"].type)
    target = tf.dtypes.as_dtype(node.attr["DstT"].type)
    if (source.is_floating and target.is_floating and min(source.size, target.size) >= 4) or (
        source.is_integer and (target.is_integer or target.is_floating) and target.size >= 4
    ):
        return values
    raise NotReadError(f"a Cast from {source.name} to {target.name}")


def _size_of(value: Values, rows: int) -> Values:
    size = np.empty((), object)
    [size[()]] = shape_of([value.size], rows)
    return size


_OF_THE_SHAPE: Mapping[str, Callable[[Values, int], Values]] = {
    "Shape": lambda value, rows: shape_of(value.shape, rows),
    "ShapeN": lambda value, rows: shape_of(value.shape, rows),
    "Size": _size_of,
    "Rank": lambda value, _: np.array(value.ndim, np.int32),
    "ZerosLike": lambda value, _: np.zeros(value.shape, np.float32),
    "OnesLike": lambda value, _: np.ones(value.shape, np.float32),
}
_OTHERS: Mapping[str, Callable[[Any, str, Sequence[Values]], Values]] = {
    "ArgMax": lambda _node, _tensor, values: _best(values[0], int(values[1])),
    "BroadcastArgs": lambda _node, _tensor, values: _joined_shape(*values),
    "BroadcastTo": lambda _node, _tensor, values: np.broadcast_to(
        values[0], [int(size) for size in values[1]]
    ),
    "Cast": lambda node, _tensor, values: _cast(values[0], node),
    "Fill": lambda _node, _tensor, values: np.full([int(size) for size in values[0]], values[1]),
    "Prod": _total("Mul"),
    "Sum": _total("Add"),
    "Unpack": _unpacked,
}
