"""The actions of a stable-baselines3 policy: its space as components of the distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DiscreteSpace,
    MultiDiscreteSpace,
)
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy
from policy_server.policy import ActionComponent, ComponentKind, StateTensor

__all__ = [
    "Answers",
    "box_component",
    "choices",
    "dimensions",
    "first_of_choices",
    "has_integer_actions",
    "sizes_of_choices",
]

# stable_baselines3.sac.policies: LOG_STD_MIN and LOG_STD_MAX; TQC's and CrossQ's are the same.
_LOG_STD_BOUNDS = (-20.0, 2.0)


@dataclass(frozen=True)
class Answers:
    """The end of a network, and how its numbers are read.

    Attributes:
        result: the register of `action_dist_inputs`.
        components: the action distribution.
        is_value_based: they are values, of which the greatest is taken.
        memory: the tensors of the state that the network steps; empty for none.
        mask_name: the name of the action mask beside the observation; None for no such mask.
    """

    result: int
    components: tuple[ActionComponent, ...]
    is_value_based: bool = False
    memory: tuple[StateTensor, ...] = ()
    mask_name: str | None = None


def has_integer_actions(saved: SavedPolicy) -> bool:
    """Return whether a policy's actions are integers.

    Args:
        saved: the policy.
    """
    return not isinstance(saved.action_space, BoxSpace)


def choices(sizes: tuple[int, ...]) -> tuple[ActionComponent, ...]:
    """Return the components of integer actions.

    Args:
        sizes: how many choices each action has.
    """
    firsts = np.cumsum((0, *sizes)).tolist()
    return tuple(
        ActionComponent("categorical", size, first, column)
        for column, (size, first) in enumerate(zip(sizes, firsts, strict=False))
    )


def sizes_of_choices(saved: SavedPolicy) -> tuple[int, ...]:
    """Return how many choices each integer action has.

    Args:
        saved: the policy; its actions are a Discrete or a MultiDiscrete.
    """
    space = saved.action_space
    if isinstance(space, DiscreteSpace):
        return (space.n,)
    assert isinstance(space, MultiDiscreteSpace), "its algorithm has no other"
    return space.sizes


def first_of_choices(saved: SavedPolicy) -> tuple[int, ...]:
    """Return the smallest integer of each action by its space; stable-baselines3 counts from 0.

    Args:
        saved: the policy.
    """
    space = saved.action_space
    if isinstance(space, DiscreteSpace):
        return (space.start,)
    return space.starts if isinstance(space, MultiDiscreteSpace) else ()


def dimensions(saved: SavedPolicy) -> int:
    """Return how many numbers a continuous action has.

    Args:
        saved: the policy; its actions are a Box.
    """
    space = saved.action_space
    assert isinstance(space, BoxSpace), "its algorithm has no other"
    return int(np.prod(space.shape))


def box_component(
    saved: SavedPolicy, kind: ComponentKind, *, is_normalized: bool | None = None
) -> ActionComponent:
    """Return a Box's component, with its bounds: squashed actions are rescaled, others clipped.

    Args:
        saved: the policy.
        kind: the family of its distribution.
        is_normalized: its numbers lie in [-1, 1]; None where the family tells.

    Raises:
        ModelError: if they are to be rescaled and the Box has no bounds.
    """
    size = dimensions(saved)
    space = saved.action_space
    assert isinstance(space, BoxSpace), "it has dimensions"
    most = float(np.finfo(np.float32).max)
    low, high = (
        np.clip(bound.ravel().astype(np.float64), -most, most) for bound in (space.low, space.high)
    )
    is_rescaled = kind != "normal" if is_normalized is None else is_normalized
    has_bounds = bool((low > -most).any() or (high < most).any())
    if is_rescaled and not (np.abs(low).max() < most and np.abs(high).max() < most):
        raise ModelError("data: action_space: a squashed policy needs finite bounds")
    is_clamped = kind == "squashed_normal" and not saved.has_sde
    return ActionComponent(
        kind,
        size,
        0,
        0,
        log_std_bounds=_LOG_STD_BOUNDS if is_clamped else None,
        low=tuple(low.tolist()) if has_bounds else None,
        high=tuple(high.tolist()) if has_bounds else None,
        is_normalized=is_rescaled,
    )
