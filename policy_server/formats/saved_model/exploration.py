"""RLlib's exploration in a graph: the switch that turns it off, and its schedules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.freezing import VARIABLE_OPS, node_of
from policy_server.formats.saved_model.nodes import PYTHON_OPS
from policy_server.formats.saved_model.reaching import LONGEST_OPERATION

__all__ = [
    "changed_variables",
    "exploration_state",
    "find_switch",
    "free_switch",
    "is_exploration_scalar",
    "is_switch",
    "runs_callback",
]

# The switch's names; `stochastic` is that of Ray 0.7.
_EXPLORING = ("is_exploring", "explore", "stochastic")
# Scalars of Ray 0.7 that only exploration reads: zeros turn it off.
_EXPLORATION_SCALARS = ("eps", "noise_scale", "pure_exploration_phase")
# The variables and inputs by which schedules change exploration as training goes on.
_ASSIGNING = re.compile("Assign|Scatter.*(Update|Add|Sub)|StatefulUniform|RngSkip")
_SCHEDULED = re.compile(
    r"(timestep|eps|epsilon|cur_epsilon|noise_scale|ou_state|stochastic)(_\d+)?"
)


def _plain_name(name: str) -> str:
    """Return a tensor's name without its scope, port and number: `a/eps_1:0` is `eps`.

    Args:
        name: of a tensor or a node.
    """
    return re.sub(r"_\d+$", "", name.split("/")[-1].partition(":")[0])


def is_switch(name: str) -> bool:
    """Return whether an input turns exploration on and off.

    Args:
        name: its key in the signature.
    """
    return _plain_name(name) in _EXPLORING


def is_exploration_scalar(name: str) -> bool:
    """Return whether an input is a number that only exploration reads; zero turns it off.

    Args:
        name: its key in the signature.
    """
    return _plain_name(name) in _EXPLORATION_SCALARS


def find_switch(inputs: Mapping[str, str], graph_def: Any) -> str | None:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the tensor of the exploration switch; None where there is none.

    Args:
        inputs: the signature's inputs with their tensors.
        graph_def: the graph, in which the switch may be left out of the signature.
    """
    listed = [tensor for name, tensor in inputs.items() if is_switch(name)]
    unlisted = [
        f"{node.name}:0"
        for node in graph_def.node
        if node.op == "PlaceholderWithDefault"
        and _plain_name(node.name) in ("is_exploring", "stochastic")
    ]
    return next(iter(listed), min(unlisted, key=len, default=None))


def free_switch(graph_def: Any) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    """Make an input of the exploration switch that SAC of Ray 0.7 keeps in a variable.

    Args:
        graph_def: changed in place.
    """
    for node in list(graph_def.node):
        if node.op != "VariableV2" or _plain_name(node.name) != "stochastic":
            continue
        constant = graph_def.node.add(name=f"{node.name}/default", op="Const")
        constant.attr["dtype"].type = tf.dtypes.bool.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(True))  # noqa: FBT003 -- a value
        node.op = "PlaceholderWithDefault"
        node.ClearField("attr")
        node.input.append(constant.name)
        node.attr["dtype"].type = tf.dtypes.bool.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(constant.attr["value"].tensor.tensor_shape)


def exploration_state(needed: Iterable[str], graph_def: Any) -> tuple[str, ...]:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the inputs and variables by which schedules change exploration.

    Args:
        needed: the nodes that the policy's outputs depend on.
        graph_def: the graph before its variables became constants.
    """
    changing = {
        node.name
        for node in graph_def.node
        if node.op in (*VARIABLE_OPS, "Placeholder", "PlaceholderWithDefault")
    }
    return tuple(
        sorted(
            name.split("/")[-1]
            for name in changing.intersection(needed)
            if _SCHEDULED.fullmatch(name.split("/")[-1])
        )
    )


def changed_variables(graph_def: Any, outputs: Iterable[str]) -> tuple[str, ...]:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the variables that a graph changes each time it answers, and reads for its answer.

    Those of exploration's schedules are left out: they are read for no policy.

    Args:
        graph_def: the graph before its variables became constants.
        outputs: the tensors of the policy's outputs.
    """
    nodes = {node.name: node for node in graph_def.node}
    reached = _reached(nodes, outputs, past_assignments=True)
    read = _reached(nodes, outputs, past_assignments=False)
    changed = {
        _variable_of(nodes, nodes[name].input[0]) for name in reached if _is_assignment(nodes[name])
    }
    return tuple(
        sorted(name for name in changed & read if not _SCHEDULED.fullmatch(name.split("/")[-1]))
    )


def _is_assignment(node: Any) -> bool:  # noqa: ANN401 -- TensorFlow is untyped
    return bool(node.input) and _ASSIGNING.search(node.op[:LONGEST_OPERATION]) is not None


def _variable_of(nodes: Mapping[str, Any], tensor: str) -> str:
    name = node_of(tensor)
    while nodes[name].op not in VARIABLE_OPS and nodes[name].input:
        name = node_of(nodes[name].input[0])
    return name


def _reached(
    nodes: Mapping[str, Any], outputs: Iterable[str], *, past_assignments: bool
) -> set[str]:
    found: set[str] = set()
    waiting = [node_of(tensor) for tensor in outputs]
    while waiting:
        name = waiting.pop()
        if name in found or name not in nodes:
            continue
        found.add(name)
        node = nodes[name]
        if past_assignments or not _is_assignment(node):
            waiting += [node_of(item) for item in node.input]
    return found


def runs_callback(nodes: Iterable[Any]) -> bool:
    """Return whether a Python callback is among nodes, so that they can't be run.

    Args:
        nodes: of a graph.
    """
    return any(node.op in PYTHON_OPS for node in nodes)
