"""The operations that policies are made of, in NumPy: TensorFlow's by its names, and others.

TensorFlow has no operation for GELU, which PyTorch's policies hold: it is `Gelu` here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.array_operations import (
    ELEMENTWISE,
    MOVES,
    PRODUCTS,
    REDUCTIONS,
    SPATIAL,
)

__all__ = ["OPERATIONS", "PLAIN_OPERATIONS", "slices_of"]

Array = NDArray[Any]

# So many numbers of a convolution's windows are laid side by side at once: 64 MB of float32.
_MOST_IN_WINDOWS = 1 << 24


def _flushed(x: Array) -> Array:
    """Return the numbers with denormals as zero, as TensorFlow's threads read them.

    A logarithm, a comparison and a division need this: they tell zero from nearly zero.
    """
    if x.dtype.kind != "f":
        return x
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x * x.dtype.type(0), x)


def _compared(function: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: function(_flushed(np.asarray(a)), _flushed(np.asarray(b)))


def _log(x: Array) -> Array:
    is_zero = np.abs(x) < np.finfo(x.dtype).tiny
    return np.where(is_zero, x.dtype.type(-np.inf), np.log(x))


def _divide(a: Array, b: Array) -> Array:
    # One number divides all: a constant, which needs no look.
    return np.divide(a, b if np.ndim(b) == 0 else _flushed(b))


def _matmul(a: Array, b: Array, *, transpose_a: bool = False, transpose_b: bool = False) -> Array:
    product: Array = (a.T if transpose_a else a).dot(b.T if transpose_b else b)
    return product


def _relu(x: Array) -> Array:
    result: Array = np.maximum(x, x.dtype.type(0))
    return result


def _sigmoid(x: Array) -> Array:
    result = np.asarray(np.negative(x))
    np.exp(result, out=result)
    result += 1
    np.divide(1, result, out=result)
    return result


def _elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _selu(x: Array) -> Array:
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return np.where(x > 0, scale * x, scale * alpha * np.expm1(np.minimum(x, 0))).astype(x.dtype)


def _gelu(x: Array) -> Array:
    """Return the product of each number and the normal distribution's mass below it."""
    erf = ELEMENTWISE["erf"](x.astype(np.float64) / math.sqrt(2))
    return np.asarray(x * (0.5 * (1 + erf)), x.dtype)


def _softmax(x: Array) -> Array:
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def _concat(*parts: Array) -> Array:
    return np.concatenate(parts[:-1], axis=int(parts[-1]))


def _reshape(x: Array, shape: Array) -> Array:
    return x.reshape([int(size) for size in shape])


def _split(axis: Array, x: Array, *, num_split: int, port: int) -> Array:
    size = x.shape[int(axis)] // num_split
    return _part(x, int(axis), port * size, size)


def _split_v(x: Array, sizes: Array, axis: Array, *, port: int) -> Array:
    return _part(x, int(axis), int(sizes[:port].sum()), int(sizes[port]))


def _part(x: Array, axis: int, first: int, size: int) -> Array:
    index: list[Any] = [slice(None)] * x.ndim
    index[axis] = slice(first, first + size)
    part: Array = x[tuple(index)]
    return part


def _slice(x: Array, begin: Array, size: Array) -> Array:
    part: Array = x[slices_of(begin, size)]
    return part


def slices_of(begin: Array, size: Array) -> tuple[slice, ...]:
    """Return the index by which the operation Slice takes a part of an array.

    Args:
        begin: the first index of each axis.
        size: how many there are along each axis; -1 for all that are left.
    """
    return tuple(
        slice(int(b), None if s < 0 else int(b) + int(s)) for b, s in zip(begin, size, strict=True)
    )


def _strided_slice(x: Array, begin: Array, end: Array, strides: Array, **masks: int) -> Array:
    """Slice by TensorFlow's masks, which have one bit a dimension."""
    index: list[Any] = []
    for axis, (first, last, stride) in enumerate(zip(begin, end, strides, strict=True)):
        is_set = {name: bool(mask >> axis & 1) for name, mask in masks.items()}
        if is_set["ellipsis_mask"]:
            index.append(Ellipsis)
        elif is_set["new_axis_mask"]:
            index.append(None)
        elif is_set["shrink_axis_mask"]:
            index.append(int(first))
        else:
            start = None if is_set["begin_mask"] else int(first)
            index.append(slice(start, None if is_set["end_mask"] else int(last), int(stride)))
    part: Array = np.asarray(x)[tuple(index)]
    return part


def _reduction(function: Callable[..., Any]) -> Callable[..., Array]:
    def reduce(x: Array, axes: Array, *, keep_dims: bool) -> Array:
        axis = tuple(int(axis) for axis in np.ravel(axes))
        # Sums of integers keep their type, and wrap.
        named = {"dtype": x.dtype} if function in (np.sum, np.prod) else {}
        result: Array = function(x, axis=axis, keepdims=keep_dims, **named)
        return result

    return reduce


def _mean(x: Array, axes: Array, *, keep_dims: bool) -> Array:
    if x.dtype.kind != "f":
        raise TypeError("no mean of integers")
    return _reduction(np.mean)(x, axes, keep_dims=keep_dims)


def _gather(x: Array, indices: Array, axis: Array) -> Array:
    size = np.shape(x)[int(axis)]
    if np.size(indices) and (np.min(indices) < 0 or np.max(indices) >= size):
        raise IndexError(f"an index lies outside 0 to {size - 1}")
    return np.take(x, indices, axis=int(axis))


def _floor_divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.floor(_flushed(_flushed(a) / _flushed(b)))
    if not np.all(b):
        raise ZeroDivisionError("an integer is divided by zero")
    return np.floor_divide(a, b)


def _one_hot(
    indices: Array, depth: Array, on_value: Array, off_value: Array, *, axis: int
) -> Array:
    values = np.where(np.arange(int(depth)) == indices[..., None], on_value, off_value)
    return np.moveaxis(values, -1, axis)


def _cast(x: Array, *, dtype: str) -> Array:
    x = np.asarray(x)
    return (_flushed(x) if dtype == "bool" else x).astype(dtype, copy=False)


def _squeeze(x: Array, *, squeeze_dims: tuple[int, ...]) -> Array:
    return np.squeeze(x, axis=squeeze_dims or None)


def _pack(*parts: Array, axis: int) -> Array:
    return np.stack(parts, axis=axis)


def _range(start: Any, limit: Any, delta: Any) -> Array:  # noqa: ANN401 -- zero-dimensional arrays
    return np.arange(start, limit, delta, dtype=start.dtype)


def _where(condition: Array, a: Array, b: Array) -> Array:
    return np.where(condition, a, b)


def _select(condition: Array, a: Array, b: Array) -> Array:
    # TensorFlow 1 takes one condition a row.
    shape = (-1, *(1,) * (np.ndim(a) - 1))
    return np.where(condition.reshape(shape) if np.ndim(condition) == 1 else condition, a, b)


def _leaky_relu(x: Array, *, alpha: float) -> Array:
    return np.where(x > 0, x, x * x.dtype.type(alpha))


def _conv(x: Array, filters: Array, *, strides: tuple[int, ...], padding: str) -> Array:
    """Convolve by one matrix product over the windows; NHWC, as RLlib's vision network."""
    height, width, channels, _ = filters.shape
    if padding == "SAME":
        sizes = zip(x.shape[1:3], (height, width), strides[1:3], strict=True)
        around = [
            max((-(-size // stride) - 1) * stride + window - size, 0)
            for size, window, stride in sizes
        ]
        x = np.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in around), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(1, 2))
    windows = windows[:, :: strides[1], :: strides[2]].transpose(0, 1, 2, 4, 5, 3)
    size = height * width * channels
    matrix = filters.reshape(size, -1)
    # A batch's windows, side by side, may need a gigabyte.
    at_once = max(1, _MOST_IN_WINDOWS // (math.prod(windows.shape[1:3]) * size))
    parts = [
        windows[first : first + at_once].reshape(-1, size).dot(matrix)
        for first in range(0, max(1, len(windows)), at_once)
    ]
    product = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return product.reshape(*windows.shape[:3], filters.shape[3])


def _normalise(
    x: Array,
    scale: Array,
    offset: Array,
    *moments: Array,
    epsilon: float,
    data_format: str,
    is_training: bool,
) -> Array:
    """Normalise each channel: by its own moments, as Keras's layer normalisation, or by given."""
    axes, shape = ((0, 2, 3), (1, -1, 1, 1)) if data_format == "NCHW" else ((0, 1, 2), (-1,))
    if is_training:
        centered = x - x.mean(axis=axes, keepdims=True)
        variance = np.square(centered).mean(axis=axes, keepdims=True)
    else:
        centered = x - moments[0].reshape(shape)
        variance = moments[1].reshape(shape)
    result: Array = centered / np.sqrt(variance + x.dtype.type(epsilon))
    return result * scale.reshape(shape) + offset.reshape(shape)


def _repeat_rows(x: Array, row: Array) -> Array:
    """Return a row that is one for all, once for each row of `x`."""
    return np.broadcast_to(row, (len(x), *row.shape))


def _take(x: Array, indices: Array, *, axis: int) -> Array:
    """Take by indices, of which negative ones count from the end."""
    return np.take(x, indices, axis=axis)


OPERATIONS: Mapping[str, Callable[..., Array]] = {
    **ELEMENTWISE,
    **MOVES,
    **PRODUCTS,
    **REDUCTIONS,
    **SPATIAL,
    "repeat_rows": _repeat_rows,
    "take": _take,
    "PlainEqual": np.equal,
    "PlainGreater": np.greater,
    "PlainGreaterEqual": np.greater_equal,
    "PlainLess": np.less,
    "PlainLessEqual": np.less_equal,
    "PlainNotEqual": np.not_equal,
    "PlainRealDiv": np.divide,
    "Abs": np.abs,
    "Add": np.add,
    "AddN": lambda *parts: functools.reduce(np.add, parts),
    "AddV2": np.add,
    "BiasAdd": np.add,
    "Cast": _cast,
    "ConcatV2": _concat,
    "Conv2D": _conv,
    "Cos": np.cos,
    "Einsum": lambda *parts, equation: np.einsum(equation, *parts),
    "Elu": _elu,
    "Equal": _compared(np.equal),
    "Exp": np.exp,
    "ExpandDims": lambda x, axis: np.expand_dims(x, int(axis)),
    "Fill": lambda shape, value: np.full([int(size) for size in shape], value),
    "FloorDiv": _floor_divide,
    "FusedBatchNormV3": _normalise,
    "GatherV2": _gather,
    "Gelu": _gelu,
    "Greater": _compared(np.greater),
    "GreaterEqual": _compared(np.greater_equal),
    "LeakyRelu": _leaky_relu,
    "Less": _compared(np.less),
    "LessEqual": _compared(np.less_equal),
    "Log": _log,
    "LogicalAnd": np.logical_and,
    "LogicalNot": np.logical_not,
    "LogicalOr": np.logical_or,
    "MatMul": _matmul,
    "Max": _reduction(np.max),
    "Maximum": np.maximum,
    "Mean": _mean,
    "Min": _reduction(np.min),
    "Minimum": np.minimum,
    "Mul": np.multiply,
    "Neg": np.negative,
    "NotEqual": _compared(np.not_equal),
    "OneHot": _one_hot,
    "OnesLike": np.ones_like,
    "Pack": _pack,
    "Pad": np.pad,
    "Pow": lambda a, b: np.power(_flushed(np.asarray(a)), b),
    "Prod": _reduction(np.prod),
    "Range": _range,
    "RealDiv": _divide,
    "Relu": _relu,
    "Reshape": _reshape,
    "Rsqrt": lambda x: 1 / np.sqrt(_flushed(x)),
    "Select": _select,
    "SelectV2": _where,
    "Selu": _selu,
    "Shape": lambda x, dtype="int32": np.array(np.shape(x), dtype),
    "Sigmoid": _sigmoid,
    "Sin": np.sin,
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": lambda x: np.logaddexp(x, x.dtype.type(0)),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Split": _split,
    "SplitV": _split_v,
    "Sqrt": np.sqrt,
    "Square": np.square,
    "SquaredDifference": lambda a, b: np.square(a - b),
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "Sub": np.subtract,
    "Sum": _reduction(np.sum),
    "Tanh": np.tanh,
    "Tile": lambda x, multiples: np.tile(x, multiples),
    "Transpose": np.transpose,
    "ZerosLike": np.zeros_like,
}

PLAIN_OPERATIONS: Mapping[str, str] = {
    "Equal": "PlainEqual",
    "Greater": "PlainGreater",
    "GreaterEqual": "PlainGreaterEqual",
    "Less": "PlainLess",
    "LessEqual": "PlainLessEqual",
    "NotEqual": "PlainNotEqual",
    "RealDiv": "PlainRealDiv",
}
"""What stands in for an operation where no denormal can come: it needs no look for one."""
