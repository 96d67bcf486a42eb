"""The parts of a stable-baselines3 policy's observation, and which of them are images."""

from __future__ import annotations

from collections.abc import Mapping

from policy_server.formats.pickles.spaces import BoxSpace, DictSpace, Space
from policy_server.policy import distinct_names
from policy_server.schema import ServerSchema

__all__ = ["is_image", "parts_of", "turned_images"]


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


def turned_images(
    space: Space, schema: ServerSchema | None, *, known: Mapping[str | None, bool]
) -> frozenset[str | None]:
    """Return the keys of the images that a client sends with their channels last.

    stable-baselines3 turns images of bytes so that their channels come first, and the file has the
    space as it is then, whichever way the environment gave it. An environment gives them last
    unless schema.yaml says otherwise by an observation's `shape`.

    Args:
        space: the space of the observations.
        schema: the contents of schema.yaml; None where there is none.
        known: the images of which it is known whether their channels come first.
    """
    parts = parts_of(space)
    fields = (schema.observations or ()) if schema is not None else ()
    if isinstance(space, DictSpace):
        names = dict(zip(parts, distinct_names(list(space.parts)), strict=True))
        stated = {field.name: field.shape for field in fields}
        shapes = {key: stated.get(name) for key, name in names.items()}
    else:
        shapes = {None: fields[0].shape if len(fields) == 1 else None}
    return frozenset(
        key
        for key, part in parts.items()
        if is_image(part) and not known.get(key, _has_shape_of(part, shapes[key]))
    )


def _has_shape_of(space: Space, shape: tuple[int, ...] | None) -> bool:
    """Return whether a shape is the space's own, and not also that with its channels last."""
    if shape is None or not isinstance(space, BoxSpace) or len(space.shape) != len(shape):
        return False
    channels_last = (*space.shape[1:], space.shape[0])
    return shape == space.shape and shape != channels_last
