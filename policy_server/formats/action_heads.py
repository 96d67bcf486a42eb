"""The outputs that schema.yaml points at, of a network that has several without telling names.

stable-baselines3's documented export of 1.x gives the action and the value as `21` and `22`, and a
MultiDiscrete policy may have an output of logits for each action.
"""

from __future__ import annotations

from collections.abc import Sequence

from policy_server.formats.network_outputs import (
    FEWEST_CHOICES,
    NetworkOutput,
    form_by_name,
)
from policy_server.formats.normal_outputs import NORMALS
from policy_server.schema import ActionField, ServerSchema

__all__ = ["dimensions_of", "heads_of", "may_be_heads", "pointed_at"]


def heads_of(outputs: Sequence[NetworkOutput], schema: ServerSchema) -> list[NetworkOutput]:
    """Return the outputs that are an action each, in order; empty where schema.yaml shows none.

    Args:
        outputs: the network's, in order.
        schema: the contents of schema.yaml, whose actions have to be as wide as the outputs.
    """
    fields = schema.actions or ()
    if len(fields) < 2:
        return []
    floats = [item for item in outputs if not item.is_integer and not item.has_several_rows]
    # One number, as of a value without a name, is no choice among several.
    wide = [item for item in floats if item.width >= FEWEST_CHOICES]
    stated = [_width_of(field) for field in fields]
    for found in (floats, wide):
        if [item.width for item in found] == stated:
            return found
    return []


def may_be_heads(outputs: Sequence[NetworkOutput]) -> bool:
    """Return whether several outputs may be the logits of an action each as well as actions.

    Args:
        outputs: those that are actions by their names.
    """
    return len(outputs) > 1 and all(
        not item.is_integer
        and item.ending is None
        and item.width >= FEWEST_CHOICES
        and item.name[-1:].isdigit()
        and form_by_name(item.name) == "action"
        for item in outputs
    )


def pointed_at(
    outputs: Sequence[NetworkOutput], schema: ServerSchema
) -> tuple[NetworkOutput | None, bool]:
    """Return the only output that may hold the actions, and whether schema.yaml tells it.

    Args:
        outputs: those that may hold actions, several.
        schema: the contents of schema.yaml.

    Returns:
        The one output of the width that schema.yaml gives, else the only one of several numbers;
        None where there are several of them, or none.
    """
    stated = [_width_of(field) for field in schema.actions or ()]
    known = [size for size in stated if size is not None]
    if known and len(known) == len(stated):
        is_normal = (schema.actions or ())[0].values in NORMALS
        width = sum(known) * (2 if is_normal else 1)
        fitting = [item for item in outputs if item.width == width]
        if len(fitting) == 1:
            return fitting[0], True
        if fitting:
            return None, False
    wide = [item for item in outputs if item.width >= FEWEST_CHOICES]
    return (wide[0], False) if len(wide) == 1 else (None, False)


def dimensions_of(field: ActionField) -> int | None:
    """Return how many numbers an action of schema.yaml has; None where it leaves that open.

    Args:
        field: the action's entry. One bound holds for any number of dimensions.
    """
    if field.dimensions is not None:
        return field.dimensions
    return len(field.low) if field.low is not None and len(field.low) > 1 else None


def _width_of(field: ActionField) -> int | None:
    return field.choices if field.choices is not None else dimensions_of(field)
