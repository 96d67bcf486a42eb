"""The heads that the algorithms of RLlib's old API stack put on a model, and their actions.

Source: `ray.rllib.algorithms`: the torch policies, and DQNTorchModel, SACTorchModel and
DDPGTorchModel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace
from policy_server.formats.pickles.unpickling import Stub
from policy_server.formats.rllib.actions import Actions
from policy_server.formats.rllib.checkpoint import RlModule
from policy_server.formats.rllib.old_stack.default_models import Model
from policy_server.formats.rllib.old_stack.policy_state import OldPolicy, name_of
from policy_server.formats.rllib.old_stack.slim_layers import SlimLayers
from policy_server.formats.torch_layers import add_activation

__all__ = ["Head", "head_of", "module_of"]

# MIN_LOG_NN_OUTPUT and MAX_LOG_NN_OUTPUT of Ray 2, which bound log_std in `SquashedGaussian`.
_LOG_STD_BOUNDS = (-5.0, 2.0)
_ACTOR_ACTIVATION = "actor_hidden_activation"
# RLlib's number of features where nothing else tells it.
_FEATURES = 256
# With these a policy over Q values draws by them.
_DRAWING = ("SoftQ", "StochasticSampling")


@dataclass(frozen=True)
class Head:
    """How a family of algorithms comes from a policy's model to its actions.

    Attributes:
        add: returns the register of the distribution's inputs.
        describe: returns the actions of a policy, of those of its action space.
        settings: the name of the setting that holds the model's.
        is_value_based: the inputs are Q values, of which the best is taken.
        is_recurrent: the model may have an LSTM.
    """

    add: Callable[[OldPolicy, Model, int, Actions], int]
    describe: Callable[[OldPolicy, Actions], Actions] = lambda _policy, actions: actions
    settings: str = "model"
    is_value_based: bool = False
    is_recurrent: bool = False


def head_of(policy: OldPolicy) -> Head:
    """Return the head of a policy.

    Args:
        policy: the policy.

    Raises:
        ModelError: if its class or its model is none that is served, by name.
    """
    head = _HEADS.get(policy.path)
    if head is None:
        raise ModelError(
            f"{policy.subject}: is a {policy.path}, which is not served; expected one of "
            f"{', '.join(sorted(_HEADS))}"
        )
    if head.is_value_based and _exploration(policy) in _DRAWING:
        head = replace(head, is_value_based=False, describe=_describe_drawn_values)
    if _exploration(policy) == "ParameterNoise":
        raise ModelError(
            f"{policy.subject}: explores by ParameterNoise, so that the saved weights may hold "
            "noise; train it with another exploration"
        )
    settings = module_of(policy, head).settings
    _refuse_own_code(policy, settings)
    _refuse_memory(policy, head, settings)
    return head


def module_of(policy: OldPolicy, head: Head) -> RlModule:
    """Return a policy's weights with the settings of its model, as layers take them.

    Args:
        policy: the policy.
        head: its head.

    Raises:
        ModelError: if there are no settings.
    """
    settings = policy.settings.get(head.settings)
    if not isinstance(settings, Mapping):
        raise ModelError(f"{policy.subject}: {head.settings}: expected settings; save it anew")
    return RlModule(
        policy.subject,
        policy.name,
        policy.path,
        policy.model_space,
        policy.action_space,
        {**settings, _ACTOR_ACTIVATION: policy.settings.get(_ACTOR_ACTIVATION)},
        policy.weights,
        policy.ray_version,
    )


def _refuse_own_code(policy: OldPolicy, settings: Mapping[str, Any]) -> None:
    for name in ("custom_model", "custom_action_dist", "custom_preprocessor"):
        if settings.get(name):
            raise ModelError(
                f"{policy.subject}: model: {name}: is {name_of(settings[name])}, whose code is not "
                "in the file; train RLlib's default network"
            )


def _refuse_memory(policy: OldPolicy, head: Head, settings: Mapping[str, Any]) -> None:
    if settings.get("use_attention"):
        raise ModelError(
            f"{policy.subject}: has an attention network (use_attention), which is not served; "
            "train it with use_lstm or without memory"
        )
    if settings.get("use_lstm") and not head.is_recurrent:
        raise ModelError(f"{policy.subject}: is a {policy.path} with an LSTM, which is not served")


def _exploration(policy: OldPolicy) -> str:
    """Return the class of a policy's exploration, such as `EpsilonGreedy`."""
    settings = policy.settings.get("exploration_config")
    kind = settings.get("type") if isinstance(settings, Mapping) else None
    path = kind.path if isinstance(kind, type) and issubclass(kind, Stub) else str(kind)
    return path.rpartition(".")[2]


def _add_distribution(_policy: OldPolicy, model: Model, x: int, actions: Actions) -> int:
    return model.add(x, outputs=actions.inputs)


def _describe_drawn_values(policy: OldPolicy, actions: Actions) -> Actions:
    settings = policy.settings
    temperature = float(settings.get("categorical_distribution_temperature", 1.0))
    if _exploration(policy) == "SoftQ":
        temperature *= float(settings["exploration_config"].get("temperature", 1.0))
    (part,) = actions.components
    return replace(actions, components=(replace(part, temperature=temperature),))


def _add_values(policy: OldPolicy, model: Model, x: int, actions: Actions) -> int:
    """Return the register of the Q values: of advantages and a value where the model is dueling."""
    settings, layers = policy.settings, model.layers
    if settings.get("noisy"):
        raise ModelError(
            f"{policy.subject}: has noisy layers (noisy), whose answers are random; train it with "
            "noisy=False"
        )
    hiddens = [int(size) for size in settings.get("hiddens") or ()]
    atoms = int(settings.get("num_atoms", 1))
    if hiddens:
        features = [_FEATURES, *layers.sizes("fcnet_hiddens")][-1]
        x = model.add(x, outputs=features, is_ended_early=True)
    else:
        x = model.add(x, outputs=actions.inputs)
    scores = _branch(layers, x, "advantage_module", "A", [*hiddens, actions.inputs * atoms])
    is_dueling = bool(settings.get("dueling"))
    value = _branch(layers, x, "value_module", "V", [*hiddens, atoms]) if is_dueling else None
    if atoms > 1:
        scores = layers.by("Reshape", scores, [-1, actions.inputs, atoms])
    if value is not None:
        mean = layers.by("Mean", scores, np.array([1]), keep_dims=True)
        if atoms > 1:
            value = layers.by("Reshape", value, [-1, 1, atoms])
        centered = layers.builder.add("Sub", (scores, mean))
        scores = layers.builder.add("AddV2", (value, centered))
    if atoms == 1:
        return scores
    support = np.linspace(float(settings["v_min"]), float(settings["v_max"]), atoms)
    weighted = layers.by("Mul", layers.add("Softmax", scores), support.astype(np.float32))
    return layers.by("Sum", weighted, np.array([2]), keep_dims=False)


def _branch(layers: SlimLayers, x: int, module: str, letter: str, sizes: Sequence[int]) -> int:
    """Return the register of a branch of DQN's model; its input where it has no hidden layer."""
    *hiddens, outputs = sizes
    for place, size in enumerate(hiddens):
        name = f"{module}.dueling_{letter}_{place}"
        # RLlib's own, whatever the model's activation is.
        x = add_activation(layers.builder, layers.slim(x, name, size), "ReLU")
    return layers.slim(x, f"{module}.{letter}", outputs) if hiddens else x


def _describe_soft(policy: OldPolicy, actions: Actions) -> Actions:
    """Return the actions of SAC: squashed where RLlib rescales them to the bounds."""
    if policy.settings.get("_use_beta_distribution"):
        raise ModelError(
            f"{policy.subject}: draws from a Beta distribution (_use_beta_distribution), which is "
            "not served; train it without"
        )
    if not isinstance(policy.action_space, BoxSpace) or not policy.settings.get(
        "normalize_actions"
    ):
        return actions
    (part,) = actions.components
    squashed = replace(part, kind="squashed_normal", log_std_bounds=_LOG_STD_BOUNDS)
    return replace(actions, components=(squashed,))


def _add_soft(_policy: OldPolicy, model: Model, x: int, actions: Actions) -> int:
    return model.add(x, "action_model.", outputs=actions.inputs)


def _describe_deterministic(_policy: OldPolicy, actions: Actions) -> Actions:
    (part,) = actions.components
    return replace(actions, components=(replace(part, kind="deterministic"),))


def _add_deterministic(policy: OldPolicy, model: Model, x: int, actions: Actions) -> int:
    """Return the register of an action, which DDPG's model squashes to the bounds itself."""
    layers = model.layers
    if policy.settings.get("use_state_preprocessor"):
        x = model.add(x, outputs=_FEATURES, is_ended_early=True)
    sizes = [int(size) for size in policy.settings.get("actor_hiddens") or ()]
    x = layers.slims(x, "policy_model.action_", sizes, activation=_ACTOR_ACTIVATION)
    x = layers.slim(x, "policy_model.action_out", actions.inputs)
    squashed = "policy_model.action_out_squashed"
    if not layers.has(squashed):
        return x
    x = layers.add("Sigmoid", layers.by("Mul", x, np.float32(2)))
    x = layers.by("Mul", x, layers.weight(f"{squashed}.action_range", actions.inputs))
    return layers.by("AddV2", x, layers.weight(f"{squashed}.low_action", actions.inputs))


_DISTRIBUTION = Head(_add_distribution, is_recurrent=True)
_SOFT = Head(_add_soft, _describe_soft, settings="policy_model_config")
_HEADS: Mapping[str, Head] = {
    "A3CTorchPolicy": _DISTRIBUTION,
    "APPOTorchPolicy": _DISTRIBUTION,
    "CQLTorchPolicy": _SOFT,
    "DDPGTorchPolicy": Head(_add_deterministic, _describe_deterministic),
    "DQNTorchPolicy": Head(_add_values, is_value_based=True),
    "ImpalaTorchPolicy": _DISTRIBUTION,
    "MARWILTorchPolicy": _DISTRIBUTION,
    "PGTorchPolicy": _DISTRIBUTION,
    "PPOTorchPolicy": _DISTRIBUTION,
    "SACTorchPolicy": _SOFT,
    "SimpleQTorchPolicy": Head(_add_distribution, is_value_based=True),
}
