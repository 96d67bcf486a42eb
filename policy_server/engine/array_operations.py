"""Operations on arrays that policies of other formats than TensorFlow's are made of, in NumPy.

Their names are lower-case, and so differ from those of TensorFlow's operations. They read a
denormal as the number that it is. `row_dependence` follows each of their kinds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ELEMENTWISE", "MOVES", "PRODUCTS", "REDUCTIONS", "SPATIAL"]

Array = NDArray[Any]

# The largest array that a step makes: a file of a few bytes may ask for any size.
_MOST_NUMBERS = 50_000_000


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.divide(a, b)
    if not np.all(b):
        raise ZeroDivisionError("an integer is divided by zero")
    # Integers are divided towards zero.
    quotient = np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))
    return np.asarray(quotient, a.dtype)


def _power(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(np.power(a, np.asarray(b).astype(a.dtype)))
    return np.asarray(np.power(a.astype(np.float64), b), a.dtype)


def _modulo(a: Array, b: Array, *, is_fmod: bool) -> Array:
    if a.dtype.kind != "f" and not np.all(b):
        raise ZeroDivisionError("an integer is divided by zero")
    return np.fmod(a, b) if is_fmod else np.mod(a, b)


def _erf(x: Array) -> Array:
    # NumPy has no `erf`, and a loop costs less than a polynomial that is as exact.
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), x.dtype)


ELEMENTWISE: Mapping[str, Callable[..., Array]] = {
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "cosh": np.cosh,
    "divide": _divide,
    "equal": np.equal,
    "erf": _erf,
    "floor": np.floor,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "is_nan": np.isnan,
    "less": np.less,
    "less_equal": np.less_equal,
    "log": np.log,
    "logical_xor": np.logical_xor,
    "modulo": _modulo,
    "not_equal": np.not_equal,
    "power": _power,
    "round": np.rint,
    "sign": np.sign,
    "sinh": np.sinh,
    "tan": np.tan,
    "where": np.where,
}
"""Operations number by number."""


def _sized(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in shape)
    if math.prod(sizes) > _MOST_NUMBERS:
        raise ValueError(f"an array of the shape {sizes} is asked for")
    return sizes


def _reshape_copying(x: Array, *, shape: Sequence[int]) -> Array:
    """Reshape; a size of 0 stands for that of the same axis before."""
    return x.reshape([size or x.shape[axis] for axis, size in enumerate(shape)])


def _flatten(x: Array, *, axis: int) -> Array:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _slice_axes(
    x: Array,
    *,
    axes: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    steps: Sequence[int],
) -> Array:
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Counting down, an end before the first item takes that too.
        stop = None if step < 0 and end < -x.shape[axis] else end
        index[axis] = slice(start, stop, step)
    part: Array = x[tuple(index)]
    return part


def _expand(x: Array, shape: Array) -> Array:
    target = np.broadcast_shapes(x.shape, _sized(shape.tolist()))
    return np.broadcast_to(x, _sized(target))


def _pad(x: Array, *, pads: Sequence[int], value: float) -> Array:
    half = len(pads) // 2
    around = list(zip(pads[:half], pads[half:], strict=True))
    _sized([size + sum(more) for size, more in zip(x.shape, around, strict=True)])
    return np.pad(x, around, constant_values=x.dtype.type(value))


MOVES: Mapping[str, Callable[..., Array]] = {
    "expand": _expand,
    "flatten": _flatten,
    "pad": _pad,
    "reshape_copying": _reshape_copying,
    "slice_axes": _slice_axes,
}
"""Operations that only move the values of their first input."""


def _windows(
    x: Array, window: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """Return the windows of the last axes: one more axis for each, at the end."""
    axes = tuple(range(x.ndim - len(window), x.ndim))
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(window, dilations, strict=True)]
    found = np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)
    before = [slice(None)] * axes[0]
    steps = [slice(None, None, stride) for stride in strides]
    within = [slice(None, None, dilation) for dilation in dilations]
    part: Array = found[(*before, *steps, *within)]
    return part


def _padded(x: Array, pads: Sequence[int], value: float) -> Array:
    half = len(pads) // 2
    around = [(0, 0)] * (x.ndim - half) + list(zip(pads[:half], pads[half:], strict=True))
    return np.pad(x, around, constant_values=x.dtype.type(value)) if any(pads) else x


def _convolve(
    x: Array,
    filters: Array,
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    groups: int,
) -> Array:
    """Convolve with the channels first, by one matrix product for each group."""
    windows = _windows(_padded(x, pads, 0), filters.shape[2:], strides, dilations)
    rank = filters.ndim - 2
    places = windows.shape[2 : 2 + rank]
    # (N, C, places, window) to (N, places, C, window)
    rows = np.moveaxis(windows, 1, 1 + rank)
    width = filters.shape[1]
    parts = []
    for group, own in enumerate(np.split(filters, groups)):
        taken = rows[(slice(None),) * (1 + rank) + (slice(group * width, (group + 1) * width),)]
        flat = taken.reshape(-1, own[0].size)
        product = flat.dot(own.reshape(len(own), -1).T)
        parts.append(product.reshape(len(x), *places, len(own)))
    return np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)


PRODUCTS: Mapping[str, Callable[..., Array]] = {"convolve": _convolve, "matmul": np.matmul}
"""Sums of products."""


def _pool(
    x: Array, *, window: Sequence[int], strides: Sequence[int], pads: Sequence[int], kind: str
) -> Array:
    """Pool the last axes: by the largest number, or by the mean with or without padding."""
    axes = tuple(range(-len(window), 0))
    ones = [1] * len(window)
    if kind == "max":
        padded = _padded(x, pads, _lowest(x.dtype))
        largest: Array = _windows(padded, window, strides, ones).max(axis=axes)
        return largest
    total: Array = _windows(_padded(x, pads, 0), window, strides, ones).sum(axis=axes)
    if kind == "mean":
        counted = _windows(_padded(np.ones_like(x), pads, 0), window, strides, ones).sum(axis=axes)
        return np.asarray(total / counted, x.dtype)
    return np.asarray(total / math.prod(window), x.dtype)


def _lowest(dtype: np.dtype[Any]) -> float:
    """Return the number that no other number of a type is below."""
    return int(np.iinfo(dtype).min) if dtype.kind in "iu" else -math.inf


SPATIAL: Mapping[str, Callable[..., Array]] = {"pool": _pool}
"""Operations on the last axes, beside batch and channels."""


def _arg_max(x: Array, *, axis: int, keep_dims: bool, is_last: bool, is_min: bool) -> Array:
    # An integer's negative may be none of its type.
    place = np.argmin if is_min else np.argmax
    if is_last:
        found = x.shape[axis] - 1 - place(np.flip(x, axis), axis=axis, keepdims=keep_dims)
    else:
        found = place(x, axis=axis, keepdims=keep_dims)
    return np.asarray(found, np.int64)


def _softmax(x: Array, *, axis: int) -> Array:
    shifted = np.exp(x - x.max(axis=axis, keepdims=True))
    result: Array = shifted / shifted.sum(axis=axis, keepdims=True)
    return result


def _log_softmax(x: Array, *, axis: int) -> Array:
    shifted = x - x.max(axis=axis, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return result


def _cumulated(x: Array, *, axis: int) -> Array:
    return np.asarray(np.cumsum(x, axis=axis), x.dtype)


REDUCTIONS: Mapping[str, Callable[..., Array]] = {
    "arg_max": _arg_max,
    "cumulated": _cumulated,
    "log_softmax": _log_softmax,
    "softmax": _softmax,
}
"""Operations along one axis, named `axis`: a number depends on all along it."""
