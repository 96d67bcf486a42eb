"""RLlib's default networks, built from an RLModule's weights and settings.

Source: `ray.rllib.core.models.torch` (TorchMLP, the encoders and heads) and the algorithms' default
RLModules; a weight matrix is PyTorch's, float32[outputs, inputs].
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.building import NetworkBuilder
from policy_server.engine.network import NumpyNetwork
from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace
from policy_server.formats.pickles.unpickling import Stub
from policy_server.formats.rllib.checkpoint import RlModule
from policy_server.formats.rllib.module_kinds import ModuleKind, width_of_module
from policy_server.formats.rllib.pipelines import ObservationFilter

__all__ = ["build_network"]

Array = NDArray[Any]

_EPSILON = 0.001  # of RLlib's LayerNorm
_ACTIVATIONS = {
    "relu": "Relu",
    "tanh": "Tanh",
    "elu": "Elu",
    "selu": "Selu",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "leakyrelu": "LeakyRelu",
    "silu": "Silu",
    "swish": "Silu",
}
# Settings that a file of overrides leaves out: `DefaultModelConfig` of Ray 2.60.
_DEFAULTS: Mapping[str, Any] = {
    "fcnet_hiddens": [256, 256],
    "fcnet_activation": "tanh",
    "head_fcnet_hiddens": [],
    "head_fcnet_activation": "relu",
    "log_std_clip_param": 20.0,
    "v_min": -10.0,
    "v_max": 10.0,
}


def build_network(
    module: RlModule,
    kind: ModuleKind,
    *,
    outputs: int,
    observation_filter: ObservationFilter | None = None,
) -> NumpyNetwork:
    """Return the network from the observation to the distribution's inputs, or to the Q values.

    Args:
        module: the RLModule.
        kind: its kind.
        outputs: how many numbers the action distribution takes.
        observation_filter: what comes ahead of the network; None for nothing.

    Raises:
        ModelError: if weights and settings don't give the network.
    """
    building = _Building(module, width_of_module(module))
    try:
        register = building.add_filter(observation_filter)
        register = building.add_encoder(register, kind)
        if kind.is_value_based:
            result = building.add_values(register, outputs)
        else:
            result = building.add_policy(register, kind.head, outputs)
    except (IndexError, TypeError, ValueError) as error:
        raise ModelError(
            f"{module.subject}: its weights don't fit each other: {error}; save the checkpoint anew"
        ) from error
    return building.finish(result)


class _Building:
    def __init__(self, module: RlModule, width: int) -> None:
        """Own the growing network, until `finish`."""
        self._module = module
        self._builder = NetworkBuilder(width)
        self._weights = module.weights
        self._width = width

    def setting(self, name: str) -> Any:  # noqa: ANN401 -- as in the file
        return self._module.settings.get(name, _DEFAULTS[name])

    def add_filter(self, found: ObservationFilter | None) -> int:
        if found is None:
            return self._add("Cast", 0, dtype="float32")
        register = self._add("Cast", 0, dtype="float64")
        register = self._with("Sub", register, found.mean)
        register = self._with("RealDiv", register, found.deviation)
        if found.limit is not None:
            register = self._with("Minimum", register, np.float64(found.limit))
            register = self._with("Maximum", register, np.float64(-found.limit))
        return self._add("Cast", register, dtype="float32")

    def add_encoder(self, register: int, kind: ModuleKind) -> int:
        prefix = next((name for name in kind.encoders if self._has(name)), kind.encoders[0])
        sizes = [int(size) for size in self.setting("fcnet_hiddens")]
        activation = self._activation("fcnet_activation")
        return self._add_mlp(register, prefix, self._width, sizes, activation, is_last_active=True)

    def add_policy(self, register: int, head: str, outputs: int) -> int:
        log_std = self._weights.get(f"{head}.log_std")
        if log_std is None:
            result = self._add_head(register, head, outputs)
        else:
            # One deviation for all observations: `free_log_std`.
            mean = self._add_head(register, head, outputs // 2)
            rows = self._with("AddV2", self._add("ZerosLike", mean), _float32(log_std))
            result = self._builder.add("ConcatV2", (mean, rows, self._keep(np.array(1))))
        if not isinstance(self._module.action_space, BoxSpace):
            return result
        # The head clips the second half, log_std, where all actions are one Box.
        limits = np.full(outputs, np.inf, np.float32)
        limits[outputs // 2 :] = float(self.setting("log_std_clip_param"))
        return self._with("Maximum", self._with("Minimum", result, limits), -limits)

    def add_values(self, register: int, choices: int) -> int:
        """Add the heads of a DQN: plain or dueling, of Q values or of their distribution."""
        atoms = int(self._module.settings.get("num_atoms", 1))
        advantages = self._add_head(register, "af", choices * atoms)
        values = self._add_head(register, "vf", 1) if self._has("vf") else None
        if atoms > 1:
            shape = np.array([-1, choices, atoms])
            advantages = self._with("Reshape", advantages, shape)
            if values is not None:
                values = self._with("Reshape", values, np.array([-1, 1, 1]))
        axis = np.array([2 if atoms > 1 else 1])
        if values is not None:
            mean = self._with("Mean", advantages, axis, keep_dims=True)
            advantages = self._builder.add("Sub", (advantages, mean))
            advantages = self._builder.add("AddV2", (advantages, values))
        if atoms == 1:
            return advantages
        low, high = float(self.setting("v_min")), float(self.setting("v_max"))
        returns = np.linspace(low, high, atoms).astype(np.float32)
        chances = self._add("Softmax", advantages)
        return self._with("Sum", self._with("Mul", chances, returns), axis, keep_dims=False)

    def finish(self, result: int) -> NumpyNetwork:
        return self._builder.finish(result)

    def _add_head(self, register: int, prefix: str, outputs: int) -> int:
        sizes = [*(int(size) for size in self.setting("head_fcnet_hiddens")), outputs]
        activation = self._activation("head_fcnet_activation")
        width = int(self.setting("fcnet_hiddens")[-1])
        return self._add_mlp(register, prefix, width, sizes, activation, is_last_active=False)

    def _add_mlp(
        self,
        register: int,
        prefix: str,
        width: int,
        sizes: list[int],
        activation: str | None,
        *,
        is_last_active: bool,
    ) -> int:
        """Add a stack of dense layers, each with its LayerNorm where it has one."""
        layers = list(self._layers(f"{prefix}.net.mlp"))
        found = [weight.shape for weight, _ in layers if weight.ndim == 2]
        expected = [(size, before) for before, size in zip([width, *sizes], sizes, strict=False)]
        if found != expected:
            raise ModelError(
                f"{self._module.subject}: {prefix}: expected layers of the shapes {expected} by "
                f"its model_config and spaces, got {found}; train RLlib's default network"
            )
        left = len(sizes)
        for index, (weight, bias) in enumerate(layers):
            if weight.ndim == 2:
                left -= 1
                register = self._with("MatMul", register, np.ascontiguousarray(weight.T))
                register = self._with("AddV2", register, bias)
            else:
                register = self._normalize(register, weight, bias)
            is_ended = index + 1 == len(layers) or layers[index + 1][0].ndim == 2
            if is_ended and activation is not None and (left or is_last_active):
                register = self._activate(register, activation)
        return register

    def _layers(self, prefix: str) -> Iterator[tuple[Array, Array]]:
        """Return weight and bias of each layer, in the order of their numbers."""
        pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.weight")
        places = [int(match[1]) for match in map(pattern.fullmatch, self._weights) if match]
        for place in sorted(places):
            weight = _float32(self._weights[f"{prefix}.{place}.weight"])
            bias = self._weights.get(f"{prefix}.{place}.bias")
            yield weight, np.zeros(len(weight), np.float32) if bias is None else _float32(bias)

    def _normalize(self, register: int, scale: Array, offset: Array) -> int:
        axis = np.array([1])
        mean = self._with("Mean", register, axis, keep_dims=True)
        centered = self._builder.add("Sub", (register, mean))
        squares = self._add("Square", centered)
        variance = self._with("Mean", squares, axis, keep_dims=True)
        factor = self._add("Rsqrt", self._with("AddV2", variance, np.float32(_EPSILON)))
        scaled = self._with("Mul", self._builder.add("Mul", (centered, factor)), scale)
        return self._with("AddV2", scaled, offset)

    def _activate(self, register: int, activation: str) -> int:
        if activation == "Silu":
            return self._builder.add("Mul", (register, self._add("Sigmoid", register)))
        if activation == "LeakyRelu":
            return self._add(activation, register, alpha=0.01)
        return self._add(activation, register)

    def _activation(self, setting: str) -> str | None:
        """Return the operation of an activation: a name, or a class of PyTorch."""
        stated = self.setting(setting)
        if isinstance(stated, type) and issubclass(stated, Stub):
            stated = stated.path.rpartition(".")[2]
        name = "linear" if stated is None else str(stated).lower()
        if name in ("linear", "identity"):
            return None
        if name not in _ACTIVATIONS:
            known = ", ".join(sorted(_ACTIVATIONS))
            raise ModelError(
                f"{self._module.subject}: {setting}: is {stated}, which is not served; expected "
                f"linear or one of {known}"
            )
        return _ACTIVATIONS[name]

    def _has(self, prefix: str) -> bool:
        return any(name.startswith(f"{prefix}.net.mlp.") for name in self._weights)

    def _keep(self, value: Any) -> int:  # noqa: ANN401 -- an array or a NumPy number
        return self._builder.keep(np.asarray(value))

    def _add(self, operation: str, register: int, **attributes: object) -> int:
        return self._builder.add(operation, (register,), tuple(attributes.items()))

    def _with(self, operation: str, register: int, value: object, **attributes: object) -> int:
        inputs = (register, self._keep(value))
        return self._builder.add(operation, inputs, tuple(attributes.items()))


def _float32(array: Array) -> Array:
    return np.asarray(array, np.float32)
