"""Describe a policy of stable-baselines3 as an MLP, from its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from policy_server.errors import ExportError
from policy_server.formats.pickles.spaces import BoxSpace, width_of
from policy_server.formats.saved_model.mlp_policy import (
    Activation,
    Categorical,
    DenseLayer,
    GreedyValues,
    MlpPolicy,
    Normal,
    ObservationScaling,
    SquashedNormal,
)
from policy_server.formats.stable_baselines3.action_spaces import dimensions
from policy_server.formats.stable_baselines3.algorithms import Algorithm
from policy_server.formats.stable_baselines3.layers import Layers, activation_of
from policy_server.formats.stable_baselines3.vec_normalize import Scaling
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy
from policy_server.sb3_export.draft import action_sizes

__all__ = ["check_kind", "describe_policy"]

_UNDERSTOOD = (
    "expected an MLP policy of PPO, A2C, TRPO, MaskablePPO, DQN, SAC or TQC; the server takes the "
    ".zip itself too"
)
# The sequences of layers, and the layers at their end, by the module of the policy's class.
_ACTOR_CRITIC = (("mlp_extractor.shared_net", "mlp_extractor.policy_net"), ("action_net",))
_SOFT_ACTOR = (("actor.latent_pi",), ("actor.mu", "actor.log_std"))
_NETWORKS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "stable_baselines3.common.policies": _ACTOR_CRITIC,
    "sb3_contrib.common.maskable.policies": _ACTOR_CRITIC,
    "stable_baselines3.dqn.policies": (("q_net.q_net",), ()),
    "stable_baselines3.sac.policies": _SOFT_ACTOR,
    "sb3_contrib.tqc.policies": _SOFT_ACTOR,
}
_ACTIVATIONS: Mapping[str, Activation] = {
    "ELU": "elu",
    "GELU": "gelu",
    "Identity": "linear",
    "LeakyReLU": "leaky_relu",
    "ReLU": "relu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Tanh": "tanh",
}


def check_kind(saved: SavedPolicy) -> None:
    """Refuse a policy that is no MLP of an algorithm that is understood.

    Args:
        saved: the policy.

    Raises:
        ExportError: naming its kind.
    """
    if _module(saved) not in _NETWORKS:
        raise ExportError(f"the policy: is a {saved.class_name}; {_UNDERSTOOD}")
    if saved.has_sde:
        raise ExportError(
            f"the policy: explores by gSDE, whose noise depends on the state; {_UNDERSTOOD}"
        )


def describe_policy(
    saved: SavedPolicy,
    algorithm: Algorithm,
    *,
    scaling: Scaling | None = None,
    mask_start: int | None = None,
) -> MlpPolicy:
    """Describe a policy by its layers and its distribution.

    Args:
        saved: the policy, of a kind that `check_kind` lets pass.
        algorithm: its kind.
        scaling: the scaling of its observations by VecNormalize; None for none.
        mask_start: where in the observation the action mask begins.

    Returns:
        The description.

    Raises:
        ExportError: if it is more than an MLP.
        ModelError: if a tensor is missing, or holds NaN or infinity.
    """
    name = activation_of(saved, algorithm.activation)
    if name not in _ACTIVATIONS:
        raise ExportError(
            f"the policy: has the activation {name}, expected one of {', '.join(_ACTIVATIONS)}"
        )
    width = width_of(saved.observation_space)
    layers = Layers(width, saved.weights, activation=name)
    described = tuple(_dense_layers(layers, saved, _ACTIVATIONS[name]))
    distribution = _distribution(layers, saved, mask_start)
    layers.refuse_unused(algorithm.others)
    return MlpPolicy(
        observation_width=width,
        layers=described,
        distribution=distribution,
        scaling=None if scaling is None else _scaling(scaling),
    )


def _module(saved: SavedPolicy) -> str:
    return saved.class_path.rpartition(".")[0]


def _dense_layers(
    layers: Layers, saved: SavedPolicy, activation: Activation
) -> Iterator[DenseLayer]:
    sequences, heads = _NETWORKS[_module(saved)]
    for name in sequences:
        places = layers.places(name)
        for place in places:
            # DQN's own sequence ends with the layer of its values.
            is_last = not heads and place == places[-1]
            yield DenseLayer(
                *layers.linear(f"{name}.{place}"), activation="linear" if is_last else activation
            )
    if heads:
        weights, biases = zip(*map(layers.linear, heads), strict=True)
        yield DenseLayer(np.concatenate(weights, axis=1), np.concatenate(biases))


def _distribution(
    layers: Layers, saved: SavedPolicy, mask_start: int | None
) -> Categorical | Normal | SquashedNormal | GreedyValues:
    sequences, _ = _NETWORKS[_module(saved)]
    if sequences == _SOFT_ACTOR[0]:
        return SquashedNormal(dimensions(saved))
    if isinstance(saved.action_space, BoxSpace):
        return Normal(dimensions(saved), layers.tensor("log_std"))
    sizes = action_sizes(saved.action_space)
    if sequences == _ACTOR_CRITIC[0]:
        return Categorical(sizes, mask_start=mask_start)
    return GreedyValues(sizes[0])


def _scaling(scaling: Scaling) -> ObservationScaling:
    limits = set(scaling.limit.tolist())
    if len(limits) != 1:
        raise ExportError(
            "the policy: VecNormalize scaled some keys of its observation only; expected all or "
            "none of them"
        )
    return ObservationScaling(
        mean=scaling.mean.astype(np.float32),
        std=scaling.std.astype(np.float32),
        limit=limits.pop(),
    )
