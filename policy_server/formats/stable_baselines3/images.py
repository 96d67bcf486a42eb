"""The parts of a stable-baselines3 policy's observation, and which of them are images."""

from __future__ import annotations

from collections.abc import Mapping

from policy_server.formats.pickles.spaces import BoxSpace, DictSpace, Space

__all__ = ["is_image", "parts_of"]


def parts_of(space: Space) -> Mapping[str | None, Space]:
    """Return the parts of an observation by their keys, in order; one without a key if it has none.

    Args:
        space: the space of the observations.
    """
    return dict(space.parts.items()) if isinstance(space, DictSpace) else {None: space}


def is_image(space: Space) -> bool:
    """Return whether stable-baselines3 takes a space for an image, and divides it by 255.

    Args:
        space: the space of an observation, or of one of its parts.

    Source: `stable_baselines3.common.preprocessing.is_image_space`.
    """
    return (
        isinstance(space, BoxSpace)
        and len(space.shape) == 3
        and space.dtype == "uint8"
        and bool((space.low == 0).all() and (space.high == 255).all())
    )
