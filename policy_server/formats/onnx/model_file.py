"""Reading an .onnx file: its graph, its constants from the file and from beside it, its names.

Everything is plain afterwards. Functions of the file, as torch's exporter writes them, are put in
the place of their calls. Nothing outside of the model's own files is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.onnx.function_attributes import with_inner
from policy_server.formats.onnx.inlined_functions import (
    OPERATOR_DOMAINS,
    OPSETS,
    STANDARD_DOMAINS,
    without_functions,
)
from policy_server.formats.onnx.stored_tensors import StoredTensors
from policy_server.installation import require
from policy_server.policy import SignatureTensor

__all__ = ["Node", "OnnxModel", "model_name", "read_model"]

Array = NDArray[Any]

_MOST_NODES = 100_000
# AttributeProto's types, by the field that holds the value.
_FIELDS = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}


@dataclass(frozen=True)
class Node:
    """One operation of the graph.

    Attributes:
        operator: its name, such as `Gemm`.
        inputs: the tensors that it reads; an empty name for an optional input that is left out.
        outputs: the tensors that it writes; an empty name for one that is not wanted.
        attributes: its constant attributes; a tensor is an array.
        inner: the operations of its own graphs, such as the branches of an If, at any depth.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    inner: tuple[Node, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the tensors that it reads, those that its own graphs read among them."""
        within = (name for node in self.inner for name in node.inputs)
        return tuple(name for name in (*self.inputs, *within) if name)


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """The contents of an .onnx file.

    Attributes:
        name: the file's name, for messages.
        opset: the version of the standard operators.
        producer: the program that wrote it, with its version where that is told.
        metadata: its `metadata_props`.
        inputs: the graph's inputs that are no constants.
        outputs: the graph's outputs.
        nodes: the operations, each after those that it reads from.
        constants: the initializers by name.
        proto: the file's message, with all data in it, for a runtime.
        original: the message as it came, with its functions, and without its initializers; None for
            a file without functions.
    """

    name: str
    opset: int
    producer: str
    metadata: Mapping[str, str]
    inputs: tuple[SignatureTensor, ...]
    outputs: tuple[SignatureTensor, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    proto: Any
    original: Any = None

    def writers(self) -> dict[str, Node]:
        """Return the node that writes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs if name}


def model_name(files: Mapping[str, Path]) -> str:
    """Return the name of the only .onnx file of a model.

    Args:
        files: the model's files by their names below its folder.

    Raises:
        ModelError: if there are several.
    """
    names = [name for name in files if name.endswith(".onnx") and "/" not in name]
    if len(names) > 1:
        raise ModelError(
            f"{names[0]}: lies beside {', '.join(names[1:])}, expected one .onnx file; keep the "
            "actor's"
        )
    return names[0]


def read_model(files: Mapping[str, Path]) -> OnnxModel:
    """Read the .onnx file of a model.

    Args:
        files: the model's files by their names below its folder.

    Raises:
        ModelError: if the file is damaged, lacks its data, or holds operations that can't be read.
        MissingPackageError: if the package onnx is not installed.
    """
    name = model_name(files)
    require("onnx", use=f"{name}, an ONNX model")
    proto = _parse(files[name], name)
    original = _original(proto) if proto.functions else None
    model = _Reader(without_functions(proto, name), files, name).read()
    if original is None:
        return model
    _load_tensors(original, StoredTensors(files, name))
    return replace(model, original=original)


def _original(proto: Any) -> Any:  # noqa: ANN401 -- onnx is untyped
    """Return a copy of a message without its initializers, which no inlining changes."""
    kept = type(proto)(ir_version=proto.ir_version)
    kept.opset_import.extend(proto.opset_import)
    kept.functions.extend(proto.functions)
    kept.graph.name = proto.graph.name
    kept.graph.node.extend(proto.graph.node)
    kept.graph.input.extend(proto.graph.input)
    kept.graph.output.extend(proto.graph.output)
    return kept


def _load_tensors(proto: Any, stored: StoredTensors) -> None:  # noqa: ANN401 -- onnx is untyped
    """Put the numbers of nodes that lie beside the file into the message."""
    for nodes in (proto.graph.node, *(item.node for item in proto.functions)):
        for node in with_inner(nodes):
            for item in node.attribute:
                for tensor in (item.t, *item.tensors, *item.g.initializer):
                    stored.load(tensor)


def _parse(path: Path, name: str) -> Any:  # noqa: ANN401 -- onnx is untyped
    import onnx

    try:
        proto = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise ModelError(f"{name}: is no whole ONNX model; copy or export it again") from error
    if not proto.graph.output:
        raise ModelError(f"{name}: is no whole ONNX model: it has no output; export it again")
    return proto


class _Reader:
    def __init__(self, proto: Any, files: Mapping[str, Path], name: str) -> None:  # noqa: ANN401 -- onnx is untyped
        self._proto = proto
        self._stored = StoredTensors(files, name)
        self._name = name
        self._within = 0

    def read(self) -> OnnxModel:
        proto = self._proto
        opset = self._opset()
        if proto.graph.sparse_initializer:
            raise ModelError(f"{self._name}: holds sparse weights; export them dense")
        self._check_text(
            *(item.name for item in proto.graph.initializer),
            *(text for item in proto.metadata_props for text in (item.key, item.value)),
            *(proto.producer_name, proto.producer_version),
        )
        constants = {item.name: self._stored.array(item) for item in proto.graph.initializer}
        nodes = tuple(self._nodes(proto.graph.node))
        return OnnxModel(
            name=self._name,
            opset=opset,
            producer=f"{proto.producer_name} {proto.producer_version}".strip(),
            metadata={item.key: item.value for item in proto.metadata_props},
            inputs=tuple(self._tensors(proto.graph.input, constants)),
            outputs=tuple(self._tensors(proto.graph.output, {})),
            nodes=self._ordered(nodes, {*constants, *(item.name for item in proto.graph.input)}),
            constants=constants,
            proto=proto,
        )

    def _check_text(self, *names: object) -> None:
        """Refuse names that are no text: protobuf gives those as bytes."""
        if not all(isinstance(name, str) for name in names):
            raise ModelError(f"{self._name}: is damaged: a name in it is no text; export it again")

    def _opset(self) -> int:
        versions = [
            item.version for item in self._proto.opset_import if item.domain in STANDARD_DOMAINS
        ]
        opset = int(max(versions, default=0))
        if opset not in OPSETS:
            raise ModelError(
                f"{self._name}: needs version {opset} of ONNX's operators, expected "
                f"{OPSETS.start} to {OPSETS.stop - 1}; export it with opset_version=17"
            )
        return opset

    def _tensors(self, values: Any, constants: Mapping[str, Array]) -> Iterator[SignatureTensor]:  # noqa: ANN401 -- onnx is untyped
        import onnx

        for item in values:
            self._check_text(item.name)
            if item.name in constants:
                continue
            kind = item.type.tensor_type
            if item.type.WhichOneof("value") != "tensor_type":
                raise ModelError(
                    f"{self._name}: {item.name!r} is no tensor; export a network of tensors alone"
                )
            try:
                dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
            except (KeyError, ValueError) as error:
                raise ModelError(f"{self._name}: {item.name!r} has no known type") from error
            shape = None
            if kind.HasField("shape"):
                shape = tuple(
                    int(size.dim_value) if size.WhichOneof("value") == "dim_value" else None
                    for size in kind.shape.dim
                )
            yield SignatureTensor(item.name, dtype, shape)

    def _nodes(self, protos: Any) -> Iterator[Node]:  # noqa: ANN401 -- onnx is untyped
        for proto in protos:
            inner = tuple(self._inner(proto))
            yield self._node(proto, inner)

    def _node(self, proto: Any, inner: tuple[Node, ...] = ()) -> Node:  # noqa: ANN401 -- onnx is untyped
        self._check_text(*proto.input, *proto.output, proto.op_type, proto.domain)
        if proto.domain not in OPERATOR_DOMAINS:
            raise ModelError(
                f"{self._name}: holds the operation {proto.domain}.{proto.op_type}, which is not "
                "ONNX's own; export the network of standard operations alone"
            )
        attributes = self._attributes(proto)
        return Node(proto.op_type, tuple(proto.input), tuple(proto.output), attributes, inner)

    def _inner(self, proto: Any) -> Iterator[Node]:  # noqa: ANN401 -- onnx is untyped
        """Yield the operations of a node's own graphs; their constants are operations too."""
        for graph in (graph for item in proto.attribute for graph in (item.g, *item.graphs)):
            for kept in graph.initializer:
                yield Node("Constant", (), (kept.name,), {"value": self._stored.array(kept)})
            for inner in graph.node:
                self._within += 1
                if self._within > _MOST_NODES:
                    raise ModelError(
                        f"{self._name}: its branches hold more than {_MOST_NODES} operations"
                    )
                yield self._node(inner)
                yield from self._inner(inner)

    def _attributes(self, proto: Any) -> dict[str, Any]:  # noqa: ANN401 -- onnx is untyped
        found = {}
        for item in proto.attribute:
            self._check_text(item.name)
            if (value := self._value(item)) is not None:
                found[item.name] = value
        return found

    def _value(self, item: Any) -> Any:  # noqa: ANN401 -- onnx is untyped
        """Return an attribute's value; None for a graph, as a loop or branch has."""
        field = _FIELDS.get(item.type)
        if field is None:
            return None
        value = getattr(item, field)
        if field == "t":
            return self._stored.array(value)
        if field == "s":
            return value.decode(errors="replace")
        if field == "strings":
            return tuple(item.decode(errors="replace") for item in value)
        return value if field in ("f", "i") else tuple(value)

    def _ordered(self, nodes: Sequence[Node], known: set[str]) -> tuple[Node, ...]:
        """Return the nodes, after checking that each stands after those that it reads from."""
        if len(nodes) > _MOST_NODES:
            raise ModelError(f"{self._name}: holds {len(nodes)} operations, at most {_MOST_NODES}")
        known = {*known, ""}
        for node in nodes:
            missing = next((name for name in node.inputs if name not in known), None)
            if missing is not None:
                raise ModelError(
                    f"{self._name}: its {node.operator} reads {missing!r}, which nothing before it "
                    "gives; export it again"
                )
            known.update(node.outputs)
        return tuple(nodes)
