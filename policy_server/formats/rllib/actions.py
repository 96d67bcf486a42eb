"""From an action space to the distribution's components, in the order of RLlib's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DiscreteSpace,
    MultiDiscreteSpace,
    Space,
    TupleSpace,
)
from policy_server.policy import ActionComponent, ActionOutput

__all__ = ["Actions", "Scaling", "read_actions"]

Scaling = Literal["normalized", "clipped", "none"]
"""What RLlib does with a continuous action before the environment takes it."""


@dataclass(frozen=True)
class Actions:
    """The actions of a policy.

    Attributes:
        outputs: one for each action of the environment.
        components: the distribution's independent parts.
        is_tuple_of_one: the only action is a tuple's only part.
    """

    outputs: tuple[ActionOutput, ...]
    components: tuple[ActionComponent, ...]
    is_tuple_of_one: bool

    @property
    def inputs(self) -> int:
        """Return how many numbers the network has to give."""
        return sum(part.inputs for part in self.components)


def read_actions(space: Space, subject: str, *, scaling: Scaling) -> Actions:
    """Return the actions of a space.

    Args:
        space: the environment's action space.
        subject: the policy's name, for messages.
        scaling: how RLlib gives a Box action to the environment.

    Raises:
        ModelError: if RLlib's default networks have no distribution over the space.
    """
    spaces: Sequence[Space] = space.parts if isinstance(space, TupleSpace) else (space,)
    outputs: list[ActionOutput] = []
    components: list[ActionComponent] = []
    for index, part in enumerate(spaces):
        first = components[-1] if components else None
        found = _components(
            part,
            subject,
            first_input=first.first_input + first.inputs if first else 0,
            first_column=first.first_column + first.columns if first else 0,
            scaling=scaling,
        )
        components.extend(found)
        outputs.append(
            ActionOutput(
                f"actions_{index}",
                is_integer=not isinstance(part, BoxSpace),
                columns=sum(item.columns for item in found),
                is_vector=not isinstance(part, DiscreteSpace),
            )
        )
    is_tuple_of_one = isinstance(space, TupleSpace) and len(spaces) == 1
    return Actions(tuple(outputs), tuple(components), is_tuple_of_one)


def _components(
    space: Space,
    subject: str,
    *,
    first_input: int,
    first_column: int,
    scaling: Scaling,
) -> list[ActionComponent]:
    if isinstance(space, BoxSpace):
        return [_continuous(space, subject, first_input, first_column, scaling)]
    sizes: Sequence[int]
    starts: Sequence[int]
    if isinstance(space, DiscreteSpace):
        sizes, starts = (space.n,), (space.start,)
    elif isinstance(space, MultiDiscreteSpace):
        sizes, starts = space.sizes, space.starts
    else:
        kind = type(space).__name__.removesuffix("Space")
        raise ModelError(
            f"{subject}: has actions in a {kind} space, which is not served; expected Discrete, "
            "MultiDiscrete, Box, or a Tuple of these"
        )
    if any(starts):
        raise ModelError(
            f"{subject}: has integer actions that begin at {list(starts)}, while RLlib's networks "
            "count from 0; train it with spaces that begin at 0"
        )
    found = []
    for size in sizes:
        found.append(ActionComponent("categorical", size, first_input, first_column))
        first_input += size
        first_column += 1
    return found


def _continuous(
    space: BoxSpace, subject: str, first_input: int, first_column: int, scaling: Scaling
) -> ActionComponent:
    if np.dtype(space.dtype).kind != "f" or len(space.shape) != 1:
        raise ModelError(
            f"{subject}: has actions in a Box of {space.dtype}{list(space.shape)}, which is not "
            "served; expected one dimension of float32"
        )
    low, high = _numbers(space.low), _numbers(space.high)
    is_bounded = np.isfinite([low, high])
    if (
        scaling == "none"
        or not is_bounded.any()
        or (
            # RLlib leaves a Box with an open side as it is.
            scaling == "normalized" and not is_bounded.all()
        )
    ):
        return ActionComponent("normal", space.shape[0], first_input, first_column)
    if not is_bounded.all():
        raise ModelError(
            f"{subject}: clips actions (clip_actions) to bounds of which some are open, which is "
            "not served; train it with an action space that has all bounds"
        )
    return ActionComponent(
        "normal",
        space.shape[0],
        first_input,
        first_column,
        low=low,
        high=high,
        is_normalized=scaling == "normalized",
    )


def _numbers(bounds: NDArray[Any]) -> tuple[float, ...]:
    """Return bounds as people write them: 2.3, and not the float32 nearest to it."""
    return tuple(float(str(bound)) for bound in bounds)
