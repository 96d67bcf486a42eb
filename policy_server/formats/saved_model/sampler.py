"""Reading a graph's actions as formulas over the distribution's inputs.

The graph is run once in Python, for a few rows, with symbols in place of the numbers that a
request brings. Inputs that are constant in service (the exploration switch, `timestep`, previous
actions) have their value, so that a branch which is never taken is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.building import NotCompiledError
from policy_server.engine.network import FAILURES
from policy_server.engine.operations import OPERATIONS
from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.attributes import attributes_of
from policy_server.formats.saved_model.freezing import node_of
from policy_server.formats.saved_model.graph import LoadedGraph
from policy_server.formats.saved_model.nodes import (
    PASSING_OPS,
    PYTHON_OPS,
    SHAPE_OPS,
    GraphNodes,
    is_stateful,
)
from policy_server.formats.saved_model.runner import GraphRunner, filled_value
from policy_server.formats.saved_model.symbolic_operations import (
    RANDOM_OPS,
    NotReadError,
    draw_noise,
    run_on_formulas,
    shape_of,
)
from policy_server.formats.saved_model.symbols import PYTHON_CALLBACK, Input, Opaque

__all__ = ["SamplerReader"]

_LOOP_OPS = ("Enter", "Exit", "LoopCond", "NextIteration")
# NumPy's errors on shapes, indices and types that a step is not made for.
_FAILURES = (*FAILURES, KeyError, NotCompiledError)

Values = NDArray[Any]


class _Dead(Exception):  # noqa: N818 -- no error: a branch that is not taken
    """A tensor of a branch that is not taken."""


class SamplerReader:
    """Reads the formulas of a graph's actions. Used for one setting of the exploration switch."""

    def __init__(
        self,
        loaded: LoadedGraph,
        runner: GraphRunner,
        *,
        root: str | None,
        width: int,
        rows: NDArray[Any],
        is_exploring: bool,
    ) -> None:
        """Own the formulas that are known so far: those of the distribution's inputs.

        Args:
            loaded: the frozen graph.
            runner: computes the tensors that are constant in service.
            root: the tensor of the distribution's inputs; None reads a graph that has none apart.
            width: how many numbers a row of it has.
            rows: float[B, observation_width], observations that the policy answers.
            is_exploring: the exploration switch.
        """
        self._nodes = GraphNodes(loaded.graph_def)
        self._runner = runner
        self._rows = rows
        self._is_exploring = is_exploring
        self._root = root
        self._known: dict[str, Values | None] = {}
        self._alive_tensors: dict[str, bool] = {}
        count = len(rows)
        if root is not None:
            self._known[root] = np.array(
                [[Input(row, index) for index in range(width)] for row in range(count)], object
            ).reshape(count, width)
        if loaded.exploring is not None:
            self._known[self._nodes.source(loaded.exploring)] = np.array(is_exploring)
        for tensor, item in loaded.feeds.items():
            shape = [count if size is None else size for size in (item.shape or ())[:1]]
            shape += [1 if size is None else size for size in (item.shape or ())[1:]]
            is_state = tensor in loaded.memory.feeds
            value = Opaque("the state") if is_state else filled_value(item)
            self._known[self._nodes.source(tensor)] = np.full(shape, value)
        self._observation = node_of(loaded.observations)
        self._above = set() if root is None else self._ancestors(node_of(root))

    def formulas(self, tensor: str) -> Values:
        """Return the formulas of an output.

        Args:
            tensor: the graph's name of it.

        Returns:
            Formula[B, ...].

        Raises:
            NotReadError: naming the operation on the way that is not understood.
        """
        try:
            return self._value(tensor)
        except _Dead:
            raise NotReadError("it stands in a branch that is never taken") from None
        except _FAILURES as error:
            raise NotReadError(f"a step can't be followed: {error}") from error

    def live_inputs(self, tensor: str) -> list[str]:
        """Return the tensors that a tensor is computed from, without branches that are not taken.

        Args:
            tensor: a tensor of the graph.
        """
        node = self._nodes.node(tensor)
        names = self._data_inputs(tensor)
        if node.op in SHAPE_OPS:
            return []
        if node.op == "Merge" and not self._is_loop(node):
            return [name for name in names if self._is_alive(name)]
        return names

    def _is_alive(self, tensor: str) -> bool:
        """Return whether a tensor is computed; True where that depends on the observation."""
        known = self._alive_tensors.get(tensor)
        if known is None:
            known = self._alive_tensors[tensor] = self._is_reached(tensor)
        return known

    def _is_reached(self, tensor: str) -> bool:
        waiting, seen = [tensor], {tensor}
        while waiting:
            current = waiting.pop()
            node = self._nodes.node(current)
            if node.op == "Switch":
                predicate = self._constant(_tensor(node.input[1]))
                if predicate is not None and bool(predicate) != current.endswith(":1"):
                    return False
            if current == self._root:
                continue
            if node.op == "Merge":
                if not self._is_loop(node) and not self.live_inputs(current):
                    return False
                continue
            following = {_tensor(name.removeprefix("^")) for name in node.input} - seen
            seen |= following
            waiting += following
        return True

    def _constant(self, tensor: str) -> Values | None:
        """Return a tensor's value where it is constant in service."""
        try:
            value = self._value(tensor)
        except (NotReadError, _Dead, *_FAILURES):
            return None
        return None if value.dtype == object else value

    def _ancestors(self, name: str) -> set[str]:
        found: set[str] = set()
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                node = self._nodes.node(current)
                waiting += [node_of(item) for item in node.input]
        return found

    def _value(self, tensor: str) -> Values:
        """Return the value of a tensor, after those that it is computed from."""
        # An explicit stack: a deep graph is deeper than Python's.
        waiting = [_tensor(tensor)]
        while waiting:
            current = waiting[-1]
            if current in self._known:
                waiting.pop()
                continue
            missing = [name for name in self._needed(current) if name not in self._known]
            if missing:
                waiting += missing
                continue
            try:
                self._known[current] = self._computed(current)
            except _Dead:
                self._known[current] = None
        found = self._known[_tensor(tensor)]
        if found is None:
            raise _Dead
        return found

    def _needed(self, tensor: str) -> list[str]:
        """Return the tensors whose values have to be known first."""
        node = self._nodes.node(tensor)
        if node.name == self._observation or self._is_computed_by_graph(tensor):
            return []
        names = self._data_inputs(tensor)
        if node.op == "Switch":
            return names[1:] if not self._is_taken(tensor, names[1]) else names
        return names + [f"{name}:0" for name in self._anchors(node)]

    def _data_inputs(self, tensor: str) -> list[str]:
        node = self._nodes.node(tensor)
        names = [_tensor(name) for name in node.input if not name.startswith("^")]
        if node.op == "IdentityN":
            port = int(tensor.partition(":")[2])
            return names[port : port + 1]
        return names

    def _is_taken(self, tensor: str, predicate: str) -> bool:
        """Return whether a branch is taken, or whether that is not known yet."""
        known = self._known.get(predicate)
        if known is None or known.dtype == object:
            return True
        return bool(known) == tensor.endswith(":1")

    def _anchors(self, node: Any) -> list[str]:  # noqa: ANN401 -- TensorFlow is untyped
        """Return the nodes that tie one without inputs to the branch which it belongs to."""
        waiting = [name[1:] for name in node.input if name.startswith("^")]
        found = []
        while waiting:
            name = waiting.pop()
            controlling = self._nodes.node(name)
            if controlling.op == "NoOp":
                waiting += [item[1:] for item in controlling.input]
            elif self._is_pivot(name):
                found.append(name)
        return found

    def _is_pivot(self, name: str) -> bool:
        node = self._nodes.node(name)
        while node.op == "Identity":
            node = self._nodes.node(node.input[0])
        return bool(node.op == "Switch")

    def _is_computed_by_graph(self, tensor: str) -> bool:
        """Return whether TensorFlow is asked for a value: of the network's shapes, and of loops."""
        node = self._nodes.node(tensor)
        if node.op in SHAPE_OPS:
            return node_of(node.input[0]) in self._above and _tensor(node.input[0]) != self._root
        if node.op in _LOOP_OPS or (node.op == "Merge" and self._is_loop(node)):
            return True
        return node.name in self._above and tensor != self._root and node.op != "Const"

    def is_loop(self, tensor: str) -> bool:
        """Return whether a Merge belongs to a loop, not to a branch.

        Args:
            tensor: the tensor that the Merge gives.
        """
        return self._is_loop(self._nodes.node(tensor))

    def _is_loop(self, node: Any) -> bool:  # noqa: ANN401 -- TensorFlow is untyped
        return any(self._nodes.node(name).op == "NextIteration" for name in node.input)

    def _computed(self, tensor: str) -> Values:
        node = self._nodes.node(tensor)
        if node.name == self._observation:
            return np.array([Opaque("the observation")] * len(self._rows), object)
        if self._is_computed_by_graph(tensor):
            return self._evaluated(tensor)
        if any(self._known[f"{name}:0"] is None for name in self._anchors(node)):
            raise _Dead
        names = self._data_inputs(tensor)
        if node.op == "Switch":
            return self._switched(tensor, names)
        if node.op == "Merge":
            return self._merged(tensor, names)
        return self._result(node, tensor, [self._alive(name) for name in names])

    def _alive(self, tensor: str) -> Values:
        value = self._known[tensor]
        if value is None:
            raise _Dead
        return value

    def _switched(self, tensor: str, names: Sequence[str]) -> Values:
        predicate = self._known[names[1]]
        if predicate is None:
            raise _Dead
        if predicate.dtype == object:
            raise NotReadError("a branch (cond) is taken by the observation or by chance")
        value = self._known.get(names[0])
        if bool(predicate) != tensor.endswith(":1") or value is None:
            raise _Dead
        return value

    def _merged(self, tensor: str, names: Sequence[str]) -> Values:
        alive = [index for index, name in enumerate(names) if self._known[name] is not None]
        if not alive:
            raise _Dead
        if len(alive) > 1:
            raise NotReadError("a branch (cond) whose condition can't be read")
        value = self._known[names[alive[0]]]
        assert value is not None, "it is alive"
        return value if tensor.endswith(":0") else np.array(alive[0], np.int32)

    def _result(self, node: Any, tensor: str, values: Sequence[Values]) -> Values:  # noqa: ANN401 -- TensorFlow is untyped
        operation = node.op
        if operation == "Const":
            constant: Values = tf.make_ndarray(node.attr["value"].tensor)
            return constant
        if operation == "PlaceholderWithDefault":
            return values[0]
        if operation in PASSING_OPS:
            return values[0]
        if operation in RANDOM_OPS:
            return draw_noise(node, values, len(self._rows))
        if operation in PYTHON_OPS:
            return _opaque(PYTHON_CALLBACK)
        if operation in SHAPE_OPS or any(value.dtype == object for value in values):
            return run_on_formulas(node, tensor, values, len(self._rows))
        if operation in OPERATIONS:
            with np.errstate(all="ignore"):
                return np.asarray(
                    OPERATIONS[operation](*values, **dict(attributes_of(node, tensor)))
                )
        return self._evaluated(tensor)

    def _evaluated(self, tensor: str) -> Values:
        """Ask TensorFlow for a value that is constant in service."""
        is_plain = self.is_plain(tensor)
        if not is_plain and node_of(tensor) not in self._above:
            raise NotReadError(
                f"{self._nodes.node(tensor).op} stands between the distribution's inputs and the "
                "actions"
            )
        try:
            value = self._runner.evaluate(tensor, self._rows, is_exploring=self._is_exploring)
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise NotReadError(f"{tensor} can't be computed") from error
        if self._nodes.node(tensor).op == "Shape":
            return shape_of(value.tolist(), len(self._rows))
        if is_plain and self._is_sized(tensor):
            raise NotReadError("the size of the batch is reckoned with")
        if is_plain:
            return value
        hidden = np.empty(value.shape, object)
        hidden.fill(Opaque("the network, past the distribution's inputs"))
        return hidden

    def _is_sized(self, tensor: str) -> bool:
        """Return whether the number of observations goes into a value."""
        waiting, seen = [node_of(tensor)], {node_of(tensor)}
        while waiting:
            node = self._nodes.node(waiting.pop())
            if node.op in SHAPE_OPS:
                return True
            following = {node_of(name) for name in node.input if not name.startswith("^")} - seen
            seen |= following
            waiting += following
        return False

    def is_plain(self, tensor: str) -> bool:
        """Return whether a tensor depends on nothing but constants and the batch's size.

        Args:
            tensor: a tensor of the graph.
        """
        waiting, seen = [node_of(tensor)], {node_of(tensor)}
        while waiting:
            node = self._nodes.node(waiting.pop())
            if (
                node.name == self._observation
                or is_stateful(node)
                or f"{node.name}:0" == self._root
            ):
                return False
            if node.op in SHAPE_OPS:
                continue
            following = {node_of(name) for name in node.input if not name.startswith("^")} - seen
            seen |= following
            waiting += following
        return True


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _opaque(source: str) -> Values:
    value = np.empty((), object)
    value[()] = Opaque(source)
    return value
