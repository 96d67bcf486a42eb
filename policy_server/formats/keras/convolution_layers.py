"""Keras's convolutions and pooling as steps; images and sequences with their channels last."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from policy_server.formats.keras.activation_functions import activated
from policy_server.formats.keras.model_config import Part
from policy_server.formats.keras.network_steps import Steps
from policy_server.formats.keras.plain_layers import Arrays, Layer, shaped

__all__ = ["CONVOLUTIONS"]

_MOST_IN_WINDOW = 128


def _convolution(steps: Steps, part: Part, inputs: Sequence[int], arrays: Arrays) -> int:
    """Convolve an image, or a sequence as an image of one column."""
    rank = 1 if part.kind == "Conv1D" else 2
    x = steps.number(_with_axes(steps, part, inputs[0], rank))
    part.expect("data_format", "channels_last")
    part.expect("groups", 1)
    part.expect("dilation_rate", *_ones(rank))
    window, strides = part.integers("kernel_size", rank), part.integers("strides", rank)
    *sizes, channels = steps.shape(x)
    filters = part.count("filters")
    has_bias = part.get("use_bias", bool, default=True)
    shapes = [(*window, channels, filters), (filters,)][: 1 + has_bias]
    kernel, *bias = shaped(part, arrays, *shapes)
    padding = part.get("padding", str, "valid")
    if padding == "causal":
        x = _padded(steps, x, [(window[0] - 1, 0)])
        sizes, padding = [sizes[0] + window[0] - 1], "valid"
    if padding not in ("same", "valid"):
        part.refuse(f"padding is {padding}, expected same or valid")
    if padding == "valid" and any(map(int.__gt__, window, sizes)):
        part.refuse(f"its window {window} is larger than its input {tuple(sizes)}")
    if min((*window, *strides)) < 1:
        part.refuse("kernel_size and strides have to be above 0")
    if rank == 1:
        x = steps.reshape(x, (sizes[0], 1, channels))
        kernel, strides = kernel[:, None], (strides[0], 1)
    weights = steps.numbers(kernel)
    x = steps.add("Conv2D", x, weights, strides=(1, *strides, 1), padding=padding.upper())
    if rank == 1:
        x = steps.reshape(x, (steps.shape(x)[0], filters))
    if has_bias:
        x = steps.with_constant("AddV2", x, bias[0])
    return activated(steps, x, part)


def _pooled(kind: str, rank: int) -> Layer:
    def pool(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
        """Take the largest number or the mean of each window, by one slice for each place in it."""
        x = steps.number(_with_axes(steps, part, inputs[0], rank))
        part.expect("data_format", "channels_last")
        window = part.integers("pool_size", rank)
        has_strides = part.settings.get("strides") is not None
        strides = part.integers("strides", rank) if has_strides else window
        if min((*window, *strides)) < 1 or math.prod(window) > _MOST_IN_WINDOW:
            part.refuse(f"pools windows of {window}, expected 1 to {_MOST_IN_WINDOW} places")
        sizes = steps.shape(x)[:rank]
        count = np.ones((*sizes, 1))
        if part.get("padding", str, "valid") == "same":
            around = [_around(*item) for item in zip(sizes, window, strides, strict=True)]
            count = np.pad(count, [*around, (0, 0)])
            x = _padded(steps, x, around)
            if kind == "Maximum":
                x = steps.with_constant("AddV2", x, np.where(count > 0, 0.0, -np.inf))
        places = list(itertools.product(*map(range, window)))
        results = [
            (size - reach) // stride + 1
            for size, reach, stride in zip(steps.shape(x), window, strides, strict=False)
        ]
        if min(results) < 1:
            part.refuse(f"its window {window} is larger than its input {sizes}")
        parts = [_strided(steps, x, place, results, strides) for place in places]
        found = functools.reduce(functools.partial(steps.add, kind), parts)
        if kind == "Maximum":
            return found
        index = [
            tuple(
                slice(at, at + (n - 1) * s + 1, s)
                for at, n, s in zip(place, results, strides, strict=True)
            )
            for place in places
        ]
        return steps.with_constant("RealDiv", found, sum(count[at] for at in index))

    return pool


def _with_axes(steps: Steps, part: Part, x: int, rank: int) -> int:
    """Return a register that has a number of axes and channels; refuse any other."""
    if len(shape := steps.shape(x)) != rank + 1:
        axes = "an image's height and width" if rank == 2 else "a sequence's length"
        part.refuse(f"takes an input of the shape {shape}, expected {axes}, and its channels")
    return x


def _strided(
    steps: Steps, x: int, place: Sequence[int], sizes: Sequence[int], strides: Sequence[int]
) -> int:
    for axis, (first, size, stride) in enumerate(zip(place, sizes, strides, strict=True)):
        x = steps.part(x, axis, first, size, stride)
    return x


def _around(size: int, window: int, stride: int) -> tuple[int, int]:
    """Return how many zeros `same` puts before and behind an axis, as TensorFlow does."""
    missing = max((-(-size // stride) - 1) * stride + window - size, 0)
    return missing // 2, missing - missing // 2


def _padded(steps: Steps, x: int, around: Sequence[tuple[int, int]]) -> int:
    pairs = [(0, 0), *around, (0, 0)]
    return steps.add("Pad", x, steps.keep(np.array(pairs)))


def _global(operation: str, rank: int) -> Layer:
    def reduce(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
        part.expect("data_format", "channels_last")
        x = steps.number(_with_axes(steps, part, inputs[0], rank))
        axes = tuple(range(rank))
        return steps.reduced(operation, x, axes, keeps=part.get("keepdims", bool, default=False))

    return reduce


def _zero_padding(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    stated = part.settings.get("padding", 1)
    part.expect("data_format", "channels_last", None)
    rank = 1 if part.kind == "ZeroPadding1D" else 2
    _with_axes(steps, part, inputs[0], rank)
    sides = stated if isinstance(stated, list) else [stated] * rank
    if rank == 1 and len(sides) == 2:
        sides = [sides]
    pairs = [tuple(side) if isinstance(side, list) else (side, side) for side in sides]
    flat = [number for pair in pairs for number in pair]
    if len(flat) != 2 * rank or any(not isinstance(n, int) or not 0 <= n < 4096 for n in flat):
        part.refuse(f"padding is {str(stated)[:40]}, expected two numbers an axis")
    return _padded(steps, inputs[0], pairs)


def _ones(rank: int) -> tuple[object, ...]:
    return 1, [1] * rank


CONVOLUTIONS: Mapping[str, Layer] = {
    "AveragePooling1D": _pooled("AddV2", 1),
    "AveragePooling2D": _pooled("AddV2", 2),
    "Conv1D": _convolution,
    "Conv2D": _convolution,
    "GlobalAveragePooling1D": _global("Mean", 1),
    "GlobalAveragePooling2D": _global("Mean", 2),
    "GlobalMaxPooling1D": _global("Max", 1),
    "GlobalMaxPooling2D": _global("Max", 2),
    "MaxPooling1D": _pooled("Maximum", 1),
    "MaxPooling2D": _pooled("Maximum", 2),
    "ZeroPadding1D": _zero_padding,
    "ZeroPadding2D": _zero_padding,
}
"""Keras's class names of convolutions and pooling, and the steps that compute them."""
