"""Read a policy that stable-baselines3 saved."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from policy_server.errors import ExportError
from policy_server.sb3_export.draft import draft_observation_fields, observation_width

__all__ = ["UNDERSTOOD", "TrainedPolicy", "read_policy"]

_NEEDED = ("policy_class", "observation_space", "action_space", "policy_kwargs", "use_sde")
UNDERSTOOD = "expected an MLP policy of PPO, A2C, MaskablePPO, DQN or SAC"
_UNREADABLE = (
    AttributeError,
    EOFError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)

_Module = Any  # torch.nn.Module; PyTorch is there for training only.
_Space = Any  # gymnasium.Space, likewise.
_Family = Literal["actor_critic", "maskable", "dqn", "sac"]


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy as stable-baselines3 restores it.

    Attributes:
        policy: the PyTorch policy, in evaluation mode on the CPU.
        family: which kind it is.
        observation_space: what it was trained on.
        action_space: likewise.
        statistics: the VecNormalize that scaled its observations; None where it was trained
            without.
    """

    policy: _Module
    family: _Family
    observation_space: _Space
    action_space: _Space
    statistics: Any = None

    @property
    def is_maskable(self) -> bool:
        """Return whether it takes an action mask."""
        return self.family == "maskable"

    @property
    def is_squashed(self) -> bool:
        """Return whether its continuous actions lie in [-1, 1]."""
        return self.family == "sac"


def read_policy(path: Path, *, vec_normalize: Path | None = None) -> TrainedPolicy:
    """Read the policy that `model.save` wrote; buffers and schedules stay pickled.

    Args:
        path: the .zip.
        vec_normalize: what `VecNormalize.save` wrote, if the policy was trained with it.

    Returns:
        The policy.

    Raises:
        ExportError: if training's packages are missing, a file can't be read, or holds another kind
            of policy.
    """
    try:
        import sb3_contrib  # noqa: F401 -- registers the classes that a file may name
        import torch
        from stable_baselines3.common.save_util import json_to_data
    except ImportError as error:
        raise ExportError(
            "the export needs stable-baselines3 and sb3-contrib, which are not installed: "
            "pip install -r requirements-train.txt"
        ) from error
    if not path.is_file():
        raise ExportError(
            f"{path}: not found; expected the .zip that stable-baselines3's model.save wrote"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            saved = json.loads(archive.read("data"))
            weights = torch.load(
                io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True
            )
        data = json_to_data(json.dumps({key: saved[key] for key in _NEEDED if key in saved}))
        policy_class, arguments = data["policy_class"], dict(data.get("policy_kwargs") or {})
    except _UNREADABLE as error:
        raise ExportError(
            f"{path}: is not what stable-baselines3's model.save writes: {_one_line(error)}"
        ) from error
    family = _family(policy_class, path)
    if data.get("use_sde") or arguments.get("use_sde"):
        raise ExportError(
            f"{path}: explores by gSDE, whose noise depends on the state; train with use_sde=False"
        )
    observation_space = data["observation_space"]
    # Says in plain words what can't be exported, before the policy's own code meets it.
    width = observation_width(draft_observation_fields(observation_space))
    try:
        policy = policy_class(observation_space, data["action_space"], lambda _: 0.0, **arguments)
        policy.load_state_dict(weights)
    except _UNREADABLE as error:
        raise ExportError(f"{path}: its policy can't be restored: {_one_line(error)}") from error
    policy.set_training_mode(False)
    statistics = None if vec_normalize is None else _read_statistics(vec_normalize, width)
    return TrainedPolicy(policy, family, observation_space, data["action_space"], statistics)


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


def _read_statistics(path: Path, width: int) -> Any:  # noqa: ANN401 -- VecNormalize
    try:
        # There is no other format for these statistics; `export_policy` says to trust the file.
        statistics = pickle.loads(path.read_bytes())  # noqa: S301
        if not statistics.norm_obs:
            return None
        means = (
            statistics.obs_rms if isinstance(statistics.obs_rms, dict) else statistics.obs_rms.mean
        )
    except _UNREADABLE as error:
        raise ExportError(
            f"{path}: can't be read as the statistics of VecNormalize.save: {_one_line(error)}"
        ) from error
    if isinstance(means, dict):
        raise ExportError(f"{path}: scales a Dict observation; only that of a Box can be exported")
    if means.size != width:
        raise ExportError(
            f"{path}: has statistics of {means.size} values, an observation has {width}"
        )
    return statistics


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
