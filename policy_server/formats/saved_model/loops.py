"""The loops of a graph: how often each goes round must not hang on a client's numbers.

A call that runs for ever holds up the calls behind it. RLlib's own loops, over the steps of a
sequence, end by the shape of their inputs or by `seq_lens`, which the server fills in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

from policy_server.errors import ModelError
from policy_server.formats.saved_model.freezing import node_of
from policy_server.formats.saved_model.nodes import SHAPE_OPS

__all__ = ["refuse_endless"]

# These read how long a list is, not its values.
_LENGTH_OPS = (*SHAPE_OPS, "TensorArraySizeV3", "TensorListLength", "TensorListElementShape")
_WHOLE_LOOPS = ("StatelessWhile", "While", "XlaWhile", "_While")
# A branch's constants hang on the switch of its condition through these.
_PIVOTS = ("Identity", "NoOp")


def refuse_endless(graph_def: Any, given: Collection[str]) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    """Refuse a loop whose end depends on the numbers of an observation or of a state.

    Args:
        graph_def: a frozen graph.
        given: the nodes that take those numbers.

    Raises:
        ModelError: naming the loop.
    """
    nodes = {node.name: node for node in graph_def.node}
    depending = _depending(nodes, given)
    in_functions = chain.from_iterable(one.node_def for one in graph_def.library.function)
    ends = chain(
        (node for node in nodes.values() if node.op in ("LoopCond", *_WHOLE_LOOPS)),
        (node for node in in_functions if node.op in _WHOLE_LOOPS),
    )
    for node in ends:
        if node.name in depending or node.name not in nodes:
            raise ModelError(
                f"saved_model.pb: the loop '{node.name}' ends by the numbers that it is given, and "
                "may never; expected rounds by a constant or a shape; export the policy without it"
            )


def _depending(nodes: Mapping[str, Any], given: Collection[str]) -> set[str]:
    """Return the names of the nodes whose values depend on those of others."""
    readers: dict[str, list[str]] = {}
    for name, node in nodes.items():
        for source in {*_sources(nodes, node)}:
            readers.setdefault(source, []).append(name)
    found, waiting = set[str](), [name for name in given if name in nodes]
    while waiting:
        name = waiting.pop()
        if name not in found and nodes[name].op not in _LENGTH_OPS:
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
