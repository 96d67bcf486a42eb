"""A network's outputs where numbers of 32 bits overflow on the way to them.

An observation may hold any number that fits a 32-bit float. Near the largest, sums of products go
beyond it: infinity, and then NaN, where the output itself is a number like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from policy_server.policy import LARGEST, ActionComponent

if TYPE_CHECKING:
    from policy_server.engine.network import NumpyNetwork, Step

__all__ = ["is_finite", "widened", "without_overflow"]

Array = NDArray[Any]
_DTYPE, _WIDE = "dtype", "float64"
# So many numbers are added sooner in Python than in NumPy.
_FEW = 16


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


def is_finite(rows: Array) -> bool:
    """Return whether all numbers of a network's outputs are finite.

    Args:
        rows: float32[B, K].
    """
    # NumPy's own function takes two microseconds for one row, as long as one of its layers.
    if rows.size <= _FEW:
        return math.isfinite(sum(rows.ravel().tolist()))
    return math.isfinite(np.vdot(rows, rows)) or bool(np.isfinite(rows).all())


def without_overflow(
    found: Array,
    run_wide: Callable[[Array], Array],
    rows: Array,
    components: Iterable[ActionComponent],
) -> Array:
    """Return a network's outputs, the rows that are not finite computed again in 64 bits.

    An infinity may be meant, as in a masked logit, or a sum on the way was beyond 32 bits: only the
    wider numbers tell. Each row is looked at by itself, so that no answer depends on another row.

    Args:
        found: float32[B, K], the outputs; they stay as they are.
        run_wide: the network, widened.
        rows: float[B, D], its inputs.
        components: of the action distribution, which the first columns are the inputs of.

    Returns:
        float32[B, K]. What is beyond float32 is its largest; logits are less by a number that
        leaves their probabilities as they are. A logit or a state's number that is infinite in 64
        bits too stays so.
    """
    is_lost = ~np.isfinite(found).all(axis=1)
    wide = run_wide(rows[is_lost].astype(_WIDE))
    is_meant = np.isinf(wide)
    for part in components:
        columns = slice(part.first_input, part.first_input + part.inputs)
        if part.kind == "categorical":
            largest = wide[:, columns].max(axis=1, keepdims=True)
            wide[:, columns] -= np.where(np.isfinite(largest), largest, 0.0)
        else:
            is_meant[:, columns] = False
    answers = found.copy()
    answers[is_lost] = np.where(is_meant, wide, np.clip(wide, -LARGEST, LARGEST))
    return answers
