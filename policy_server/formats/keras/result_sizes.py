"""The sizes of steps' results, worked out from shapes alone, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_NUMBERS", "result_size"]

MOST_NUMBERS = 4_000_000
"""The largest result of a layer for one observation."""

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
        None for operations whose result is no larger than their inputs, or whose callers have
        looked at its size, and for inputs that don't fit each other.
    """
    if operation == "Pad":
        return None if last is None else _padded(shapes[0], last)
    if operation == "Conv2D":
        return _convolved(shapes[0], shapes[1], **attributes)
    find = _SIZES.get(operation)
    return None if find is None else find(shapes)


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


def _convolved(
    shape: tuple[int, ...], kernel: tuple[int, ...], *, strides: Sequence[int], padding: str
) -> int:
    windows = kernel[:2] if padding == "VALID" else (1, 1)
    sizes = [
        (size - window) // stride + 1
        for size, window, stride in zip(shape[1:3], windows, strides[1:3], strict=True)
    ]
    return math.prod((shape[0], *sizes, kernel[-1]))


_SIZES: Mapping[str, Callable[[_Shapes], int | None]] = {
    **dict.fromkeys(_ELEMENTWISE, _broadcast),
    "ConcatV2": lambda shapes: _joined(shapes[:-1]),
    "GatherV2": _gathered,
    "MatMul": _multiplied,
    "Pack": _joined,
}
