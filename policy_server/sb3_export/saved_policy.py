"""Read a policy that stable-baselines3 saved."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from policy_server.errors import ExportError
from policy_server.installation import require
from policy_server.sb3_export.draft import draft_observation_fields, observation_width
from policy_server.sb3_export.normalization import check_unscaled, read_statistics
from policy_server.sb3_export.restored_classes import ForeignNameError, MissingNameError, unpickle
from policy_server.sb3_export.training_spaces import open_bounds

__all__ = ["UNDERSTOOD", "TrainedPolicy", "read_policy"]

_NEEDED = ("policy_class", "observation_space", "action_space", "policy_kwargs", "use_sde")
_LAST = ("_last_obs", "_last_original_obs")
_PICKLED = ":serialized:"
_VERSION = "_stable_baselines3_version"
UNDERSTOOD = "expected an MLP policy of PPO, A2C, MaskablePPO, DQN or SAC"
_UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)

_Module = Any  # torch.nn.Module; PyTorch is there for training only.
_Space = Any  # gymnasium.Space; gymnasium is there for training only.
_Family = Literal["actor_critic", "maskable", "dqn", "sac"]


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy as stable-baselines3 restores it.

    Attributes:
        policy: the PyTorch policy, in evaluation mode on the CPU.
        family: its algorithm.
        observation_space: the space of the observations in training.
        action_space: the space of its actions.
        statistics: the VecNormalize that scaled its observations; None where it was trained
            without.
        is_scaling_known: whether the file shows, or the user has said, how they were scaled.
    """

    policy: _Module
    family: _Family
    observation_space: _Space
    action_space: _Space
    statistics: Any = None
    is_scaling_known: bool = True

    @property
    def is_maskable(self) -> bool:
        """Return whether it takes an action mask."""
        return self.family == "maskable"

    @property
    def is_squashed(self) -> bool:
        """Return whether its continuous actions lie in [-1, 1]."""
        return self.family == "sac"


def read_policy(
    path: Path, *, vec_normalize: Path | None = None, is_unscaled: bool = False
) -> TrainedPolicy:
    """Read the policy that `model.save` wrote; buffers and schedules stay pickled.

    Args:
        path: the .zip.
        vec_normalize: the file that `VecNormalize.save` wrote, if the policy was trained with it.
        is_unscaled: the policy's observations were not scaled, whatever the file shows.

    Returns:
        The policy.

    Raises:
        MissingPackageError: if training's packages are not installed.
        ExportError: if a file can't be read, holds another kind of policy, or one that was trained
            with statistics that are not given.
    """
    _register_classes()
    if not path.is_file():
        raise ExportError(
            f"{path}: not found; expected the .zip that stable-baselines3's model.save wrote"
        )
    saved, weights, version = _read_zip(path)
    data = {key: _restored(path, key, saved[key], version) for key in _NEEDED if key in saved}
    _check_complete(path, data)
    policy_class, arguments = data["policy_class"], dict(data.get("policy_kwargs") or {})
    family = _family(policy_class, path)
    if data.get("use_sde") or arguments.get("use_sde"):
        raise ExportError(
            f"{path}: explores by gSDE, whose noise depends on the state; train with use_sde=False"
        )
    if any("shared_net" in name for name in weights):
        raise ExportError(
            f"{path}: has layers that its policy and its value function share, as "
            f"stable-baselines3 {version} can; {UNDERSTOOD}, with a net_arch of its own for each"
        )
    observation_space = open_bounds(data["observation_space"])
    # Refuses in plain words a policy that can't be exported, before its own code runs.
    width = observation_width(draft_observation_fields(observation_space))
    try:
        policy = policy_class(observation_space, data["action_space"], lambda _: 0.0, **arguments)
        policy.load_state_dict(weights)
    except _UNREADABLE as error:
        raise ExportError(f"{path}: its policy can't be restored: {_one_line(error)}") from error
    policy.set_training_mode(False)
    is_stated = vec_normalize is not None or is_unscaled
    last, original = (_restored(path, key, saved.get(key), version) for key in _LAST)
    is_on_policy = family in ("actor_critic", "maskable")
    if not is_stated:
        check_unscaled(path, observation_space, last, original, is_on_policy=is_on_policy)
    return TrainedPolicy(
        policy,
        family,
        observation_space,
        data["action_space"],
        None if vec_normalize is None else read_statistics(vec_normalize, width),
        is_scaling_known=is_stated or is_on_policy or original is None,
    )


def _register_classes() -> None:
    """Import the packages whose classes a file may name."""
    require("sb3", use="exporting a stable-baselines3 policy")
    import sb3_contrib  # noqa: F401 -- see above; it imports stable_baselines3


def _read_zip(path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return the parts of `data`, still pickled, the weights, and the version that wrote them."""
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            saved = json.loads(archive.read("data"))
            weights = torch.load(
                io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True
            )
            is_stated = _VERSION in archive.namelist()
            version = archive.read(_VERSION).decode().strip() if is_stated else "of another version"
    except _UNREADABLE as error:
        raise ExportError(
            f"{path}: is not what stable-baselines3's model.save writes: {_one_line(error)}"
        ) from error
    return saved, weights, version


def _restored(path: Path, key: str, part: Any, version: str) -> Any:  # noqa: ANN401 -- JSON, and what was pickled
    """Return a part of `data`: plain JSON, or a pickle in base64 beside a description of it."""
    if not isinstance(part, dict) or _PICKLED not in part:
        return part
    try:
        return unpickle(base64.b64decode(part[_PICKLED]))
    except MissingNameError as error:
        raise ExportError(
            f"{path}: {key} names {error.name}, which the packages of requirements-train.txt don't "
            f"have; the file was saved by stable-baselines3 {version}: load it there and save its "
            "policy by a class of today's"
        ) from error
    except ForeignNameError as error:
        raise ExportError(
            f"{path}: {key} names {error.name}, a class or function from outside "
            f"stable-baselines3, whose code is not in the file; {UNDERSTOOD}"
        ) from error
    except Exception as error:
        raise ExportError(
            f"{path}: is not what stable-baselines3's model.save writes: {key}: {_one_line(error)}"
        ) from error


def _check_complete(path: Path, data: Mapping[str, Any]) -> None:
    for key in ("policy_class", "observation_space", "action_space"):
        if data.get(key) is None:
            raise ExportError(
                f"{path}: is not what stable-baselines3's model.save writes: holds no {key}"
            )


def _family(policy_class: type, path: Path) -> _Family:
    families: dict[str, _Family] = {
        "MaskableActorCriticPolicy": "maskable",
        "ActorCriticPolicy": "actor_critic",
        "DQNPolicy": "dqn",
        "SACPolicy": "sac",
    }
    names = [known.__name__ for known in policy_class.__mro__]
    if "RecurrentActorCriticPolicy" in names:
        raise ExportError(
            f"{path}: is recurrent ({names[0]}), and memory can't be exported; {UNDERSTOOD}"
        )
    for name in names:
        if name in families:
            return families[name]
    raise ExportError(f"{path}: is a {names[0]} of {policy_class.__module__}; {UNDERSTOOD}")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
