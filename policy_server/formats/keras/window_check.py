"""Holding a recurrent network that takes steps one by one against itself over a whole window.

Where a sequence's length is open, the server steps the model. That is the model's own answer only
if its recurrent layers alone look at other steps: a convolution or a mean over time sees them too,
and sees a single one in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.network import FAILURES
from policy_server.errors import ModelError
from policy_server.formats.keras.model_config import SUBJECT
from policy_server.formats.keras.model_inputs import ModelInput

__all__ = ["WINDOW", "Run", "check_window", "uncomputed_window"]

WINDOW = 4
"""How many steps of time the window has."""

_EPISODES = 16
_TOLERANCE = 1e-4
_SUBJECT = f"{SUBJECT}: takes sequences of an open length"
_REMEDY = "give the length of an observation's window"

Rows = NDArray[Any]
Run = Callable[[Rows], Rows]
"""A compiled network: float[B, D] -> float[B, K]."""


def check_window(
    step: Run, window: Run, inputs: Sequence[ModelInput], memory_width: int, dtype: np.dtype[Any]
) -> None:
    """Refuse a network whose steps end in another answer than the whole window.

    Args:
        step: the network of one step: a row is an observation followed by the memory, and so is
            its result.
        window: the network of `WINDOW` steps, with the same result.
        inputs: those of an observation, in order, for one step.
        memory_width: how many numbers the memory has.
        dtype: the type of the model's numbers.

    Raises:
        ModelError: if the results differ, or can't be computed.
    """
    generator = np.random.default_rng(21)
    parts = [_episodes(generator, item) for item in inputs]
    first = generator.normal(size=(_EPISODES, memory_width)) / 2
    whole = [
        part.reshape(_EPISODES, -1) if item.is_sequence else part[:, 0]
        for part, item in zip(parts, inputs, strict=True)
    ]
    try:
        with np.errstate(all="ignore"):
            theirs = window(np.concatenate([*whole, first], axis=1).astype(dtype))
            state, ours = first, first
            for time in range(WINDOW):
                row = [*(part[:, time] for part in parts), state]
                ours = step(np.concatenate(row, axis=1).astype(dtype))
                state = ours[:, ours.shape[1] - memory_width :]
    except FAILURES as error:
        raise uncomputed_window(error) from error
    if not np.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
        raise ModelError(
            f"{_SUBJECT}, and its answer to {WINDOW} steps one by one is not that to the {WINDOW} "
            "at once: another layer than the recurrent ones looks at several steps, as a "
            f"convolution, a pooling or a mean over time; {_REMEDY}"
        )


def uncomputed_window(error: Exception) -> ModelError:
    """Return the refusal of a model that can't be computed over a window.

    Args:
        error: the reason.
    """
    return ModelError(
        f"{_SUBJECT}, and can't be computed over {WINDOW} steps at once, which its steps one by "
        f"one are held against ({error}); {_REMEDY}"
    )


def _episodes(generator: np.random.Generator, item: ModelInput) -> Rows:
    """Return float64[episodes, steps, width]; an input that is no sequence stays as it is."""
    size = (_EPISODES, WINDOW if item.is_sequence else 1, item.width)
    is_number = item.dtype.startswith("float")
    # An index may have no more than two values.
    values = generator.normal(size=size) if is_number else generator.integers(0, 2, size)
    return np.repeat(values.astype(np.float64), WINDOW // size[1], axis=1)
