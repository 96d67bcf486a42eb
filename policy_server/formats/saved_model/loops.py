"""The loops of a graph: how often each goes round must not hang on a client's numbers.

A call that runs for ever holds up the calls behind it. RLlib's own loops, over the steps of a
sequence, end by the shape of their inputs or by `seq_lens`, which the server fills in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from policy_server.errors import ModelError
from policy_server.formats.saved_model.freezing import node_of
from policy_server.formats.saved_model.nodes import SHAPE_OPS

__all__ = ["refuse_endless"]

# These read how long a list is, not its values.
_LENGTH_OPS = (*SHAPE_OPS, "TensorArraySizeV3", "TensorListLength", "TensorListElementShape")
# The condition of a loop in parts, and loops in one piece.
_LOOPS = ("LoopCond", "StatelessWhile", "While", "XlaWhile", "_While")
# A branch's constants hang on the switch of its condition through these.
_PIVOTS = ("Identity", "NoOp")


def refuse_endless(graph_def: Any, given: Collection[str]) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    """Refuse a loop whose end depends on the numbers of an observation or of a state.

    A function that could not be made part of the graph may be called with such numbers: all its
    arguments count as them.

    Args:
        graph_def: a frozen graph.
        given: the nodes that take those numbers.

    Raises:
        ModelError: naming the loop.
    """
    _check({node.name: node for node in graph_def.node}, given)
    for function in graph_def.library.function:
        arguments = [item.name for item in function.signature.input_arg]
        _check({node.name: node for node in function.node_def}, arguments)


def _check(nodes: Mapping[str, Any], given: Collection[str]) -> None:
    depending = _depending(nodes, given)
    for name, node in nodes.items():
        if node.op in _LOOPS and name in depending:
            raise ModelError(
                f"saved_model.pb: the loop '{name}' ends by the numbers that it is given, and may "
                "never; expected rounds by a constant or a shape; export the policy without it"
            )


def _depending(nodes: Mapping[str, Any], given: Collection[str]) -> set[str]:
    """Return the names of the nodes whose values depend on those of others."""
    readers: dict[str, list[str]] = {}
    for name, node in nodes.items():
        for source in {*_sources(nodes, node)}:
            readers.setdefault(source, []).append(name)
    found, waiting = set[str](), [*given]
    while waiting:
        name = waiting.pop()
        if name not in found and (name not in nodes or nodes[name].op not in _LENGTH_OPS):
            found.add(name)
            waiting += readers.get(name, ())
    return found


def _sources(nodes: Mapping[str, Any], node: Any) -> Iterator[str]:  # noqa: ANN401 -- TensorFlow is untyped
    for item in node.input:
        if not item.startswith("^"):
            yield node_of(item)
        elif (condition := _condition(nodes, node_of(item))) is not None:
            yield condition


def _condition(nodes: Mapping[str, Any], name: str) -> str | None:
    """Return the condition of the branch that a node marks; None where it marks none."""
    seen = set[str]()
    while name in nodes and name not in seen and nodes[name].op in _PIVOTS and nodes[name].input:
        seen.add(name)
        name = node_of(nodes[name].input[0])
    is_switch = name in nodes and nodes[name].op == "Switch"
    return node_of(nodes[name].input[1]) if is_switch else None
