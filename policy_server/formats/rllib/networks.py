"""RLlib's default networks, built from an RLModule's weights and settings.

Source: the algorithms' default RLModules, and `ray.rllib.core.models.torch` (encoders and heads).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.network import NumpyNetwork
from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace
from policy_server.formats.rllib.checkpoint import RlModule
from policy_server.formats.rllib.model_settings import assumed_settings
from policy_server.formats.rllib.module_kinds import ModuleKind, observation_shape
from policy_server.formats.rllib.network_layers import Layers
from policy_server.formats.rllib.pipelines import ObservationFilter
from policy_server.policy import StateTensor

__all__ = ["BuiltNetwork", "build_network"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class BuiltNetwork:
    """A network, with what it depends on.

    Attributes:
        network: from the observation, and the state, to the distribution's inputs or the Q values.
        memory: the tensors of its state; empty where it has none.
        assumed: a line for the settings that the file leaves to RLlib's defaults.
    """

    network: NumpyNetwork
    memory: tuple[StateTensor, ...]
    assumed: Sequence[str]


def build_network(
    module: RlModule,
    kind: ModuleKind,
    *,
    outputs: int,
    observation_filter: ObservationFilter | None = None,
) -> BuiltNetwork:
    """Return the network from the observation to the distribution's inputs, or to the Q values.

    Args:
        module: the RLModule.
        kind: its kind.
        outputs: how many numbers the action distribution takes.
        observation_filter: what comes ahead of the network; None for nothing.

    Raises:
        ModelError: if weights and settings don't give the network.
    """
    try:
        return _Building(module, kind).build(outputs, observation_filter)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        words = f"{type(error).__name__}: {error}"
        raise ModelError(
            f"{module.subject}: its weights don't fit each other: {words}; save the checkpoint anew"
        ) from error


class _Building:
    def __init__(self, module: RlModule, kind: ModuleKind) -> None:
        """Own the growing network, until it is built."""
        self._module, self._kind = module, kind
        self._shape = observation_shape(module)
        self._width = int(np.prod(self._shape))
        names = [f"{encoder}." for encoder in kind.encoders]
        begins = [name for name in names if any(key.startswith(name) for key in module.weights)]
        self._encoder = (begins or names)[0].removesuffix(".")
        self._cells = self._cells_of(f"{self._encoder}.lstm.weight_hh_l0")
        self._layers = Layers(module, self._width + 2 * self._cells)
        # The settings that the network depends on.
        self._settings: list[str] = []

    def build(self, outputs: int, observation_filter: ObservationFilter | None) -> BuiltNetwork:
        layers, kind = self._layers, self._kind
        register = layers.columns(0, 0, self._width) if self._cells else 0
        register = layers.filtered(register, observation_filter)
        register, width, state = self._add_encoder(register)
        if kind.is_value_based:
            result = self._add_values(register, width, outputs)
        else:
            result = self._add_policy(register, width, outputs)
        layers.check_all_used([self._encoder, kind.head])
        network = layers.builder.finish(layers.joined([result, *state]) if state else result)
        return BuiltNetwork(network, self._memory(), assumed_settings(self._module, self._settings))

    def _cells_of(self, name: str) -> int:
        shape = self._module.weights[name].shape if name in self._module.weights else ()
        is_used = bool(self._module.settings.get("use_lstm"))
        if is_used != bool(shape) or (shape and shape[0] != 4 * shape[1]):
            raise ModelError(
                f"{self._module.subject}: use_lstm is {is_used}, and {name} has the shape "
                f"{list(shape)}; train RLlib's default network"
            )
        return shape[1] if shape else 0

    def _memory(self) -> tuple[StateTensor, ...]:
        """Return the state's tensors by RLlib's names: the actor's where it has its own."""
        if not self._cells:
            return ()
        owner = "actor." if self._encoder.endswith("actor_encoder") else ""
        return tuple(StateTensor(f"{owner}{name}", (1, self._cells)) for name in ("h", "c"))

    def _add_encoder(self, register: int) -> tuple[int, int, tuple[int, ...]]:
        """Return the register of the features, how many there are, and the state after the step."""
        if not self._cells:
            return (*self._add_features(register, self._encoder), ())
        before = [
            self._layers.add("Cast", self._layers.columns(0, begin, self._cells), dtype="float32")
            for begin in (self._width, self._width + self._cells)
        ]
        register, _ = self._add_features(register, f"{self._encoder}.tokenizer")
        state = self._layers.lstm(register, f"{self._encoder}.lstm", *before)
        return state[0], self._cells, state

    def _add_features(self, register: int, prefix: str) -> tuple[int, int]:
        if len(self._shape) > 1:
            self._settings += ["conv_filters", "conv_activation"]
            return self._layers.convolutions(register, prefix, self._shape)
        self._settings += ["fcnet_hiddens", "fcnet_activation"]
        sizes = [int(size) for size in self._layers.setting("fcnet_hiddens")]
        # A noisy encoder of Ray 2.40 ends as its heads do.
        is_noisy = self._layers.shape_of(f"{prefix}.net.mlp.0.weight_mu")
        register = self._layers.dense(
            register,
            prefix,
            self._width,
            sizes,
            activation="fcnet_activation",
            last_activation="head_fcnet_activation" if is_noisy else "fcnet_activation",
        )
        return register, sizes[-1]

    def _add_head(self, register: int, width: int, prefix: str, outputs: int) -> int:
        sizes = [*(int(size) for size in self._layers.setting("head_fcnet_hiddens")), outputs]
        self._settings += [] if prefix == "vf" else ["head_fcnet_hiddens"]
        if len(sizes) > 1 and prefix != "vf":
            self._settings.append("head_fcnet_activation")
        return self._layers.dense(
            register, prefix, width, sizes, activation="head_fcnet_activation", last_activation=None
        )

    def _add_policy(self, register: int, width: int, outputs: int) -> int:
        layers, head = self._layers, self._kind.head
        if layers.shape_of(f"{head}.log_std"):
            # One deviation for all observations: `free_log_std`.
            mean = self._add_head(register, width, head, outputs // 2)
            rows = layers.by(
                "AddV2",
                layers.add("ZerosLike", mean),
                layers.weight(f"{head}.log_std", outputs // 2),
            )
            result = layers.joined([mean, rows])
        else:
            result = self._add_head(register, width, head, outputs)
        is_box = isinstance(self._module.action_space, BoxSpace)
        if not is_box or self._kind.is_squashed:
            return result
        # The head clips the second half, log_std, where all actions are one Box.
        self._settings.append("log_std_clip_param")
        limits = np.full(outputs, np.inf, np.float32)
        limits[outputs // 2 :] = float(layers.setting("log_std_clip_param"))
        return layers.by("Maximum", layers.by("Minimum", result, limits), -limits)

    def _add_values(self, register: int, width: int, choices: int) -> int:
        """Add the heads of a DQN: plain or dueling, of Q values or of their distribution."""
        layers = self._layers
        atoms = int(layers.setting("num_atoms"))
        advantages = self._add_head(register, width, "af", choices * atoms)
        values = self._add_head(register, width, "vf", 1) if layers.has("vf") else None
        if atoms > 1:
            self._settings += ["v_min", "v_max"]
            advantages = layers.by("Reshape", advantages, np.array([-1, choices, atoms]))
            if values is not None:
                values = layers.by("Reshape", values, np.array([-1, 1, 1]))
        axis = np.array([2 if atoms > 1 else 1])
        if values is not None:
            centered = np.array([1]) if self._kind.centers_choices else axis
            mean = layers.by("Mean", advantages, centered, keep_dims=True)
            advantages = layers.builder.add("Sub", (advantages, mean))
            advantages = layers.builder.add("AddV2", (advantages, values))
        if atoms == 1:
            return advantages
        low, high = float(layers.setting("v_min")), float(layers.setting("v_max"))
        returns = np.linspace(low, high, atoms).astype(np.float32)
        chances = layers.add("Softmax", advantages)
        return layers.by("Sum", layers.by("Mul", chances, returns), axis, keep_dims=False)
