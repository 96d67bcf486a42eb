"""VecFrameStack over VecNormalize: each frame of an observation has the same statistics.

RL Baselines3 Zoo wraps environments in this order, so that the policy takes more numbers than there
are statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.pickles.spaces import BoxSpace, Space
from policy_server.formats.stable_baselines3.images import is_image

__all__ = ["FrameStack", "frame_stack"]


@dataclass(frozen=True)
class FrameStack:
    """The way from one frame to an observation.

    Attributes:
        axis: along which the frames lie, the oldest first.
        frames: their number.
        has_channels_first: the environment gives the channels of an image first.
    """

    axis: int
    frames: int
    has_channels_first: bool = False

    def repeated(self, frame: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers of a frame once for each frame, as they lie in an observation.

        Args:
            frame: in the shape of one frame.
        """
        return np.concatenate([frame] * self.frames, axis=self.axis)


def frame_stack(shape: tuple[int, ...], space: Space) -> FrameStack | None:
    """Return the stack of frames of a shape that gives an observation; None where none or two do.

    Example: five numbers, in a space of the shape (15,), are stacked three times along axis 0.

    Args:
        shape: of one frame, such as that of VecNormalize's statistics.
        space: of the observations; an image's channels lie first, wherever they lay before.

    Source: `stable_baselines3.common.vec_env.stacked_observations.StackedObservations`, whose
    frames lie along the channels of an image and else along the last axis, or the first where it is
    told so.
    """
    if not isinstance(space, BoxSpace) or not shape:
        return None
    first, last = 0, len(shape) - 1
    if is_image(space):
        turned = (*space.shape[1:], space.shape[0])
        tried = [(space.shape, first, True), (turned, last, False)]
    else:
        tried = [(space.shape, axis, False) for axis in sorted({first, last})]
    found = [
        FrameStack(axis, whole[axis] // shape[axis], has_channels_first)
        for whole, axis, has_channels_first in tried
        if _is_stacked(shape, whole, axis)
    ]
    return found[0] if len(found) == 1 else None


def _is_stacked(shape: tuple[int, ...], whole: tuple[int, ...], axis: int) -> bool:
    if len(shape) != len(whole) or shape[axis] == 0:
        return False
    frames, rest = divmod(whole[axis], shape[axis])
    others = [index for index in range(len(shape)) if index != axis]
    return frames > 1 and rest == 0 and all(shape[index] == whole[index] for index in others)
