"""The rows of a policy of RLlib's old API stack, and the parts of its observations in them.

RLlib's preprocessors make one flat row of a Dict, of a Tuple and of integers, and scale what looks
like the memory of an Atari game.

Source: `ray.rllib.models.preprocessors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.pickles.space_parts import parts_of_space
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    DiscreteSpace,
    MultiDiscreteSpace,
    Space,
    TupleSpace,
    width_of,
)
from policy_server.formats.rllib.old_stack.policy_state import OldPolicy
from policy_server.policy import ObservationPart

__all__ = ["Observations", "RowPart", "environment_parts", "read_observations"]

_ATARI_IMAGE = (210, 160, 3)
_ATARI_MEMORY = (128,)


@dataclass(frozen=True)
class RowPart:
    """A part of an observation: a Dict's or a Tuple's, or all of it.

    Attributes:
        space: its own space.
        first: the index of its first number in a row.
        columns: how many numbers it takes.
    """

    space: Space
    first: int
    columns: int

    @property
    def is_image(self) -> bool:
        """Return whether RLlib takes it for an image."""
        return isinstance(self.space, BoxSpace) and len(self.space.shape) == 3


@dataclass(frozen=True, eq=False)
class Observations:
    """The observations of a policy.

    Attributes:
        width: how many numbers a row has.
        parts: the parts in the order of RLlib's networks: a Dict's by their sorted keys.
        is_flat: the network takes the row as it is.
        is_memory: bool[width], the numbers that RLlib scales as the memory of an Atari game; None
            for none.
    """

    width: int
    parts: tuple[RowPart, ...]
    is_flat: bool
    is_memory: NDArray[np.bool_] | None


def read_observations(policy: OldPolicy) -> Observations:
    """Return the observations that a policy takes.

    Args:
        policy: the policy.

    Raises:
        ModelError: if RLlib's preprocessor changes them in a way that is not computed.
    """
    space = policy.observation_space
    is_preprocessed = policy.model_space is not space
    parts = tuple(_parts(space, 0))
    width = width_of(space)
    is_memory = np.zeros(width, np.bool_)
    for part in parts:
        if isinstance(part.space, DiscreteSpace | MultiDiscreteSpace):
            continue
        shape = part.space.shape if isinstance(part.space, BoxSpace) else (part.columns,)
        if is_preprocessed and shape == _ATARI_IMAGE:
            raise ModelError(
                f"{policy.subject}: takes images of 210 x 160 x 3, which RLlib cuts and resizes "
                "ahead of the network; train it with an environment that does so itself"
            )
        if is_preprocessed and shape == _ATARI_MEMORY:
            is_memory[part.first : part.first + part.columns] = True
    taken = width_of(policy.model_space)
    if taken != width:
        raise ModelError(
            f"{policy.subject}: takes {taken} numbers, its observation space has {width}; save the "
            "checkpoint anew"
        )
    return Observations(
        width,
        parts,
        _is_flat(policy.model_space, space, parts),
        is_memory if is_memory.any() else None,
    )


def environment_parts(policy: OldPolicy, *, is_normalized: bool) -> tuple[ObservationPart, ...]:
    """Return the parts of the environment's observation in the order of the row's columns.

    Args:
        policy: the policy.
        is_normalized: whether a filter of the checkpoint normalizes them.

    Returns:
        The parts; none for a Dict whose order is not the alphabetical one: RLlib's preprocessor
        takes the order of the environment's own dictionaries there, which no file tells.
    """
    parts = parts_of_space(policy.observation_space, is_sorted=False)
    if parts != parts_of_space(policy.observation_space, is_sorted=True):
        return ()
    return tuple(replace(part, is_normalized=is_normalized) for part in parts)


def _parts(space: Space, first: int) -> Iterator[RowPart]:
    """Yield the parts in the order of RLlib's networks, with their places in the row."""
    if isinstance(space, TupleSpace):
        for part in space.parts:
            yield from _parts(part, first)
            first += width_of(part)
    elif isinstance(space, DictSpace):
        places = {}
        for key, part in space.parts.items():
            places[key] = first
            first += width_of(part)
        for key in sorted(space.parts):
            yield from _parts(space.parts[key], places[key])
    else:
        yield RowPart(space, first, width_of(space))


def _is_flat(model_space: Space, space: Space, parts: tuple[RowPart, ...]) -> bool:
    """Return whether RLlib chooses the network for flat vectors.

    Source: `ray.rllib.models.catalog.ModelCatalog._get_v2_model_class`.
    """
    if not isinstance(model_space, BoxSpace) or len(model_space.shape) != 1:
        return False
    return not isinstance(space, DictSpace | TupleSpace) or not any(
        isinstance(part.space, BoxSpace) and len(part.space.shape) >= 2 for part in parts
    )
