"""Attributes that calls of an ONNX file's functions leave out, settled before ONNX inlines them.

Its inliner puts the attributes of a call in the place of those that the function's nodes refer to.
One that the call leaves out it drops, and the function's default with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["FunctionKey", "key_of_call", "key_of_function", "settle_attributes", "with_inner"]

FunctionKey = tuple[str, str, str]
"""The parts of a function's name: two of one name differ by the last part, their overload."""


def settle_attributes(proto: Any) -> None:  # noqa: ANN401 -- onnx is untyped
    """Give each function that is called the defaults of what its calls leave out.

    Calls that leave out other attributes than each other become calls of copies, told by their
    overloads. Functions that nothing calls are left out.

    Example:
        Of `f(x)` and `f(x, slope=0.9)`, for a function `f` with the default 0.4 for `slope`, the
        first becomes a call of a copy whose nodes have the 0.4 themselves.

    Args:
        proto: the model's message, which is changed; its functions must not call each other without
            end.
    """
    _Settling(proto).settle()


def key_of_call(node: Any) -> FunctionKey:  # noqa: ANN401 -- onnx is untyped
    """Return the name of the function that a node calls, if it is one's.

    Args:
        node: the node's message.
    """
    return node.domain, node.op_type, node.overload


def key_of_function(function: Any) -> FunctionKey:  # noqa: ANN401 -- onnx is untyped
    """Return a function's name.

    Args:
        function: the function's message.
    """
    return function.domain, function.name, function.overload


def with_inner(nodes: Any) -> Iterator[Any]:  # noqa: ANN401 -- onnx is untyped
    """Yield nodes with those of their own graphs, such as the branches of an If.

    Args:
        nodes: the nodes' messages.
    """
    for node in nodes:
        yield node
        for item in node.attribute:
            for graph in (item.g, *item.graphs):
                yield from with_inner(graph.node)


class _Settling:
    def __init__(self, proto: Any) -> None:  # noqa: ANN401 -- onnx is untyped
        self._proto = proto
        self._functions = {key_of_function(item): item for item in proto.functions}
        self._referred = {
            key: frozenset(
                item.ref_attr_name
                for node in with_inner(function.node)
                for item in node.attribute
                if item.ref_attr_name
            )
            for key, function in self._functions.items()
        }
        self._made: dict[tuple[FunctionKey, frozenset[str]], Any] = {}

    def settle(self) -> None:
        for node in with_inner(self._proto.graph.node):
            self._settle_call(node)
        del self._proto.functions[:]
        self._proto.functions.extend(self._made.values())

    def _settle_call(self, node: Any) -> None:  # noqa: ANN401 -- onnx is untyped
        key = key_of_call(node)
        if key in self._functions:
            left_out = self._referred[key] - {item.name for item in node.attribute}
            node.overload = self._copy_of(key, left_out).overload

    def _copy_of(self, key: FunctionKey, left_out: frozenset[str]) -> Any:  # noqa: ANN401 -- onnx is untyped
        """Return a function for calls that leave some attributes out."""
        if (key, left_out) in self._made:
            return self._made[key, left_out]
        copy = type(self._functions[key])()
        copy.CopyFrom(self._functions[key])
        copy.overload = str(len(self._made))
        self._made[key, left_out] = copy
        defaults = {item.name: item for item in copy.attribute_proto}
        for node in with_inner(copy.node):
            _fill_in(node, left_out, defaults)
            self._settle_call(node)
        return copy


def _fill_in(node: Any, left_out: frozenset[str], defaults: Mapping[str, Any]) -> None:  # noqa: ANN401 -- onnx is untyped
    """Put defaults in the place of what a node refers to; without one, it leaves it out too."""
    for place in reversed(range(len(node.attribute))):
        item = node.attribute[place]
        if item.ref_attr_name not in left_out:
            continue
        if (default := defaults.get(item.ref_attr_name)) is None:
            del node.attribute[place]
            continue
        name = item.name
        item.CopyFrom(default)
        item.name = name
