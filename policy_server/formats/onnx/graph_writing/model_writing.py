"""From a compiled policy to the bytes of an .onnx file that describes itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server import __version__
from policy_server.engine.network import CompiledPolicy
from policy_server.formats.onnx.graph_writing.graph_writer import GraphWriter, onnx_type
from policy_server.formats.onnx.graph_writing.network_nodes import write_network
from policy_server.formats.onnx.policy_metadata import POLICY_KEY, VECTORS_KEY, policy_document
from policy_server.formats.onnx.policy_vectors import PolicyVectors, vectors_text
from policy_server.policy import ActionComponent, PolicySignature

__all__ = ["model_bytes"]

Array = NDArray[Any]

# Softmax along one axis, and axes as inputs, came with version 13; later ones add nothing needed.
_OPSET = 13
_IR_VERSION = 8
_OBSERVATION = "observation"
_DISTRIBUTION = "distribution"
_BATCH = "N"


def model_bytes(compiled: CompiledPolicy, vectors: PolicyVectors) -> bytes:
    """Return the contents of an .onnx file that computes a policy and says all about it.

    Args:
        compiled: the policy as NumPy computes it.
        vectors: observations with its answers, at least three.

    Raises:
        ExportError: naming an operation that has no exact form in ONNX.
    """
    import onnx

    signature, network = compiled.signature, compiled.network
    writer = GraphWriter()
    width = signature.observation_width
    assert width is not None, "only a policy of a known width is compiled"
    batch = 1 if network.is_row_by_row else _BATCH
    row_type = onnx_type(signature.row_dtype)
    pairs = [(f"state_{i}_in", f"state_{i}_out") for i in range(len(signature.memory))]
    inputs = [
        _tensor(_OBSERVATION, row_type, [batch, width]),
        *(
            _tensor(before, onnx_type(np.float32), [batch, *tensor.shape])
            for tensor, (before, _) in zip(signature.memory, pairs, strict=True)
        ),
    ]
    result = write_network(
        writer, network, _rows(vectors), observations=_joined(writer, signature, pairs)
    )
    assert vectors.outputs.distribution is not None, "the distribution was asked for"
    numbers = vectors.outputs.distribution.shape[1]
    after = _states_after(writer, signature, pairs, result, numbers)
    found = writer.slice(result, [1], [0], [numbers]) if signature.memory else result
    # Clients know the mask by its name, and so may a schema.yaml.
    mask = signature.mask_name
    if mask is not None:
        choices = sum(signature.mask_sizes)
        inputs.append(_tensor(mask, onnx_type(np.float32), [batch, choices]))
        found = _masked(writer, mask, signature.components or (), found, numbers)
    writer.add("Identity", found, output=_DISTRIBUTION)
    writer.prune([_DISTRIBUTION, *after])
    outputs = [
        _tensor(_DISTRIBUTION, onnx_type(np.float32), [batch, numbers]),
        *(
            _tensor(name, onnx_type(np.float32), [batch, *tensor.shape])
            for tensor, name in zip(signature.memory, after, strict=True)
        ),
    ]
    graph = onnx.helper.make_graph(
        writer.nodes,
        "policy",
        inputs,
        outputs,
        [onnx.numpy_helper.from_array(value, name) for name, value in writer.constants.items()],
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="policy-server",
        producer_version=__version__,
    )
    document = policy_document(
        signature,
        inputs=[_OBSERVATION],
        output=_DISTRIBUTION,
        memory=pairs,
        mask=mask,
    )
    metadata = {POLICY_KEY: document, VECTORS_KEY: vectors_text(vectors)}
    onnx.helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString(deterministic=True))


def _tensor(name: str, kind: int, shape: Sequence[int | str]) -> Any:  # noqa: ANN401 -- onnx is untyped
    import onnx

    return onnx.helper.make_tensor_value_info(name, kind, list(shape))


def _rows(vectors: PolicyVectors) -> Array:
    """Return the network's rows of some observations: each is followed by its state."""
    observations, state = vectors.inputs.observations, vectors.inputs.state
    return observations if state is None else np.concatenate([observations, state], axis=1)


def _joined(
    writer: GraphWriter, signature: PolicySignature, pairs: Sequence[tuple[str, str]]
) -> str:
    """Return the name of the network's rows: observations, each followed by its state."""
    if not signature.memory:
        return _OBSERVATION
    states = []
    for tensor, (before, _) in zip(signature.memory, pairs, strict=True):
        name = before if len(tensor.shape) == 1 else writer.reshape(before, [-1, tensor.size])
        is_double = signature.row_dtype is np.float64
        states.append(writer.cast_name(name, np.float64) if is_double else name)
    return writer.add("Concat", _OBSERVATION, *states, axis=1)


def _states_after(
    writer: GraphWriter,
    signature: PolicySignature,
    pairs: Sequence[tuple[str, str]],
    result: str,
    first: int,
) -> list[str]:
    names = []
    for tensor, (_, after) in zip(signature.memory, pairs, strict=True):
        part = writer.slice(result, [1], [first], [first + tensor.size])
        shape = writer.integers([-1, *tensor.shape])
        names.append(writer.add("Reshape", part, shape, output=after))
        first += tensor.size
    return names


def _masked(
    writer: GraphWriter,
    name: str,
    components: Sequence[ActionComponent],
    result: str,
    numbers: int,
) -> str:
    """Return the distribution's inputs with minus infinity for what the mask forbids."""
    mask = writer.cast_name(name, np.bool_)
    lowest = writer.keep(np.array(-math.inf, np.float32))
    pieces, column, choice = [], 0, 0
    for part in components:
        if part.kind != "categorical":
            continue
        if part.first_input > column:
            pieces.append(writer.slice(result, [1], [column], [part.first_input]))
        column = part.first_input + part.size
        allowed = writer.slice(mask, [1], [choice], [choice + part.size])
        choice += part.size
        values = writer.slice(result, [1], [part.first_input], [column])
        pieces.append(writer.add("Where", allowed, values, lowest))
    if column < numbers:
        pieces.append(writer.slice(result, [1], [column], [numbers]))
    return writer.add("Concat", *pieces, axis=1)
