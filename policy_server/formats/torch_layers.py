"""PyTorch's activations and LSTM layers as NumPy steps, for files of libraries that train by it.

Source: `torch.nn.modules.activation` and `torch.nn.LSTM`, with their default arguments and as they
compute after training (`eval`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from policy_server.engine.building import NetworkBuilder
from policy_server.policy import Float32Array

__all__ = ["ACTIVATIONS", "LstmLayer", "add_activation", "add_lstm_layer"]

# RReLU draws its slope in training, and takes the middle of 1/8 and 1/3 after it.
_RANDOM_SLOPE = (1 / 8 + 1 / 3) / 2


@dataclass(frozen=True)
class _Steps:
    """A register and the steps that follow it, so that a formula reads as one."""

    builder: NetworkBuilder
    register: int

    def __call__(self, operation: str, **attributes: Any) -> _Steps:  # noqa: ANN401 -- as the operation takes them
        return self._after(operation, (self.register,), attributes)

    def by(self, operation: str, other: _Steps | ArrayLike, **attributes: Any) -> _Steps:  # noqa: ANN401 -- see above
        if not isinstance(other, _Steps):
            other = _Steps(self.builder, self.builder.keep(np.asarray(other)))
        return self._after(operation, (self.register, other.register), attributes)

    def clipped(self, low: float, high: float) -> _Steps:
        return self.by("Minimum", np.float32(high)).by("Maximum", np.float32(low))

    def _after(
        self, operation: str, inputs: tuple[int, ...], attributes: Mapping[str, Any]
    ) -> _Steps:
        return _Steps(self.builder, self.builder.add(operation, inputs, tuple(attributes.items())))


def _relu6(x: _Steps) -> _Steps:
    return x.clipped(0, 6)


def _hard_sigmoid(x: _Steps) -> _Steps:
    return _relu6(x.by("Add", np.float32(3))).by("Mul", np.float32(1 / 6))


def _hard_shrink(x: _Steps) -> _Steps:
    outside = x("Abs").by("Greater", np.float32(0.5))
    return x.by("Mul", outside("Cast", dtype="float32"))


def _log_softmax(x: _Steps) -> _Steps:
    # Less its greatest number first, as exp would overflow.
    shifted = x.by("Sub", x.by("Max", [1], keep_dims=True))
    return shifted.by("Sub", shifted("Exp").by("Sum", [1], keep_dims=True)("Log"))


_FORMULAS: Mapping[str, Callable[[_Steps], _Steps]] = {
    "CELU": lambda x: x("Elu"),
    "ELU": lambda x: x("Elu"),
    "GELU": lambda x: x("Gelu"),
    "Hardshrink": _hard_shrink,
    "Hardsigmoid": _hard_sigmoid,
    "Hardswish": lambda x: x.by("Mul", _hard_sigmoid(x)),
    "Hardtanh": lambda x: x.clipped(-1, 1),
    "Identity": lambda x: x,
    "LeakyReLU": lambda x: x("LeakyRelu", alpha=0.01),
    "LogSigmoid": lambda x: x("Neg")("Softplus")("Neg"),
    "LogSoftmax": _log_softmax,
    "Mish": lambda x: x.by("Mul", x("Softplus")("Tanh")),
    "RReLU": lambda x: x("LeakyRelu", alpha=_RANDOM_SLOPE),
    "ReLU": lambda x: x("Relu"),
    "ReLU6": _relu6,
    "SELU": lambda x: x("Selu"),
    "SiLU": lambda x: x.by("Mul", x("Sigmoid")),
    "Sigmoid": lambda x: x("Sigmoid"),
    "Softmax": lambda x: x("Softmax"),
    "Softmin": lambda x: x("Neg")("Softmax"),
    "Softplus": lambda x: x("Softplus"),
    "Softshrink": lambda x: x.by("Sub", x.clipped(-0.5, 0.5)),
    "Softsign": lambda x: x("Softsign"),
    "Tanh": lambda x: x("Tanh"),
    "Tanhshrink": lambda x: x.by("Sub", x("Tanh")),
}
_LEARNED = "PReLU"

ACTIVATIONS = tuple(sorted((*_FORMULAS, _LEARNED)))
"""The names of PyTorch's classes that are computed."""


def add_activation(
    builder: NetworkBuilder, x: int, name: str, slopes: Float32Array | None = None
) -> int:
    """Return the register of an activation's result.

    Args:
        builder: holds the steps so far.
        x: the register of its inputs, float32[B, D].
        name: its class in `torch.nn`, one of `ACTIVATIONS`.
        slopes: float32[1] or float32[D], the weights of a PReLU; None for any other.
    """
    steps = _Steps(builder, x)
    if name != _LEARNED:
        return _FORMULAS[name](steps).register
    assert slopes is not None, "only a PReLU has weights"
    negative = steps.by("Minimum", np.float32(0)).by("Mul", slopes)
    return steps("Relu").by("Add", negative).register


@dataclass(frozen=True, eq=False)
class LstmLayer:
    """The weights of one layer of a `torch.nn.LSTM` with H hidden units.

    Attributes:
        from_inputs: float32[4 H, D], `weight_ih`; the gates are in the order i, f, g, o.
        from_hidden: float32[4 H, H], `weight_hh`.
        bias: float32[4 H], the sum of `bias_ih` and `bias_hh`.
    """

    from_inputs: Float32Array
    from_hidden: Float32Array
    bias: Float32Array


def add_lstm_layer(
    builder: NetworkBuilder, x: int, hidden: int, cell: int, layer: LstmLayer
) -> tuple[int, int]:
    """Return the registers of the hidden and the cell state after one step.

    Args:
        builder: holds the steps so far.
        x: the register of the layer's inputs, float32[B, D].
        hidden: the register of the hidden state before the step, float32[B, H].
        cell: the register of the cell state before the step, float32[B, H].
        layer: its weights.

    Raises:
        ValueError: in NumPy's words, if the weights don't fit the registers.
    """
    inputs, before, memory = (_Steps(builder, register) for register in (x, hidden, cell))
    from_inputs, from_hidden = (
        np.ascontiguousarray(weights.T) for weights in (layer.from_inputs, layer.from_hidden)
    )
    gates = (
        inputs.by("MatMul", from_inputs)
        .by("Add", before.by("MatMul", from_hidden))
        .by("Add", layer.bias)
    )
    size = layer.from_hidden.shape[1]

    def gate(place: int, activation: str) -> _Steps:
        begin, extent = (builder.keep(np.array(part)) for part in ([0, place * size], [-1, size]))
        part = builder.add("Slice", (gates.register, begin, extent))
        return _Steps(builder, part)(activation)

    new, kept, candidate, shown = map(gate, range(4), ("Sigmoid", "Sigmoid", "Tanh", "Sigmoid"))
    after = kept.by("Mul", memory).by("Add", new.by("Mul", candidate))
    return shown.by("Mul", after("Tanh")).register, after.register
