"""The benchmark's policy with NumPy alone, for servers that don't know policy_server."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["WEIGHTS_VARIABLE", "Network", "load_network"]

# The environment variable that names the file of weights.
WEIGHTS_VARIABLE = "POLICY_BENCHMARK_WEIGHTS"


class Network:
    """A multilayer perceptron with tanh between its layers, and one categorical action."""

    def __init__(self, layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
        """Keep the layers.

        Args:
            layers: weights float32[inputs, outputs] and biases float32[outputs], in order.
        """
        self._layers = layers
        self._generator = np.random.default_rng()

    def logits(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return float32[B, K] for float32[B, D]."""
        values = observations
        for weights, biases in self._layers[:-1]:
            values = np.tanh(values @ weights + biases)
        weights, biases = self._layers[-1]
        result: NDArray[np.float32] = values @ weights + biases
        return result

    def draw(
        self, observations: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw an action for each observation.

        Args:
            observations: float32[B, D].

        Returns:
            The actions int64[B], and the probability of each float64[B].
        """
        logits = self.logits(observations).astype(np.float64)
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        drawn = self._generator.random((len(chances), 1)) > np.cumsum(chances, axis=1)
        actions = np.minimum(drawn.sum(axis=1), chances.shape[1] - 1)
        return actions, chances[np.arange(len(chances)), actions]


def load_network() -> Network:
    """Read the weights that the benchmark wrote: `weights_0`, `biases_0`, `weights_1`, ...

    Returns:
        The network.
    """
    with np.load(Path(os.environ[WEIGHTS_VARIABLE]), allow_pickle=False) as arrays:
        count = sum(name.startswith("weights_") for name in arrays.files)
        return Network([(arrays[f"weights_{i}"], arrays[f"biases_{i}"]) for i in range(count)])
