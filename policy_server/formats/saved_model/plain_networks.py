"""SavedModels of a network alone that are not RLlib's, such as those of Keras's `model.export`.

Keras 3 calls their outputs `output_0`, `output_1`, and Keras before it by the layers' names. The
operation at an output's end, and the name of the layer that gives it, tell its meaning, or else
schema.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.output_meaning import (
    Ending,
    Meaning,
    NetworkOutput,
    ReadOutput,
    name_tells,
    read_meaning,
)
from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.bare import (
    LOGITS_NAMES,
    RLLIB_OUTPUTS,
    check_inputs,
    is_value,
    refuse_untrained,
)
from policy_server.formats.saved_model.graph import DISTRIBUTION_INPUTS, LoadedGraph
from policy_server.formats.saved_model.graph_bounds import KeptBounds, base_of
from policy_server.formats.saved_model.graph_nodes import add_constant, add_node
from policy_server.formats.saved_model.nodes import GraphNodes
from policy_server.formats.saved_model.runner import GraphRunner
from policy_server.formats.scaled_actions import without_rescaling
from policy_server.policy import SignatureTensor
from policy_server.schema import ServerSchema

__all__ = ["is_plain_network", "read_network"]

_SUBJECT = "saved_model.pb"
_NUMBERED = re.compile(r"output_\d+")
_ACTIVATIONS = ("Elu", "LeakyRelu", "Relu", "Relu6", "Selu", "Sigmoid", "Softplus", "Softsign")
_ENDINGS: Mapping[str, Ending] = {
    **dict.fromkeys(_ACTIVATIONS, "activation"),
    "ArgMax": "arg_max",
    "LogSoftmax": "log_softmax",
    "OneHot": "one_hot",
    "Softmax": "softmax",
    "Tanh": "tanh",
}
_FEWEST_COMPARED = 2
_KINDS_OF_ACTIONS = 2
_NUMBERS = ("bfloat", "bool", "float", "int", "uint")
_SHOWING = ("arg_max", "log_softmax", "one_hot", "softmax")


def is_plain_network(loaded: LoadedGraph, schema: ServerSchema | None) -> bool:
    """Return whether a file without actions is read by the end of its graph and its names.

    Of those that RLlib writes, with outputs such as `fc_out`, schema.yaml tells the meaning, and
    where it says `values`, the rule is the same for every network.

    Args:
        loaded: the frozen graph.
        schema: the contents of schema.yaml; None where there is none.
    """
    nodes = GraphNodes(loaded.graph_def)
    if any(_ending(nodes, loaded.fetches[item.name]) in _SHOWING for item in loaded.outputs):
        return True
    if all(map(is_value, loaded.outputs)):
        return False
    fields = (schema.actions if schema is not None else None) or ()
    if any(field.values is not None for field in fields):
        return True
    names = [item.name for item in loaded.outputs]
    if any(name in LOGITS_NAMES or name in RLLIB_OUTPUTS for name in names):
        return False
    if all(_NUMBERED.fullmatch(name) or name_tells(name) for name in names):
        return True
    # Networks made for RLlib alone give integer actions and continuous ones from one output.
    return len({field.choices is None for field in fields}) < _KINDS_OF_ACTIONS


def read_network(
    loaded: LoadedGraph, schema: ServerSchema | None, observations: NDArray[Any]
) -> tuple[LoadedGraph, Meaning, ServerSchema | None]:
    """Return the graph with the distribution's inputs as an output, their meaning, and the schema.

    In schema.yaml, bounds that a scaled tanh keeps already rescale nothing.

    Args:
        loaded: the frozen graph.
        schema: the contents of schema.yaml; None where there is none.
        observations: float[B, observation_width], that outputs are compared on.

    Raises:
        ModelError: if nothing tells the meaning, or the graph has inputs that nobody can fill in.
        SchemaError: if schema.yaml contradicts it.
    """
    check_inputs(loaded)
    if not RLLIB_OUTPUTS.isdisjoint(item.name for item in loaded.outputs):
        refuse_untrained(loaded)
    nodes = GraphNodes(loaded.graph_def)
    rows = _measured(loaded, observations)
    by_name: dict[str, SignatureTensor] = {}
    outputs = []
    for item in loaded.outputs:
        name = _told_name(nodes, item.name, loaded.fetches[item.name], taken=by_name)
        by_name[name] = item
        output = _network_output(nodes, name, item, loaded.fetches[item.name])
        others = [loaded.fetches[one.name] for one in loaded.outputs if one != item]
        is_inner = _is_before(nodes, loaded.fetches[item.name], others)
        outputs.append(replace(output, is_inner=is_inner, rows=rows.get(item.name)))
    meaning = read_meaning(outputs, schema, subject=_SUBJECT)
    graph = type(loaded.graph_def)()
    graph.CopyFrom(loaded.graph_def)
    parts = []
    for place, one in enumerate(meaning.read):
        item = by_name[one.output.name]
        tensor = _before(nodes, one, nodes.source(loaded.fetches[item.name]))
        parts.append(_formed(graph, one, tensor, item.dtype, place))
    fetches = {DISTRIBUTION_INPUTS: _joined(graph, parts)}
    kept = KeptBounds(loaded.graph_def, nodes)
    bounds = {
        name: found
        for name, item in by_name.items()
        if (found := kept.of(loaded.fetches[item.name])) is not None
    }
    loaded = replace(loaded, graph_def=graph, fetches=fetches)
    return loaded, meaning, without_rescaling(meaning, schema, bounds)


def _measured(loaded: LoadedGraph, observations: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
    """Return the outputs' numbers by their names, without those that a draw changes."""
    names = [item.name for item in loaded.outputs if _holds_rows(item)]
    if len(names) < _FEWEST_COMPARED:
        return {}
    row_dtype = np.float64 if observations.dtype == np.float64 else np.float32
    runner = GraphRunner(loaded, row_dtype=row_dtype)
    try:
        first, second = (runner.run(names, observations) for _ in range(2))
    except (tf.errors.OpError, TypeError, ValueError):
        # The graph that is served is tried once more, with words of its own.
        return {}
    return {
        name: values.reshape(len(values), -1)
        for name, values, again in zip(names, first, second, strict=True)
        if values.shape[:1] == (len(observations),)
        and np.array_equal(values, again, equal_nan=True)
    }


def _holds_rows(item: SignatureTensor) -> bool:
    """Return whether an output holds numbers, in a row for each observation."""
    return item.dtype.startswith(_NUMBERS) and item.shape != ()


def _is_before(nodes: GraphNodes, tensor: str, others: Sequence[str]) -> bool:
    """Return whether one of other tensors is computed from a tensor."""
    sought = nodes.node(nodes.source(tensor)).name
    waiting = [nodes.node(nodes.source(one)) for one in others]
    seen = {node.name for node in waiting} - {sought}
    while waiting:
        for name in nodes.inputs_of(waiting.pop()):
            node = nodes.node(name)
            if node.name == sought:
                return True
            if node.name not in seen:
                seen.add(node.name)
                waiting.append(node)
    return False


def _ending(nodes: GraphNodes, tensor: str) -> Ending | None:
    node = nodes.node(nodes.source(tensor))
    # Constants may scale a tanh, and clip it.
    return _ENDINGS.get(node.op) or ("tanh" if base_of(nodes, tensor).op == "Tanh" else None)


def _told_name(
    nodes: GraphNodes, name: str, tensor: str, *, taken: Mapping[str, SignatureTensor]
) -> str:
    """Return the name of the layer that gives a numbered output, where it tells something."""
    if not _NUMBERED.fullmatch(name):
        return name
    scopes = nodes.node(nodes.source(tensor)).name.split("/")[:-1]
    layer = _without_numbers(scopes[-1]) if scopes else ""
    return layer if name_tells(layer) and layer not in taken else name


def _without_numbers(scope: str) -> str:
    """Return the name of a layer's scope, which Keras numbers once more: `dense_1_2` is `dense`."""
    name, line, number = scope.rpartition("_")
    while line and number.isdecimal():
        scope = name
        name, line, number = scope.rpartition("_")
    return scope


def _network_output(
    nodes: GraphNodes, name: str, item: SignatureTensor, tensor: str
) -> NetworkOutput:
    shape = item.shape
    if shape is None or len(shape) > 2 or None in shape[1:]:
        raise ModelError(
            f"{_SUBJECT}: the output {item.name} has the shape {shape}; expected one row of fixed "
            "width for each observation"
        )
    is_integer = item.dtype.startswith(("int", "uint"))
    width = int(shape[1] or 0) if len(shape) == 2 else 1
    return NetworkOutput(name, width, is_integer, len(shape) == 2, _ending(nodes, tensor))


def _before(nodes: GraphNodes, one: ReadOutput, tensor: str) -> str:
    """Return the logits that a softmax is taken of, else the tensor itself."""
    node = nodes.node(tensor)
    is_softmax = node.op in ("Softmax", "LogSoftmax")
    if is_softmax and one.form in ("logits", "probabilities"):
        return nodes.inputs_of(node)[0]
    return tensor


def _formed(graph: Any, one: ReadOutput, tensor: str, dtype: str, place: int) -> str:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the tensor float32[N, width] of an output, as the distribution takes it."""
    name = f"policy_server/output_{place}"
    if one.form == "one_hot":
        raise ModelError(
            f"{_SUBJECT}: the output {one.output.name} is a one-hot vector; export the index or "
            "the logits that it is made of"
        )
    was_softmax = one.output.ending in ("softmax", "log_softmax")
    if one.form == "std" or (one.form == "probabilities" and not was_softmax):
        tensor = add_node(graph, f"{name}/log", "Log", [tensor], T=dtype)
    if dtype != "float32":
        tensor = add_node(graph, f"{name}/cast", "Cast", [tensor], SrcT=dtype, DstT="float32")
    if not one.output.is_vector:
        shape = add_constant(graph, f"{name}/shape", [-1, one.output.width])
        tensor = add_node(
            graph, f"{name}/column", "Reshape", [tensor, shape], T="float32", Tshape="int32"
        )
    return tensor


def _joined(graph: Any, parts: list[str]) -> str:  # noqa: ANN401 -- TensorFlow is untyped
    if len(parts) == 1:
        return parts[0]
    axis = add_constant(graph, "policy_server/axis", 1)
    return add_node(
        graph,
        f"policy_server/{DISTRIBUTION_INPUTS}",
        "ConcatV2",
        [*parts, axis],
        N=len(parts),
        T="float32",
        Tidx="int32",
    )
