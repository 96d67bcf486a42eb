"""The spaces of a training environment, as names, numbers and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ExportError
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DiscreteSpace,
    MultiBinarySpace,
    MultiDiscreteSpace,
    Space,
    width_of,
)
from policy_server.formats.stable_baselines3.images import is_image

__all__ = [
    "Values",
    "flatten_space",
    "list_choices",
    "shortest_decimals",
]

# gym and older environments give it in place of infinity.
_NO_BOUND = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Values:
    """A run of an observation's numbers, flattened, with the bounds of each.

    Attributes:
        kind: their type in schema.yaml.
        low: the smallest of each; -inf for none.
        high: the largest of each; inf for none.
        example: one observation.
        description: the meaning of the numbers, where the name does not tell it.
    """

    kind: Literal["int", "float"]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    example: NDArray[np.float64]
    description: str = ""


def flatten_space(space: Space, name: str) -> Values:
    """Describe the numbers of a space, in the order that stable-baselines3 flattens it in.

    Args:
        space: Box, Discrete, MultiDiscrete or MultiBinary.
        name: its name, for messages.

    Raises:
        ExportError: if the space has another type, or is an image.
    """
    if isinstance(space, BoxSpace):
        if is_image(space):
            raise ExportError(f"{name}: is an image {space.shape}; only vectors can be exported")
        kind: Literal["int", "float"] = "int" if np.issubdtype(space.dtype, np.integer) else "float"
        low, high = (
            np.where(np.abs(bound) >= _NO_BOUND, np.copysign(np.inf, bound), bound)
            for bound in (shortest_decimals(space.low), shortest_decimals(space.high))
        )
        shape = "" if len(space.shape) == 1 else f"an array {space.shape}, row by row"
        return Values(kind, low, high, np.clip(0.0, low, high), shape)
    if isinstance(space, MultiBinarySpace):
        width = width_of(space)
        # Whole numbers, since gymnasium gives 0 and 1 and not false and true.
        return Values("int", np.zeros(width), np.ones(width), np.zeros(width))
    sizes = list_choices(space)
    if sizes is None:
        raise ExportError(
            f"{name}: expected a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict of "
            f"these, counted from 0, got {type(space).__name__.removesuffix('Space')}"
        )
    each = "" if len(sizes) == 1 else f" for each of the parts {list(sizes)} in turn"
    note = (
        f"one-hot, as stable-baselines3 trains it: 1 at the index of the value, 0 elsewhere{each}"
    )
    width = sum(sizes)
    example = np.concatenate([np.eye(size)[0] for size in sizes])
    return Values("int", np.zeros(width), np.ones(width), example, note)


def list_choices(space: Space) -> tuple[int, ...] | None:
    """Return the number of choices of each integer of a space; None if it is another space.

    Args:
        space: Discrete or MultiDiscrete, counted from 0.
    """
    if isinstance(space, DiscreteSpace) and space.start == 0:
        return (space.n,)
    if isinstance(space, MultiDiscreteSpace) and not any(space.starts):
        return space.sizes
    return None


def shortest_decimals(bounds: NDArray[Any]) -> NDArray[np.float64]:
    """Return bounds as people write them: 2.3, and not the float32 nearest to it, 2.2999999523.

    Args:
        bounds: of a Box, of any shape and type.

    Returns:
        The shortest decimals that are read as these numbers, in a row.
    """
    if not np.issubdtype(bounds.dtype, np.floating):
        return bounds.astype(np.float64).ravel()
    return np.array([float(str(bound)) for bound in bounds.ravel()], np.float64)
