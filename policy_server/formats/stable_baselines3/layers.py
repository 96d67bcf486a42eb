"""The layers of a stable-baselines3 policy as NumPy steps, taken from its tensors by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policy_server.engine.building import NetworkBuilder
from policy_server.errors import ModelError
from policy_server.formats.stable_baselines3.file_names import WEIGHTS_FILE
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy, class_path
from policy_server.formats.torch_layers import ACTIVATIONS, add_activation
from policy_server.policy import Float32Array

__all__ = ["Layers", "activation_of"]

Attributes = tuple[tuple[str, Any], ...]


def activation_of(saved: SavedPolicy, default: str) -> str:
    """Return the name of an activation in `ACTIVATIONS`.

    Args:
        saved: the policy.
        default: its class's own.

    Raises:
        ModelError: if it is none of those.
    """
    stated = saved.arguments.get("activation_fn")
    if stated is None:
        return default
    path = class_path(stated) or str(stated)
    package, _, name = path.rpartition(".")
    if not package.startswith("torch.nn.modules.") or name not in ACTIVATIONS:
        raise ModelError(
            f"data: policy_kwargs: the activation {name} is not computed; expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    return name


class Layers:
    """A network that grows by the layers of a policy.

    Attributes:
        builder: holds the steps so far.
        has_memory: each observation is followed by the state of its episode.
    """

    def __init__(
        self,
        width: int,
        weights: Mapping[str, NDArray[Any]],
        *,
        activation: str,
        memory_width: int = 0,
    ) -> None:
        """Own the network, and a note of the tensors that went into it, until it is finished.

        Args:
            width: how many numbers an observation has.
            weights: the tensors by name.
            activation: the name of the activation between layers.
            memory_width: how many numbers the state of an episode has.
        """
        self.builder = NetworkBuilder(width + memory_width)
        self.has_memory = memory_width > 0
        self._weights = weights
        self._used: set[str] = set()
        self._activation = activation

    def has(self, prefix: str) -> bool:
        """Return whether there are tensors whose names begin so.

        Args:
            prefix: the start of a name.
        """
        return any(name.startswith(prefix) for name in self._weights)

    def tensor(self, name: str) -> Float32Array:
        """Return a tensor.

        Args:
            name: its name.

        Raises:
            ModelError: if there is none, or it holds NaN or infinity.
        """
        if name not in self._weights:
            raise ModelError(f"{WEIGHTS_FILE}: lacks the tensor {name}")
        if not np.isfinite(self._weights[name]).all():
            raise ModelError(
                f"{WEIGHTS_FILE}: {name} holds NaN or infinity; save an earlier state of the policy"
            )
        self._used.add(name)
        return self._weights[name].astype(np.float32)

    def linear(self, name: str) -> tuple[Float32Array, Float32Array]:
        """Return the weights float32[inputs, outputs] and the biases float32[outputs] of a layer.

        Args:
            name: the layer's.

        Raises:
            ModelError: if it is missing, or its tensors don't fit each other.
        """
        weights = self.tensor(f"{name}.weight").T
        has_bias = f"{name}.bias" in self._weights
        bias = self.tensor(f"{name}.bias") if has_bias else np.zeros(weights.shape[-1:], np.float32)
        if weights.ndim != 2 or bias.shape != weights.shape[1:]:
            raise ModelError(
                f"{WEIGHTS_FILE}: {name}: has weights {weights.shape[::-1]} and biases {bias.shape}"
            )
        return np.ascontiguousarray(weights), bias

    def places(self, name: str) -> list[int]:
        """Return the places of the layers in a sequence of layers and activations.

        Args:
            name: the sequence's.

        Raises:
            ModelError: if there is more between two layers than an activation.
        """
        pattern = re.compile(rf"{re.escape(name)}\.(\d+)\.weight")
        # A PReLU has weights too, in a row.
        layers = (name for name, tensor in self._weights.items() if tensor.ndim == 2)
        found = sorted(int(match[1]) for match in map(pattern.fullmatch, layers) if match)
        if found != list(range(0, 2 * len(found), 2)):
            raise ModelError(
                f"{WEIGHTS_FILE}: {name} has its layers at the places {found}; expected layers and "
                "activations in turn"
            )
        return found

    def add(self, operation: str, *inputs: int, attributes: Attributes = ()) -> int:
        """Return the register of a step's result.

        Args:
            operation: its name in the engine.
            inputs: the registers that it reads.
            attributes: its constant attributes.
        """
        return self.builder.add(operation, inputs, attributes)

    def with_constant(self, operation: str, x: int, value: ArrayLike) -> int:
        """Return the register of a step of a register and a constant.

        Args:
            operation: its name in the engine.
            x: the register.
            value: the constant.
        """
        return self.add(operation, x, self.builder.keep(np.asarray(value)))

    def dense(self, x: int, weights: Float32Array, bias: Float32Array) -> int:
        """Return the register of a layer's outputs.

        Args:
            x: the register of its inputs.
            weights: float32[inputs, outputs].
            bias: float32[outputs].

        Raises:
            ModelError: if the register has another width.
        """
        try:
            product = self.with_constant("MatMul", x, weights)
        except ValueError as error:
            raise ModelError(f"{WEIGHTS_FILE}: a layer does not fit its inputs: {error}") from error
        return self.with_constant("Add", product, bias)

    def columns(self, x: int, first: int, count: int) -> int:
        """Return the register of some of the numbers of each row.

        Args:
            x: the register of the rows.
            first: the index of the first number.
            count: how many they are.
        """
        begin, size = (self.builder.keep(np.array(part)) for part in ([0, first], [-1, count]))
        return self.add("Slice", x, begin, size)

    def joined(self, registers: Sequence[int]) -> int:
        """Return the register of rows side by side.

        Args:
            registers: the registers of the rows, at least one.
        """
        if len(registers) == 1:
            return registers[0]
        return self.add("ConcatV2", *registers, self.builder.keep(np.asarray(1)))

    def sequence(self, x: int, name: str, *, is_last_activated: bool) -> int:
        """Return the register of the outputs of layers and activations in turn.

        Args:
            x: the register of its inputs.
            name: the sequence's.
            is_last_activated: an activation follows the last layer.
        """
        return self.sequence_with_head(
            x, name, lambda *layer: layer, is_activated=is_last_activated
        )

    def sequence_with_head(
        self,
        x: int,
        name: str,
        change: Callable[[Float32Array, Float32Array], tuple[Float32Array, Float32Array]],
        *,
        is_activated: bool = False,
    ) -> int:
        """Return the register of a sequence whose last layer is changed first.

        Args:
            x: the register of its inputs.
            name: the sequence's.
            change: gives the weights and biases to take for the last layer's own.
            is_activated: an activation follows the last layer.
        """
        places = self.places(name)
        for place in places:
            is_last = place == places[-1]
            weights, bias = self.linear(f"{name}.{place}")
            x = self.dense(x, *(change(weights, bias) if is_last else (weights, bias)))
            if not is_last or is_activated:
                x = self._activated(x, f"{name}.{place + 1}")
        return x

    def _activated(self, x: int, name: str) -> int:
        """Return the register of the result of the policy's activation, which may have weights."""
        has_weights = f"{name}.weight" in self._weights
        slopes = self.tensor(f"{name}.weight") if has_weights else None
        return add_activation(self.builder, x, self._activation, slopes)

    def renormalised_sequence(self, x: int, name: str, *, epsilon: float) -> int:
        """Return the register of a sequence with BatchRenorm layers, as it is after training.

        Args:
            x: the register of its inputs.
            name: the sequence's.
            epsilon: is added to the variances.

        Source: `sb3_contrib.common.torch_layers.BatchRenorm`.
        """
        pattern = re.compile(rf"{re.escape(name)}\.(\d+)\.(weight|ra_mean)")
        places = {int(match[1]) for match in map(pattern.fullmatch, self._weights) if match}
        for place in sorted(places):
            layer = f"{name}.{place}"
            if f"{layer}.ra_mean" in self._weights:
                x = self._renormalised(x, layer, epsilon)
            elif self._weights[f"{layer}.weight"].ndim == 2:
                x = self.dense(x, *self.linear(layer))
                x = self._activated(x, f"{name}.{place + 1}")
        return x

    def _renormalised(self, x: int, layer: str, epsilon: float) -> int:
        mean, variance = (self.tensor(f"{layer}.{part}") for part in ("ra_mean", "ra_var"))
        self.tensor(f"{layer}.steps")
        x = self.with_constant("Sub", x, mean)
        x = self.with_constant("RealDiv", x, np.sqrt(variance + np.float32(epsilon)))
        x = self.with_constant("Mul", x, self.tensor(f"{layer}.scale"))
        return self.with_constant("Add", x, self.tensor(f"{layer}.bias"))

    def refuse_unused(self, others: Sequence[str]) -> None:
        """Refuse a policy with tensors that are in no network that is known.

        Args:
            others: the starts of the names of networks that choose no action, as critics.

        Raises:
            ModelError: naming the first such tensor.
        """
        for name in self._weights:
            if name not in self._used and not name.startswith(tuple(others)):
                raise ModelError(
                    f"{WEIGHTS_FILE}: has the tensor {name}, which is no part of the networks of "
                    "stable-baselines3 that are read; export the policy to ONNX or a SavedModel"
                )
