"""ONNX's recurrent layers, unrolled over their steps, in the engine's operations.

Source: the operators LSTM, GRU and RNN of the ONNX specification: the gates of an LSTM are input,
output, forget and cell, those of a GRU update, reset and hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policy_server.engine.building import NotCompiledError
from policy_server.formats.onnx.model_file import Node
from policy_server.formats.onnx.registers import Registers

__all__ = ["RECURRENT"]

Inputs = Sequence[int | None]
State = tuple[int, ...]

# A policy's network takes one step.
_MOST_STEPS = 16
_STATES = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}
_PEEPHOLES = 7
_ACTIVATIONS = {
    "GRU": ("Sigmoid", "Tanh"),
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "RNN": ("Tanh",),
}
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True)
class _Cell:
    """The weights of one direction, as registers: those of the input, the state, and the biases."""

    input_weights: int
    state_weights: int
    input_bias: int | None
    state_bias: int | None


def _recurrent(registers: Registers, node: Node, x: Inputs) -> Sequence[int]:
    """Return the registers of all steps' outputs, and of the last state's tensors."""
    _check(node, x)
    is_batch_first = bool(node.attributes.get("layout", 0))
    sequence = x[0]
    assert sequence is not None, "_check has looked"
    if is_batch_first:
        sequence = registers.transpose(sequence, (1, 0, 2))
    steps = registers.sizes(sequence)[0]
    if steps is None or steps > _MOST_STEPS:
        raise NotCompiledError(f"its {node.operator} takes {steps or 'an open number of'} steps")
    inputs = [registers.squeeze(item, (0,)) for item in registers.split(sequence, (1,) * steps, 0)]
    outputs, states = [], []
    for place, is_reverse in enumerate(_DIRECTIONS[node.attributes.get("direction", "forward")]):
        cell = _cell(registers, x, place)
        state = _first_state(registers, node, x, place, is_batch_first=is_batch_first)
        found: list[int] = []
        for value in reversed(inputs) if is_reverse else inputs:
            state = _STEPS[node.operator](registers, node, cell, value, state)
            found.append(state[0])
        outputs.append(found[::-1] if is_reverse else found)
        states.append(state)
    return _joined(registers, outputs, states, is_batch_first=is_batch_first)


def _check(node: Node, x: Inputs) -> None:
    expected = _ACTIVATIONS[node.operator]
    given = tuple(node.attributes.get("activations", ()))
    length = len(expected)
    is_usual = all(given[at : at + length] == expected for at in range(0, len(given), length))
    if not is_usual or "clip" in node.attributes or node.attributes.get("input_forget", 0):
        raise NotCompiledError(f"NumPy has no {node.operator} with such gates")
    if len(x) > _PEEPHOLES and x[_PEEPHOLES] is not None:
        raise NotCompiledError("NumPy has no LSTM with peepholes")
    if any(item is None for item in x[:3]):
        raise NotCompiledError("a layer lacks its input")


def _cell(registers: Registers, x: Inputs, place: int) -> _Cell:
    weights = []
    for item in x[1:3]:
        assert item is not None, "_check has looked"
        own = registers.squeeze(registers.part(item, 0, place, place + 1), (0,))
        weights.append(registers.transpose(own, (1, 0)))
    biases: list[int | None] = [None, None]
    if len(x) > 3 and x[3] is not None:
        own = registers.squeeze(registers.part(x[3], 0, place, place + 1), (0,))
        width = registers.builder.shapes(own)[0][0] // 2
        biases = list(registers.split(own, (width, width), 0))
    return _Cell(weights[0], weights[1], biases[0], biases[1])


def _first_state(
    registers: Registers, node: Node, x: Inputs, place: int, *, is_batch_first: bool
) -> State:
    state = []
    for position in _STATES[node.operator]:
        item = x[position] if len(x) > position else None
        if item is None:
            width = int(node.attributes["hidden_size"])
            state.append(registers.keep(np.zeros((1, width), registers.builder.dtype(x[0] or 0))))
            continue
        axis = 1 if is_batch_first else 0
        own = registers.part(item, axis, place, place + 1)
        state.append(registers.squeeze(own, (axis,)))
    return tuple(state)


def _gates(registers: Registers, value: int, weights: int, bias: int | None) -> int:
    product = registers.matmul(value, weights)
    return product if bias is None else registers.add("Add", product, bias)


def _step_of_lstm(registers: Registers, node: Node, cell: _Cell, value: int, state: State) -> State:
    hidden, memory = state
    gates = registers.add(
        "Add",
        _gates(registers, value, cell.input_weights, cell.input_bias),
        _gates(registers, hidden, cell.state_weights, cell.state_bias),
    )
    width = int(node.attributes["hidden_size"])
    entry, output, forget, new = registers.split(gates, (width,) * 4, 1)
    kept = registers.add("Mul", registers.add("Sigmoid", forget), memory)
    added = registers.add("Mul", registers.add("Sigmoid", entry), registers.add("Tanh", new))
    memory = registers.add("Add", kept, added)
    hidden = registers.add("Mul", registers.add("Sigmoid", output), registers.add("Tanh", memory))
    return hidden, memory


def _step_of_gru(registers: Registers, node: Node, cell: _Cell, value: int, state: State) -> State:
    (hidden,) = state
    width = int(node.attributes["hidden_size"])
    given = _gates(registers, value, cell.input_weights, cell.input_bias)
    if node.attributes.get("linear_before_reset", 0):
        recalled = _gates(registers, hidden, cell.state_weights, cell.state_bias)
        own = registers.split(recalled, (width,) * 3, 1)
        update, reset = _update_and_reset(registers, given, own, width)
        inner = registers.add("Mul", reset, own[2])
    else:
        weights = registers.split(cell.state_weights, (width,) * 3, 1)
        biases = (
            [None] * 3
            if cell.state_bias is None
            else registers.split(cell.state_bias, (width,) * 3, 0)
        )
        own = [_gates(registers, hidden, weights[i], biases[i]) for i in range(2)]
        update, reset = _update_and_reset(registers, given, own, width)
        inner = _gates(registers, registers.add("Mul", reset, hidden), weights[2], biases[2])
    new = registers.add(
        "Tanh", registers.add("Add", registers.part(given, 1, 2 * width, 3 * width), inner)
    )
    kept = registers.add("Mul", update, hidden)
    rest = registers.add("Sub", registers.keep(1, like=update), update)
    return (registers.add("Add", registers.add("Mul", rest, new), kept),)


def _update_and_reset(
    registers: Registers, given: int, own: Sequence[int], width: int
) -> list[int]:
    parts = registers.split(given, (width, width), 1)
    return [registers.add("Sigmoid", registers.add("Add", parts[i], own[i])) for i in range(2)]


def _step_of_rnn(registers: Registers, _node: Node, cell: _Cell, value: int, state: State) -> State:
    total = registers.add(
        "Add",
        _gates(registers, value, cell.input_weights, cell.input_bias),
        _gates(registers, state[0], cell.state_weights, cell.state_bias),
    )
    return (registers.add("Tanh", total),)


def _joined(
    registers: Registers,
    outputs: Sequence[Sequence[int]],
    states: Sequence[State],
    *,
    is_batch_first: bool,
) -> list[int]:
    """Return the outputs as [steps, directions, rows, hidden] and states as [directions, ...]."""
    steps = [registers.add("Pack", *items, axis=0) for items in zip(*outputs, strict=True)]
    found = [registers.add("Pack", *steps, axis=0)]
    found += [registers.add("Pack", *items, axis=0) for items in zip(*states, strict=True)]
    if is_batch_first:
        return [
            registers.transpose(item, (2, 0, 1, 3) if at == 0 else (1, 0, 2))
            for at, item in enumerate(found)
        ]
    return found


_STEPS: Mapping[str, Callable[[Registers, Node, _Cell, int, State], State]] = {
    "GRU": _step_of_gru,
    "LSTM": _step_of_lstm,
    "RNN": _step_of_rnn,
}
RECURRENT: Mapping[str, Callable[[Registers, Node, Inputs], Sequence[int]]] = dict.fromkeys(
    _STEPS, _recurrent
)
"""The translation of each operator: from its inputs' registers to those of its outputs."""
