"""The continuous actions of stable-baselines3's policies: Gaussians, plain and squashed."""

from __future__ import annotations

import numpy as np

from policy_server.errors import ModelError
from policy_server.formats.stable_baselines3.action_spaces import Answers, box_component, dimensions
from policy_server.formats.stable_baselines3.layers import Layers
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy
from policy_server.policy import Float32Array

__all__ = ["gaussian", "soft_heads"]

# StateDependentNoiseDistribution adds it to the variance.
_SDE_EPSILON = 1e-6


def gaussian(
    layers: Layers, latent: int, saved: SavedPolicy, weights: Float32Array, bias: Float32Array
) -> Answers:
    """Return the answers of an actor-critic policy on a Box.

    Args:
        layers: the network so far.
        latent: the register of the last layer's inputs.
        saved: the policy.
        weights: float32[inputs, dimensions], of the layer that gives the mean.
        bias: float32[dimensions], of the same layer.
    """
    log_std = layers.tensor("log_std")
    if saved.has_sde:
        mean = layers.dense(latent, weights, bias)
        return _state_dependent(layers, latent, mean, log_std, saved)
    result = layers.dense(
        latent, np.hstack([weights, np.zeros_like(weights)]), np.concatenate([bias, log_std])
    )
    return Answers(result, (box_component(saved, "normal"),))


def _state_dependent(
    layers: Layers, latent: int, mean: int, log_std: Float32Array, saved: SavedPolicy
) -> Answers:
    """Return a Gaussian whose variance is that of the noise on a layer's weights.

    Source: "Smooth Exploration for Robotic Reinforcement Learning" (Raffin et al., 2021) and
    `StateDependentNoiseDistribution`.
    """
    if saved.arguments.get("sde_net_arch") is not None:
        raise ModelError(
            "data: policy_kwargs: sde_net_arch is not computed, as today's stable-baselines3 has "
            "none; train without it"
        )
    is_linear = saved.flag("use_expln")
    if log_std.ndim != 2:
        raise ModelError(
            f"policy.pth: log_std has the shape {log_std.shape}, and gSDE by use_sde takes a matrix"
        )
    variances = (_expln(log_std) if is_linear else np.exp(log_std)) ** 2
    size = dimensions(saved)
    if variances.shape[-1] != size:
        variances = np.repeat(variances, size, axis=-1)
    variance = layers.with_constant("MatMul", layers.add("Square", latent), variances)
    variance = layers.with_constant("Add", variance, np.float32(_SDE_EPSILON))
    half = layers.with_constant("Mul", layers.add("Log", variance), np.float32(0.5))
    result = layers.add("ConcatV2", mean, half, layers.builder.keep(np.asarray(1)))
    is_squashed = saved.flag("squash_output") or "actor.log_std" in saved.weights
    return Answers(result, (box_component(saved, "squashed_normal" if is_squashed else "normal"),))


def soft_heads(layers: Layers, latent: int, saved: SavedPolicy) -> Answers:
    """Return the answers of SAC, TQC and CrossQ: the mean before the tanh, and log_std.

    Args:
        layers: the network so far.
        latent: the register of the heads' inputs.
        saved: the policy.
    """
    if saved.has_sde:
        limit = saved.number("clip_mean", 2.0)
        mean = layers.dense(latent, *layers.linear("actor.mu.0" if limit > 0 else "actor.mu"))
        if limit > 0:
            mean = layers.with_constant("Minimum", mean, np.float32(limit))
            mean = layers.with_constant("Maximum", mean, np.float32(-limit))
        return _state_dependent(layers, latent, mean, layers.tensor("actor.log_std"), saved)
    heads = [layers.linear(name) for name in ("actor.mu", "actor.log_std")]
    weights, bias = (np.concatenate(parts, axis=-1) for parts in zip(*heads, strict=True))
    return Answers(layers.dense(latent, weights, bias), (box_component(saved, "squashed_normal"),))


def _expln(log_std: Float32Array) -> Float32Array:
    """Return deviations that grow by a logarithm where `log_std` is positive.

    Source: `StateDependentNoiseDistribution.get_std`.
    """
    is_positive = log_std > 0
    grown = np.log1p(np.where(is_positive, log_std, 0) + np.float32(_SDE_EPSILON)) + 1
    return np.where(is_positive, grown, np.exp(np.minimum(log_std, 0))).astype(np.float32)
