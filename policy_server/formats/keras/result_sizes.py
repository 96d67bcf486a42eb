"""The sizes of steps' results, worked out from shapes alone, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MOST_IN_ALL",
    "MOST_IN_WINDOWS",
    "MOST_MULTIPLICATIONS",
    "MOST_NUMBERS",
    "MOST_STEPS",
    "multiplications",
    "numbers_in_windows",
    "result_size",
]

MOST_NUMBERS = 4_000_000
"""The largest result of a step for one observation."""
MOST_IN_ALL = 30_000_000
"""The most numbers of all steps' results together for one observation.

All are kept while the network is built, for 82 observations. The residual network of IMPALA has 2.8
million for images of 84 by 84 pixels, which takes 0.7 GB, 12.9 million (2.8 GB) for 210 by 160, and
25 million (5.3 GB) for 256 by 256. The process that builds it may take 8 GiB and more.
"""
MOST_STEPS = 100_000
"""The most steps: an LSTM has 22 for each step of time, and a pooling three for each place."""
MOST_IN_WINDOWS = 50_000_000
"""The most numbers of all windows of a convolution together for one observation."""
MOST_MULTIPLICATIONS = 10_000_000_000
"""The most multiplications of all steps together for one observation: twice those of ResNet-50."""

_Shapes = Sequence[tuple[int, ...]]
_ELEMENTWISE = (
    *("AddV2", "Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "Maximum", "Minimum"),
    *("Mul", "NotEqual", "Pow", "RealDiv", "SelectV2", "Sub"),
)


def result_size(
    operation: str,
    shapes: _Shapes,
    last: NDArray[Any] | None,
    attributes: Mapping[str, Any],
) -> int | None:
    """Return how many numbers a step's result has.

    Args:
        operation: its name in the engine.
        shapes: those of its inputs, for one observation.
        last: its last input, where that is a constant.
        attributes: its constant attributes.

    Returns:
        None for inputs that don't fit each other. It may be more than the result has for
        operations whose result is no larger than their inputs.
    """
    if operation in ("Pad", "Tile"):
        assert last is not None, "layers state how they pad and repeat"
        return _padded(shapes[0], last) if operation == "Pad" else _repeated(shapes[0], last)
    if operation == "Conv2D":
        return math.prod((*_places(shapes[0], shapes[1], **attributes), shapes[1][-1]))
    return _SIZES.get(operation, _largest)(shapes)


def numbers_in_windows(operation: str, shapes: _Shapes, attributes: Mapping[str, Any]) -> int:
    """Return how many numbers the windows have that a step lays side by side; 0 for no convolution.

    Args:
        operation: its name in the engine.
        shapes: those of its inputs, for one observation.
        attributes: its constant attributes.
    """
    if operation != "Conv2D":
        return 0
    image, (*window, channels, _) = shapes[0], shapes[1]
    # Zeros around the image are as wide as the window at the most.
    around = math.prod(map(sum, zip(image[1:3], window, strict=True))) * channels
    return max(math.prod((*_places(image, shapes[1], **attributes), *window, channels)), around)


def multiplications(operation: str, shapes: _Shapes, attributes: Mapping[str, Any]) -> int:
    """Return how many multiplications a step takes; 0 for those that take one a number or none.

    Args:
        operation: its name in the engine.
        shapes: those of its inputs, for one observation.
        attributes: its constant attributes.
    """
    if operation == "MatMul":
        return math.prod(shapes[0]) * shapes[1][-1]
    if operation == "Conv2D":
        return math.prod((*_places(shapes[0], shapes[1], **attributes), *shapes[1]))
    return 0


def _broadcast(shapes: _Shapes) -> int | None:
    try:
        return math.prod(np.broadcast_shapes(*shapes))
    except ValueError:
        return None


def _joined(shapes: _Shapes) -> int:
    return sum(map(math.prod, shapes))


def _multiplied(shapes: _Shapes) -> int:
    return math.prod(shapes[0][:-1]) * shapes[1][-1]


def _gathered(shapes: _Shapes) -> int:
    return math.prod(shapes[1]) * math.prod(shapes[0][1:])


def _padded(shape: tuple[int, ...], around: NDArray[Any]) -> int:
    return math.prod(size + int(sum(pair)) for size, pair in zip(shape, around, strict=True))


def _repeated(shape: tuple[int, ...], times: NDArray[Any]) -> int:
    return math.prod(shape) * math.prod(map(int, times))


def _largest(shapes: _Shapes) -> int:
    return max(map(math.prod, shapes))


def _places(
    shape: tuple[int, ...], kernel: tuple[int, ...], *, strides: Sequence[int], padding: str
) -> tuple[int, ...]:
    """Return how many places a convolution's window takes along each axis of an image."""
    windows = kernel[:2] if padding == "VALID" else (1, 1)
    return tuple(
        (size - window) // stride + 1
        for size, window, stride in zip(shape[1:3], windows, strides[1:3], strict=True)
    )


_SIZES: Mapping[str, Callable[[_Shapes], int | None]] = {
    **dict.fromkeys(_ELEMENTWISE, _broadcast),
    "ConcatV2": lambda shapes: _joined(shapes[:-1]),
    "GatherV2": _gathered,
    "MatMul": _multiplied,
    "Pack": _joined,
}
