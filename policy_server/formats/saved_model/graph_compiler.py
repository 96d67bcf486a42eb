"""From a frozen graph to NumPy operations, as far as the distribution's inputs.

The result is served only where it agrees with the graph: on the
probes within 1e-5, on extreme ones within 1e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.building import NetworkBuilder, NotCompiledError
from policy_server.engine.network import FAILURES, NumpyNetwork
from policy_server.engine.operations import OPERATIONS
from policy_server.engine.row_dependence import FOLLOWED
from policy_server.formats.saved_model.attributes import (
    PORTED,
    STRIDED_SLICE_MASKS,
    attributes_of,
)
from policy_server.formats.saved_model.freezing import node_of
from policy_server.formats.saved_model.graph import STATE, LoadedGraph
from policy_server.formats.saved_model.nodes import SHAPE_OPS, GraphNodes
from policy_server.formats.saved_model.runner import filled_value
from policy_server.policy import SignatureTensor

__all__ = ["Compilation", "compile_network"]

# How many turns of a loop are unrolled: RLlib's recurrent layers take one for one observation.
_MOST_TURNS = 16
_ARRAY_OPS = (
    "TensorArrayV3",
    "TensorArrayScatterV3",
    "TensorArrayReadV3",
    "TensorArrayWriteV3",
    "TensorArrayGatherV3",
    "TensorArraySizeV3",
)
_PASSED = (*_ARRAY_OPS, "Enter")
_WITH_OUTPUTS = (*PORTED, "TensorArrayV3")
_CHECKS = ("Assert", "CheckNumerics", "CheckNumericsV2", "Abort")


@dataclass(frozen=True)
class Compilation:
    """The result of compiling a network.

    Attributes:
        network: the network in NumPy; None where NumPy can't compute it.
        reason: why NumPy can't compute it; empty where it can.
        is_row_wise: whether its operations answer each observation by itself; None where not all of
            them are known.
        in_convolutions: how many multiplications its convolutions take for one observation.
    """

    network: NumpyNetwork | None
    reason: str = ""
    is_row_wise: bool | None = None
    in_convolutions: int = 0


def compile_network(loaded: LoadedGraph, output: str, width: int) -> Compilation:
    """Compile the part of a graph that computes an output, and the state after the step.

    Args:
        loaded: the frozen graph.
        output: a key of the signature, such as `action_dist_inputs`.
        width: how many numbers one observation has.
    """
    shape = loaded.observation_input.shape
    if shape is None or len(shape) < 2 or shape[0] is not None:
        return Compilation(None, "the policy takes batches of one size only")
    try:
        compiler = _Compiler(loaded, width)
        result = compiler.compile([loaded.fetches[key] for key in _results(loaded, output)])
    except NotCompiledError as error:
        return Compilation(None, str(error))
    except FAILURES as error:
        return Compilation(None, f"NumPy refuses a step: {error}")
    is_row_wise = compiler.is_row_wise(result)
    if compiler.unserved is not None:
        return Compilation(None, f"NumPy has no {compiler.unserved}", is_row_wise)
    return Compilation(compiler.finish(result), "", is_row_wise, compiler.in_convolutions)


def _results(loaded: LoadedGraph, output: str) -> list[str]:
    return [output, *([STATE] if STATE in loaded.fetches else [])]


# A value, or the elements of a TensorArray.
_Known = int | tuple[int, ...]


class _Compiler:
    def __init__(self, loaded: LoadedGraph, width: int) -> None:
        self._nodes = GraphNodes(loaded.graph_def)
        self._graph = loaded.graph_def
        self._observation = node_of(loaded.observations)
        self._check: str | None = None
        memory = loaded.memory
        self._builder = NetworkBuilder(width + memory.width)
        self._known: dict[str, _Known] = {}
        item = loaded.observation_input
        self._casts: dict[str, int] = {}
        rows = self._rows_as(item.dtype)
        rows = self._columns(rows, 0, width) if memory.width else rows
        shape = self._builder.add("Shape", (0,))
        self._batch = self._element(shape, 0)
        if item.shape is not None and len(item.shape) > 2:
            sizes = np.array([-1, *(size or -1 for size in item.shape[1:])])
            rows = self._builder.add("Reshape", (rows, self._builder.keep(sizes)))
        self._known[self._nodes.source(loaded.observations)] = rows
        for tensor, part in loaded.feeds.items():
            columns = memory.columns.get(tensor)
            self._known[self._nodes.source(tensor)] = (
                self._fill(part) if columns is None else self._state(part, columns, width)
            )

    @property
    def in_convolutions(self) -> int:
        return self._builder.in_convolutions

    def compile(self, tensors: Sequence[str]) -> int:
        """Return the register of the tensors' values, the columns of one behind another's."""
        self._check = next(
            filter(None, (self._find_check(node_of(item)) for item in tensors)), None
        )
        found = [self._value(self._nodes.source(tensor)) for tensor in tensors]
        if len(found) == 1:
            return found[0]
        return self._builder.add("ConcatV2", (*found, self._builder.keep(np.array(1))))

    @property
    def unserved(self) -> str | None:
        """Return an operation whose rows can be followed but which NumPy can't serve."""
        return self._check or self._builder.unserved

    def is_row_wise(self, register: int) -> bool:
        return self._builder.is_row_wise(register) and not self._builder.depends_on_size

    def finish(self, register: int) -> NumpyNetwork:
        return self._builder.finish(register)

    def _columns(self, rows: int, first: int, stop: int) -> int:
        """Return the register of some columns of another."""
        bounds = {"axes": (1,), "starts": (first,), "ends": (stop,), "steps": (1,)}
        return self._builder.add("slice_axes", (rows,), tuple(bounds.items()))

    def _state(self, item: SignatureTensor, columns: slice, width: int) -> int:
        """Return the register of an input's part of the state before the step."""
        rows = self._rows_as(item.dtype)
        part = self._columns(rows, width + columns.start, width + columns.stop)
        sizes = (item.shape or ())[1:]
        if len(sizes) == 1:
            return part
        return self._builder.add("Reshape", (part, self._builder.keep(np.array([-1, *sizes]))))

    def _rows_as(self, dtype: str) -> int:
        """Return the register of the rows as numbers of a type."""
        if dtype not in self._casts:
            self._casts[dtype] = self._builder.add("Cast", (0,), (("dtype", dtype),))
        return self._casts[dtype]

    def _fill(self, item: SignatureTensor) -> int:
        """Return the register of the constant that `runner` gives an input."""
        value = self._builder.keep(filled_value(item))
        if not item.shape:
            return value
        keep = self._builder.keep
        first = self._batch if item.shape[0] is None else keep(np.array(item.shape[0], np.int32))
        rest = [keep(np.array(1 if size is None else size, np.int32)) for size in item.shape[1:]]
        shape = self._builder.add("Pack", (first, *rest), (("axis", 0),))
        return self._builder.add("Fill", (shape, value))

    def _find_check(self, name: str) -> str | None:
        """Return an operation that checks observations: NumPy would answer refused ones too."""
        waiting, seen = [name], {name}
        while waiting:
            node = self._nodes.node(waiting.pop())
            if node.op in _CHECKS and self._reads_observation(node):
                return str(node.op)
            following = {node_of(item.removeprefix("^")) for item in node.input} - seen
            seen |= following
            waiting += following
        return None

    def _reads_observation(self, check: Any) -> bool:  # noqa: ANN401 -- TensorFlow is untyped
        """Return whether a check looks at observations, not only at their number."""
        waiting, seen = [check], {check.name}
        while waiting:
            node = waiting.pop()
            if node.name == self._observation:
                return True
            if node.op in SHAPE_OPS:
                continue
            following = {node_of(item) for item in node.input if not item.startswith("^")} - seen
            seen |= following
            waiting += [self._nodes.node(name) for name in following]
        return False

    def _value(self, tensor: str) -> int:
        known = self._visit(tensor)
        if isinstance(known, tuple):
            raise NotCompiledError("the result is a TensorArray")
        return known

    def _visit(self, tensor: str) -> _Known:
        """Return the register of a tensor, after the steps that compute it."""
        # An explicit stack: a deep network is deeper than Python's.
        waiting = [tensor]
        while waiting:
            current = waiting[-1]
            if current in self._known:
                waiting.pop()
                continue
            node = self._nodes.node(current)
            if node.op == "Exit":
                self._loop(current)
                continue
            value = self._nodes.constant(current)
            if value is not None:
                self._known[current] = self._builder.keep(value)
                continue
            is_other_output = node.op not in _WITH_OUTPUTS and not current.endswith(":0")
            if is_other_output or node.op not in (*OPERATIONS, *FOLLOWED, *_PASSED):
                raise NotCompiledError(f"NumPy has no {node.op}")
            inputs = self._nodes.inputs_of(node)
            missing = [name for name in inputs if name not in self._known]
            if missing:
                waiting += missing
                continue
            self._known[current] = self._result(node, current, [self._known[i] for i in inputs])
        return self._known[tensor]

    def _result(self, node: Any, tensor: str, inputs: list[_Known]) -> _Known:  # noqa: ANN401 -- TensorFlow is untyped
        if node.op == "Enter":
            return inputs[0]
        if node.op in _ARRAY_OPS:
            return self._array(node, inputs)
        registers = [item for item in inputs if isinstance(item, int)]
        if len(registers) < len(inputs):
            raise NotCompiledError(f"NumPy has no {node.op}")
        return self._builder.add(node.op, registers, attributes_of(node, tensor))

    def _array(self, node: Any, inputs: list[_Known]) -> _Known:  # noqa: ANN401 -- TensorFlow is untyped
        """Follow a TensorArray by its elements' registers; its flow stands for it."""
        if node.op == "TensorArrayV3":
            return (0,) * int(self._constant(inputs[0]))
        flow = inputs[-1]
        assert isinstance(flow, tuple), "TensorFlow checks the types of a graph"
        if node.op == "TensorArraySizeV3":
            return self._builder.keep(np.array(len(flow), np.int32))
        indices = [int(index) for index in np.ravel(self._constant(inputs[1]))]
        if node.op == "TensorArrayReadV3":
            return flow[indices[0]]
        if node.op == "TensorArrayGatherV3":
            return self._builder.add("Pack", [flow[index] for index in indices], (("axis", 0),))
        value = inputs[2]
        assert isinstance(value, int), "TensorFlow checks the types of a graph"
        elements = list(flow)
        for position, index in enumerate(indices):
            is_one = node.op == "TensorArrayWriteV3"
            elements[index] = value if is_one else self._element(value, position)
        return tuple(elements)

    def _element(self, register: int, index: int) -> int:
        bounds = [self._builder.keep(np.array([at], np.int32)) for at in (index, index + 1, 1)]
        masks = {name: 0 for name in STRIDED_SLICE_MASKS} | {"shrink_axis_mask": 1}
        return self._builder.add("StridedSlice", (register, *bounds), tuple(masks.items()))

    def _constant(self, known: _Known) -> NDArray[Any]:
        value = self._builder.constant(known) if isinstance(known, int) else None
        if value is None:
            raise NotCompiledError("a loop or an array whose size depends on the observation")
        return value

    def _loop(self, tensor: str) -> None:
        """Unroll a loop of a fixed number of turns, and know the registers of its results.

        Source: TensorFlow's control flow of version 1, where a variable is a Merge of its first
        value and that of the last turn, and a Switch leads it into the next turn or to its Exit.
        """
        wanted = self._nodes.source(self._nodes.node(tensor).input[0])
        frame = self._frame(self._nodes.node(wanted))
        merges = {
            f"{node.name}:0": node
            for node in self._graph.node
            if node.op == "Merge" and self._frame(node) == frame
        }
        condition = next(
            self._nodes.source(self._nodes.node(node.input[1]).input[0])
            for node in self._graph.node
            if node.op == "Switch" and self._nodes.source(node.input[0]) == wanted
        )
        outside = dict(self._known)
        state = {
            name: self._visit(self._nodes.source(node.input[0])) for name, node in merges.items()
        }
        for _ in range(_MOST_TURNS):
            self._known = outside | state
            is_going_on = bool(self._constant(self._visit(condition)))
            if not is_going_on:
                self._known = outside | self._leaving(state)
                return
            state = {
                name: self._visit(self._nodes.inputs_of(self._nodes.node(node.input[1]))[0])
                for name, node in merges.items()
            }
        raise NotCompiledError(f"a loop of more than {_MOST_TURNS} turns")

    def _leaving(self, state: dict[str, _Known]) -> dict[str, _Known]:
        """Return the results of a loop: the last values of its variables."""
        exits = [node for node in self._graph.node if node.op == "Exit"]
        sources = {f"{node.name}:0": self._nodes.source(node.input[0]) for node in exits}
        return {name: state[source] for name, source in sources.items() if source in state}

    def _frame(self, merge: Any) -> str:  # noqa: ANN401 -- TensorFlow is untyped
        if merge.op != "Merge":
            raise NotCompiledError(f"NumPy has no {merge.op}")
        enter = self._nodes.node(self._nodes.source(merge.input[0]))
        return str(enter.attr["frame_name"].s) if enter.op == "Enter" else ""
