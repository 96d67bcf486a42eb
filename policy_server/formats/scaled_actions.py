"""Actions that a network has scaled itself, as by a tanh that is multiplied by the largest torque.

schema.yaml's `low` and `high` rescale an action from [-1, 1]. A network that gives numbers in the
environment's units already is not to be rescaled once more.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.output_meaning import Meaning
from policy_server.policy import ActionComponent
from policy_server.schema import ActionField, ServerSchema

__all__ = ["Bounds", "KeptPart", "with_kept_bounds", "without_rescaling"]

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
    parts = [KeptPart(one.width, bounds.get(one.output.name)) for one in meaning.read]
    return with_kept_bounds(meaning.components, parts, schema)


@dataclass(frozen=True)
class KeptPart:
    """A tensor of `action_dist_inputs`.

    Attributes:
        width: how many numbers it has in one row.
        bounds: those that it is kept in; None for none.
        is_strict: whether a schema.yaml that rescales it to other bounds is refused.
    """

    width: int
    bounds: Bounds | None
    is_strict: bool = True


def with_kept_bounds(
    components: Sequence[ActionComponent], parts: Sequence[KeptPart], schema: ServerSchema | None
) -> ServerSchema | None:
    """Return schema.yaml, where bounds that the network keeps already rescale nothing.

    Args:
        components: the distribution's components.
        parts: the tensors of `action_dist_inputs` in order.
        schema: the contents of schema.yaml; None where there is none.

    Raises:
        ModelError: if schema.yaml would rescale numbers that do not lie in [-1, 1].
    """
    if schema is None or schema.actions is None or len(components) != len(schema.actions):
        return schema
    firsts = [0, *itertools.accumulate(part.width for part in parts)]
    fields = []
    for component, entry in zip(components, schema.actions, strict=True):
        (part,) = (
            part
            for part, first in zip(parts, firsts, strict=False)
            if first <= component.first_input < first + part.width
        )
        # The bounds of what is squashed afterwards are none of the action.
        is_known = part.bounds is not None and component.kind != "squashed_normal"
        # A mean's bounds are none of the actions that are drawn around it.
        is_strict = part.is_strict and component.kind == "deterministic"
        part = replace(part, is_strict=is_strict)
        fields.append(_bounded(entry, part, schema.source) if is_known else entry)
    return replace(schema, actions=tuple(fields))


def _bounded(entry: ActionField, part: KeptPart, source: str) -> ActionField:
    assert part.bounds is not None, "its bounds are known"
    low, high = (np.ravel(side) for side in part.bounds)
    is_plain = bool((low == -1).all() and (high == 1).all())
    if is_plain or entry.low is None or entry.high is None or not entry.normalized:
        return entry
    if _is_close(entry.low, low) and _is_close(entry.high, high):
        return replace(entry, normalized=False)
    if not part.is_strict or (set(entry.low), set(entry.high)) == ({-1.0}, {1.0}):
        # From [-1, 1] to [-1, 1] nothing is rescaled.
        return entry
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
