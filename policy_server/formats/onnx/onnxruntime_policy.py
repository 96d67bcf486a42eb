"""A policy that onnxruntime computes, where NumPy can't."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.engine.network import answered
from policy_server.errors import DistributionError, PolicyServerError
from policy_server.formats.onnx.runtimes import GraphRunError
from policy_server.policy import (
    PolicyInputs,
    PolicyOutputs,
    PolicySignature,
    refuse_masks,
    refuse_state,
)

__all__ = ["OnnxRuntimePolicy"]

_MEASURED_TIMES = 3
# The size of what these make may be an observation's own number: of some, a call takes seconds.
_SIZED_BY_VALUES = [
    "ConstantOfShape",
    "Expand",
    "OneHot",
    "Pad",
    "Range",
    "Resize",
    "Tile",
    "Upsample",
]
# Longer than a call in the event loop may take.
_SECONDS_IF_SIZED = 1e-3


class OnnxRuntimePolicy:
    """A policy whose network onnxruntime computes."""

    def __init__(
        self,
        signature: PolicySignature,
        run: Callable[[NDArray[Any]], NDArray[Any]],
        *,
        operators: Collection[str] = (),
    ) -> None:
        """Own the network as a function, for as long as the policy is served.

        Args:
            signature: the policy's signature.
            run: the function of rows, float[B, D] -> float[B, K], of an observation and its state.
            operators: the names of the graph's operators.
        """
        self.signature = signature
        self._run = run
        self._is_steady = not set(operators).intersection(_SIZED_BY_VALUES)
        assert signature.components is not None, "a graph without a distribution is refused"
        self._actions = ActionDistribution(signature.components, is_greedy=signature.is_value_based)

    def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations; see `Policy.infer`.

        Args:
            inputs: the observations, and the options of each.

        Raises:
            DistributionError: if onnxruntime can't compute an observation, or its outputs are no
                distribution.
            UnsupportedAnswerError: if a state or a mask is given to a policy that takes none.
        """
        refuse_masks(inputs, self.signature)
        if not self.signature.memory:
            refuse_state(inputs)
        try:
            return answered(self._run, self._actions, self.signature, inputs)
        except GraphRunError as error:
            raise DistributionError(
                f"the policy can't compute the observation: {error}; check its values"
            ) from error

    def seconds_for(self, rows: int) -> float:
        """Return about how long a call takes; see `Policy.seconds_for`.

        Args:
            rows: how many observations the call has.
        """
        return rows * self._cost if self._is_steady else max(rows * self._cost, _SECONDS_IF_SIZED)

    @functools.cached_property
    def _cost(self) -> float:
        """Return the seconds for one observation, as measured now."""
        width = self.signature.observation_width
        assert width is not None, "a graph of an open width is refused"
        row: NDArray[Any] = np.zeros((1, width), self.signature.row_dtype)
        inputs = PolicyInputs.of(row)
        taken = []
        for _ in range(_MEASURED_TIMES):
            started = time.perf_counter()
            # It may fail on an observation of zeros; that takes its time too.
            with contextlib.suppress(PolicyServerError):
                self.infer(inputs)
            taken.append(time.perf_counter() - started)
        return min(taken)
