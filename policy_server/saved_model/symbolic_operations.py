"""Operations of a graph on formulas in place of numbers, as `sampler` runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.numpy_operations import OPERATIONS
from policy_server.saved_model import slim_tensorflow as tf
from policy_server.saved_model.attributes import attributes_of
from policy_server.saved_model.nodes import SHAPE_OPS
from policy_server.saved_model.symbols import ELEMENTWISE, Best, Draw, Noise

__all__ = ["RANDOM_OPS", "NotReadError", "draw_noise", "run_on_formulas"]

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
_MOST_NUMBERS = 1_000_000

Values = NDArray[Any]


class NotReadError(Exception):
    """The way from the distribution's inputs to the actions holds what is not understood."""


def run_on_formulas(node: Any, tensor: str, values: Sequence[Values]) -> Values:  # noqa: ANN401 -- TensorFlow is untyped
    """Return an operation's result on arrays that hold formulas.

    Args:
        node: the operation.
        tensor: which of its results is meant.
        values: its inputs, at least one of them formulas.

    Raises:
        NotReadError: if it is none that is followed.
    """
    operation = node.op
    if operation in SHAPE_OPS:
        return _OF_THE_SHAPE[operation](values[0], node)
    if operation in ELEMENTWISE:
        return _bounded(ELEMENTWISE[operation](*values))
    if operation in _MOVES:
        return np.asarray(OPERATIONS[operation](*values, **dict(attributes_of(node, tensor))))
    if operation == "Cast":
        return _cast(values[0], node)
    if operation == "ArgMax":
        return _best(values[0], int(values[1]))
    if operation == "BroadcastTo":
        return np.broadcast_to(values[0], [int(size) for size in values[1]])
    if operation == "Unpack":
        port, axis = int(tensor.partition(":")[2]), node.attr["axis"].i
        return np.asarray(np.take(values[0], port, axis=axis))
    raise NotReadError(f"{operation} stands between the distribution's inputs and the actions")


def draw_noise(node: Any, values: Sequence[Values]) -> Values:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the numbers that a random operation gives, each as a formula of its own.

    Args:
        node: the operation.
        values: its inputs.

    Raises:
        NotReadError: if it gives the same numbers at every call, or too many.
    """
    operation, name = node.op, node.name
    if operation.startswith("Stateless") and not _is_symbolic(values[1:]):
        raise NotReadError(f"{operation} gives the same numbers at every call")
    if operation in ("Multinomial", "StatelessMultinomial"):
        logits, count = np.asarray(values[0], object), int(values[1])
        draws = [
            [Draw(tuple(row), name, at * count + draw) for draw in range(count)]
            for at, row in enumerate(logits)
        ]
        return np.array(draws, object).reshape(len(logits), count)
    shape = [int(size) for size in values[0]]
    numbers = int(np.prod(shape))
    if numbers > _MOST_NUMBERS:
        raise NotReadError(f"{operation} gives {numbers} numbers")
    # What bounds the numbers has to be looked at too.
    bounds = "" if len(values) == 1 else f" {[value.tolist() for value in values[1:]]}"
    noise = np.empty(numbers, object)
    noise[:] = [Noise(operation + bounds, name, place) for place in range(numbers)]
    return noise.reshape(shape)


def _is_symbolic(values: Sequence[Values]) -> bool:
    return any(value.dtype == object for value in values)


def _bounded(values: Values) -> Values:
    if values.size > _MOST_NUMBERS:
        raise NotReadError(f"a step has {values.size} numbers")
    return values


def _best(values: Values, axis: int) -> Values:
    moved = np.moveaxis(values, axis, -1)
    found = np.empty(moved.shape[:-1], object)
    for place in np.ndindex(*moved.shape[:-1]):
        found[place] = Best(tuple(moved[place]))
    return found


def _cast(values: Values, node: Any) -> Values:  # noqa: ANN401 -- TensorFlow is untyped
    """Leave a conversion out that keeps every value, such as int64 to int32 of a choice."""
    source = tf.dtypes.as_dtype(node.attr["SrcT"].type)
    target = tf.dtypes.as_dtype(node.attr["DstT"].type)
    if (source.is_floating and target.is_floating and target.size >= 4) or (
        source.is_integer and (target.is_integer or target.is_floating) and target.size >= 4
    ):
        return values
    raise NotReadError(f"a Cast from {source.name} to {target.name}")


_OF_THE_SHAPE: Mapping[str, Callable[[Values, Any], Values]] = {
    "Shape": lambda value, _node: np.array(value.shape, np.int32),
    "ShapeN": lambda value, _node: np.array(value.shape, np.int32),
    "Size": lambda value, _node: np.array(value.size, np.int32),
    "Rank": lambda value, _node: np.array(value.ndim, np.int32),
    "ZerosLike": lambda value, _node: np.zeros(value.shape, np.float32),
    "OnesLike": lambda value, _node: np.ones(value.shape, np.float32),
}
