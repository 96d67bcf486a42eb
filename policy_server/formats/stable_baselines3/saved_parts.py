"""The parts of an observation, as the environment of a stable-baselines3 policy gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from policy_server.formats.pickles.space_parts import parts_of_space
from policy_server.formats.stable_baselines3.images import is_image, parts_of
from policy_server.formats.stable_baselines3.vec_normalize import Scaling
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy
from policy_server.policy import ObservationPart

__all__ = ["read_parts"]


def read_parts(
    saved: SavedPolicy, scaling: Scaling | None, turned: frozenset[str | None]
) -> tuple[ObservationPart, ...]:
    """Return the parts of an observation in the order of the policy's columns.

    Args:
        saved: the policy, whose space has the channels of an image first.
        scaling: the scaling by VecNormalize; None where there is none.
        turned: the keys of images that come with their channels last.
    """
    return tuple(_parts(saved, scaling, turned))


def _parts(
    saved: SavedPolicy, scaling: Scaling | None, turned: frozenset[str | None]
) -> Iterator[ObservationPart]:
    space, start = saved.observation_space, 0
    divides_images = saved.flag("normalize_images", default=True)
    found = zip(parts_of(space).items(), parts_of_space(space, is_sorted=False), strict=True)
    for (key, known), part in found:
        end = start + part.columns
        shape = (*part.shape[1:], part.shape[0]) if key in turned else part.shape
        is_scaled = scaling is not None and bool(np.isfinite(scaling.limit[start:end]).any())
        is_divided = divides_images and is_image(known)
        yield replace(part, shape=shape, is_normalized=is_scaled or is_divided)
        start = end
