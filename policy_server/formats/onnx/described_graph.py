"""A graph whose file describes its policy: the description held against the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from policy_server.errors import ModelError
from policy_server.formats.onnx.action_outputs import Actions
from policy_server.formats.onnx.measured import Measured
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.formats.onnx.plan import Piece
from policy_server.formats.onnx.policy_metadata import POLICY_KEY, PolicyDocument
from policy_server.formats.onnx.roles import Roles, find_roles
from policy_server.policy import PolicySignature, StateTensor

__all__ = ["described_actions", "described_roles", "described_signature"]


def described_roles(model: OnnxModel, document: PolicyDocument) -> Roles:
    """Return the parts of the graph's inputs and outputs, as its file describes them.

    Args:
        model: the graph.
        document: the description.

    Raises:
        ModelError: if the graph has other inputs or outputs, or an input can't be filled.
    """
    flow = {item.input: item.output for item in document.memory}
    masks = () if document.mask is None else (document.mask,)
    observed = document.observation.inputs
    roles = find_roles(model, None, flow=flow, masks=masks, observed=observed)
    found = {
        "observation.inputs": [item.name for item in roles.observations],
        "memory": [item.name for item in roles.memory],
        "mask": None if roles.mask is None else roles.mask.name,
    }
    stated = {
        "observation.inputs": list(document.observation.inputs),
        "memory": list(flow),
        "mask": document.mask,
    }
    for key, value in stated.items():
        if value != found[key]:
            raise ModelError(
                f"{model.name}: {POLICY_KEY}: {key} is {value}, the graph has {found[key]}; mend "
                "it as docs/onnx.md has it"
            )
    return roles


def described_actions(
    model: OnnxModel,
    document: PolicyDocument,
    measure: Callable[[Sequence[str]], Mapping[str, Measured]],
) -> Actions:
    """Return the action distribution that a graph's file describes.

    Args:
        model: the graph.
        document: the description.
        measure: runs the graph, and tells the sizes of tensors.

    Raises:
        ModelError: if the graph has no such output, or a narrower one.
    """
    output, components = document.distribution.output, document.components()
    if output not in [item.name for item in model.outputs]:
        raise ModelError(
            f"{model.name}: {POLICY_KEY}: distribution.output is {output!r}, which is no output of "
            "the graph; mend it as docs/onnx.md has it"
        )
    width = measure([output])[output].width
    needed = max(part.first_input + part.inputs for part in components)
    if width < needed:
        raise ModelError(
            f"{model.name}: {POLICY_KEY}: its components take {needed} numbers, {output!r} has "
            f"{width}; mend it as docs/onnx.md has it"
        )
    return Actions(
        pieces=(Piece(output, width),),
        components=components,
        outputs=document.action_outputs(),
        basis="metadata",
        findings=(
            f"its metadata ({POLICY_KEY}) state the distribution",
            *(f"of the file that it was made of: {finding}" for finding in document.findings),
        ),
        is_value_based=document.distribution.is_value_based,
        has_own_bounds=True,
    )


def described_signature(
    model: OnnxModel, document: PolicyDocument, signature: PolicySignature
) -> PolicySignature:
    """Return a graph's signature with what only its file's description tells.

    Args:
        model: the graph.
        document: the description.
        signature: what the graph tells.

    Raises:
        ModelError: if the parts of the observation have other sizes than the graph's inputs, or
            the previous action or reward has another size than an action or a reward.
    """
    parts = document.observation_parts()
    columns = sum(part.columns for part in parts)
    if parts and columns != signature.observation_width:
        raise ModelError(
            f"{model.name}: {POLICY_KEY}: observation.parts have {columns} columns, the graph "
            f"takes {signature.observation_width}; mend it as docs/onnx.md has it"
        )
    memory = tuple(
        StateTensor(item.name, tensor.shape, item.role)
        for item, tensor in zip(document.memory, signature.memory, strict=True)
    )
    _check_previous(model.name, memory, signature)
    return replace(
        signature,
        observation_dtype=document.observation.dtype or signature.observation_dtype,
        observation_parts=parts,
        is_tuple_of_one=document.is_tuple_of_one,
        memory=memory,
        module=document.module,
    )


def _check_previous(name: str, memory: Sequence[StateTensor], signature: PolicySignature) -> None:
    """Refuse a tensor of the previous action or reward that has another size than those."""
    columns = sum(action.columns for action in signature.action_outputs)
    expected = {"previous_action": columns, "previous_reward": 1}
    for place, tensor in enumerate(memory):
        if tensor.size != expected.get(tensor.role, tensor.size):
            raise ModelError(
                f"{name}: {POLICY_KEY}: memory.{place}: the {tensor.role} has {tensor.size} "
                f"numbers, expected {expected[tensor.role]}; mend it as docs/onnx.md has it"
            )
