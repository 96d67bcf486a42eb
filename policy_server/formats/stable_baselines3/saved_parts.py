"""The parts of an observation, as the environment of a stable-baselines3 policy gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from policy_server.formats.pickles.space_parts import parts_of_space
from policy_server.formats.pickles.spaces import Space
from policy_server.formats.stable_baselines3.images import is_image, parts_of
from policy_server.formats.stable_baselines3.vec_normalize import Scaling
from policy_server.policy import ObservationPart

__all__ = ["read_parts"]


def read_parts(space: Space, scaling: Scaling | None) -> tuple[ObservationPart, ...]:
    """Return the parts of an observation in the order of the policy's columns.

    Args:
        space: the observation space in the file, which has the channels of an image first.
        scaling: the scaling by VecNormalize; None where there is none.
    """
    return tuple(_parts(space, scaling))


def _parts(space: Space, scaling: Scaling | None) -> Iterator[ObservationPart]:
    start = 0
    found = zip(parts_of(space).items(), parts_of_space(space, is_sorted=False), strict=True)
    for (key, known), part in found:
        end = start + part.columns
        is_turned = is_image(known) and (scaling is None or key not in scaling.channels_first)
        shape = (*part.shape[1:], part.shape[0]) if is_turned else part.shape
        is_normalized = scaling is not None and bool(np.isfinite(scaling.limit[start:end]).any())
        yield replace(part, shape=shape, is_normalized=is_normalized)
        start = end
