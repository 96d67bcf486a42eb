"""Actions that a network has scaled itself, as by a tanh that is multiplied by the largest torque.

schema.yaml's `low` and `high` rescale an action from [-1, 1]. A network that gives numbers in the
environment's units already is not to be rescaled once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.output_meaning import Meaning
from policy_server.schema import ActionField, ServerSchema

__all__ = ["Bounds", "without_rescaling"]

Bounds = tuple[NDArray[Any], NDArray[Any]]
"""The least and the most that an output's numbers can be: one number, or one a dimension."""

_TOLERANCE = 1e-5


def without_rescaling(
    meaning: Meaning, schema: ServerSchema | None, bounds: Mapping[str, Bounds]
) -> ServerSchema | None:
    """Return schema.yaml, where bounds that the network keeps already rescale nothing.

    Args:
        meaning: the meaning of the network's outputs.
        schema: the contents of schema.yaml; None where there is none.
        bounds: those that a tanh or a sigmoid keeps an output in, by the output's name.

    Raises:
        ModelError: if schema.yaml would rescale numbers that do not lie in [-1, 1].
    """
    if schema is None or schema.actions is None:
        return schema
    if len(meaning.components) != len(schema.actions):
        return schema
    fields = []
    for part, entry in zip(meaning.components, schema.actions, strict=True):
        first, known = 0, None
        for one in meaning.read:
            if first <= part.first_input < first + one.width:
                known = bounds.get(one.output.name)
            first += one.width
        fields.append(entry if known is None else _bounded(entry, known, schema.source))
    return replace(schema, actions=tuple(fields))


def _bounded(entry: ActionField, known: Bounds, source: str) -> ActionField:
    low, high = (np.ravel(side) for side in known)
    is_plain = bool((low == -1).all() and (high == 1).all())
    if is_plain or entry.low is None or entry.high is None or not entry.normalized:
        return entry
    if _is_close(entry.low, low) and _is_close(entry.high, high):
        return replace(entry, normalized=False)
    raise ModelError(
        f"{source}: actions.{entry.name}: low and high rescale numbers in [-1, 1], and the "
        f"network gives numbers in [{low[0]:g}, {high[0]:g}]; write 'normalized: False' to clip "
        "them only, or leave low and high out"
    )


def _is_close(stated: tuple[float, ...], known: NDArray[Any]) -> bool:
    values = np.asarray(stated)
    if 1 not in (len(values), len(known)) and len(values) != len(known):
        return False
    return np.allclose(values, known, rtol=_TOLERANCE, atol=_TOLERANCE)
