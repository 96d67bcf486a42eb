"""The policies of stable-baselines3's and sb3-contrib's algorithms: networks and distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DiscreteSpace,
    MultiBinarySpace,
    MultiDiscreteSpace,
)
from policy_server.formats.stable_baselines3.action_spaces import (
    Answers,
    box_component,
    choices,
    has_integer_actions,
    sizes_of_choices,
)
from policy_server.formats.stable_baselines3.gaussians import gaussian, soft_heads
from policy_server.formats.stable_baselines3.layers import Layers
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy
from policy_server.formats.torch_layers import add_activation
from policy_server.policy import Float32Array

__all__ = ["Algorithm", "algorithm_of"]

# The default `batch_norm_eps` of sb3_contrib.crossq.policies.
_NORM_EPSILON = 0.001
_CRITICS = ("critic", "actor_target.", "value_net.", "vf_features_extractor.")


@dataclass(frozen=True)
class Algorithm:
    """A kind of policy class.

    Attributes:
        names: the algorithms that have it, in words.
        activation: the class's own activation.
        build: adds its layers to a network that ends with the register of its features.
        others: the starts of the names of tensors that choose no action.
        is_on_policy: the algorithms learn from their own episodes.
        extractor: its features extractor's, in the names of tensors.
        is_maskable: it takes an action mask.
        is_recurrent: an LSTM comes between its features and its layers.
        action_spaces: the spaces of actions that it can have.
    """

    names: str
    activation: str
    build: Callable[[Layers, int, SavedPolicy], Answers]
    others: tuple[str, ...]
    is_on_policy: bool = False
    extractor: str = "features_extractor"
    is_maskable: bool = False
    is_recurrent: bool = False
    action_spaces: tuple[type, ...] = (
        BoxSpace,
        DiscreteSpace,
        MultiDiscreteSpace,
        MultiBinarySpace,
    )


def algorithm_of(saved: SavedPolicy) -> Algorithm:
    """Return the kind of a policy.

    Args:
        saved: the policy.

    Raises:
        ModelError: if it is a class that is not read, by name, or has no space of actions of its
            kind.
    """
    module = saved.class_path.rpartition(".")[0]
    if module not in _ALGORITHMS:
        raise ModelError(
            f"data: is a policy of the class {saved.class_path}, which is not read; expected one "
            f"of {', '.join(item.names for item in _ALGORITHMS.values())}"
        )
    algorithm = _ALGORITHMS[module]
    if not isinstance(saved.action_space, algorithm.action_spaces):
        *others, last = map(_name_of, algorithm.action_spaces)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise ModelError(
            f"data: action_space: expected a {expected}, as a policy of {algorithm.names} has, got "
            f"{_name_of(type(saved.action_space))}; save the policy anew"
        )
    return algorithm


def _name_of(space: type) -> str:
    return space.__name__.removesuffix("Space")


def _actor_critic(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    if layers.has("mlp_extractor.shared_net."):
        x = layers.sequence(x, "mlp_extractor.shared_net", is_last_activated=True)
    x = layers.sequence(x, "mlp_extractor.policy_net", is_last_activated=True)
    space = saved.action_space
    weights, bias = layers.linear("action_net")
    if isinstance(space, BoxSpace):
        return gaussian(layers, x, saved, weights, bias)
    if isinstance(space, MultiBinarySpace):
        sizes: tuple[int, ...] = (2,) * int(np.prod(space.shape))
        if len(bias) == len(sizes):
            # Each is drawn by itself: a choice of two with the logits 0 and its own. MaskablePPO
            # has a logit for either.
            weights, bias = (np.insert(part, range(len(sizes)), 0, -1) for part in (weights, bias))
    else:
        sizes = sizes_of_choices(saved)
    return Answers(layers.dense(x, weights, bias), choices(sizes))


def _renormalised_actor(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    epsilon = saved.number("batch_norm_eps", _NORM_EPSILON)
    latent = layers.renormalised_sequence(x, "actor.latent_pi", epsilon=epsilon)
    return soft_heads(layers, latent, saved)


def _soft_actor(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    latent = layers.sequence(x, "actor.latent_pi", is_last_activated=True)
    return soft_heads(layers, latent, saved)


def _deterministic_actor(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    x = layers.sequence(x, "actor.mu", is_last_activated=False)
    x = add_activation(layers.builder, x, "Tanh")
    return Answers(x, (box_component(saved, "deterministic"),))


def _values(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    x = layers.sequence(x, "q_net.q_net", is_last_activated=False)
    return Answers(x, choices(sizes_of_choices(saved)), is_value_based=True)


def _quantiles(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    """Return the mean of each action's quantiles, which is a layer's mean over its outputs."""
    (size,) = sizes_of_choices(saved)

    def mean(weights: Float32Array, bias: Float32Array) -> tuple[Float32Array, Float32Array]:
        if bias.size % size:
            raise ModelError(f"policy.pth: has {bias.size} quantiles of {size} actions")
        return weights.reshape(len(weights), -1, size).mean(axis=1), bias.reshape(-1, size).mean(0)

    x = layers.sequence_with_head(x, "quantile_net.quantile_net", mean)
    return Answers(x, choices((size,)), is_value_based=True)


def _random_search(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    is_linear = saved.class_path.endswith("LinearPolicy")
    if layers.has("action_net.weight"):
        # One layer, in no sequence: so LinearPolicy was until 1.6.
        x = layers.dense(x, *layers.linear("action_net"))
    else:
        x = layers.sequence(x, "action_net", is_last_activated=False)
    if has_integer_actions(saved):
        return Answers(x, choices(sizes_of_choices(saved)), is_value_based=True)
    is_rescaled = saved.flag("squash_output", default=not is_linear)
    # Until 1.6, MlpPolicy ended with a tanh whatever the setting was.
    if is_rescaled or (saved.is_older_than(1, 7) and not is_linear):
        x = add_activation(layers.builder, x, "Tanh")
    component = box_component(saved, "deterministic", is_normalized=is_rescaled)
    return Answers(x, (component,))


_ALGORITHMS: Mapping[str, Algorithm] = {
    "stable_baselines3.common.policies": Algorithm(
        "PPO, A2C, TRPO",
        "Tanh",
        _actor_critic,
        (*_CRITICS, "mlp_extractor.value_net."),
        is_on_policy=True,
    ),
    "sb3_contrib.common.maskable.policies": Algorithm(
        "MaskablePPO",
        "Tanh",
        _actor_critic,
        (*_CRITICS, "mlp_extractor.value_net."),
        is_on_policy=True,
        is_maskable=True,
    ),
    "sb3_contrib.common.recurrent.policies": Algorithm(
        "RecurrentPPO",
        "Tanh",
        _actor_critic,
        (*_CRITICS, "mlp_extractor.value_net.", "lstm_critic."),
        is_on_policy=True,
        is_recurrent=True,
    ),
    "stable_baselines3.dqn.policies": Algorithm(
        "DQN",
        "ReLU",
        _values,
        ("q_net_target.",),
        extractor="q_net.features_extractor",
        action_spaces=(DiscreteSpace,),
    ),
    "sb3_contrib.qrdqn.policies": Algorithm(
        "QRDQN",
        "ReLU",
        _quantiles,
        ("quantile_net_target.",),
        extractor="quantile_net.features_extractor",
        action_spaces=(DiscreteSpace,),
    ),
    "stable_baselines3.sac.policies": Algorithm(
        "SAC",
        "ReLU",
        _soft_actor,
        _CRITICS,
        extractor="actor.features_extractor",
        action_spaces=(BoxSpace,),
    ),
    "sb3_contrib.tqc.policies": Algorithm(
        "TQC",
        "ReLU",
        _soft_actor,
        _CRITICS,
        extractor="actor.features_extractor",
        action_spaces=(BoxSpace,),
    ),
    "sb3_contrib.crossq.policies": Algorithm(
        "CrossQ",
        "ReLU",
        _renormalised_actor,
        _CRITICS,
        extractor="actor.features_extractor",
        action_spaces=(BoxSpace,),
    ),
    "stable_baselines3.td3.policies": Algorithm(
        "TD3, DDPG",
        "ReLU",
        _deterministic_actor,
        _CRITICS,
        extractor="actor.features_extractor",
        action_spaces=(BoxSpace,),
    ),
    "sb3_contrib.ars.policies": Algorithm(
        "ARS",
        "ReLU",
        _random_search,
        (),
        is_on_policy=True,
        action_spaces=(BoxSpace, DiscreteSpace),
    ),
}
