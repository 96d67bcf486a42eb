"""The functions of `keras.ops` that move and choose numbers, as steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from policy_server.formats.keras.call_arguments import Arguments, Function

__all__ = ["SHAPING"]


def _get_item(call: Arguments) -> int:
    """Take a part of each row by indices, slices, new axes and an ellipsis."""
    key = call.values[1] if len(call.values) > 1 else None
    items = key if isinstance(key, list) else [key]
    if not items or not (_is_whole(items[0]) or _named(items[0]) == "__ellipsis__"):
        call.part.refuse("takes some observations of a batch; its first index has to be ':'")
    masks = dict.fromkeys(
        ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask"), 0
    )
    begin, end, strides = ([0] * len(items) for _ in range(3))
    for place, item in enumerate(items):
        (begin[place], end[place], strides[place]), marks = _indexed(call, item)
        for mark in marks:
            masks[mark] |= 1 << place
    registers = [call.steps.keep(np.array(values)) for values in (begin, end, strides)]
    return call.steps.add("StridedSlice", call.result(), *registers, **masks)


def _indexed(call: Arguments, item: Any) -> tuple[tuple[int, int, int], list[str]]:  # noqa: ANN401 -- JSON
    """Return begin, end and stride of one index, and TensorFlow's masks that it sets."""
    if item is None:
        return (0, 0, 1), ["new_axis_mask"]
    if isinstance(item, int) and not isinstance(item, bool):
        return (item, 0, 1), ["shrink_axis_mask"]
    if _named(item) == "__ellipsis__":
        return (0, 0, 1), ["ellipsis_mask"]
    if _named(item) != "__slice__" or not isinstance(item.get("config"), dict):
        call.part.refuse("has an index that is neither an integer nor a slice")
    bounds = [item["config"].get(key) for key in ("start", "stop", "step")]
    if any(value is not None and not isinstance(value, int) for value in bounds):
        call.part.refuse("has an index that is no integer")
    start, stop, step = bounds
    marks = ["begin_mask"] * (start is None) + ["end_mask"] * (stop is None)
    return (start or 0, stop or 0, 1 if step is None else step), marks


def _named(item: object) -> str | None:
    return item.get("class_name") if isinstance(item, dict) else None


def _is_whole(item: object) -> bool:
    return (
        isinstance(item, dict)
        and _named(item) == "__slice__"
        and all(value is None for value in item.get("config", {}).values())
    )


def _split(call: Arguments) -> list[int]:
    x = call.result()
    axis = call.steps.axis(x, call.part.get("axis", int, 0))
    size, stated = call.steps.shape(x)[axis], call.part.settings.get("indices_or_sections")
    if isinstance(stated, list):
        bounds = [0, *call.part.integers("indices_or_sections"), size]
    else:
        count = call.part.get("indices_or_sections", int, 1)
        bounds = [*range(0, size + 1, max(size // max(count, 1), 1))]
    if bounds != sorted(set(bounds)) or bounds[-1] != size:
        call.part.refuse(f"does not divide {size} numbers")
    return [
        call.steps.part(x, axis, first, last - first) for first, last in itertools.pairwise(bounds)
    ]


def _concatenate(call: Arguments) -> int:
    parts = [call.steps.number(x) for x in call.results()]
    axis = call.steps.axis(parts[0], call.part.get("axis", int, 0))
    return call.steps.joined(*parts, axis=axis + 1)


def _stack(call: Arguments) -> int:
    parts = [call.steps.number(x) for x in call.results()]
    axis = call.part.get("axis", int, 0)
    if axis == 0 or axis < -1 - len(call.steps.shape(parts[0])):
        call.part.refuse("stacks along the axis of the batch")
    return call.steps.add("Pack", *parts, axis=axis)


def _reshape(call: Arguments) -> int:
    stated = call.part.settings.get("newshape")
    first, *shape = stated if isinstance(stated, list) and stated else [0]
    x = call.result()
    is_right = all(isinstance(size, int) and size > 0 for size in shape)
    if first not in (-1, None) or not is_right or math.prod(shape) != call.steps.size(x):
        call.part.refuse("does not keep each observation's numbers; give it (-1, sizes...)")
    return call.steps.reshape(x, tuple(shape))


def _expand_dims(call: Arguments) -> int:
    x, (axis,) = call.result(), call.part.integers("axis", 1)
    shape = list(call.steps.shape(x))
    place = axis + len(shape) + 2 if axis < 0 else axis
    if not 1 <= place <= len(shape) + 1:
        call.part.refuse("adds an axis before that of the batch")
    shape.insert(place - 1, 1)
    return call.steps.reshape(x, tuple(shape))


def _squeeze(call: Arguments) -> int:
    x = call.result()
    gone = call.axes(x)
    shape = call.steps.shape(x)
    if any(shape[axis] != 1 for axis in gone):
        call.part.refuse("takes away an axis whose size is not 1")
    return call.steps.reshape(x, tuple(n for at, n in enumerate(shape) if at not in gone))


def _transpose(call: Arguments) -> int:
    x = call.result()
    axes = call.part.integers("axes") if call.part.settings.get("axes") else (1,)
    if axes[0] != 0 or sorted(axes) != [*range(len(call.steps.shape(x)) + 1)]:
        call.part.refuse("moves the axis of the batch")
    return call.steps.add("Transpose", x, call.steps.keep(np.array(axes)))


SHAPING: Mapping[str, Function] = {
    "Concatenate": _concatenate,
    "ExpandDims": _expand_dims,
    "GetItem": _get_item,
    "Reshape": _reshape,
    "Split": _split,
    "Squeeze": _squeeze,
    "Stack": _stack,
    "Transpose": _transpose,
}
"""Keras's class names of the functions, and the steps that compute them."""
