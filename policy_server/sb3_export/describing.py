"""Describe a policy of stable-baselines3 in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from policy_server.errors import ExportError
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
from policy_server.policy import Float32Array
from policy_server.sb3_export.draft import action_sizes, draft_observation_fields, observation_width
from policy_server.sb3_export.saved_policy import UNDERSTOOD, TrainedPolicy

__all__ = ["describe_policy"]

_Module = Any  # torch.nn.Module; PyTorch is there for training only.
_Space = Any  # gymnasium.Space; gymnasium is there for training only.


def describe_policy(trained: TrainedPolicy, *, mask_start: int | None = None) -> MlpPolicy:
    """Describe a policy by its layers and its distribution.

    Args:
        trained: the policy.
        mask_start: where in the observation the action mask begins.

    Returns:
        The description.

    Raises:
        ExportError: if it is more than an MLP.
    """
    policy, space = trained.policy, trained.action_space
    if trained.family == "dqn":
        extractor, hidden, heads = policy.q_net.features_extractor, policy.q_net.q_net, []
    elif trained.family == "sac":
        actor = policy.actor
        extractor, hidden, heads = (
            actor.features_extractor,
            actor.latent_pi,
            [actor.mu, actor.log_std],
        )
    else:
        _check_class(
            policy.mlp_extractor, ("MlpExtractor",), "the network between features and actions"
        )
        extractor, hidden, heads = (
            policy.pi_features_extractor,
            policy.mlp_extractor.policy_net,
            [policy.action_net],
        )
    _check_features(extractor)
    layers = [*_dense_layers(hidden), *([_head(heads)] if heads else [])]
    return MlpPolicy(
        observation_width=observation_width(draft_observation_fields(trained.observation_space)),
        layers=tuple(layers),
        distribution=_distribution(trained, space, mask_start),
        scaling=None if trained.statistics is None else _scaling(trained.statistics),
    )


def _scaling(statistics: Any) -> ObservationScaling:  # noqa: ANN401 -- VecNormalize
    std = np.sqrt(statistics.obs_rms.var + statistics.epsilon)
    return ObservationScaling(
        mean=statistics.obs_rms.mean.ravel().astype(np.float32),
        std=std.ravel().astype(np.float32),
        limit=float(statistics.clip_obs),
    )


def _distribution(
    trained: TrainedPolicy,
    space: _Space,
    mask_start: int | None,
) -> Categorical | Normal | SquashedNormal | GreedyValues:
    if trained.family == "dqn":
        return GreedyValues(action_sizes(space)[0])
    if trained.family == "sac":
        return SquashedNormal(int(np.prod(space.shape)))
    if type(space).__name__ == "Box":
        return Normal(int(np.prod(space.shape)), _array(trained.policy.log_std))
    return Categorical(action_sizes(space), mask_start=mask_start)


def _check_features(extractor: _Module) -> None:
    _check_class(extractor, ("FlattenExtractor", "CombinedExtractor"), "the features extractor")
    if type(extractor).__name__ == "CombinedExtractor":
        for key, part in extractor.extractors.items():
            _check_class(part, ("Flatten",), f"the features extractor of {key}")


def _check_class(module: _Module, names: Sequence[str], what: str) -> None:
    if type(module).__name__ not in names:
        raise ExportError(
            f"{what}: expected {' or '.join(names)}, got {type(module).__name__}; {UNDERSTOOD}"
        )


def _dense_layers(network: _Module) -> list[DenseLayer]:
    layers: list[DenseLayer] = []
    for module in network:
        if type(module).__name__ == "Linear":
            layers.append(_head([module]))
        elif layers and layers[-1].activation == "linear":
            layers[-1] = DenseLayer(layers[-1].weights, layers[-1].bias, _activation(module))
        else:
            _check_class(module, ("Linear",), "a layer")
    return layers


def _head(modules: Sequence[_Module]) -> DenseLayer:
    """Return one layer whose outputs are those of several, side by side."""
    for module in modules:
        _check_class(module, ("Linear",), "a layer")
    weights = np.concatenate([_array(module.weight) for module in modules]).T
    biases = [
        np.zeros(module.out_features, np.float32) if module.bias is None else _array(module.bias)
        for module in modules
    ]
    return DenseLayer(np.ascontiguousarray(weights), np.concatenate(biases))


def _activation(module: _Module) -> Activation:
    known: dict[str, Activation] = {
        "Identity": "linear",
        "ReLU": "relu",
        "Tanh": "tanh",
        "Sigmoid": "sigmoid",
        "SiLU": "silu",
    }
    # Each of these has a parameter; `DenseLayer` has PyTorch's default of it.
    with_default: dict[str, tuple[Activation, str, float | str]] = {
        "LeakyReLU": ("leaky_relu", "negative_slope", 0.01),
        "ELU": ("elu", "alpha", 1.0),
        "GELU": ("gelu", "approximate", "none"),
        "Softplus": ("softplus", "beta", 1.0),
    }
    name = type(module).__name__
    if name in known:
        return known[name]
    if name not in with_default:
        raise ExportError(
            f"a layer: expected one of {', '.join(['Linear', *known, *with_default])}, got {name}"
        )
    activation, parameter, default = with_default[name]
    if getattr(module, parameter) != default:
        raise ExportError(
            f"activation {name}: expected {parameter} {default}, got {getattr(module, parameter)}"
        )
    return activation


def _array(tensor: Any) -> Float32Array:  # noqa: ANN401 -- torch.Tensor
    array: Float32Array = tensor.detach().cpu().numpy().astype(np.float32)
    return array
