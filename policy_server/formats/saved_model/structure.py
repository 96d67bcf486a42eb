"""The structure of a graph: the tensor of the distribution's inputs, and the policy's family.

An export lists the distribution's inputs among its outputs, or leaves them out (A2C and PG of Ray
0.7): then they are the tensor that all draws are made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.saved_model.action_values import NotRecognizedError
from policy_server.formats.saved_model.families import Exploration, RecognizedFamily, recognize
from policy_server.formats.saved_model.graph import (
    ACTIONS,
    DISTRIBUTION_INPUTS,
    Q_VALUES,
    LoadedGraph,
)
from policy_server.formats.saved_model.nodes import (
    CALLS,
    PASSING_OPS,
    SHAPE_OPS,
    GraphNodes,
    is_stateful,
)
from policy_server.formats.saved_model.runner import GraphRunner
from policy_server.formats.saved_model.sampler import SamplerReader
from policy_server.formats.saved_model.symbolic_operations import RANDOM_OPS, NotReadError
from policy_server.policy import ActionOutput

__all__ = ["PolicyStructure", "find_distribution_inputs", "read_structure"]

# Steps between the distribution's inputs and a draw. Of a choice or a selection only the first
# input, or those behind the condition, are followed.
_SAMPLING_OPS = frozenset(
    {
        "ArgMax",
        "Cast",
        "Exp",
        "ExpandDims",
        "Merge",
        "Multinomial",
        "Pack",
        "Reshape",
        "Select",
        "SelectV2",
        "Split",
        "SplitV",
        "Squeeze",
        "StridedSlice",
        "Tanh",
        "Transpose",
        "Unpack",
    }
)
_SCALING_OPS = frozenset({"Add", "AddV2", "Div", "Maximum", "Minimum", "Mul", "RealDiv", "Sub"})
_FEWEST_ROWS = 2


@dataclass(frozen=True)
class PolicyStructure:
    """A graph's structure.

    Attributes:
        root: the tensor of the distribution's inputs.
        is_output: it is the output `action_dist_inputs`.
        outputs: the actions by their formulas; None where these can't be read.
        family: the distribution that the actions are drawn from; None where it is not known.
        problem: why it is not known; None where it is.
        is_tuple_of_one: the distribution's inputs are split as a tuple's are, into one component.
        noise: the operation that makes the distribution's inputs noisy; None where nothing does.
        row_mixing: an operation above the distribution's inputs that lets one observation change
            the answer to another, or a branch that depends on them; None where none was seen.
    """

    root: str
    is_output: bool
    outputs: tuple[ActionOutput, ...] | None
    family: RecognizedFamily | None
    problem: str | None
    is_tuple_of_one: bool
    noise: str | None
    row_mixing: str | None


def find_distribution_inputs(loaded: LoadedGraph, runner: GraphRunner) -> list[str]:
    """Return the tensors that can be the distribution's inputs, the likeliest first.

    Args:
        loaded: the frozen graph.
        runner: computes the tensors that are constant in service.

    Returns:
        The output of that name, or the tensor that all actions are drawn from; then the only
        action with exploration off, which is the policy where noise is added to it. Empty where
        there is none of them.
    """
    nodes = GraphNodes(loaded.graph_def)
    rows = np.zeros((_FEWEST_ROWS, 1))
    readers = [
        SamplerReader(loaded, runner, root=None, width=0, rows=rows, is_exploring=is_exploring)
        for is_exploring in (True, False)
    ]
    actions = [loaded.fetches[name] for name in _action_names(loaded)]
    found = [name for name in (DISTRIBUTION_INPUTS, Q_VALUES) if name in loaded.fetches][:1]
    roots = [nodes.source(loaded.fetches[name]) for name in found]
    if not roots:
        drawn_from = {root for action in actions for root in _roots(nodes, readers[0], action)}
        roots = [*drawn_from] if len(drawn_from) == 1 else []
    taken = _taken(nodes, readers[1], actions[0]) if len(actions) == 1 else None
    return [*roots, *([taken] if taken is not None and taken not in roots else [])]


def _action_names(loaded: LoadedGraph) -> list[str]:
    return [name for name in loaded.fetches if name.startswith(ACTIONS)]


def _roots(nodes: GraphNodes, reader: SamplerReader, action: str) -> set[str]:
    """Return the tensors that an action's draws are made from; empty where it is not drawn."""
    found: set[str] = set()
    is_drawn = False
    waiting, seen = [action], {action}
    while waiting:
        tensor = waiting.pop()
        node = nodes.node(tensor)
        following: Iterable[str] = ()
        if node.op in RANDOM_OPS:
            is_drawn = True
            following = reader.live_inputs(tensor)[:1] if node.op == "Multinomial" else ()
        elif node.op in PASSING_OPS or node.op in _SAMPLING_OPS:
            following = _data_inputs(nodes, reader, tensor)
        elif node.op in _SCALING_OPS and _is_of_the_sampler(nodes, reader, tensor):
            following = [item for item in reader.live_inputs(tensor) if not reader.is_plain(item)]
        elif node.op not in SHAPE_OPS and not reader.is_plain(tensor):
            found.add(nodes.source(tensor))
        waiting += [item for item in following if item not in seen]
        seen.update(following)
    return found if is_drawn else set()


def _data_inputs(nodes: GraphNodes, reader: SamplerReader, tensor: str) -> list[str]:
    """Return the inputs of a step that hold values, not shapes, axes or conditions."""
    node, inputs = nodes.node(tensor), reader.live_inputs(tensor)
    if node.op in ("Merge", "Pack"):
        return inputs
    if node.op in ("Select", "SelectV2"):
        return inputs[1:]
    return inputs[1:2] if node.op == "Split" else inputs[:1]


def _is_of_the_sampler(nodes: GraphNodes, reader: SamplerReader, tensor: str) -> bool:
    """Return whether a step belongs to the sampler, as mean + noise, not to a layer, as a bias."""
    inputs = reader.live_inputs(tensor)
    constants = [item for item in inputs if reader.is_plain(item)]
    if constants:
        is_bias = nodes.node(tensor).op in ("Add", "AddV2", "Sub")
        sources = [nodes.node(nodes.source(item)).op for item in inputs]
        return not is_bias or not {"MatMul", "Conv2D"} & set(sources)
    return any(_is_random(nodes, reader, item) for item in inputs)


def _is_random(nodes: GraphNodes, reader: SamplerReader, tensor: str) -> bool:
    waiting, seen = [tensor], {tensor}
    while waiting:
        current = waiting.pop()
        if nodes.node(current).op in RANDOM_OPS:
            return True
        following = [item for item in reader.live_inputs(current) if item not in seen]
        waiting += following
        seen.update(following)
    return False


def _taken(nodes: GraphNodes, reader: SamplerReader, tensor: str) -> str | None:
    """Return the tensor behind branches and nodes that only pass it on; None where it is random."""
    while nodes.node(tensor).op in (*PASSING_OPS, "Merge"):
        inputs = reader.live_inputs(tensor)
        if nodes.node(tensor).op == "Merge" and len(inputs) != 1:
            return None
        tensor = inputs[0]
    return None if _is_random(nodes, reader, tensor) else nodes.source(tensor)


def read_structure(
    loaded: LoadedGraph,
    runner: GraphRunner,
    root: str,
    rows: NDArray[Any],
    width: int,
    *,
    is_certain: bool,
) -> PolicyStructure:
    """Read a graph's structure.

    Args:
        loaded: the frozen graph.
        runner: computes the tensors that are constant in service.
        root: the tensor of the distribution's inputs.
        is_output: it is the output `action_dist_inputs`.
        rows: float[B, observation_width], observations that the policy answers.
        width: how many numbers a row of the distribution's inputs has.
        is_certain: the graph gives no log-probability of its actions, or always 0.
    """
    settings = [True] if loaded.exploring is None else [True, False]
    readers = [
        SamplerReader(loaded, runner, root=root, width=width, rows=rows, is_exploring=is_exploring)
        for is_exploring in settings
    ]
    nodes = GraphNodes(loaded.graph_def)
    noise, mixing = _looked_above(nodes, readers[0], root)
    outputs = family = problem = None
    try:
        drawn, *sure = [_actions(loaded, reader) for reader in readers]
        outputs = tuple(
            ActionOutput(name, dtype.startswith(("int", "uint", "bool")), columns, is_vector)
            for name, dtype, columns, is_vector in _layout(loaded, drawn)
        )
        family = recognize(
            outputs,
            _by_row(drawn),
            _by_row(sure[0]) if sure else None,
            _exploration(loaded, nodes, root, is_certain=is_certain),
        )
    except (NotReadError, NotRecognizedError) as error:
        problem = str(error)
    except RecursionError:
        problem = "its actions are computed in too many steps"
    if loaded.changed_variables:
        family, problem = None, f"it changes {loaded.changed_variables[0]} each time it answers"
    listed = loaded.fetches.get(DISTRIBUTION_INPUTS)
    return PolicyStructure(
        root,
        listed is not None and nodes.source(listed) == root,
        outputs,
        family,
        problem,
        _is_split_into_one(nodes, root, width),
        noise,
        mixing,
    )


def _actions(loaded: LoadedGraph, reader: SamplerReader) -> list[NDArray[Any]]:
    return [reader.formulas(loaded.fetches[name]) for name in _action_names(loaded)]


def _layout(loaded: LoadedGraph, drawn: Sequence[NDArray[Any]]) -> list[tuple[str, str, int, bool]]:
    dtypes = {item.name: item.dtype for item in loaded.outputs}
    layout = []
    for name, values in zip(_action_names(loaded), drawn, strict=True):
        if values.ndim == 0:
            raise NotRecognizedError("an action is one number for the whole batch")
        columns = int(np.prod(values.shape[1:], dtype=np.int64))
        layout.append((name, dtypes[name], columns, values.ndim > 1))
    return layout


def _by_row(values: Sequence[NDArray[Any]]) -> list[list[Any]]:
    """Return each observation's formulas, over all its actions."""
    if len({len(item) for item in values}) != 1:
        raise NotRecognizedError("an action has another number of rows than the batch")
    return [
        [formula for item in values for formula in np.ravel(item[row])]
        for row in range(len(values[0]))
    ]


def _exploration(
    loaded: LoadedGraph, nodes: GraphNodes, root: str, *, is_certain: bool
) -> Exploration:
    q_values = loaded.fetches.get(Q_VALUES)
    return Exploration(
        has_schedule=bool(loaded.exploration_state),
        has_free_epsilon=loaded.has_callback
        or any(name.startswith(("eps", "cur_eps")) for name in loaded.exploration_state),
        is_over_q_values=q_values is not None and nodes.source(q_values) == root,
        is_log_probability_zero=is_certain,
    )


def _looked_above(
    nodes: GraphNodes, reader: SamplerReader, root: str
) -> tuple[str | None, str | None]:
    """Return the noise and the mixing of observations above the distribution's inputs, if any."""
    noise = mixing = None
    waiting, seen = [root], {root}
    while waiting:
        tensor = waiting.pop()
        node = nodes.node(tensor)
        if is_stateful(node) and node.op not in CALLS and not _is_loop_array(node):
            noise = noise or node.op
        inputs = reader.live_inputs(tensor)
        if node.op in CALLS:
            mixing = mixing or f"{node.op}, a function that can't be looked into"
        if node.op == "Merge" and len(inputs) > 1 and not reader.is_loop(tensor):
            mixing = mixing or "a branch (cond) that the observations of a batch decide together"
        waiting += [item for item in inputs if item not in seen]
        seen.update(inputs)
    return noise, mixing


def _is_loop_array(node: Any) -> bool:  # noqa: ANN401 -- TensorFlow is untyped
    """Return whether a node belongs to the arrays that a loop reads and writes."""
    return str(node.op).startswith(("TensorArray", "Stack"))


def _is_split_into_one(nodes: GraphNodes, root: str, width: int) -> bool:
    """Return whether the inputs are split by a list of one size.

    Source: RLlib `MultiActionDistribution`, which splits by the list of its components' sizes.
    """
    return any(
        (sizes := nodes.constant(node.input[1])) is not None and sizes.tolist() == [width]
        for node in nodes.consumers_of(root)
        if node.op == "SplitV"
    )
