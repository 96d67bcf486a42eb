"""Keras's LSTM, GRU and SimpleRNN as steps of time, unrolled over a window of fixed length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.keras.activation_functions import activated
from policy_server.formats.keras.model_config import NO, Part
from policy_server.formats.keras.network_steps import Steps
from policy_server.formats.keras.plain_layers import Arrays, shaped

__all__ = ["RECURRENT", "state_sizes", "units_of", "unrolled"]

_MOST_STEPS = 256
# Its weights have the square of them.
_MOST_UNITS = 100_000
# How many gates a layer has, and how many states.
RECURRENT: Mapping[str, tuple[int, int]] = {"GRU": (3, 1), "LSTM": (4, 2), "SimpleRNN": (1, 1)}
"""Keras's class names of recurrent layers, with the numbers of their gates and states."""


@dataclass(frozen=True)
class _Cell:
    """One step of a layer.

    Attributes:
        steps: the network.
        part: the layer.
        kernel: the weights of the inputs, gates side by side.
        recurrent: those of the state.
        bias: one row, or for a GRU with `reset_after` two.
    """

    steps: Steps
    part: Part
    kernel: NDArray[np.floating]
    recurrent: NDArray[np.floating]
    bias: NDArray[np.floating]

    def gates(self, x: int, weights: NDArray[np.floating], bias: NDArray[np.floating]) -> int:
        product = self.steps.with_constant("MatMul", x, weights)
        return self.steps.with_constant("AddV2", product, bias)

    def gate(self, all_gates: int, place: int) -> int:
        units = len(self.recurrent)
        return self.steps.part(all_gates, 0, place * units, units)

    def opened(self, x: int) -> int:
        return activated(self.steps, x, self.part, "recurrent_activation")

    def curved(self, x: int) -> int:
        return activated(self.steps, x, self.part)


def state_sizes(part: Part) -> list[int]:
    """Return the sizes of a recurrent layer's states.

    Args:
        part: the layer.
    """
    return [units_of(part)] * RECURRENT[part.kind][1]


def units_of(part: Part) -> int:
    """Return how many numbers a recurrent layer gives at each step.

    Args:
        part: the layer.

    Raises:
        ModelError: if it is missing or no number that a layer has.
    """
    units = part.count("units")
    if units > _MOST_UNITS:
        part.refuse(f"units is {units}, expected at most {_MOST_UNITS}")
    return units


def unrolled(
    steps: Steps, part: Part, x: int, states: Sequence[int], arrays: Arrays
) -> tuple[int, list[int]]:
    """Return the registers of a recurrent layer's result, and of its states at the end.

    Args:
        steps: the network.
        part: the layer.
        x: the register of its inputs, (time, features) a row.
        states: the registers of its states before the first step.
        arrays: its weights.

    Raises:
        ModelError: if it has settings that are not computed, or other weights.

    Source: Keras `LSTMCell` (gates i f c o), `GRUCell` (z r h) and `SimpleRNNCell`.
    """
    x = steps.number(x)
    for key in ("go_backwards", "zero_output_for_mask"):
        part.expect(key, *NO)
    cell = _cell(steps, part, steps.shape(x)[1], arrays)
    length = steps.shape(x)[0]
    if not 1 <= length <= _MOST_STEPS:
        part.refuse(f"has a window of {length} steps, expected 1 to {_MOST_STEPS}")
    results: list[int] = []
    now = list(states)
    for time in range(length):
        row = steps.reshape(steps.part(x, 0, time, 1), (steps.shape(x)[1],))
        now = _STEPS[part.kind](cell, row, now)
        results.append(now[0])
    if not part.get("return_sequences", bool, default=False):
        return results[-1], now
    sequence = [steps.reshape(one, (1, *steps.shape(one))) for one in results]
    return steps.joined(*sequence, axis=1), now


def _cell(steps: Steps, part: Part, features: int, arrays: Arrays) -> _Cell:
    units, (gates, _) = units_of(part), RECURRENT[part.kind]
    has_bias = part.get("use_bias", bool, default=True)
    rows = 2 if part.kind == "GRU" and part.get("reset_after", bool, default=True) else 1
    shape = (rows, gates * units) if rows == 2 else (gates * units,)
    shapes = [(features, gates * units), (units, gates * units), shape][: 2 + has_bias]
    kernel, recurrent, *bias = shaped(part, arrays, *shapes)
    return _Cell(steps, part, kernel, recurrent, bias[0] if bias else np.zeros(shape))


def _lstm(cell: _Cell, x: int, states: Sequence[int]) -> list[int]:
    steps, (hidden, memory) = cell.steps, states
    own = cell.gates(x, cell.kernel, cell.bias)
    gates = steps.add("AddV2", own, steps.with_constant("MatMul", hidden, cell.recurrent))
    taken, kept, shown = (cell.opened(cell.gate(gates, place)) for place in (0, 1, 3))
    new = steps.add("Mul", taken, cell.curved(cell.gate(gates, 2)))
    memory = steps.add("AddV2", steps.add("Mul", kept, memory), new)
    return [steps.add("Mul", shown, cell.curved(memory)), memory]


def _gru(cell: _Cell, x: int, states: Sequence[int]) -> list[int]:
    steps, (hidden,), units = cell.steps, states, len(cell.recurrent)
    has_two = cell.bias.ndim == 2
    own = cell.gates(x, cell.kernel, cell.bias[0] if has_two else cell.bias)
    both = 2 * units
    weights, bias = cell.recurrent, cell.bias[1] if has_two else np.zeros(3 * units)
    inner = cell.gates(hidden, weights[:, :both], bias[:both])
    kept, reset = (
        cell.opened(steps.add("AddV2", cell.gate(own, place), cell.gate(inner, place)))
        for place in (0, 1)
    )
    if has_two:
        last = steps.add("Mul", reset, cell.gates(hidden, weights[:, both:], bias[both:]))
    else:
        seen = steps.add("Mul", reset, hidden)
        last = steps.with_constant("MatMul", seen, weights[:, both:])
    new = cell.curved(steps.add("AddV2", cell.gate(own, 2), last))
    old = steps.add("Mul", kept, hidden)
    rest = steps.add("Sub", steps.numbers(1), kept)
    return [steps.add("AddV2", old, steps.add("Mul", rest, new))]


def _simple(cell: _Cell, x: int, states: Sequence[int]) -> list[int]:
    steps, (hidden,) = cell.steps, states
    own = cell.gates(x, cell.kernel, cell.bias)
    total = steps.add("AddV2", own, steps.with_constant("MatMul", hidden, cell.recurrent))
    return [cell.curved(total)]


_STEPS: Mapping[str, Callable[[_Cell, int, Sequence[int]], list[int]]] = {
    "GRU": _gru,
    "LSTM": _lstm,
    "SimpleRNN": _simple,
}
