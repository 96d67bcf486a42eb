"""An MLP policy described in NumPy: a trainer gives the description, `export` writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ExportError
from policy_server.policy import Float32Array

__all__ = [
    "Activation",
    "Categorical",
    "DenseLayer",
    "GreedyValues",
    "MlpPolicy",
    "Normal",
    "ObservationScaling",
    "SquashedNormal",
]

Activation = Literal[
    "linear", "relu", "leaky_relu", "tanh", "sigmoid", "elu", "silu", "gelu", "softplus"
]


@dataclass(frozen=True)
class DenseLayer:
    """One fully connected layer: activation(inputs @ weights + bias).

    Attributes:
        weights: float32[inputs, outputs].
        bias: float32[outputs].
        activation: the function of the sum; `leaky_relu` has the slope 0.01, `gelu` is the exact
            one, as in PyTorch.
    """

    weights: Float32Array
    bias: Float32Array
    activation: Activation = "linear"


@dataclass(frozen=True)
class ObservationScaling:
    """The transformation ahead of the first layer: clip((observation - mean) / std, -limit, limit).

    Attributes:
        mean: float32[width].
        std: float32[width], positive.
        limit: the largest size of a scaled value; infinity clips nothing.
    """

    mean: Float32Array
    std: Float32Array
    limit: float = math.inf


@dataclass(frozen=True)
class Categorical:
    """Integer actions drawn from the softmax of the network's outputs.

    Attributes:
        sizes: the number of choices; several make a MultiDiscrete action, whose parts are
            independent.
        mask_start: where in the observation sum(sizes) numbers begin of which zero forbids a
            choice; None for no mask.
    """

    sizes: tuple[int, ...]
    mask_start: int | None = None

    @property
    def inputs(self) -> int:
        """Return how many numbers the network has to give."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Normal:
    """Continuous actions from independent normal distributions, neither rescaled nor clipped.

    Attributes:
        size: the number of dimensions.
        log_std: float32[size] for every observation; None where it is the second half of the
            network's outputs.
    """

    size: int
    log_std: Float32Array | None = None

    @property
    def inputs(self) -> int:
        """Return how many numbers the network has to give."""
        return 2 * self.size if self.log_std is None else self.size


@dataclass(frozen=True)
class SquashedNormal:
    """Continuous actions in [-1, 1]: the tanh of a normal draw, as SAC has it.

    The network gives mean | log_std, both before the tanh; log_std is clipped to [-20, 2].

    Attributes:
        size: the number of dimensions.
    """

    size: int

    @property
    def inputs(self) -> int:
        """Return how many numbers the network has to give."""
        return 2 * self.size


@dataclass(frozen=True)
class GreedyValues:
    """One integer action: the one with the largest of the network's outputs, the Q values.

    Attributes:
        size: the number of choices.
    """

    size: int

    @property
    def inputs(self) -> int:
        """Return how many numbers the network has to give."""
        return self.size


@dataclass(frozen=True)
class MlpPolicy:
    """A policy that is a stack of fully connected layers and a distribution over actions.

    Attributes:
        observation_width: how many numbers an observation has.
        layers: from the observation to the inputs of the distribution.
        distribution: how the last layer's outputs become an action.
        scaling: the transformation ahead of the first layer; None for none.

    Raises:
        ExportError: if widths don't match or a weight is not finite.
    """

    observation_width: int
    layers: tuple[DenseLayer, ...]
    distribution: Categorical | Normal | SquashedNormal | GreedyValues
    scaling: ObservationScaling | None = None

    def __post_init__(self) -> None:
        """Check that the widths match and the weights are finite."""
        widths = [self.observation_width, *(layer.weights.shape[-1] for layer in self.layers)]
        for index, (layer, (before, after)) in enumerate(
            zip(self.layers, pairwise(widths), strict=True)
        ):
            _check_array(f"layer {index}: weights", layer.weights, (before, after))
            _check_array(f"layer {index}: bias", layer.bias, (after,))
            if layer.activation not in get_args(Activation):
                known = ", ".join(get_args(Activation))
                raise ExportError(f"layer {index}: expected one of {known}, got {layer.activation}")
        if widths[-1] != self.distribution.inputs:
            raise ExportError(
                f"the last layer: expected {self.distribution.inputs} outputs, got {widths[-1]}"
            )
        if self.scaling is not None:
            _check_array("the scaling's mean", self.scaling.mean, (self.observation_width,))
            _check_array("the scaling's std", self.scaling.std, (self.observation_width,))
        self._check_distribution()

    def _check_distribution(self) -> None:
        chosen = self.distribution
        if isinstance(chosen, Normal) and chosen.log_std is not None:
            _check_array("log_std", chosen.log_std, (chosen.size,))
        if isinstance(chosen, Categorical) and chosen.mask_start is not None:
            end = chosen.mask_start + chosen.inputs
            if chosen.mask_start < 0 or end > self.observation_width:
                width = self.observation_width
                raise ExportError(
                    f"the action mask: ends at {end}, an observation has {width} values"
                )


def _check_array(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.dtype != np.float32 or array.shape != shape:
        raise ExportError(
            f"{name}: expected float32{list(shape)}, got {array.dtype}{list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ExportError(f"{name}: holds NaN or infinity; train the policy anew")
