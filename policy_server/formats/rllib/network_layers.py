"""The layers of RLlib's default networks as NumPy steps, taken from an RLModule's weights.

Source: `ray.rllib.core.models.torch` (TorchMLP, TorchCNN, TorchLSTMEncoder); a weight matrix is
PyTorch's, float32[outputs, inputs].
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.building import NetworkBuilder
from policy_server.errors import ModelError
from policy_server.formats.pickles.unpickling import Stub
from policy_server.formats.rllib.checkpoint import RlModule
from policy_server.formats.rllib.model_settings import (
    Convolution,
    convolutions_of,
    setting_of,
)
from policy_server.formats.rllib.pipelines import ObservationFilter
from policy_server.formats.torch_layers import (
    ACTIVATIONS,
    LstmLayer,
    add_activation,
    add_lstm_layer,
)

__all__ = ["Layers"]

Array = NDArray[Any]

_EPSILON = 0.001  # of RLlib's LayerNorm
# RLlib's own names beside PyTorch's, without regard to their case.
_SHORT_NAMES = {
    "swish": "SiLU",
    "silu": "SiLU",
    "relu": "ReLU",
    "tanh": "Tanh",
    "elu": "ELU",
    "softmax": "Softmax",
}
# PReLU has weights of its own; LogSoftmax is served along a vector, not along an image's channels.
_NOT_SERVED = {"conv_activation": ("PReLU", "LogSoftmax")}


class Layers:
    """A network that grows by the layers of an RLModule.

    Attributes:
        builder: holds the steps so far.
    """

    def __init__(self, module: RlModule, width: int) -> None:
        """Own the network, until it is finished.

        Args:
            module: the RLModule.
            width: how many numbers an observation has, with the state of a recurrent policy.
        """
        self.builder = NetworkBuilder(width)
        self._module = module
        self._weights = module.weights
        self._used: set[str] = set()

    def setting(self, name: str) -> Any:  # noqa: ANN401 -- as in the file
        """Return a setting of the network, or RLlib's default."""
        return setting_of(self._module, name)

    def has(self, prefix: str) -> bool:
        """Return whether there are weights whose names begin so."""
        return any(name.startswith(f"{prefix}.") for name in self._weights)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight; () where there is none."""
        return self._weights[name].shape if name in self._weights else ()

    def weight(self, name: str, *shape: int) -> Array:
        """Return a weight as float32.

        Args:
            name: its name.
            shape: what its shape has to be; nothing for any.

        Raises:
            KeyError: if there is none.
            ValueError: if it has another shape, which NumPy might stretch.
        """
        found = self._weights[name].shape
        if shape and found != shape:
            raise ValueError(f"{name} has the shape {list(found)}, expected {list(shape)}")
        self._used.add(name)
        return np.asarray(self._weights[name], np.float32)

    def check_all_used(self, prefixes: Sequence[str]) -> None:
        """Refuse weights that no layer took.

        Args:
            prefixes: the beginnings of the policy's names.

        Raises:
            ModelError: naming the first.
        """
        for name in self._weights:
            if name.startswith(tuple(f"{prefix}." for prefix in prefixes)) and not (
                name in self._used or name.endswith(("_epsilon", "_sigma", "_param_const"))
            ):
                raise ModelError(
                    f"{self._module.subject}: has the weights {name}, which RLlib's default "
                    "network has not; train RLlib's default network"
                )

    def dense(
        self,
        register: int,
        prefix: str,
        width: int,
        sizes: Sequence[int],
        *,
        activation: str,
        last_activation: str | None,
    ) -> int:
        """Return the register behind a stack of dense layers, each with any LayerNorm of its own.

        Args:
            register: the inputs', float32[B, width].
            prefix: the beginning of the weights' names.
            width: how many inputs there are.
            sizes: how many outputs each layer has.
            activation: the name of the setting that states the activation.
            last_activation: the same for the last layer; None where that has none.

        Raises:
            ModelError: if the weights are of other sizes.
        """
        layers = list(self._dense_layers(f"{prefix}.net.mlp"))
        found = [weight.shape for weight, _ in layers if weight.ndim == 2]
        expected = [(size, before) for before, size in zip([width, *sizes], sizes, strict=False)]
        if found != expected:
            raise ModelError(
                f"{self._module.subject}: {prefix}: expected layers of the shapes {expected} by "
                f"its model_config and spaces, got {found}; train RLlib's default network"
            )
        name = self._activation(activation)
        last = None if last_activation is None else self._activation(last_activation)
        left = len(sizes)
        for index, (weight, bias) in enumerate(layers):
            if weight.ndim == 2:
                left -= 1
                width = len(weight)
                register = self.by("MatMul", register, np.ascontiguousarray(weight.T))
                register = self.by("AddV2", register, bias)
            elif weight.shape != (width,):
                raise ValueError(f"{prefix} has a LayerNorm of {weight.shape} behind {width}")
            else:
                register = self._normalize(register, weight, bias)
            is_ended = index + 1 == len(layers) or layers[index + 1][0].ndim == 2
            if is_ended:
                register = self._activate(register, name if left else last)
        return register

    def convolutions(self, register: int, prefix: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the register behind the convolutions of an image, and how many numbers it has.

        Args:
            register: the inputs', float32[B, height * width * channels].
            prefix: the beginning of the weights' names.
            shape: height, width and channels of the image.

        Raises:
            ModelError: if the weights are of other sizes than the settings.
        """
        found = list(self._numbered(f"{prefix}.net.0.cnn"))
        specifications = convolutions_of(self._module, shape)
        shapes = [self.shape_of(f"{name}.weight") for name in found]
        depths = [shape[2], *(size[0] for size in shapes if size)]
        expected = [
            (one.filters or depth, before, *one.kernel)
            for one, before, depth in zip(specifications, depths, depths[1:], strict=False)
        ]
        if shapes != expected or len(found) != len(specifications):
            raise ModelError(
                f"{self._module.subject}: {prefix}: expected {len(specifications)} convolutions "
                f"of the shapes {expected} by its model_config and space, got {shapes}; train "
                "RLlib's default network"
            )
        name = self._activation("conv_activation")
        register = self.by("Reshape", register, np.array([-1, *shape]))
        sizes = shape[:2]
        for layer, one in zip(found, specifications, strict=True):
            register, sizes = self._convolved(register, sizes, layer, one)
            register = self._activate(register, name)
        width = int(np.prod(sizes)) * self.shape_of(f"{found[-1]}.weight")[0]
        return self.by("Reshape", register, np.array([-1, width])), width

    def lstm(self, register: int, prefix: str, hidden: int, cell: int) -> tuple[int, int]:
        """Return the registers of the hidden and the cell state after one step of an LSTM.

        Args:
            register: the inputs'.
            prefix: the beginning of the weights' names.
            hidden: the register of the hidden state before the step, float32[B, H].
            cell: that of the cell state.
        """
        from_inputs, from_hidden = (
            self.weight(f"{prefix}.weight_{one}_l0") for one in ("ih", "hh")
        )
        bias = np.zeros(len(from_inputs), np.float32)
        for one in ("ih", "hh"):
            if f"{prefix}.bias_{one}_l0" in self._weights:
                bias = bias + self.weight(f"{prefix}.bias_{one}_l0", *bias.shape)
        return add_lstm_layer(
            self.builder, register, hidden, cell, LstmLayer(from_inputs, from_hidden, bias)
        )

    def filtered(self, register: int, found: ObservationFilter | None) -> int:
        """Return the register of float32 rows behind a filter.

        Args:
            register: the observations'.
            found: the filter; None for none.
        """
        if found is None:
            return self.add("Cast", register, dtype="float32")
        register = self.add("Cast", register, dtype="float64")
        register = self.by("Sub", register, found.mean)
        register = self.by("RealDiv", register, found.deviation)
        if found.limit is not None:
            register = self.by("Minimum", register, found.limit)
            register = self.by("Maximum", register, -found.limit)
        if found.is_whole is not None:
            whole = self.add("Cast", register, dtype="int64")
            whole = self.add("Cast", whole, dtype="float64")
            condition = self.builder.keep(found.is_whole)
            register = self.builder.add("SelectV2", (condition, whole, register))
        return self.add("Cast", register, dtype="float32")

    def columns(self, register: int, begin: int, size: int) -> int:
        """Return the register of some columns.

        Args:
            register: float[B, D].
            begin: the first column.
            size: how many there are.
        """
        kept = [self.builder.keep(np.array(part)) for part in ([0, begin], [-1, size])]
        return self.builder.add("Slice", (register, *kept))

    def joined(self, registers: Sequence[int]) -> int:
        """Return the register of several registers' columns side by side."""
        return self.builder.add("ConcatV2", (*registers, self.builder.keep(np.array(1))))

    def add(self, operation: str, register: int, **attributes: object) -> int:
        """Return the register of an operation's result."""
        return self.builder.add(operation, (register,), tuple(attributes.items()))

    def by(self, operation: str, register: int, value: object, **attributes: object) -> int:
        """Return the register of an operation's result with a constant."""
        inputs = (register, self.builder.keep(np.asarray(value)))
        return self.builder.add(operation, inputs, tuple(attributes.items()))

    def _convolved(
        self, register: int, sizes: tuple[int, ...], layer: str, one: Convolution
    ) -> tuple[int, tuple[int, ...]]:
        """Return an image behind one convolution, with its new height and width."""
        register, sizes = self._padded(register, sizes, one.padding_of(sizes))
        filters = np.ascontiguousarray(self.weight(f"{layer}.weight").transpose(2, 3, 1, 0))
        strides = (1, *one.strides, 1)
        register = self.by("Conv2D", register, filters, strides=strides, padding="VALID")
        register = self.by("AddV2", register, self._bias(layer, filters.shape[3]))
        return register, tuple(
            (size - kernel) // stride + 1
            for size, kernel, stride in zip(sizes, one.kernel, one.strides, strict=True)
        )

    def _padded(
        self, register: int, sizes: tuple[int, ...], padding: Sequence[tuple[int, int]]
    ) -> tuple[int, tuple[int, ...]]:
        """Return an image with zeros around it; a negative padding cuts rows or columns off."""
        begins = [max(0, -before) for before, _ in padding]
        kept = [
            size + min(0, before) + min(0, after)
            for size, (before, after) in zip(sizes, padding, strict=True)
        ]
        if tuple(kept) != tuple(sizes):
            cut = [self.builder.keep(np.array(part)) for part in ([0, *begins, 0], [-1, *kept, -1])]
            register = self.builder.add("Slice", (register, *cut))
        around = [(max(0, before), max(0, after)) for before, after in padding]
        if any(map(any, around)):
            register = self.by("Pad", register, np.array([(0, 0), *around, (0, 0)]))
        return register, tuple(
            size + before + after for size, (before, after) in zip(kept, around, strict=True)
        )

    def _dense_layers(self, prefix: str) -> Iterator[tuple[Array, Array]]:
        """Return weight and bias of each layer, in the order of their numbers.

        Of a noisy layer the weights without noise are taken, as RLlib does with exploration off.
        """
        for name in self._numbered(prefix):
            ending = "weight" if f"{name}.weight" in self._weights else "weight_mu"
            weight = self.weight(f"{name}.{ending}")
            yield weight, self._bias(name, len(weight))

    def _bias(self, layer: str, size: int) -> Array:
        for ending in ("bias", "bias_mu"):
            if f"{layer}.{ending}" in self._weights:
                return self.weight(f"{layer}.{ending}", size)
        return np.zeros(size, np.float32)

    def _numbered(self, prefix: str) -> Iterator[str]:
        """Return the names of the layers below a prefix, in the order of their numbers."""
        pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.weight(_mu)?")
        places = [int(match[1]) for match in map(pattern.fullmatch, self._weights) if match]
        return (f"{prefix}.{place}" for place in sorted(places))

    def _normalize(self, register: int, scale: Array, offset: Array) -> int:
        axis = np.array([1])
        mean = self.by("Mean", register, axis, keep_dims=True)
        centered = self.builder.add("Sub", (register, mean))
        variance = self.by("Mean", self.add("Square", centered), axis, keep_dims=True)
        factor = self.add("Rsqrt", self.by("AddV2", variance, np.float32(_EPSILON)))
        scaled = self.by("Mul", self.builder.add("Mul", (centered, factor)), scale)
        return self.by("AddV2", scaled, offset)

    def _activate(self, register: int, name: str | None) -> int:
        return register if name is None else add_activation(self.builder, register, name)

    def _activation(self, setting: str) -> str | None:
        """Return the class of an activation in PyTorch: the setting is its name, or itself."""
        stated = self.setting(setting)
        if isinstance(stated, type) and issubclass(stated, Stub):
            stated = stated.path.rpartition(".")[2]
        text = "linear" if stated is None else str(stated)
        if text.lower() == "linear":
            return None
        name = _SHORT_NAMES.get(text.lower(), text)
        known = [one for one in ACTIVATIONS if one not in _NOT_SERVED.get(setting, ("PReLU",))]
        if name not in known:
            raise ModelError(
                f"{self._module.subject}: {setting}: is {stated}, which is not served; expected "
                f"linear or one of {', '.join(known)}"
            )
        return name
