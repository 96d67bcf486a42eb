"""Whether the `example` of an observation is a value that a client could send."""

from __future__ import annotations

import math
from itertools import cycle

from policy_server.schema.fields import FLOAT32_MAX, ObservationField

__all__ = ["is_example_of"]


def is_example_of(example: object, field: ObservationField) -> bool:
    """Return whether a value has a field's type, lengths and bounds.

    Args:
        example: anything that YAML gives.
        field: the observation, without its example.
    """
    if not field.is_list:
        return _is_value_of(example, field, 0)
    items = _flat(example, 1 if field.shape is None else len(field.shape))
    if items is None or not _has_shape(example, field.shape):
        return False
    most = math.inf if field.max_items is None else field.max_items
    places = cycle(range(len(field.one_hot or (0,))))
    return field.min_items <= len(items) <= most and all(
        _is_value_of(value, field, place) for value, place in zip(items, places, strict=False)
    )


def _flat(example: object, levels: int) -> list[object] | None:
    """Return the items of lists in lists; None where there are fewer levels."""
    items = [example]
    for _ in range(levels):
        if not all(isinstance(item, list) for item in items):
            return None
        items = [inner for item in items if isinstance(item, list) for inner in item]
    return items


def _has_shape(example: object, shape: tuple[int, ...] | None) -> bool:
    if not shape or not isinstance(example, list):
        return True
    return len(example) == shape[0] and all(_has_shape(item, shape[1:]) for item in example)


def _is_value_of(value: object, field: ObservationField, place: int) -> bool:
    if field.kind == "bool" or isinstance(value, bool):
        return field.kind == "bool" and isinstance(value, bool)
    if not isinstance(value, int if field.kind == "int" else int | float):
        return False
    if field.one_hot is not None:
        return field.first <= value < field.first + field.one_hot[place]
    low = -FLOAT32_MAX if field.minimum is None else field.minimum
    high = FLOAT32_MAX if field.maximum is None else field.maximum
    return low <= value <= high
