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
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    DiscreteSpace,
    MultiBinarySpace,
    MultiDiscreteSpace,
    Space,
)
from policy_server.formats.saved_model.mlp_policy import Categorical, MlpPolicy
from policy_server.policy import Float32Array, Policy, PolicyInputs
from policy_server.schema import ServerSchema

__all__ = ["prove_export", "random_rows"]

_ROWS = 256
_TOLERANCE = 1e-5
# A Box without bounds gets numbers of this deviation.
_SPREAD = 3.0


def prove_export(
    folder: Path, trained: Policy, schema: ServerSchema, observations: Float32Array
) -> None:
    """Compare the distribution and the mode of an export with those of the policy itself.

    Args:
        folder: the unpacked SavedModel.
        trained: the policy as the server computes it from stable-baselines3's own file.
        schema: the drafted schema.yaml.
        observations: float32[B, D], flat observations; see `random_rows`.

    Raises:
        ExportError: if a number differs by more than 1e-5 (relative where it is larger than 1).
        ModelError: if the server can't load the folder.
    """
    exported = load_policy(folder, schema)
    if not exported.signature.is_proved:
        raise ExportError(f"the exported policy is not proved: {exported.signature.findings}")
    got, wanted = (_answers(policy, observations) for policy in (exported, trained))
    for name, values in wanted.items():
        error = np.max(np.abs(got[name] - values) / np.maximum(np.abs(values), 1.0))
        if not error <= _TOLERANCE:
            raise ExportError(
                f"the exported policy is not the trained one: {name} differs by {error:.2g}, "
                f"expected at most {_TOLERANCE:g}"
            )


def _answers(policy: Policy, observations: Float32Array) -> Mapping[str, NDArray[Any]]:
    components = policy.signature.components
    assert components is not None, "a proved policy's distribution is known"
    is_double = policy.signature.row_dtype is np.float64
    rows = observations.astype(np.float64) if is_double else observations
    outputs = policy.infer(PolicyInputs.of(rows, is_deterministic=True))
    assert outputs.distribution is not None
    answers: dict[str, NDArray[Any]] = {"a deterministic action": outputs.actions}
    if policy.signature.is_value_based:
        return answers | {"a Q value": outputs.distribution}
    for place, part in enumerate(ActionDistribution(components).describe(outputs.distribution)):
        for name, values in (
            (f"a probability of action {place}", part.probabilities),
            ("a mean", part.mean),
            ("a standard deviation", part.std),
        ):
            if values is not None:
                answers[name] = values
    return answers


def random_rows(space: Space, described: MlpPolicy) -> Float32Array:
    """Return random observations of a policy, flat.

    Args:
        space: the space of its observations.
        described: the policy, whose scaling tells where observations lie, and whose masks allow
            one choice of each action at least.

    Returns:
        float32[256, D].
    """
    generator = np.random.default_rng(0)
    parts = space.parts.values() if isinstance(space, DictSpace) else (space,)
    rows = np.concatenate([_random_part(part, generator) for part in parts], axis=1)
    if described.scaling is not None:
        spread = described.scaling.std * generator.normal(scale=_SPREAD, size=rows.shape)
        rows = described.scaling.mean + spread
    if isinstance(described.distribution, Categorical):
        _set_masks(rows, described.distribution, generator)
    return rows.astype(np.float32)


def _random_part(space: Space, generator: np.random.Generator) -> NDArray[Any]:
    if isinstance(space, DiscreteSpace):
        return _one_hot(space.n, generator)
    if isinstance(space, MultiDiscreteSpace):
        return np.concatenate([_one_hot(size, generator) for size in space.sizes], axis=1)
    if isinstance(space, MultiBinarySpace):
        return generator.integers(0, 2, (_ROWS, int(np.prod(space.shape))))
    assert isinstance(space, BoxSpace), "no other space is drafted"
    rows = generator.normal(scale=_SPREAD, size=(_ROWS, space.low.size))
    clipped: NDArray[Any] = np.clip(rows, space.low.ravel(), space.high.ravel())
    return clipped if np.dtype(space.dtype).kind == "f" else np.rint(clipped)


def _one_hot(size: int, generator: np.random.Generator) -> NDArray[Any]:
    return np.eye(size)[generator.integers(0, size, _ROWS)]


def _set_masks(rows: NDArray[Any], chosen: Categorical, generator: np.random.Generator) -> None:
    """Allow at least one choice of each action."""
    if chosen.mask_start is None:
        return
    start = chosen.mask_start
    for size in chosen.sizes:
        mask = generator.integers(0, 2, size=(len(rows), size))
        mask[np.arange(len(rows)), generator.integers(0, size, size=len(rows))] = 1
        rows[:, start : start + size] = mask
        start += size
