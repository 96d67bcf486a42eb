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
from policy_server.formats.stable_baselines3.layers import Layers
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy
from policy_server.policy import ActionComponent, ComponentKind, Float32Array

__all__ = ["Algorithm", "Answers", "algorithm_of", "has_integer_actions"]

# stable_baselines3.sac.policies: LOG_STD_MIN and LOG_STD_MAX; TQC's and CrossQ's are the same.
_LOG_STD_BOUNDS = (-20.0, 2.0)
# StateDependentNoiseDistribution adds it to the variance.
_SDE_EPSILON = 1e-6
# The default `batch_norm_eps` of sb3_contrib.crossq.policies.
_NORM_EPSILON = 0.001
_CRITICS = ("critic", "actor_target.", "value_net.", "vf_features_extractor.")


@dataclass(frozen=True)
class Answers:
    """The end of a network, and how its numbers are read.

    Attributes:
        result: the register of `action_dist_inputs`.
        components: the action distribution.
        is_value_based: they are values, of which the greatest is taken.
    """

    result: int
    components: tuple[ActionComponent, ...]
    is_value_based: bool = False


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
    """

    names: str
    activation: str
    build: Callable[[Layers, int, SavedPolicy], Answers]
    others: tuple[str, ...]
    is_on_policy: bool = False
    extractor: str = "features_extractor"
    is_maskable: bool = False


def algorithm_of(saved: SavedPolicy) -> Algorithm:
    """Return the kind of a policy.

    Args:
        saved: the policy.

    Raises:
        ModelError: if it is a class that is not read, by name.
    """
    module, _, name = saved.class_path.rpartition(".")
    if module.startswith("sb3_contrib.common.recurrent"):
        raise ModelError(
            f"data: is a recurrent policy ({name}); memory comes with a later version of this "
            "server; train with PPO to serve it today"
        )
    if module not in _ALGORITHMS:
        raise ModelError(
            f"data: is a policy of the class {saved.class_path}, which is not read; expected one "
            f"of {', '.join(item.names for item in _ALGORITHMS.values())}"
        )
    return _ALGORITHMS[module]


def has_integer_actions(saved: SavedPolicy) -> bool:
    """Return whether a policy's actions are integers.

    Args:
        saved: the policy.
    """
    return not isinstance(saved.action_space, BoxSpace)


def _actor_critic(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    if layers.has("mlp_extractor.shared_net."):
        x = layers.sequence(x, "mlp_extractor.shared_net", is_last_activated=True)
    x = layers.sequence(x, "mlp_extractor.policy_net", is_last_activated=True)
    space = saved.action_space
    weights, bias = layers.linear("action_net")
    if isinstance(space, BoxSpace):
        return _gaussian(layers, x, saved, weights, bias)
    if isinstance(space, MultiBinarySpace):
        # Each is drawn by itself: a choice of two with the logits 0 and its own.
        sizes: tuple[int, ...] = (2,) * int(np.prod(space.shape))
        weights, bias = (np.insert(part, range(part.shape[-1]), 0, -1) for part in (weights, bias))
    else:
        sizes = _sizes(saved)
    return Answers(layers.dense(x, weights, bias), _choices(sizes))


def _gaussian(
    layers: Layers, latent: int, saved: SavedPolicy, weights: Float32Array, bias: Float32Array
) -> Answers:
    log_std = layers.tensor("log_std")
    if saved.has_sde:
        mean = layers.dense(latent, weights, bias)
        return _state_dependent(layers, latent, mean, log_std, saved)
    result = layers.dense(
        latent, np.hstack([weights, np.zeros_like(weights)]), np.concatenate([bias, log_std])
    )
    return Answers(result, (_box_component(saved, "normal"),))


def _state_dependent(
    layers: Layers, latent: int, mean: int, log_std: Float32Array, saved: SavedPolicy
) -> Answers:
    """Return a Gaussian whose variance is that of the noise on a layer's weights.

    Source: "Smooth Exploration for Robotic Reinforcement Learning" (Raffin et al., 2021) and
    `StateDependentNoiseDistribution`.
    """
    for key in ("use_expln", "sde_net_arch"):
        if saved.arguments.get(key):
            raise ModelError(f"data: policy_kwargs: {key} is not computed; train without it")
    variances = np.exp(log_std) ** 2
    size = _dimensions(saved)
    if variances.shape[-1] != size:
        variances = np.repeat(variances, size, axis=-1)
    variance = layers.with_constant("MatMul", layers.add("Square", latent), variances)
    variance = layers.with_constant("Add", variance, np.float32(_SDE_EPSILON))
    half = layers.with_constant("Mul", layers.add("Log", variance), np.float32(0.5))
    result = layers.add("ConcatV2", mean, half, layers.builder.keep(np.asarray(1)))
    is_squashed = saved.arguments.get("squash_output") or "actor.log_std" in saved.weights
    return Answers(result, (_box_component(saved, "squashed_normal" if is_squashed else "normal"),))


def _renormalised_actor(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    epsilon = float(saved.arguments.get("batch_norm_eps", _NORM_EPSILON))
    latent = layers.renormalised_sequence(x, "actor.latent_pi", epsilon=epsilon)
    return _soft_heads(layers, latent, saved)


def _soft_actor(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    latent = layers.sequence(x, "actor.latent_pi", is_last_activated=True)
    return _soft_heads(layers, latent, saved)


def _soft_heads(layers: Layers, latent: int, saved: SavedPolicy) -> Answers:
    if saved.has_sde:
        limit = float(saved.arguments.get("clip_mean", 2.0))
        mean = layers.dense(latent, *layers.linear("actor.mu.0" if limit > 0 else "actor.mu"))
        if limit > 0:
            mean = layers.with_constant("Minimum", mean, np.float32(limit))
            mean = layers.with_constant("Maximum", mean, np.float32(-limit))
        return _state_dependent(layers, latent, mean, layers.tensor("actor.log_std"), saved)
    heads = [layers.linear(name) for name in ("actor.mu", "actor.log_std")]
    weights, bias = (np.concatenate(parts, axis=-1) for parts in zip(*heads, strict=True))
    return Answers(layers.dense(latent, weights, bias), (_box_component(saved, "squashed_normal"),))


def _deterministic_actor(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    x = layers.activated(layers.sequence(x, "actor.mu", is_last_activated=False), "Tanh")
    return Answers(x, (_box_component(saved, "deterministic"),))


def _values(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    x = layers.sequence(x, "q_net.q_net", is_last_activated=False)
    return Answers(x, _choices(_sizes(saved)), is_value_based=True)


def _quantiles(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    """Return the mean of each action's quantiles, which is a layer's mean over its outputs."""
    (size,) = _sizes(saved)

    def mean(weights: Float32Array, bias: Float32Array) -> tuple[Float32Array, Float32Array]:
        if bias.size % size:
            raise ModelError(f"policy.pth: has {bias.size} quantiles of {size} actions")
        return weights.reshape(len(weights), -1, size).mean(axis=1), bias.reshape(-1, size).mean(0)

    x = layers.sequence_with_head(x, "quantile_net.quantile_net", mean)
    return Answers(x, _choices((size,)), is_value_based=True)


def _random_search(layers: Layers, x: int, saved: SavedPolicy) -> Answers:
    x = layers.sequence(x, "action_net", is_last_activated=False)
    if has_integer_actions(saved):
        return Answers(x, _choices(_sizes(saved)), is_value_based=True)
    is_squashed = saved.arguments.get(
        "squash_output", not saved.class_path.endswith("LinearPolicy")
    )
    if is_squashed:
        x = layers.activated(x, "Tanh")
    component = _box_component(saved, "deterministic", is_normalized=bool(is_squashed))
    return Answers(x, (component,))


def _choices(sizes: tuple[int, ...]) -> tuple[ActionComponent, ...]:
    firsts = np.cumsum((0, *sizes)).tolist()
    return tuple(
        ActionComponent("categorical", size, first, column)
        for column, (size, first) in enumerate(zip(sizes, firsts, strict=False))
    )


def _sizes(saved: SavedPolicy) -> tuple[int, ...]:
    space = saved.action_space
    if isinstance(space, DiscreteSpace) and space.start == 0:
        return (space.n,)
    if isinstance(space, MultiDiscreteSpace) and not any(space.starts):
        return space.sizes
    raise ModelError(
        "data: action_space: expected a Box, or Discrete, MultiDiscrete or MultiBinary from 0, got "
        f"{type(space).__name__.removesuffix('Space')}"
    )


def _dimensions(saved: SavedPolicy) -> int:
    space = saved.action_space
    if not isinstance(space, BoxSpace):
        kind = type(space).__name__.removesuffix("Space")
        raise ModelError(f"data: action_space: expected a Box, got {kind}")
    return int(np.prod(space.shape))


def _box_component(
    saved: SavedPolicy,
    kind: ComponentKind,
    *,
    is_normalized: bool | None = None,
) -> ActionComponent:
    """Return a Box's component, with its bounds: squashed actions are rescaled, others clipped."""
    size = _dimensions(saved)
    space = saved.action_space
    assert isinstance(space, BoxSpace), "it has dimensions"
    most = float(np.finfo(np.float32).max)
    low, high = (
        np.clip(bound.ravel().astype(np.float64), -most, most) for bound in (space.low, space.high)
    )
    is_rescaled = kind != "normal" if is_normalized is None else is_normalized
    has_bounds = bool((low > -most).any() or (high < most).any())
    if is_rescaled and not (np.abs(low).max() < most and np.abs(high).max() < most):
        raise ModelError("data: action_space: a squashed policy needs finite bounds")
    is_clamped = kind == "squashed_normal" and not saved.has_sde
    return ActionComponent(
        kind,
        size,
        0,
        0,
        log_std_bounds=_LOG_STD_BOUNDS if is_clamped else None,
        low=tuple(low.tolist()) if has_bounds else None,
        high=tuple(high.tolist()) if has_bounds else None,
        is_normalized=is_rescaled,
    )


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
    "stable_baselines3.dqn.policies": Algorithm(
        "DQN", "ReLU", _values, ("q_net_target.",), extractor="q_net.features_extractor"
    ),
    "sb3_contrib.qrdqn.policies": Algorithm(
        "QRDQN",
        "ReLU",
        _quantiles,
        ("quantile_net_target.",),
        extractor="quantile_net.features_extractor",
    ),
    "stable_baselines3.sac.policies": Algorithm(
        "SAC", "ReLU", _soft_actor, _CRITICS, extractor="actor.features_extractor"
    ),
    "sb3_contrib.tqc.policies": Algorithm(
        "TQC", "ReLU", _soft_actor, _CRITICS, extractor="actor.features_extractor"
    ),
    "sb3_contrib.crossq.policies": Algorithm(
        "CrossQ", "ReLU", _renormalised_actor, _CRITICS, extractor="actor.features_extractor"
    ),
    "stable_baselines3.td3.policies": Algorithm(
        "TD3, DDPG", "ReLU", _deterministic_actor, _CRITICS, extractor="actor.features_extractor"
    ),
    "sb3_contrib.ars.policies": Algorithm("ARS", "ReLU", _random_search, ()),
}
