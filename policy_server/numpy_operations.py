"""TensorFlow's operations in NumPy, under TensorFlow's names: those that policies are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["OPERATIONS"]

Array = NDArray[Any]


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
    index = tuple(
        slice(int(b), None if s < 0 else int(b) + int(s)) for b, s in zip(begin, size, strict=True)
    )
    part: Array = x[index]
    return part


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
        result: Array = function(
            x, axis=tuple(int(axis) for axis in np.ravel(axes)), keepdims=keep_dims
        )
        return result

    return reduce


def _one_hot(
    indices: Array, depth: Array, on_value: Array, off_value: Array, *, axis: int
) -> Array:
    values = np.where(np.arange(int(depth)) == indices[..., None], on_value, off_value)
    return np.moveaxis(values, -1, axis)


def _cast(x: Array, *, dtype: str) -> Array:
    return np.asarray(x).astype(dtype, copy=False)


def _squeeze(x: Array, *, squeeze_dims: tuple[int, ...]) -> Array:
    return np.squeeze(x, axis=squeeze_dims or None)


def _pack(*parts: Array, axis: int) -> Array:
    return np.stack(parts, axis=axis)


def _range(start: Any, limit: Any, delta: Any) -> Array:  # noqa: ANN401 -- zero-dimensional arrays
    return np.arange(start, limit, delta, dtype=start.dtype)


def _where(condition: Array, a: Array, b: Array) -> Array:
    return np.where(condition, a, b)


def _leaky_relu(x: Array, *, alpha: float) -> Array:
    result: Array = np.maximum(x, x * x.dtype.type(alpha))
    return result


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
    rows = windows.reshape(-1, height * width * channels)
    product: Array = rows.dot(filters.reshape(len(rows.T), -1))
    return product.reshape(*windows.shape[:3], -1)


def _normalise(
    x: Array, scale: Array, offset: Array, *_moments: Array, epsilon: float, data_format: str
) -> Array:
    """Normalise each channel by its own moments, as Keras builds layer normalisation."""
    axes, shape = ((0, 2, 3), (1, -1, 1, 1)) if data_format == "NCHW" else ((0, 1, 2), (-1,))
    centered = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centered).mean(axis=axes, keepdims=True)
    result: Array = centered / np.sqrt(variance + x.dtype.type(epsilon))
    return result * scale.reshape(shape) + offset.reshape(shape)


OPERATIONS: Mapping[str, Callable[..., Array]] = {
    "Abs": np.abs,
    "Add": np.add,
    "AddN": lambda *parts: np.sum(np.stack(parts), axis=0),
    "AddV2": np.add,
    "BiasAdd": np.add,
    "Cast": _cast,
    "ConcatV2": _concat,
    "Conv2D": _conv,
    "Cos": np.cos,
    "Einsum": lambda *parts, equation: np.einsum(equation, *parts),
    "Elu": _elu,
    "Equal": np.equal,
    "Exp": np.exp,
    "ExpandDims": lambda x, axis: np.expand_dims(x, int(axis)),
    "Fill": lambda shape, value: np.full([int(size) for size in shape], value),
    "FloorDiv": np.floor_divide,
    "FusedBatchNormV3": _normalise,
    "GatherV2": lambda x, indices, axis: np.take(x, indices, axis=int(axis)),
    "Greater": np.greater,
    "LeakyRelu": _leaky_relu,
    "Less": np.less,
    "Log": np.log,
    "LogicalAnd": np.logical_and,
    "LogicalNot": np.logical_not,
    "MatMul": _matmul,
    "Max": _reduction(np.max),
    "Maximum": np.maximum,
    "Mean": _reduction(np.mean),
    "Min": _reduction(np.min),
    "Minimum": np.minimum,
    "Mul": np.multiply,
    "Neg": np.negative,
    "NotEqual": np.not_equal,
    "OneHot": _one_hot,
    "OnesLike": np.ones_like,
    "Pack": _pack,
    "Pad": np.pad,
    "Pow": np.power,
    "Prod": _reduction(np.prod),
    "Range": _range,
    "RealDiv": np.divide,
    "Relu": _relu,
    "Reshape": _reshape,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Select": _where,
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
