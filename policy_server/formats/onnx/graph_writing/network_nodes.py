"""From the steps of a `NumpyNetwork` to the nodes of an ONNX graph, operation by operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.network import FAILURES, NumpyNetwork, Step
from policy_server.engine.operations import OPERATIONS
from policy_server.errors import ExportError
from policy_server.formats.onnx.graph_writing.elementwise_nodes import ELEMENTWISE, Translation
from policy_server.formats.onnx.graph_writing.graph_writer import GraphWriter, Value
from policy_server.formats.onnx.graph_writing.layer_nodes import LAYERS
from policy_server.formats.onnx.graph_writing.shape_nodes import SHAPES

__all__ = ["TRANSLATIONS", "write_network"]

Array = NDArray[Any]

TRANSLATIONS: Mapping[str, Translation] = {**ELEMENTWISE, **SHAPES, **LAYERS}
"""The translation of each operation of the engine to nodes, by its name."""

# Sizes that differ between two batches vary with the number of rows.
_BATCH_SIZES = (2, 3)


def write_network(
    writer: GraphWriter, network: NumpyNetwork, rows: Array, *, observations: str
) -> str:
    """Add the nodes of a network to a graph, and return the name of its result.

    Args:
        writer: the graph.
        network: the network.
        rows: float[B, D], at least three rows that the network answers: observations, each followed
            by its state.
        observations: the name of the tensor that holds such rows.

    Raises:
        ExportError: naming an operation that has no exact form in ONNX.
    """
    sizes = (1,) if network.is_row_by_row else _BATCH_SIZES
    traces = [_trace(network, rows[:size]) for size in sizes]
    values = [observations] + [""] * (network.registers - 1)
    for register, constant in network.constants.items():
        values[register] = writer.keep(constant)

    def value_of(register: int) -> Value:
        found = [trace[register] for trace in traces]
        shape = tuple(
            lengths[0] if len(set(lengths)) == 1 else None
            for lengths in zip(*(np.shape(one) for one in found), strict=True)
        )
        constant = network.constants.get(register)
        return Value(
            values[register],
            np.asarray(found[0]).dtype,
            shape,
            None if constant is None else np.asarray(constant),
        )

    for step in network.steps:
        inputs = [value_of(register) for register in step.inputs]
        values[step.output] = _translated(writer, step, inputs, value_of(step.output))
    result = value_of(network.result)
    return writer.cast(result, np.float32)


def _translated(writer: GraphWriter, step: Step, inputs: Sequence[Value], result: Value) -> str:
    translate = TRANSLATIONS.get(step.operation)
    if translate is None:
        raise ExportError(f"its operation {step.operation} has no exact form in ONNX")
    try:
        return translate(writer, inputs, result, **dict(step.attributes))
    except ExportError as error:
        raise ExportError(f"its operation {step.operation}: {error.message}") from error


def _trace(network: NumpyNetwork, rows: Array) -> list[Any]:
    """Return the values of all registers for some rows.

    Raises:
        ExportError: if the network refuses them.
    """
    registers: list[Any] = [None] * network.registers
    registers[0] = rows
    for register, constant in network.constants.items():
        registers[register] = constant
    try:
        with np.errstate(all="ignore"):
            for step in network.steps:
                given = [registers[register] for register in step.inputs]
                function = OPERATIONS[step.operation]
                registers[step.output] = function(*given, **dict(step.attributes))
    except FAILURES as error:
        raise ExportError(f"it can't compute an observation: {error}") from error
    return registers
