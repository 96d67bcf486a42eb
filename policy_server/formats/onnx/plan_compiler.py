"""From a graph of ONNX's operators to NumPy operations, as far as a plan's tensors.

The result is served only where it agrees with a runtime: on the probes within 1e-5, on extreme
ones within 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy_server.engine.building import NetworkBuilder, NotCompiledError
from policy_server.engine.network import FAILURES, NumpyNetwork
from policy_server.formats.onnx.elementwise_operators import ELEMENTWISE
from policy_server.formats.onnx.layer_operators import LAYERS
from policy_server.formats.onnx.model_file import Node, OnnxModel
from policy_server.formats.onnx.plan import Feed, Piece, Plan
from policy_server.formats.onnx.recurrent_operators import RECURRENT
from policy_server.formats.onnx.registers import Registers
from policy_server.formats.onnx.shape_operators import SHAPES

__all__ = ["Compilation", "compile_plan"]

_TRANSLATIONS = {**SHAPES, **LAYERS, **RECURRENT}


@dataclass(frozen=True)
class Compilation:
    """The result of compiling a plan.

    Attributes:
        network: the network in NumPy.
        is_row_wise: whether its operations answer each observation by itself.
        in_convolutions: how many multiplications its convolutions take for one observation.
    """

    network: NumpyNetwork
    is_row_wise: bool
    in_convolutions: int


def compile_plan(model: OnnxModel, plan: Plan, *, is_row_by_row: bool) -> Compilation:
    """Compile the part of a graph that computes a plan's tensors.

    Args:
        model: the graph.
        plan: its inputs, and the tensors that are wanted.
        is_row_by_row: take one observation at a time. Else a batch's axis that the graph fixes to 1
            is opened, where its operations allow it.

    Raises:
        NotCompiledError: saying why NumPy can't compute it.
    """
    builder = NetworkBuilder(plan.width, is_row_by_row=is_row_by_row)
    compiler = _Compiler(model, plan, Registers(builder, model.opset))
    try:
        result = compiler.compile()
    except FAILURES as error:
        raise NotCompiledError(f"NumPy refuses a step: {error}") from error
    is_row_wise = is_row_by_row or (builder.is_row_wise(result) and not builder.depends_on_size)
    return Compilation(builder.finish(result), is_row_wise, builder.in_convolutions)


class _Compiler:
    def __init__(self, model: OnnxModel, plan: Plan, registers: Registers) -> None:
        self._model = model
        self._plan = plan
        self._registers = registers
        self._known: dict[str, int] = {}

    def compile(self) -> int:
        """Return the register of the result's rows."""
        for feed in self._plan.feeds:
            self._known[feed.name] = self._fed(feed)
        for name, value in self._model.constants.items():
            self._known[name] = self._registers.keep(value)
        for node in self._needed():
            self._translate(node)
        parts = [self._piece(piece) for piece in self._plan.pieces]
        if len(parts) == 1:
            return parts[0]
        return self._registers.add("ConcatV2", *parts, self._registers.keep(np.array(1)))

    def _needed(self) -> Sequence[Node]:
        wanted = {piece.tensor for piece in self._plan.pieces}
        found = []
        for node in reversed(self._model.nodes):
            if wanted.intersection(node.outputs):
                found.append(node)
                wanted.update(node.inputs)
        return found[::-1]

    def _fed(self, feed: Feed) -> int:
        registers = self._registers
        if feed.first is None:
            row = registers.keep(np.full(feed.width, feed.value, np.dtype(feed.dtype)))
            value = registers.add("repeat_rows", 0, row)
        else:
            value = registers.part(0, 1, feed.first, feed.first + feed.width)
            value = registers.add("Cast", value, dtype=feed.dtype)
        if feed.rows_axis is None:
            return registers.add("reshape_copying", value, shape=feed.shape)
        value = registers.add("reshape_copying", value, shape=(-1, *feed.shape))
        if feed.rows_axis == 0:
            return value
        order = list(range(1, len(feed.shape) + 1))
        order.insert(feed.rows_axis, 0)
        return registers.transpose(value, order)

    def _translate(self, node: Node) -> None:
        if node.operator in ELEMENTWISE:
            given = [self._known[name] for name in node.inputs if name]
            found: int | Sequence[int] = ELEMENTWISE[node.operator](self._registers, node, given)
        elif node.operator in _TRANSLATIONS:
            inputs = [self._known[name] if name else None for name in node.inputs]
            found = _TRANSLATIONS[node.operator](self._registers, node, inputs)
        else:
            raise NotCompiledError(f"NumPy has no {node.operator}")
        results = [found] if isinstance(found, int) else found
        self._known |= {name: one for name, one in zip(node.outputs, results, strict=False) if name}

    def _piece(self, piece: Piece) -> int:
        """Return the register of a tensor as rows: float[B, width]."""
        registers = self._registers
        if piece.tensor not in self._known:
            raise NotCompiledError(f"nothing gives its tensor {piece.tensor!r}")
        value = registers.cast(self._known[piece.tensor], "float32")
        sizes = registers.sizes(value)
        width = math.prod(size for size in sizes if size is not None)
        if None in sizes:
            axis = sizes.index(None)
            order = [axis, *(other for other in range(len(sizes)) if other != axis)]
            value = registers.transpose(value, order) if axis else value
            value = registers.add("reshape_copying", value, shape=(-1, width))
        elif registers.constant(value) is not None:
            row = registers.add("reshape_copying", value, shape=(width,))
            value = registers.add("repeat_rows", 0, row)
        else:
            value = registers.add("reshape_copying", value, shape=(1, width))
        return self._changed(value, piece)

    def _changed(self, value: int, piece: Piece) -> int:
        registers = self._registers
        if piece.transform == "log":
            value = registers.add("log", value)
        elif piece.transform == "index of the largest":
            value = registers.add(
                "arg_max", value, axis=1, keep_dims=True, is_last=False, is_min=False
            )
            value = registers.cast(value, "float32")
        if piece.factor != 1.0:
            value = registers.add("Mul", value, registers.keep(piece.factor, like=value))
        if piece.offset:
            value = registers.add("Add", value, registers.keep(piece.offset, like=value))
        return value
