"""An index over a frozen graph's nodes, for the modules that read its operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.freezing import node_of

__all__ = ["CALLS", "PASSING_OPS", "PYTHON_OPS", "SHAPE_OPS", "GraphNodes", "is_stateful"]

# These read a tensor's size, not its values: a random action takes its batch size from anywhere.
SHAPE_OPS = ("Shape", "Size", "Rank", "ZerosLike", "OnesLike", "ShapeN")
# These call a function of the process that trained the policy.
PYTHON_OPS = ("PyFunc", "PyFuncStateless", "EagerPyFunc")
# Functions that TensorFlow could not make part of the flat graph.
CALLS = frozenset(
    {
        "Case",
        "If",
        "PartitionedCall",
        "StatefulPartitionedCall",
        "StatelessCase",
        "StatelessIf",
        "StatelessWhile",
        "While",
        "XlaLaunch",
    }
)
# Stateful only so that they are not left out.
_CHECKS = ("Assert", "Print", "PrintV2", "Abort", "CheckNumerics", "CheckNumericsV2")
# A Switch sends a tensor into one branch or the other.
PASSING_OPS = (
    "Identity",
    "IdentityN",
    "StopGradient",
    "Snapshot",
    "PreventGradient",
    "EnsureShape",
    "CheckNumerics",
    "Switch",
)


def is_stateful(node: Any) -> bool:  # noqa: ANN401 -- TensorFlow is untyped
    """Return whether a node may give something else at each call, such as a random number.

    Args:
        node: one of a graph without variables.
    """
    if node.op in _CHECKS or node.op in ("Placeholder", "PlaceholderWithDefault"):
        return False
    known = tf.op_def_registry.get(node.op)
    return (
        known is None
        or node.op in CALLS
        or node.op.startswith("StatelessRandom")
        or node.op in ("StatelessMultinomial", "StatelessTruncatedNormal", *PYTHON_OPS)
        or bool(known.is_stateful)
    )


class GraphNodes:
    """The nodes by name.

    A tensor's canonical name is `node:port`, behind nodes that only pass it on.
    """

    def __init__(self, graph_def: Any) -> None:  # noqa: ANN401 -- TensorFlow is untyped
        """Own the index; the graph is not copied.

        Args:
            graph_def: a flat GraphDef.
        """
        self._nodes: Mapping[str, Any] = {node.name: node for node in graph_def.node}
        self._consumers: dict[str, list[Any]] = {}
        for node in self._nodes.values():
            for tensor in self.inputs_of(node):
                self._consumers.setdefault(tensor, []).append(node)

    def node(self, tensor: str) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        """Return the node that computes a tensor.

        Args:
            tensor: its name.
        """
        return self._nodes[node_of(tensor)]

    def source(self, tensor: str) -> str:
        """Return a tensor's canonical name.

        Args:
            tensor: its name, with or without the port.
        """
        name, _, port = tensor.partition(":")
        node = self._nodes[name]
        while node.op in PASSING_OPS:
            index = int(port or 0) if node.op == "IdentityN" else 0
            name, _, port = node.input[index].partition(":")
            node = self._nodes[name]
        return f"{name}:{port or 0}"

    def inputs_of(self, node: Any) -> list[str]:  # noqa: ANN401 -- TensorFlow is untyped
        """Return the canonical names of the tensors that a node takes.

        Args:
            node: one of the graph.
        """
        return [self.source(name) for name in node.input if not name.startswith("^")]

    def consumers_of(self, tensor: str) -> Sequence[Any]:
        """Return the nodes that take a tensor.

        Args:
            tensor: its canonical name.
        """
        return self._consumers.get(tensor, [])

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """Return the value of a constant tensor; None where it is computed.

        Args:
            tensor: its name.
        """
        node = self.node(self.source(tensor))
        if node.op != "Const":
            return None
        value: NDArray[Any] = tf.make_ndarray(node.attr["value"].tensor)
        return value

    def scalar(self, tensor: str) -> float | None:
        """Return the value of a constant of one number; None for anything else.

        Args:
            tensor: its name.
        """
        value = self.constant(tensor)
        return float(value.ravel()[0]) if value is not None and value.size == 1 else None
