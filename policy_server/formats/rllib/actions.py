"""From an action space to the distribution's components, in the order of RLlib's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    DiscreteSpace,
    MultiDiscreteSpace,
    Space,
    TupleSpace,
)
from policy_server.policy import ActionComponent, ActionOutput

__all__ = ["Actions", "Scaling", "read_actions"]

Scaling = Literal["normalized", "clipped", "none"]
"""What RLlib does with a continuous action before the environment takes it."""

# `MIN_LOG_NN_OUTPUT` and `MAX_LOG_NN_OUTPUT` in `ray.rllib.utils.numpy`.
_LOG_STD_BOUNDS = (-5.0, 2.0)


@dataclass(frozen=True)
class Actions:
    """The actions of a policy.

    Attributes:
        outputs: one for each action of the environment.
        components: the distribution's independent parts.
        is_tuple_of_one: the only action is a tuple's only part.
        notes: a line for each thing that a client could mistake.
    """

    outputs: tuple[ActionOutput, ...]
    components: tuple[ActionComponent, ...]
    is_tuple_of_one: bool
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> int:
        """Return how many numbers the network has to give."""
        return sum(part.inputs for part in self.components)


def read_actions(
    space: Space, subject: str, *, scaling: Scaling, is_squashed: bool = False
) -> Actions:
    """Return the actions of a space.

    Args:
        space: the environment's action space.
        subject: the policy's name, for messages.
        scaling: how RLlib gives a Box action to the environment.
        is_squashed: a Box has a squashed normal distribution, as SAC's policies have.

    Raises:
        ModelError: if RLlib's default networks have no distribution over the space.
    """
    parts = list(_parts_of(space))
    if is_squashed and len(parts) != 1:
        raise ModelError(
            f"{subject}: has several actions, with which RLlib's SAC fails; expected one Box or "
            "Discrete"
        )
    outputs: list[ActionOutput] = []
    components: list[ActionComponent] = []
    for index, (name, part) in enumerate(parts):
        first = components[-1] if components else None
        found = _components(
            part,
            subject,
            name,
            first_input=first.first_input + first.inputs if first else 0,
            first_column=first.first_column + first.columns if first else 0,
        )
        if isinstance(part, BoxSpace):
            found = [_bounded(found[0], part, scaling)]
            found = [_squashed(found[0])] if is_squashed else found
        components.extend(found)
        outputs.append(
            ActionOutput(
                f"actions_{index}",
                is_integer=not isinstance(part, BoxSpace),
                columns=sum(item.columns for item in found),
                is_vector=not isinstance(part, DiscreteSpace),
            )
        )
    is_tuple_of_one = isinstance(space, TupleSpace) and len(parts) == 1
    return Actions(tuple(outputs), tuple(components), is_tuple_of_one, _notes(space, parts))


def _parts_of(space: Space, name: str = "") -> Iterator[tuple[str, Space]]:
    """Return the parts of a space with their names, in the order of RLlib's outputs.

    Dictionaries are in the alphabetical order of their keys, as `tree.flatten` has them.
    """
    if isinstance(space, TupleSpace):
        for part in space.parts:
            yield from _parts_of(part, name)
    elif isinstance(space, DictSpace):
        for key in sorted(space.parts):
            yield from _parts_of(space.parts[key], f"{name}.{key}" if name else key)
    else:
        yield name, space


def _notes(space: Space, parts: Sequence[tuple[str, Space]]) -> tuple[str, ...]:
    notes = []
    if any(name for name, _ in parts):
        names = ", ".join(name or "without a name" for name, _ in parts)
        notes.append(f"actions in the alphabetical order of their keys: {names}")
    elif isinstance(space, TupleSpace) and any(
        isinstance(part, TupleSpace) for part in space.parts
    ):
        notes.append("actions of nested Tuples one after another, in order")
    starts = [start for _, part in parts for start in _starts_of(part)]
    if any(starts):
        notes.append(
            f"integer actions count from 0, as RLlib gives them to the environment, whose space "
            f"begins at {starts}"
        )
    return tuple(notes)


def _starts_of(space: Space) -> tuple[int, ...]:
    if isinstance(space, DiscreteSpace):
        return (space.start,)
    return space.starts if isinstance(space, MultiDiscreteSpace) else ()


def _components(
    space: Space, subject: str, name: str, *, first_input: int, first_column: int
) -> list[ActionComponent]:
    if isinstance(space, BoxSpace):
        if np.dtype(space.dtype).kind != "f" or len(space.shape) != 1:
            raise ModelError(
                f"{subject}: has actions in a Box of {space.dtype}{list(space.shape)}, which is "
                "not served; expected one dimension of float32"
            )
        size = space.shape[0]
        return [ActionComponent("normal", size, first_input, first_column, name=name or None)]
    if isinstance(space, DiscreteSpace):
        sizes: Sequence[int] = (space.n,)
    elif isinstance(space, MultiDiscreteSpace):
        sizes = space.sizes
    else:
        kind = type(space).__name__.removesuffix("Space")
        raise ModelError(
            f"{subject}: has actions in a {kind} space, for which RLlib's default networks have no "
            "distribution; expected Discrete, MultiDiscrete, Box, or a Tuple or Dict of these"
        )
    found = []
    for index, size in enumerate(sizes):
        own = f"{name}.{index}" if name and isinstance(space, MultiDiscreteSpace) else name
        found.append(
            ActionComponent("categorical", size, first_input, first_column, name=own or None)
        )
        first_input += size
        first_column += 1
    return found


def _bounded(part: ActionComponent, space: BoxSpace, scaling: Scaling) -> ActionComponent:
    """Return a component with its bounds, where RLlib applies them.

    Source: `unsquash_action` and `clip_action` in `ray.rllib.utils.spaces.space_utils`: the first
    leaves a Box as it is that has an open side, or another type than float32 and float64.
    """
    low, high = _numbers(space.low), _numbers(space.high)
    is_bounded = np.isfinite([low, high])
    is_rescaled = is_bounded.all() and space.dtype in ("float32", "float64")
    if not {"normalized": is_rescaled, "clipped": is_bounded.any(), "none": False}[scaling]:
        return part
    return replace(part, low=low, high=high, is_normalized=scaling == "normalized")


def _squashed(part: ActionComponent) -> ActionComponent:
    """Return a component as SAC has it.

    Source: `TorchSquashedGaussian` of RLlib's new API stack, whose `to_deterministic` is the mean.
    """
    return replace(
        part, kind="squashed_normal", log_std_bounds=_LOG_STD_BOUNDS, has_unsquashed_mode=True
    )


def _numbers(bounds: NDArray[Any]) -> tuple[float, ...]:
    """Return bounds as people write them: 2.3, and not the float32 nearest to it."""
    return tuple(float(str(bound)) for bound in bounds)
