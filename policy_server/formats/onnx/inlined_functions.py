"""Functions of an ONNX file, as torch's exporter writes them, put in the place of their calls.

ONNX's own inliner does that. Before, the file's functions are counted: some lines can ask for any
number of operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError

from policy_server.errors import ModelError
from policy_server.formats.onnx.library_messages import reason_of

__all__ = ["OPERATOR_DOMAINS", "without_functions"]

OPERATOR_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""The domains of the operations of ONNX and of onnxruntime."""

_MOST_NODES = 100_000
_MOST_BYTES = 1 << 30
_DEEPEST_CALL = 32
# The parts of a function's name: two of one name differ by the last part, their overload.
_Key = tuple[str, str, str]


def without_functions(proto: Any, name: str) -> Any:  # noqa: ANN401 -- onnx is untyped
    """Return a model's message with the operations of its functions in the place of their calls.

    A function that is written for another version of ONNX's operators is converted.

    Args:
        proto: the model's message.
        name: the file's name, for messages.

    Raises:
        ModelError: if its functions call each other without end, make too much, or can't be put in
            the place of their calls.
    """
    if not proto.functions:
        return proto
    from onnx import inliner
    from onnx.checker import ValidationError
    from onnx.version_converter import ConvertError

    _check_names(proto, name)
    _Counter(proto, name).check()
    try:
        inlined = inliner.inline_local_functions(proto, convert_version=True)
    except (ConvertError, DecodeError, RuntimeError, ValidationError) as error:
        raise ModelError(
            f"{name}: its functions can't be put in the place of their calls: {reason_of(error)}; "
            "export it without functions"
        ) from error
    if inlined.functions:
        left = inlined.functions[0]
        raise ModelError(
            f"{name}: its function {left.domain}.{left.name} is written for another version of "
            "ONNX's operators than the model, and can't be converted; export it without functions"
        )
    return inlined


def _check_names(proto: Any, name: str) -> None:  # noqa: ANN401 -- onnx is untyped
    """Refuse functions of which one runtime computes another than the next."""
    known: set[_Key] = set()
    for item in proto.functions:
        if item.domain in OPERATOR_DOMAINS:
            raise ModelError(
                f"{name}: holds a function {item.name!r} of the domain {item.domain!r}, whose "
                "operations are ONNX's or onnxruntime's own; give it a domain of its own, or "
                "export it without functions"
            )
        key = (item.domain, item.name, item.overload)
        if key in known:
            raise ModelError(
                f"{name}: holds two functions {item.domain}.{item.name} of one overload; export it "
                "again"
            )
        known.add(key)


class _Counter:
    def __init__(self, proto: Any, name: str) -> None:  # noqa: ANN401 -- onnx is untyped
        self._proto = proto
        self._name = name
        self._functions = {
            (item.domain, item.name, item.overload): item for item in proto.functions
        }
        self._sizes: dict[_Key, tuple[int, int]] = {}

    def check(self) -> None:
        """Refuse functions that make too much."""
        made, size = self._size_of(self._proto.graph.node, 0)
        if made > _MOST_NODES:
            raise ModelError(f"{self._name}: its functions make more than {_MOST_NODES} nodes")
        if size > _MOST_BYTES:
            raise ModelError(
                f"{self._name}: its functions make operations of more than {_MOST_BYTES} bytes; "
                "export it without functions"
            )

    def _size_of(self, nodes: Any, depth: int) -> tuple[int, int]:  # noqa: ANN401 -- onnx is untyped
        """Return how many operations the calls among nodes become, and how many bytes."""
        if depth > _DEEPEST_CALL:
            raise ModelError(f"{self._name}: its functions call each other without end")
        made = size = 0
        for node in _with_inner(nodes):
            key = (node.domain, node.op_type, node.overload)
            function = self._functions.get(key)
            if function is None:
                continue
            if key not in self._sizes:
                within = self._size_of(function.node, depth + 1)
                own = sum(1 for _ in _with_inner(function.node))
                self._sizes[key] = (within[0] + own, within[1] + function.ByteSize())
            made += self._sizes[key][0]
            size += self._sizes[key][1]
        return made, size


def _with_inner(nodes: Any) -> Iterator[Any]:  # noqa: ANN401 -- onnx is untyped
    """Yield nodes with those of their own graphs, such as the branches of an If."""
    for node in nodes:
        yield node
        for item in node.attribute:
            for graph in (item.g, *item.graphs):
                yield from _with_inner(graph.node)
