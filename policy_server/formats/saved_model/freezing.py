"""Freezing a SavedModel: variables become constants, functions and branches one flat graph.

TensorFlow 1 exports (Ray 1.0 to 2.0) and Keras ones (Ray 2.1 and later) take the same way, through
a v1 session. Only what the policy's outputs need is imported and restored: an export carries its
whole training graph, which takes most of the time to load and may hold operations that no longer
exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from policy_server.errors import ModelError
from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.reaching import refuse_reaching

__all__ = ["LATE_TIMESTEP", "VARIABLE_OPS", "freeze", "node_of", "session_config"]


# Exploration schedules (epsilon-greedy, random_timesteps) are long over at this step; it fits
# int32 too.
LATE_TIMESTEP = 1_000_000_000
_COUNTER = re.compile(r"timestep(_\d+)?")
VARIABLE_OPS = ("VarHandleOp", "VariableV2", "Variable")
_ASSIGNMENT_OPS = ("AssignVariableOp", "AssignAddVariableOp", "Assign", "AssignAdd")
# Nodes of one kind that still are not the same.
_NEVER_SHARED = (
    "Enter",
    "Exit",
    "Merge",
    "NextIteration",
    "NoOp",
    "Placeholder",
    "PlaceholderWithDefault",
    "Switch",
)
# More than the calls that may hang at a time, in both threads of a policy.
_THREADS = 12
_LARGEST_SHARED_CONSTANT = 4096
_BY_VALUE = {
    "RefEnter": "Enter",
    "RefExit": "Exit",
    "RefIdentity": "Identity",
    "RefMerge": "Merge",
    "RefSwitch": "Switch",
}
_CONTROL_FLOW_OPS = ("If", "StatelessIf", "While", "StatelessWhile", "Case", "StatelessCase")


def freeze(meta_graph: Any, folder: Path, kept: Sequence[str]) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Restore a graph's variables and make it flat.

    Args:
        meta_graph: the MetaGraphDef of a SavedModel.
        folder: the SavedModel's folder, which holds variables/.
        kept: the tensors that the result must hold.

    Returns:
        A GraphDef without variables; without functions too, unless TensorFlow can't inline them.

    Raises:
        ModelError: if the weights are missing, or an operation reaches beyond the graph's numbers.
        tf.errors.OpError, ValueError: in TensorFlow's own words, if it can't be restored.
    """
    pruned, policy = _pruned(meta_graph, [node_of(tensor) for tensor in kept])
    refuse_reaching(
        pruned.graph_def, policy=policy, checkpoint=pruned.saver_def.filename_tensor_name
    )
    graph = tf.Graph()
    with _quiet(), graph.as_default(), tf.Session(config=session_config()) as session:
        saver = tf.import_meta_graph(pruned, clear_devices=True)
        if saver is not None:
            saver.restore(session, str(_variables(folder)))
        graph_def = graph.as_graph_def()
        names = sorted({node_of(tensor) for tensor in kept})
        frozen = tf.convert_variables_to_constants(session, graph_def, names)
    _end_schedules(frozen, {node.name for node in graph_def.node if node.op in VARIABLE_OPS})
    flat = _inlined(frozen, kept)
    _share(flat)
    return flat


def _variables(folder: Path) -> Path:
    path = folder / "variables" / "variables"
    if not path.with_suffix(".index").exists():
        raise ModelError(
            "saved_model.pb: its weights are missing; expected the folder variables/ beside it, "
            "as export_policy_model writes it"
        )
    return path


def node_of(tensor: str) -> str:
    """Return the name of the node that a tensor, or a node's input, comes from.

    Args:
        tensor: such as `policy/fc_out/BiasAdd:0` or `^policy/NoOp`.
    """
    return tensor.removeprefix("^").split(":")[0]


def session_config() -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a session's configuration: one thread for an operation, since policies are small.

    Calls that hang each hold up one of the session's threads, and the others go on. In the caller's
    own thread TensorFlow would not take numbers near zero for zero, as it does in its own.
    """
    return tf.ConfigProto(
        intra_op_parallelism_threads=1,
        inter_op_parallelism_threads=_THREADS,
        use_per_session_threads=True,
        device_count={"GPU": 0},
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep TensorFlow's advice to use version 2's API, which can't do this, out of the log."""
    previous = tf.logging.get_verbosity()
    tf.logging.set_verbosity(tf.logging.ERROR)
    try:
        yield
    finally:
        tf.logging.set_verbosity(previous)


def _pruned(meta_graph: Any, kept: Sequence[str]) -> tuple[Any, set[str]]:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the graph that answers and is restored, and the names of the nodes that answer."""
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    assignments = {name for name, node in nodes.items() if node.op in _ASSIGNMENT_OPS}
    policy = _reachable(nodes, kept, lambda name: _policy_inputs(nodes, name, assignments))
    # Where TensorFlow reads a variable's value from when it turns it into a constant.
    policy |= {f"{name}/Read/ReadVariableOp" for name in policy} & nodes.keys()
    restoring = {
        name
        for name in _reachable(nodes, _restore_ops(meta_graph), lambda name: nodes[name].input)
        if name not in policy
    }
    # A training graph restores its optimiser as well; only the policy's variables are wanted.
    variables = {name for name in policy if nodes[name].op in VARIABLE_OPS}
    unneeded = {
        name for name in restoring & assignments if node_of(nodes[name].input[0]) not in variables
    }
    result = tf.meta_graph_pb2.MetaGraphDef()
    result.CopyFrom(meta_graph)
    result.ClearField("collection_def")
    result.ClearField("object_graph_def")
    if not any(nodes[name].op in VARIABLE_OPS for name in policy):
        result.ClearField("saver_def")
        restoring = set()
    del result.graph_def.node[:]
    for name, node in nodes.items():
        if name not in policy and name not in restoring - unneeded:
            continue
        copy = result.graph_def.node.add()
        copy.CopyFrom(node)
        inputs = _policy_inputs(nodes, name, assignments) if name in policy else node.input
        copy.ClearField("input")
        copy.input.extend(item for item in inputs if node_of(item) not in unneeded)
        # A variable that is a constant now is passed on as any other value.
        copy.op = _BY_VALUE.get(copy.op, copy.op)
        # Where a node was placed beside one that is gone; there is one device.
        copy.attr.pop("_class", None)
    return result, policy


def _restore_ops(meta_graph: Any) -> list[str]:  # noqa: ANN401 -- TensorFlow is untyped
    if not meta_graph.HasField("saver_def"):
        return []
    saver = meta_graph.saver_def
    return [node_of(name) for name in (saver.restore_op_name, saver.filename_tensor_name) if name]


def _policy_inputs(nodes: dict[str, Any], name: str, assignments: set[str]) -> list[str]:
    """Cut the updates of step counters, which exploration hangs before each action.

    Constants can't be assigned.
    """
    inputs = []
    for item in nodes[name].input:
        if node_of(item) not in assignments:
            inputs.append(item)
        elif not item.startswith("^"):
            # A TensorFlow 1 assignment also returns its variable.
            inputs.append(nodes[node_of(item)].input[0])
    return inputs


def _reachable(
    nodes: dict[str, Any], starts: Sequence[str], inputs_of: Callable[[str], Sequence[str]]
) -> set[str]:
    missing = [name for name in starts if name not in nodes]
    if missing:
        raise ValueError(f"the graph has no node {missing[0]}")
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [node_of(item) for item in inputs_of(name)]
    return found


def _end_schedules(graph_def: Any, variables: set[str]) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    """Set the step counters that RLlib keeps in variables, so that epsilon is at its end."""
    for node in graph_def.node:
        is_counter = _COUNTER.fullmatch(node.name.split("/")[-1]) is not None
        if node.op != "Const" or node.name not in variables or not is_counter:
            continue
        value = tf.make_ndarray(node.attr["value"].tensor)
        if value.shape == () and np.issubdtype(value.dtype, np.integer):
            late = np.array(LATE_TIMESTEP, value.dtype)
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(late))


def _inlined(graph_def: Any, kept: Sequence[str]) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    if not graph_def.library.function or tf.tf_optimizer is None:
        return graph_def
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    meta_graph = tf.export_meta_graph(graph_def=graph.as_graph_def(), graph=graph)
    _allow_inlining(meta_graph.graph_def)
    fetches = tf.meta_graph_pb2.CollectionDef()
    fetches.node_list.value.extend(kept)
    meta_graph.collection_def["train_op"].CopyFrom(fetches)
    config = tf.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    config.graph_options.rewrite_options.meta_optimizer_iterations = 1
    config.graph_options.rewrite_options.optimizers.append("function")
    return tf.tf_optimizer.OptimizeGraph(config, meta_graph)


def _allow_inlining(graph_def: Any) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    functions = graph_def.library.function
    for function in functions:
        function.attr.pop("api_implements", None)
        function.attr["_noinline"].b = False
    for node in (*graph_def.node, *(node for function in functions for node in function.node_def)):
        if node.op in _CONTROL_FLOW_OPS:
            node.attr["_lower_using_switch_merge"].b = True


def _share(graph_def: Any) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    """Let nodes that compute the same read from one, so that their reader sees one way.

    Ray 0.8.2 builds SAC's network twice: for the draw, and for the deterministic action.
    """
    nodes = {node.name: node for node in graph_def.node}
    first: dict[tuple[Any, ...], str] = {}
    shared: dict[str, str] = {}
    for name in _in_order(nodes):
        node = nodes[name]
        for position, item in enumerate(node.input):
            source, colon, port = item.partition(":")
            if source in shared:
                node.input[position] = shared[source] + colon + port
        if _is_pure(node):
            attributes = sorted(
                (key, value.SerializeToString(deterministic=True))
                for key, value in node.attr.items()
                if not key.startswith("_")
            )
            shared[name] = first.setdefault((node.op, tuple(node.input), *attributes), name)


def _is_pure(node: Any) -> bool:  # noqa: ANN401 -- TensorFlow is untyped
    if any(item.startswith("^") for item in node.input):
        return False
    if node.op == "Const":
        return bool(node.ByteSize() < _LARGEST_SHARED_CONSTANT)
    known = tf.op_def_registry.get(node.op)
    return node.op not in _NEVER_SHARED and known is not None and not known.is_stateful


def _in_order(nodes: dict[str, Any]) -> list[str]:
    """Return the nodes behind their inputs; those of a loop, which have no order, are left out."""
    waiting = {name: {node_of(item) for item in node.input} for name, node in nodes.items()}
    readers: dict[str, list[str]] = {}
    for name, inputs in waiting.items():
        for item in inputs:
            readers.setdefault(item, []).append(name)
    ready = [name for name, inputs in waiting.items() if not inputs]
    order = []
    while ready:
        name = ready.pop()
        order.append(name)
        for reader in readers.get(name, ()):
            waiting[reader].discard(name)
            if not waiting[reader]:
                ready.append(reader)
    return order
