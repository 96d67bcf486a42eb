"""VecNormalize: the scaling of observations that stable-baselines3 keeps beside a policy's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace, DictSpace, Space, width_of
from policy_server.formats.pickles.unpickling import Stub, unpickle
from policy_server.formats.stable_baselines3.file_names import STATISTICS_FILE, STATISTICS_FILES
from policy_server.formats.stable_baselines3.frame_stacks import FrameStack, frame_stack
from policy_server.formats.stable_baselines3.images import is_image, parts_of
from policy_server.formats.stable_baselines3.zip_members import LIBRARY, SavedPolicy

__all__ = ["Scaling", "read_scaling", "statistics_of"]

_CLASS = "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scaling:
    """The rule clip((x - mean) / std, -limit, limit) for each number of an observation.

    Attributes:
        mean: float64[D]; 0 where a number is not scaled.
        std: float64[D]; 1 where a number is not scaled.
        limit: float64[D]; infinity where a number is not scaled.
        has_channels_first: the keys of the images that are scaled, and whether the environment gave
            them with their channels first, as the shape of their statistics tells.
    """

    mean: Floats
    std: Floats
    limit: Floats
    has_channels_first: Mapping[str | None, bool] = field(default_factory=dict)
    frames: int = 1
    has_shown_frames: bool = False


def statistics_of(files: Mapping[str, Path]) -> Path | None:
    """Return the statistics of VecNormalize that lie beside a policy; None where there are none.

    Args:
        files: the policy's files.

    Raises:
        ModelError: if there are two files of them.
    """
    found = [files[name] for name in STATISTICS_FILES if name in files]
    if len(found) > 1:
        raise ModelError(
            f"{' and '.join(STATISTICS_FILES)}: both lie beside the policy; keep the one of its "
            "training"
        )
    return found[0] if found else None


def read_scaling(
    files: Mapping[str, Path], saved: SavedPolicy, *, is_on_policy: bool, is_unscaled: bool
) -> Scaling | None:
    """Return the scaling that a policy was trained with; None where it was trained without.

    An algorithm that learns from its own episodes (PPO, A2C, TRPO) keeps observations as they were
    before the scaling only where there is one. The others always keep some: there a last
    observation that is outside of its space, or of another type than the original, was scaled.

    Args:
        files: the policy's files; see `statistics_of`.
        saved: the policy.
        is_on_policy: the algorithm learns from its own episodes.
        is_unscaled: schema.yaml states that the observations were not scaled.

    Raises:
        ModelError: if the policy was trained with VecNormalize and the file is missing, does not
            fit, or lies there although schema.yaml states that nothing was scaled.
    """
    path = statistics_of(files)
    if is_unscaled:
        if path is not None:
            raise ModelError(
                f"{path.name}: lies beside the policy, and schema.yaml says "
                "parameters.normalization: none; remove one of them"
            )
        return None
    if path is not None:
        return _read(path, saved.observation_space, saved.original)
    space, last, original = saved.observation_space, saved.last, saved.original
    if original is not None and (is_on_policy or _is_scaled(space, last, original)):
        raise ModelError(
            "the stable-baselines3 policy: was trained with VecNormalize, whose statistics are not "
            f"in the .zip; put what VecNormalize.save wrote beside it as {STATISTICS_FILE}, or say "
            "in schema.yaml that observations were not scaled: parameters.normalization: none"
        )
    return None


def _read(path: Path, space: Space, original: Any) -> Scaling | None:  # noqa: ANN401 -- arrays, or by key
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error
    found = unpickle(content, path.name, library=LIBRARY)
    if not isinstance(found, Stub) or found.path != _CLASS:
        raise ModelError(
            f"{path.name}: expected the statistics of VecNormalize.save, got "
            f"{getattr(found, 'path', type(found).__name__)}"
        )
    try:
        if not found.state.get("norm_obs", True):
            return None
        stacks = dict(_stacks(found.state, space, original))
        columns = list(_columns(found.state, space, path.name, stacks))
        has_channels_first = dict(_channels_first(found.state, space, stacks))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path.name}: has no statistics of the policy's observation; give what "
            "VecNormalize.save wrote in its own training"
        ) from error
    mean, std, limit = (np.concatenate(column) for column in zip(*columns, strict=True))
    frames = {1 if stack is None else stack.frames for stack in stacks.values()}
    if len(frames) > 1:
        raise ModelError(
            f"{path.name}: has statistics of another number of frames for one part of the "
            "observation than for another; give what VecNormalize.save wrote in its own training"
        )
    return Scaling(
        mean,
        std,
        limit,
        has_channels_first,
        frames=max(frames, default=1),
        has_shown_frames=original is not None,
    )


def _stacks(
    state: Mapping[str, Any],
    space: Space,
    original: Any,  # noqa: ANN401 -- arrays, or by key
) -> Iterator[tuple[str | None, FrameStack | None]]:
    """Give each part that is scaled, and the stack where its statistics are those of one frame."""
    for key, part in parts_of(space).items():
        found = _statistics(state, key)
        if found is None:
            continue
        shape, stack = np.shape(found["mean"]), None
        if np.size(found["mean"]) != width_of(part):
            stack = frame_stack(shape, part)
        seen = original.get(key) if isinstance(original, Mapping) else original
        # An observation as it was before the scaling is one frame.
        if isinstance(seen, np.ndarray) and seen.shape[1:] != shape:
            stack = None
        yield key, stack


def _columns(
    state: Mapping[str, Any],
    space: Space,
    subject: str,
    stacks: Mapping[str | None, FrameStack | None],
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Give mean, standard deviation and limit of each part's numbers, in each of its frames.

    Source: `VecNormalize._normalize_obs`.
    """
    for key, part in parts_of(space).items():
        width = width_of(part)
        found = _statistics(state, key)
        if found is None:
            yield np.zeros(width), np.ones(width), np.full(width, np.inf)
            continue
        mean, variance = (np.asarray(found[name], np.float64) for name in ("mean", "var"))
        if (stack := stacks[key]) is not None and mean.shape == variance.shape:
            mean, variance = stack.repeated(mean), stack.repeated(variance)
        mean, variance = mean.ravel(), variance.ravel()
        if mean.shape != (width,) or variance.shape != (width,):
            where = "an observation" if key is None else repr(key)
            raise ModelError(
                f"{subject}: has statistics of {mean.size} values, {where} has {width}"
            )
        limit, variance = float(state["clip_obs"]), variance + float(state["epsilon"])
        if not (np.isfinite([mean, variance]).all() and (variance > 0).all() and limit > 0):
            raise ModelError(
                f"{subject}: holds statistics that are no finite means and positive variances; "
                "give what VecNormalize.save wrote in the policy's own training"
            )
        yield mean, np.sqrt(variance), np.full(width, limit)


def _statistics(state: Mapping[str, Any], key: str | None) -> Mapping[str, Any] | None:
    """Return the statistics of a part of the observation; None where it is not scaled."""
    keys = state.get("norm_obs_keys")
    if key is not None and keys is not None and key not in keys:
        return None
    found: Mapping[str, Any] = (state["obs_rms"] if key is None else state["obs_rms"][key]).state
    return found


def _channels_first(
    state: Mapping[str, Any], space: Space, stacks: Mapping[str | None, FrameStack | None]
) -> Iterator[tuple[str | None, bool]]:
    for key, part in parts_of(space).items():
        found = _statistics(state, key) if is_image(part) else None
        if found is not None and isinstance(part, BoxSpace):
            shape = np.shape(found["mean"])
            if (stack := stacks[key]) is not None:
                yield key, stack.has_channels_first
                continue
            yield key, shape == part.shape and shape != (*part.shape[1:], part.shape[0])


def _is_scaled(space: Space, last: Any, original: Any) -> bool:  # noqa: ANN401 -- arrays, or by key
    if isinstance(last, Mapping) and isinstance(original, Mapping) and isinstance(space, DictSpace):
        return any(
            _is_scaled(part, last.get(key), original.get(key)) for key, part in space.parts.items()
        )
    if not isinstance(last, np.ndarray) or not isinstance(original, np.ndarray):
        return False
    if last.dtype != original.dtype:
        return True
    return _is_outside(space, last) and not _is_outside(space, original)


def _is_outside(space: Space, rows: NDArray[Any]) -> bool:
    if not isinstance(space, BoxSpace) or rows.shape[1:] != space.shape:
        return False
    slack = 1e-5 * np.maximum(np.abs(rows), 1.0)
    return bool(np.any((rows < space.low - slack) | (rows > space.high + slack)))
