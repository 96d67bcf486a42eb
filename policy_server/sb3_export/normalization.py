"""VecNormalize: the scaling of observations that stable-baselines3 keeps beside a policy's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from policy_server.errors import ExportError
from policy_server.sb3_export.restored_classes import ForeignNameError, unpickle

__all__ = ["check_unscaled", "read_statistics"]

_Space = Any  # gymnasium.Space; gymnasium is there for training only.
_Observations = Any  # An array with a row for each environment; a dictionary of them for a Dict.

_REMEDY = (
    "give what VecNormalize.save wrote with --normalization vec_normalize.pkl, or say with "
    "--normalization none that the observations were not scaled"
)


def check_unscaled(
    path: Path,
    space: _Space,
    last: _Observations,
    original: _Observations,
    *,
    is_on_policy: bool,
) -> None:
    """Refuse a policy that was trained with VecNormalize, as far as its file shows that.

    An algorithm that learns from its own episodes (PPO, A2C, MaskablePPO) keeps observations as
    they were before the scaling only where there is one. DQN and SAC always keep some: there a last
    observation that is outside of its space, or of another type than the original, was scaled.

    Args:
        path: the policy's file, for messages.
        space: the space of its observations.
        last: the last observation that the policy saw in training; None where it saw none.
        original: the last observation as the environment gave it; None where none was kept.
        is_on_policy: the algorithm learns from its own episodes.

    Raises:
        ExportError: if it was trained with VecNormalize.
    """
    if original is None or not (is_on_policy or _is_scaled(space, last, original)):
        return
    raise ExportError(
        f"{path}: was trained with VecNormalize, whose statistics are not in this file; {_REMEDY}"
    )


def read_statistics(path: Path, width: int) -> Any:  # noqa: ANN401 -- VecNormalize
    """Read the statistics that `VecNormalize.save` wrote.

    Args:
        path: the file.
        width: how many numbers an observation has.

    Returns:
        The VecNormalize; None where it scales no observations.

    Raises:
        ExportError: if the file can't be read, or belongs to other observations.
    """
    from stable_baselines3.common.vec_env import VecNormalize

    try:
        statistics = unpickle(path.read_bytes())
    except ForeignNameError as error:
        raise ExportError(
            f"{path}: names {error.name}; expected the statistics of VecNormalize.save and no more"
        ) from error
    except Exception as error:
        reason = (
            error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        )
        raise ExportError(
            f"{path}: can't be read as the statistics of VecNormalize.save: {reason}"
        ) from error
    if not isinstance(statistics, VecNormalize):
        raise ExportError(
            f"{path}: expected the statistics of VecNormalize.save, got a "
            f"{type(statistics).__name__}"
        )
    if not statistics.norm_obs:
        return None
    if isinstance(statistics.obs_rms, dict):
        raise ExportError(f"{path}: scales a Dict observation; only that of a Box can be exported")
    size = statistics.obs_rms.mean.size
    if size != width:
        raise ExportError(f"{path}: has statistics of {size} values, an observation has {width}")
    return statistics


def _is_scaled(space: _Space, last: _Observations, original: _Observations) -> bool:
    if last is None:
        return False
    if isinstance(last, Mapping):
        return any(_is_scaled(space[key], last[key], original[key]) for key in last)
    if last.dtype != original.dtype:
        return True
    is_outside = [_is_outside(space, rows) for rows in (last, original)]
    return is_outside == [True, False]


def _is_outside(space: _Space, rows: Any) -> bool:  # noqa: ANN401 -- an array
    if type(space).__name__ != "Box":
        return False
    slack = 1e-5 * np.maximum(np.abs(rows), 1.0)
    return bool(np.any((rows < space.low - slack) | (rows > space.high + slack)))
