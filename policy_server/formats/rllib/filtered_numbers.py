"""The type of the numbers that a MeanStdFilter takes and gives: that of the environment's own.

Source: `MeanStdFilter` in `ray.rllib.utils.filter`, which ends with `x.astype(orig_dtype)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.pickles.space_parts import needs_float64
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    MultiBinarySpace,
    Space,
    TupleSpace,
    width_of,
)
from policy_server.formats.rllib.checkpoint import Checkpoint
from policy_server.formats.rllib.environment_parts import environment_space_of
from policy_server.formats.rllib.pipelines import FILTER, FLATTENING, ObservationFilter

__all__ = ["filtered_space", "row_dtype", "with_whole_numbers"]


def filtered_space(checkpoint: Checkpoint, width: int) -> Space | None:
    """Return the environment's space of the numbers that a checkpoint's filter takes.

    Args:
        checkpoint: the policy.
        width: how many numbers the network takes.

    Returns:
        The space; None where there is no filter, where FlattenObservations stands ahead of it and
        gives float32, and where the checkpoint does not tell.
    """
    names = [item.name for item in checkpoint.env_to_module or ()]
    if FILTER not in names or FLATTENING in names[: names.index(FILTER)]:
        return None
    space = environment_space_of(checkpoint, width)
    return space if space is not None and width_of(space) == width else None


def row_dtype(space: Space | None) -> str:
    """Return the type of the rows that keep all digits of what a filter takes.

    Args:
        space: the space of the numbers; None for float32.
    """
    return "float64" if space is not None and needs_float64(space) else "float32"


def with_whole_numbers(found: ObservationFilter, space: Space | None) -> ObservationFilter:
    """Return a filter with a note of the numbers that it gives as integers.

    Args:
        found: the filter.
        space: the space of the numbers that it takes; None where none are integers.

    Raises:
        ModelError: if their type does not hold all numbers that the filter gives.
    """
    if space is None:
        return found
    is_whole = np.concatenate([_are_whole(part, found.limit) for part in _parts(space)])
    return replace(found, is_whole=is_whole) if is_whole.any() else found


def _parts(space: Space) -> Iterator[Space]:
    """Give the parts in the order of the filter's numbers: of keys alphabetically."""
    if isinstance(space, DictSpace):
        for key in sorted(space.parts):
            yield from _parts(space.parts[key])
    elif isinstance(space, TupleSpace):
        for part in space.parts:
            yield from _parts(part)
    else:
        yield space


def _are_whole(part: Space, limit: float | None) -> NDArray[np.bool_]:
    # Discrete and MultiDiscrete pass a filter as they are.
    dtype = part.dtype if isinstance(part, BoxSpace) else "int8"
    is_whole = isinstance(part, BoxSpace | MultiBinarySpace) and np.dtype(dtype).kind != "f"
    if is_whole and (np.dtype(dtype).kind != "i" or limit is None or limit > np.iinfo(dtype).max):
        raise ModelError(
            f"{FILTER}: gives its numbers as {dtype}, as the environment's are, which does not "
            "hold them all; put FlattenObservations ahead of the filter and train anew"
        )
    return np.full(width_of(part), is_whole)
