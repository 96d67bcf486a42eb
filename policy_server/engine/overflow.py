"""A network's outputs where numbers of 32 bits overflow on the way to them.

An observation may hold any number that fits a 32-bit float. Near the largest, sums of products go
beyond it: infinity, and then NaN, where the output itself is a number like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from policy_server.policy import LARGEST, ActionComponent

if TYPE_CHECKING:
    from policy_server.engine.network import NumpyNetwork, Step

__all__ = ["widened", "without_overflow"]

Array = NDArray[Any]
_DTYPE, _WIDE = "dtype", "float64"


def widened(network: NumpyNetwork) -> NumpyNetwork:
    """Return a network that computes the same with numbers of 64 bits.

    Args:
        network: the network, of any type of float.
    """
    constants = {
        register: value.astype(_WIDE) if value.dtype.kind == "f" else value
        for register, value in network.constants.items()
    }
    return replace(network, constants=constants, steps=tuple(map(_widened, network.steps)))


def _widened(step: Step) -> Step:
    attributes = tuple(
        (name, _WIDE if name == _DTYPE and str(value).startswith("float") else value)
        for name, value in step.attributes
    )
    return replace(step, attributes=attributes)


def without_overflow(
    run: Callable[[Array], Array],
    run_wide: Callable[[Array], Array],
    rows: Array,
    components: Iterable[ActionComponent],
) -> Array:
    """Return a network's outputs, those that overflow computed again with numbers of 64 bits.

    Args:
        run: the network, float[B, D] -> float[B, K].
        run_wide: the same, widened.
        rows: float[B, D].
        components: of the action distribution, which the first columns are the inputs of.

    Returns:
        float32[B, K]. What is beyond float32 is its largest; logits are less by a number that
        leaves their probabilities as they are.
    """
    found = run(rows).astype(np.float32)
    is_lost = ~np.isfinite(found).all(axis=1)
    wide = run_wide(rows[is_lost].astype(_WIDE))
    for part in components:
        if part.kind == "categorical":
            logits = wide[:, part.first_input : part.first_input + part.size]
            logits -= logits.max(axis=1, keepdims=True)
    found[is_lost] = np.clip(wide, -LARGEST, LARGEST)
    return found
