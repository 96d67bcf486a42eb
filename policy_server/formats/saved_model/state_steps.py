"""The memory of a recurrent graph: which output gives which input's numbers for the next step.

A signature lists the inputs and outputs of a state under the names of their tensors, in no order.
What belongs together is read from the graph: the output of a loop and the input that the loop
begins with; or the newest entry of a window, which the graph puts behind the earlier ones, as
attention does. Equal numbers (`state_in_0`, `state_out_0`) and the only tensors of one shape stand
in where the graph shows neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policy_server.formats.saved_model.graph_nodes import add_constant, add_node
from policy_server.formats.saved_model.nodes import SHAPE_OPS, GraphNodes
from policy_server.policy import SignatureTensor, StateRole, StateTensor

__all__ = ["PREVIOUS", "Memory", "describe_memory", "find_memory"]

PREVIOUS: Mapping[str, StateRole] = {
    "prev_action": "previous_action",
    "prev_reward": "previous_reward",
}
# These give a tensor's numbers in another shape.
_SHAPING_OPS = ("ExpandDims", "Reshape", "Squeeze")
# RLlib's names, and those of TF-Agents' PolicySaver.
_STATE_IN = re.compile(r"state_in_(\d+)|policy_state/(.+)")
_STATE_OUT = re.compile(r"state_out_(\d+)|^state/(.+)")
_PREFIX = "policy_server/state"


@dataclass(frozen=True)
class Memory:
    """The state that a graph takes and gives.

    Attributes:
        tensors: the tensors of the state, in the order of `PolicyInputs.state`.
        feeds: the graph's tensors that take them, in the same order.
        after: the graph's tensor with the state after a step, float32[B, memory_width]; None where
            there is no memory.
        problem: why the state of a recurrent graph can't be followed; empty where it can, and where
            there is none.
    """

    tensors: tuple[StateTensor, ...] = ()
    feeds: tuple[str, ...] = ()
    after: str | None = None
    problem: str = ""

    @property
    def width(self) -> int:
        """Return how many numbers the state of one episode has."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def columns(self) -> dict[str, slice]:
        """Return the columns of a state that each of the feeds takes."""
        found, first = {}, 0
        for feed, tensor in zip(self.feeds, self.tensors, strict=True):
            found[feed] = slice(first, first + tensor.size)
            first += tensor.size
        return found


def describe_memory(memory: Memory) -> list[str]:
    """Return a line for a recurrent policy, and none for others.

    Args:
        memory: the graph's.
    """
    if memory.problem:
        return [
            "recurrent: every answer starts from the zero state, since its state can't be "
            f"followed: {memory.problem}"
        ]
    if not memory.tensors:
        return []
    parts = ", ".join(f"{item.name} {item.shape or (1,)}" for item in memory.tensors)
    return [f"recurrent: it takes the state {parts}, which is zero when an episode begins"]


class _NotFollowedError(Exception):
    """The state can't be followed; the message says why."""


def find_memory(
    graph_def: Any,  # noqa: ANN401 -- TensorFlow is untyped
    *,
    states: Mapping[str, SignatureTensor],
    previous: Mapping[str, SignatureTensor],
    outputs: Mapping[str, SignatureTensor],
    results: Collection[str],
    filled: Collection[str],
) -> Memory:
    """Return the memory of a graph, after adding the state after a step to it.

    Args:
        graph_def: the flat graph, which is changed.
        states: the inputs that carry recurrent state, by the graph's tensors.
        previous: the inputs that take the previous action and reward, by the graph's tensors.
        outputs: the outputs that may give the state, by the graph's tensors.
        results: the graph's tensors of the policy's answers.
        filled: the graph's tensors that are fed in service.
    """
    nodes = GraphNodes(graph_def)
    try:
        pairs = _paired(nodes, states, outputs)
    except _NotFollowedError as error:
        return Memory(problem=str(error))
    read = _read_from(nodes, [*results, *(output for output, _ in pairs.values())])
    pairs |= {feed: (feed, False) for feed in previous if nodes.source(feed) in read}
    inputs = {**states, **previous}
    known = {nodes.source(tensor) for tensor in filled}
    unknown = [item for item in read - known if nodes.node(item).op == "Placeholder"]
    if unknown:
        return Memory(problem=f"it needs the input '{unknown[0]}', which its actions don't")
    if any(_sizes(inputs[feed]) is None for feed in pairs):
        return Memory(problem="the size of one of its inputs is open")
    if not pairs:
        return Memory()
    tensors = tuple(
        StateTensor(inputs[feed].name, _sizes(inputs[feed]) or (), _role(inputs[feed]))
        for feed in pairs
    )
    parts = [
        _next_part(graph_def, index, feed, inputs[feed], *pairs[feed])
        for index, feed in enumerate(pairs)
    ]
    after = parts[0] if len(parts) == 1 else _joined(graph_def, f"{_PREFIX}/after", parts)
    return Memory(tensors, tuple(pairs), after)


def _role(item: SignatureTensor) -> StateRole:
    return PREVIOUS.get(item.name, "state")


def _sizes(item: SignatureTensor) -> tuple[int, ...] | None:
    """Return an input's dimensions in one row; None where one is open."""
    if item.shape is None or item.shape[:1] != (None,):
        return None
    found = tuple(size for size in item.shape[1:] if size is not None)
    return found if len(found) == len(item.shape) - 1 else None


# An output, and whether it is the newest entry of a window.
_Next = tuple[str, bool]


def _paired(
    nodes: GraphNodes, states: Mapping[str, SignatureTensor], outputs: Mapping[str, SignatureTensor]
) -> dict[str, _Next]:
    """Return the output that gives each input's numbers for the next step.

    Raises:
        _NotFollowedError: saying which input has none, or which output has several.
    """
    pairs: dict[str, _Next] = {}
    for feed, item in states.items():
        fitting = {tensor: found for tensor in outputs if (found := _fits(item, outputs[tensor]))}
        chosen = _by_number(item, fitting, outputs) or _by_graph(nodes, feed, fitting)
        if len(chosen) == 1:
            pairs[feed] = (chosen[0], fitting[chosen[0]] == "window")
    _pair_the_rest(pairs, states, outputs)
    missing = [item.name for feed, item in states.items() if feed not in pairs]
    if missing:
        raise _NotFollowedError(f"no output shows to be '{missing[0]}' after a step")
    if len({output for output, _ in pairs.values()}) < len(pairs):
        raise _NotFollowedError("two of its inputs show the same output after a step")
    return pairs


def _fits(item: SignatureTensor, output: SignatureTensor) -> str | None:
    """Return whether an output can be an input's `whole` next value, or a `window`'s new entry."""
    mine, theirs = _sizes(item), _sizes(output)
    if mine is None or theirs is None or item.dtype != output.dtype:
        return None
    if mine == theirs:
        return "whole"
    return "window" if len(mine) > 1 and mine[1:] == theirs else None


def _by_number(
    item: SignatureTensor, fitting: Collection[str], outputs: Mapping[str, SignatureTensor]
) -> list[str]:
    number = _STATE_IN.search(item.name)
    if number is None:
        return []
    found = {tensor: _STATE_OUT.search(outputs[tensor].name) for tensor in fitting}
    return [
        tensor for tensor, match in found.items() if match and match.groups() == number.groups()
    ]


def _by_graph(nodes: GraphNodes, feed: str, fitting: Mapping[str, str]) -> list[str]:
    own = nodes.source(feed)
    joined = _joined_behind(nodes, own)
    return [
        tensor
        for tensor, kind in fitting.items()
        if (kind == "whole" and _first_of_loop(nodes, tensor) == own)
        or (kind == "window" and _unshaped(nodes, tensor) in joined)
    ]


def _first_of_loop(nodes: GraphNodes, tensor: str) -> str | None:
    """Return the tensor that a loop begins with, where another is the loop's result for it.

    Source: TensorFlow's control flow of version 1, where the result of a loop is an Exit, which
    takes a Merge of the first value (by an Enter) and that of the last turn.
    """
    leaving = nodes.node(_unshaped(nodes, tensor))
    if leaving.op != "Exit":
        return None
    merge = nodes.node(nodes.source(leaving.input[0]))
    enter = nodes.node(nodes.source(merge.input[0])) if merge.op == "Merge" else None
    return _unshaped(nodes, enter.input[0]) if enter is not None and enter.op == "Enter" else None


def _joined_behind(nodes: GraphNodes, tensor: str) -> set[str]:
    """Return the tensors that the graph puts behind a tensor, one after another."""
    return {
        _unshaped(nodes, node.input[1])
        for node in nodes.consumers_of(tensor)
        if node.op == "ConcatV2" and len(node.input) == 3 and nodes.source(node.input[0]) == tensor
    }


def _unshaped(nodes: GraphNodes, tensor: str) -> str:
    """Return the tensor whose numbers another holds in another shape."""
    current = nodes.source(tensor)
    while nodes.node(current).op in _SHAPING_OPS:
        current = nodes.source(nodes.node(current).input[0])
    return current


def _pair_the_rest(
    pairs: dict[str, _Next],
    states: Mapping[str, SignatureTensor],
    outputs: Mapping[str, SignatureTensor],
) -> None:
    """Pair an input and an output that fit each other and none of the others that are left."""
    taken = {output for output, _ in pairs.values()}
    left = {
        feed: [tensor for tensor in outputs if tensor not in taken and _fits(item, outputs[tensor])]
        for feed, item in states.items()
        if feed not in pairs
    }
    for feed, found in left.items():
        rivals = [other for other, theirs in left.items() if other != feed and {*theirs} & {*found}]
        if len(found) == 1 and not rivals:
            pairs[feed] = (found[0], _fits(states[feed], outputs[found[0]]) == "window")


def _read_from(nodes: GraphNodes, tensors: Sequence[str]) -> set[str]:
    """Return the tensors whose values, not only shapes, go into others."""
    waiting = [nodes.source(tensor) for tensor in tensors]
    found = set(waiting)
    while waiting:
        node = nodes.node(waiting.pop())
        following = set() if node.op in SHAPE_OPS else {*nodes.inputs_of(node)} - found
        found |= following
        waiting += following
    return found


def _next_part(
    graph: Any,  # noqa: ANN401 -- TensorFlow is untyped
    index: int,
    feed: str,
    item: SignatureTensor,
    output: str,
    is_window: bool,  # noqa: FBT001 -- a pair as `_paired` gives it
) -> str:
    """Add an input's numbers after a step as rows, and return their tensor."""
    sizes = _sizes(item) or ()
    name = f"{_PREFIX}/{index}"
    width = math.prod(sizes)
    entry = width // sizes[0] if is_window else width
    new = _as_rows(graph, f"{name}/new", output, entry, item.dtype)
    if not is_window:
        return new
    old = _as_rows(graph, f"{name}/old", feed, width, item.dtype)
    begin = add_constant(graph, f"{name}/begin", [0, entry])
    rest = add_constant(graph, f"{name}/rest", [-1, -1])
    kept = add_node(graph, f"{name}/kept", "Slice", [old, begin, rest], T="float32", Index="int32")
    return _joined(graph, f"{name}/window", [kept, new])


def _joined(graph: Any, name: str, parts: Sequence[str]) -> str:  # noqa: ANN401 -- TensorFlow is untyped
    axis = add_constant(graph, f"{name}/axis", 1)
    types = {"T": "float32", "Tidx": "int32"}
    return add_node(graph, name, "ConcatV2", [*parts, axis], N=len(parts), **types)


def _as_rows(graph: Any, name: str, tensor: str, width: int, dtype: str) -> str:  # noqa: ANN401 -- TensorFlow is untyped
    if dtype != "float32":
        tensor = add_node(graph, f"{name}/cast", "Cast", [tensor], SrcT=dtype, DstT="float32")
    shape = add_constant(graph, f"{name}/shape", [-1, width])
    return add_node(graph, f"{name}/rows", "Reshape", [tensor, shape], T="float32", Tshape="int32")
