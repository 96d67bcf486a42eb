"""Functions of an ONNX file, as torch's exporter writes them, put in the place of their calls.

ONNX's own inliner does that. Before, the file's functions are counted: some lines can ask for any
number of operations. What that inliner would drop or mistake, such as defaults, is settled too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from policy_server.errors import ModelError
from policy_server.formats.onnx.function_attributes import (
    FunctionKey,
    key_of_call,
    key_of_function,
    settle_attributes,
    with_inner,
)
from policy_server.formats.onnx.library_messages import reason_of
from policy_server.formats.onnx.operator_versions import is_same_operation

__all__ = ["OPERATOR_DOMAINS", "OPSETS", "STANDARD_DOMAINS", "without_functions"]

STANDARD_DOMAINS = ("", "ai.onnx")
"""The names of the domain of ONNX's own operators."""

OPSETS = range(7, 27)
"""The versions of ONNX's operators that are read."""

OPERATOR_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""The domains of the operations of ONNX and of onnxruntime."""

_MOST_NODES = 100_000
_MOST_BYTES = 1 << 30
_DEEPEST_CALL = 32


def without_functions(proto: Any, name: str) -> Any:  # noqa: ANN401 -- onnx is untyped
    """Return a model's message with the operations of its functions in the place of their calls.

    A function that is written for another version of ONNX's operators is computed by the model's,
    as runtimes do, where its operators are the same in both.

    Args:
        proto: the model's message, which is changed.
        name: the file's name, for messages.

    Raises:
        ModelError: if its functions call each other without end, make too much, are written for a
            version with other operators, or can't be put in the place of their calls.
    """
    if not proto.functions:
        return proto
    from onnx import inliner
    from onnx.checker import ValidationError

    _check_names(proto, name)
    _Counter(proto, name).check()
    settle_attributes(proto)
    _take_model_versions(proto, name)
    try:
        return inliner.inline_local_functions(proto)
    except (DecodeError, RuntimeError, ValidationError) as error:
        raise ModelError(
            f"{name}: its functions can't be put in the place of their calls: {reason_of(error)}; "
            "export it without functions"
        ) from error


def _take_model_versions(proto: Any, name: str) -> None:  # noqa: ANN401 -- onnx is untyped
    """Let functions be of the model's versions of operators, where these mean the same.

    Raises:
        ModelError: naming an operator that is another in the model's version.
    """
    imported = {_domain(item.domain): item.version for item in proto.opset_import}
    for function in proto.functions:
        written = {_domain(item.domain): item.version for item in function.opset_import}
        for domain, version in written.items():
            if domain not in imported:
                imported[domain] = version
                proto.opset_import.add(domain=domain, version=version)
        _check_versions(function, written, imported, name)
        for item in function.opset_import:
            item.version = imported[_domain(item.domain)]


def _domain(name: str) -> str:
    return "" if name in STANDARD_DOMAINS else name


def _check_versions(
    function: Any,  # noqa: ANN401 -- onnx is untyped
    written: Mapping[str, int],
    imported: Mapping[str, int],
    name: str,
) -> None:
    for node in with_inner(function.node):
        domain = _domain(node.domain)
        if domain not in written or written[domain] == imported[domain]:
            continue
        operators = f"{domain or 'ONNX'}'s operators"
        subject = (
            f"{name}: its function {function.domain}.{function.name} is written for version "
            f"{written[domain]} of {operators}"
        )
        if not domain and written[domain] not in OPSETS:
            raise ModelError(
                f"{subject}, expected {imported[domain]}, the model's, or one of {OPSETS.start} to "
                f"{OPSETS.stop - 1}; export both for one version"
            )
        if not is_same_operation(node, domain, written[domain], imported[domain]):
            raise ModelError(
                f"{subject}, in which {node.op_type} is another operation than in version "
                f"{imported[domain]}, the model's; export both for one version"
            )


def _check_names(proto: Any, name: str) -> None:  # noqa: ANN401 -- onnx is untyped
    """Refuse functions of which one runtime computes another than the next."""
    known: set[FunctionKey] = set()
    for item in proto.functions:
        if item.domain in OPERATOR_DOMAINS:
            raise ModelError(
                f"{name}: holds a function {item.name!r} of the domain {item.domain!r}, whose "
                "operations are ONNX's or onnxruntime's own; give it a domain of its own, or "
                "export it without functions"
            )
        key = key_of_function(item)
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
        self._functions = {key_of_function(item): item for item in proto.functions}
        self._sizes: dict[FunctionKey, tuple[int, int]] = {}

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
        for node in with_inner(nodes):
            key = key_of_call(node)
            function = self._functions.get(key)
            if function is None:
                continue
            if key not in self._sizes:
                within = self._size_of(function.node, depth + 1)
                own = sum(1 for _ in with_inner(function.node))
                self._sizes[key] = (within[0] + own, within[1] + function.ByteSize())
            made += self._sizes[key][0]
            size += self._sizes[key][1]
        return made, size
