"""From a frozen graph to NumPy operations, where all that leads to the distribution has one.

The result is served only after it was proved equal to the graph on the probes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from policy_server.numpy_network import OPERATIONS, NumpyNetwork, Step
from policy_server.saved_model.freezing import node_of
from policy_server.saved_model.graph import LoadedGraph
from policy_server.saved_model.nodes import GraphNodes

__all__ = ["compile_network", "is_equal"]

_TOLERANCE = 1e-5
_FEWEST_PROBES = 16
# TensorFlow's attributes that change what an operation computes, by operation.
_ATTRIBUTES = {
    "LeakyRelu": ("alpha",),
    "MatMul": ("transpose_a", "transpose_b"),
    "Max": ("keep_dims",),
    "Mean": ("keep_dims",),
    "Min": ("keep_dims",),
    "OneHot": ("axis",),
    "Pack": ("axis",),
    "Split": ("num_split",),
    "StridedSlice": (
        "begin_mask",
        "end_mask",
        "ellipsis_mask",
        "new_axis_mask",
        "shrink_axis_mask",
    ),
    "Sum": ("keep_dims",),
}
_CHECKS = ("Assert", "CheckNumerics", "CheckNumericsV2", "Abort")
_PORTED = ("Split", "SplitV")


def compile_network(loaded: LoadedGraph, output: str) -> NumpyNetwork | None:
    """Return the network that computes an output.

    Args:
        loaded: the frozen graph.
        output: a key of the signature, such as `action_dist_inputs`.

    Returns:
        The network; None where the output needs an operation that NumPy has no equal of, or
        anything but the observation.
    """
    shape = loaded.observation_input.shape
    if shape is None or len(shape) != 2 or shape[0] is not None:
        return None
    try:
        return _Compiler(loaded).compile(loaded.fetches[output])
    except _UnsupportedError:
        return None


def is_equal(ours: NDArray[Any], graphs: NDArray[Any]) -> bool:
    """Return whether a compiled network gives what the graph gives.

    Args:
        ours: float[N, K] for the probes.
        graphs: the same of the graph.

    Returns:
        True if every finite row is equal within 1e-5, relative above 1.
    """
    if ours.shape != graphs.shape:
        return False
    rows = np.isfinite(graphs).all(axis=1)
    if rows.sum() < _FEWEST_PROBES:
        return False
    difference = np.abs(ours[rows].astype(np.float64) - graphs[rows].astype(np.float64))
    return bool((difference <= _TOLERANCE * (1 + np.abs(graphs[rows].astype(np.float64)))).all())


class _UnsupportedError(Exception):
    pass


class _Compiler:
    def __init__(self, loaded: LoadedGraph) -> None:
        self._nodes = GraphNodes(loaded.graph_def)
        self._registers: dict[str, int] = {}
        self._constants: dict[int, NDArray[Any]] = {}
        self._steps: list[Step] = []
        self._count = 1
        observations = self._nodes.source(loaded.observations)
        cast = (("dtype", loaded.observation_input.dtype),)
        self._registers[observations] = self._add("Cast", (0,), cast)
        for tensor, item in loaded.feeds.items():
            if item.name == "is_training" and not item.shape:
                self._registers[self._nodes.source(tensor)] = self._keep(np.array(False))  # noqa: FBT003 -- NumPy's own signature

    def compile(self, tensor: str) -> NumpyNetwork:
        self._refuse_checks(node_of(tensor))
        result = self._visit(self._nodes.source(tensor))
        return NumpyNetwork(self._constants, tuple(self._steps), result, self._count)

    def _refuse_checks(self, name: str) -> None:
        """Leave a graph that checks its observations to TensorFlow: NumPy would answer them."""
        waiting, seen = [name], {name}
        while waiting:
            node = self._nodes.node(waiting.pop())
            if node.op in _CHECKS:
                raise _UnsupportedError(node.op)
            following = {node_of(item.removeprefix("^")) for item in node.input} - seen
            seen |= following
            waiting += following

    def _visit(self, tensor: str) -> int:
        """Return the register of a tensor, after the steps that compute it."""
        # An explicit stack: a deep network is deeper than Python's.
        waiting = [tensor]
        while waiting:
            current = waiting[-1]
            if current in self._registers:
                waiting.pop()
                continue
            node = self._nodes.node(current)
            value = self._nodes.constant(current)
            if value is not None:
                self._registers[current] = self._keep(value)
                continue
            if node.op not in OPERATIONS:
                raise _UnsupportedError(node.op)
            missing = [name for name in self._nodes.inputs_of(node) if name not in self._registers]
            if missing:
                waiting += missing
                continue
            inputs = tuple(self._registers[name] for name in self._nodes.inputs_of(node))
            self._registers[current] = self._add(node.op, inputs, _attributes(node, current))
        return self._registers[tensor]

    def _add(
        self, operation: str, inputs: tuple[int, ...], attributes: tuple[tuple[str, Any], ...]
    ) -> int:
        if all(register in self._constants for register in inputs):
            values = [self._constants[register] for register in inputs]
            return self._keep(np.asarray(OPERATIONS[operation](*values, **dict(attributes))))
        self._steps.append(Step(operation, inputs, self._count, attributes))
        self._count += 1
        return self._count - 1

    def _keep(self, value: NDArray[Any]) -> int:
        self._constants[self._count] = value
        self._count += 1
        return self._count - 1


def _attributes(node: Any, tensor: str) -> tuple[tuple[str, Any], ...]:  # noqa: ANN401 -- TensorFlow is untyped
    known: list[tuple[str, Any]] = []
    for name in _ATTRIBUTES.get(node.op, ()):
        value = node.attr[name]
        known.append((name, getattr(value, value.WhichOneof("value") or "i")))
    if node.op in _PORTED:
        known.append(("port", int(tensor.partition(":")[2] or 0)))
    if node.op == "Cast":
        known.append(("dtype", tf.dtypes.as_dtype(node.attr["DstT"].type).name))
    if node.op == "Shape":
        known.append(("dtype", tf.dtypes.as_dtype(node.attr["out_type"].type).name))
    if node.op == "Squeeze":
        known.append(("squeeze_dims", tuple(node.attr["squeeze_dims"].list.i)))
    return tuple(known)
