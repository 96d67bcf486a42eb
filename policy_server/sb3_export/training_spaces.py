"""The spaces of a training environment, as names, numbers and bounds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ExportError

__all__ = [
    "Values",
    "flatten_space",
    "list_choices",
    "name_keys",
    "open_bounds",
    "shortest_decimals",
]

_Space = Any  # gymnasium.Space; gymnasium is there for training and tests only.


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


def flatten_space(space: _Space, name: str) -> Values:
    """Describe the numbers of a space, in the order that stable-baselines3 flattens it in.

    Args:
        space: Box, Discrete, MultiDiscrete or MultiBinary.
        name: its name, for messages.

    Raises:
        ExportError: if the space has another type, or is an image.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) == 3:
            raise ExportError(f"{name}: is an image {space.shape}; only vectors can be exported")
        kind: Literal["int", "float"] = "int" if np.issubdtype(space.dtype, np.integer) else "float"
        low, high = (shortest_decimals(bound) for bound in (space.low, space.high))
        shape = "" if len(space.shape) == 1 else f"an array {space.shape}, row by row"
        return Values(kind, low, high, np.clip(0.0, low, high), shape)
    if isinstance(space, spaces.MultiBinary):
        width = int(np.prod(space.shape))
        # Whole numbers, since gymnasium gives 0 and 1 and not false and true.
        return Values("int", np.zeros(width), np.ones(width), np.zeros(width))
    sizes = list_choices(space)
    if sizes is None:
        raise ExportError(
            f"{name}: expected a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict of "
            f"these, got {space}"
        )
    each = "" if len(sizes) == 1 else f" for each of the parts {list(sizes)} in turn"
    note = (
        f"one-hot, as stable-baselines3 trains it: 1 at the index of the value, 0 elsewhere{each}"
    )
    width = sum(sizes)
    example = np.concatenate([np.eye(size)[0] for size in sizes])
    return Values("int", np.zeros(width), np.ones(width), example, note)


def list_choices(space: _Space) -> tuple[int, ...] | None:
    """Return the number of choices of each integer of a space; None if it is another space.

    Args:
        space: Discrete, or MultiDiscrete of one dimension; counted from 0.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete) and space.start == 0:
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not np.any(space.start):
        return tuple(int(size) for size in space.nvec)
    return None


def name_keys(keys: Sequence[str]) -> dict[str, str]:
    """Give each key of a Dict observation a name of its own that schema.yaml can have.

    Args:
        keys: the keys in the order of the space.

    Returns:
        The names by the keys, in the same order. A key that can be a name is its own; of others
        that would become the same name (`speed x`, `speed-x`) the later ones get a number.
    """
    wanted = {key: _identifier(key) for key in keys}
    taken = {key for key, name in wanted.items() if key == name}
    for key, name in wanted.items():
        if key != name:
            numbered = (f"{name}_{number}" for number in count(2))
            wanted[key] = next(found for found in chain([name], numbered) if found not in taken)
            taken.add(wanted[key])
    return wanted


def open_bounds(space: _Space) -> _Space:
    """Return an observation space with infinity for bounds that only stand for no bound.

    Args:
        space: a space; gym's and older environments give the largest float32 in place of infinity.

    Returns:
        The same space, with infinity there.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, open_bounds(part)) for key, part in space.spaces.items()])
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return space
    most = np.finfo(np.float32).max
    low = np.where(space.low <= -most, -np.inf, space.low)
    high = np.where(space.high >= most, np.inf, space.high)
    return spaces.Box(low, high, space.shape, space.dtype)


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


def _identifier(key: str) -> str:
    name = re.sub(r"\W", "_", key, flags=re.ASCII)
    return f"_{name}" if not name or name[0].isdigit() else name
