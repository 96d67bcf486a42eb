"""Check that an exported policy, as the server will load it, answers as the trained one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import ExportError
from policy_server.formats import load_policy
from policy_server.formats.saved_model.mlp_policy import Categorical, GreedyValues, MlpPolicy
from policy_server.policy import Float32Array, PolicyInputs
from policy_server.sb3_export.saved_policy import TrainedPolicy

__all__ = ["prove_export"]

_ROWS = 256
_TOLERANCE = 1e-5
_Q_VALUES, _PROBABILITIES = "a Q value", "a probability"
_MEAN, _STD, _MODE = "a mean", "a standard deviation", "a deterministic action"

_Answers = Mapping[str, NDArray[Any]]


def prove_export(folder: Path, trained: TrainedPolicy, described: MlpPolicy) -> None:
    """Compare the distribution and the mode with stable-baselines3's on random observations.

    Args:
        folder: the unpacked SavedModel.
        trained: stable-baselines3's own policy.
        described: the policy that was written to the folder.

    Raises:
        ExportError: if a number differs by more than 1e-5 (relative where it is larger than 1).
        ModelError: if the server can't load the folder.
    """
    observations, originals = _random_observations(trained, described)
    got = _exported_answers(folder, observations)
    for name, values in _trained_answers(trained, described, observations, originals).items():
        error = np.max(np.abs(got[name] - values) / np.maximum(np.abs(values), 1.0))
        if not error <= _TOLERANCE:
            raise ExportError(
                f"the exported policy is not the trained one: {name} differs by {error:.2g}, "
                f"expected at most {_TOLERANCE:g}; a policy class of its own can't be exported"
            )


def _random_observations(
    trained: TrainedPolicy, described: MlpPolicy
) -> tuple[Float32Array, list[Any]]:
    """Return random observations in two forms: the server's, and the environment's."""
    from gymnasium.spaces.utils import flatten, unflatten

    space, generator = trained.observation_space, np.random.default_rng(0)
    space.seed(0)
    samples: list[Any] = [flatten(space, space.sample()) for _ in range(_ROWS)]
    rows = np.stack(samples).astype(np.float32)
    if described.scaling is not None:
        spread = described.scaling.std * generator.normal(scale=3.0, size=rows.shape)
        rows = (described.scaling.mean + spread).astype(np.float32)
    if isinstance(described.distribution, Categorical):
        _set_masks(rows, described.distribution, generator)
    return rows, [unflatten(space, row) for row in rows]


def _set_masks(rows: Float32Array, chosen: Categorical, generator: np.random.Generator) -> None:
    """Allow at least one choice of each action."""
    if chosen.mask_start is None:
        return
    start = chosen.mask_start
    for size in chosen.sizes:
        mask = generator.integers(0, 2, size=(len(rows), size))
        mask[np.arange(len(rows)), generator.integers(0, size, size=len(rows))] = 1
        rows[:, start : start + size] = mask
        start += size


def _exported_answers(folder: Path, observations: Float32Array) -> _Answers:
    policy, rows = load_policy(folder), len(observations)
    if policy.signature.components is None or not policy.signature.is_proved:
        raise ExportError(f"the exported policy is not proved: {policy.signature.findings}")
    outputs = policy.infer(PolicyInputs.of(observations, is_deterministic=True))
    assert outputs.distribution is not None
    answers: dict[str, NDArray[Any]] = {_Q_VALUES: outputs.distribution, _MODE: outputs.actions}
    parts = ActionDistribution(policy.signature.components).describe(outputs.distribution)
    for part in parts:
        if part.probabilities is not None:
            known = answers.get(_PROBABILITIES, np.empty((rows, 0)))
            answers[_PROBABILITIES] = np.concatenate([known, part.probabilities], axis=1)
        elif part.mean is not None and part.std is not None:
            answers |= {_MEAN: part.mean, _STD: part.std}
    return answers


def _trained_answers(
    trained: TrainedPolicy,
    described: MlpPolicy,
    observations: Float32Array,
    originals: list[Any],
) -> _Answers:
    import torch

    policy = trained.policy
    batch: Any = (
        {key: np.stack([row[key] for row in originals]) for key in originals[0]}
        if isinstance(originals[0], Mapping)
        else np.stack(originals)
    )
    if trained.statistics is not None:
        batch = trained.statistics.normalize_obs(batch)
    with torch.no_grad():
        tensors, _ = policy.obs_to_tensor(batch)
        if isinstance(described.distribution, GreedyValues):
            answers = {_Q_VALUES: policy.q_net(tensors)}
        elif isinstance(described.distribution, Categorical):
            probabilities = _probabilities(policy, described.distribution, observations, tensors)
            answers = {_PROBABILITIES: probabilities}
        elif trained.is_squashed:
            mean, log_std, _ = policy.actor.get_action_dist_params(tensors)
            mode = policy.actor(tensors, deterministic=True)
            answers = {_MEAN: mean, _STD: log_std.exp(), _MODE: mode}
        else:
            drawn = policy.get_distribution(tensors)
            normal = drawn.distribution
            answers = {_MEAN: normal.mean, _STD: normal.stddev, _MODE: drawn.mode()}
    return {name: tensor.numpy() for name, tensor in answers.items()}


def _probabilities(
    policy: Any,  # noqa: ANN401 -- of stable-baselines3
    categorical: Categorical,
    observations: Float32Array,
    tensors: Any,  # noqa: ANN401 -- torch.Tensor, or a dictionary of them
) -> Any:  # noqa: ANN401 -- torch.Tensor
    import torch

    masks = {}
    if categorical.mask_start is not None:
        end = categorical.mask_start + categorical.inputs
        masks["action_masks"] = observations[:, categorical.mask_start : end] != 0
    drawn = policy.get_distribution(tensors, **masks)
    # A list for MultiDiscrete, which sb3-contrib has under another name.
    parts = getattr(drawn, "distributions", None) or drawn.distribution
    parts = parts if isinstance(parts, list) else [parts]
    return torch.cat([part.probs for part in parts], dim=1)
