"""Keras's activation functions as steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from policy_server.formats.keras.model_config import Part, part_of
from policy_server.formats.keras.network_steps import Steps
from policy_server.formats.scaled_actions import Bounds

__all__ = ["ACTIVATIONS", "activated", "elu", "gelu", "leaky_relu", "relu", "softmax", "tanh_gelu"]

_Activation = Callable[[Steps, int], int]


def softmax(steps: Steps, x: int) -> int:
    """Return the register of a softmax over the last axis.

    Args:
        steps: the network.
        x: the register of its input.
    """
    result = steps.add("Softmax", x)
    steps.endings[result] = ("softmax", x)
    steps.bounds[result] = Bounds.of(0, 1)
    return result


def leaky_relu(steps: Steps, x: int, slope: float) -> int:
    """Return the register of the input, less steep below zero.

    Args:
        steps: the network.
        x: the register of its input.
        slope: the factor below zero.
    """
    return _featured(steps, x, steps.add("LeakyRelu", x, alpha=slope))


def elu(steps: Steps, x: int, alpha: float = 1.0) -> int:
    """Return the register of the input, and below zero of alpha * (exp(x) - 1).

    Args:
        steps: the network.
        x: the register of its input.
        alpha: the factor below zero.
    """
    curve = steps.add("Elu", x)
    if alpha != 1.0:
        is_above = steps.with_constant("Greater", x, 0)
        curve = steps.add("SelectV2", is_above, x, steps.with_constant("Mul", curve, alpha))
    return _featured(steps, x, curve)


def relu(steps: Steps, x: int, slope: float = 0.0, highest: float | None = None) -> int:
    """Return the register of the input above zero, and less steep below.

    Args:
        steps: the network.
        x: the register of its input.
        slope: the factor below zero.
        highest: the largest number that is left; None for any.
    """
    result = leaky_relu(steps, x, slope) if slope else _above_zero(steps, x)
    if highest is not None:
        result = steps.with_constant("Minimum", result, highest)
    return _featured(steps, x, result)


def _above_zero(steps: Steps, x: int) -> int:
    result = steps.add("Relu", x)
    steps.bounds[result] = Bounds.of_none().changed(lambda side: np.maximum(side, 0))
    return result


def activated(steps: Steps, x: int, part: Part, key: str = "activation") -> int:
    """Return the register of an activation's result.

    Args:
        steps: the network.
        x: the register of its input.
        part: the layer that states the activation.
        key: the setting that holds it.

    Raises:
        ModelError: if it is none of Keras's, or one that is not computed.
    """
    stated = part.settings.get(key)
    if isinstance(stated, dict) and isinstance(stated.get("config"), str):
        stated = stated["config"]
    if isinstance(stated, dict):
        # A layer in the place of a function, such as LeakyReLU with its slope.
        return _of_layer(steps, x, part, part_of(stated))
    name = "linear" if stated is None else str(stated)
    if name not in ACTIVATIONS:
        part.refuse(
            f"the activation {name[:60]} is not computed; expected one of "
            f"{', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name](steps, x)


def _featured(steps: Steps, x: int, result: int) -> int:
    """Return the result of a function that ends a layer of features, and note it."""
    if result != x:
        steps.endings[result] = ("activation", x)
    return result


def _of_layer(steps: Steps, x: int, part: Part, inner: Part) -> int:
    if inner.kind in ("LeakyReLU", "LeakyRelu"):
        return leaky_relu(steps, x, inner.get("negative_slope", float, 0.3))
    if inner.kind == "ELU":
        return elu(steps, x, inner.get("alpha", float, 1.0))
    return part.refuse(f"the activation {inner.kind} is not computed; add it as a layer")


def _log_softmax(steps: Steps, x: int) -> int:
    axes = (len(steps.shape(x)) - 1,)
    shifted = steps.add("Sub", x, steps.reduced("Max", x, axes, keeps=True))
    total = steps.reduced("Sum", steps.add("Exp", shifted), axes, keeps=True)
    result = steps.add("Sub", shifted, steps.add("Log", total))
    steps.endings[result] = ("log_softmax", x)
    return result


def _tanh(steps: Steps, x: int) -> int:
    result = steps.add("Tanh", x)
    steps.endings[result] = ("tanh", x)
    steps.bounds[result] = Bounds.of(-1, 1)
    return result


def _sigmoid(steps: Steps, x: int) -> int:
    result = _featured(steps, x, steps.add("Sigmoid", x))
    steps.bounds[result] = Bounds.of(0, 1)
    return result


def _softsign(steps: Steps, x: int) -> int:
    result = _featured(steps, x, steps.add("Softsign", x))
    steps.bounds[result] = Bounds.of(-1, 1)
    return result


def _clipped(steps: Steps, x: int, low: float, high: float) -> int:
    return steps.with_constant("Minimum", steps.with_constant("Maximum", x, low), high)


def _hard_sigmoid(steps: Steps, x: int) -> int:
    raised = steps.with_constant("AddV2", x, 3)
    return steps.with_constant("RealDiv", _clipped(steps, raised, 0, 6), 6)


def tanh_gelu(steps: Steps, x: int) -> int:
    """Return the register of Keras's approximate GELU, which takes a tanh for the integral.

    Args:
        steps: the network.
        x: the register of its input.
    """
    cube = steps.add("Mul", steps.add("Square", x), x)
    inner = steps.add("AddV2", x, steps.with_constant("Mul", cube, 0.044715))
    curve = steps.add("Tanh", steps.with_constant("Mul", inner, math.sqrt(2 / math.pi)))
    half = steps.with_constant("Mul", x, 0.5)
    return _featured(steps, x, steps.add("Mul", half, steps.with_constant("AddV2", curve, 1)))


def gelu(steps: Steps, x: int) -> int:
    """Return the register of the input times the normal distribution function of it.

    Args:
        steps: the network.
        x: the register of its input.
    """
    curve = steps.add("erf", steps.with_constant("Mul", x, math.sqrt(0.5)))
    half = steps.with_constant("Mul", x, 0.5)
    return _featured(steps, x, steps.add("Mul", half, steps.with_constant("AddV2", curve, 1)))


def _mish(steps: Steps, x: int) -> int:
    return steps.add("Mul", x, steps.add("Tanh", steps.add("Softplus", x)))


def _log_sigmoid(steps: Steps, x: int) -> int:
    return steps.add("Neg", steps.add("Softplus", steps.add("Neg", x)))


def _step(operation: str) -> _Activation:
    return lambda steps, x: steps.add(operation, x)


def _feature(function: _Activation) -> _Activation:
    return lambda steps, x: _featured(steps, x, function(steps, x))


def _gated(gate: _Activation) -> _Activation:
    return lambda steps, x: steps.add("Mul", x, gate(steps, x))


ACTIVATIONS: Mapping[str, _Activation] = {
    "celu": elu,
    "elu": elu,
    "exponential": _step("Exp"),
    "gelu": gelu,
    "hard_sigmoid": _feature(_hard_sigmoid),
    "hard_silu": _feature(_gated(_hard_sigmoid)),
    "hard_swish": _feature(_gated(_hard_sigmoid)),
    "hard_tanh": lambda steps, x: _clipped(steps, x, -1, 1),
    "leaky_relu": lambda steps, x: leaky_relu(steps, x, 0.2),
    "linear": lambda _steps, x: x,
    "log_sigmoid": _log_sigmoid,
    "log_softmax": _log_softmax,
    "mish": _feature(_mish),
    "relu": relu,
    "relu6": lambda steps, x: relu(steps, x, highest=6),
    "selu": _feature(_step("Selu")),
    "sigmoid": _sigmoid,
    "silu": _feature(_gated(_step("Sigmoid"))),
    "softmax": softmax,
    "softplus": _feature(_step("Softplus")),
    "softsign": _softsign,
    "swish": _feature(_gated(_step("Sigmoid"))),
    "tanh": _tanh,
    "tanh_shrink": lambda steps, x: steps.add("Sub", x, steps.add("Tanh", x)),
}
"""Keras's names of the functions, and the steps that compute them."""
