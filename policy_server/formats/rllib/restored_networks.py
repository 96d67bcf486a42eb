"""A policy of RLlib's that its network and its actions make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policy_server.engine.network import CompiledPolicy, NetworkPolicy, NumpyNetwork
from policy_server.formats.rllib.actions import Actions, Scaling
from policy_server.policy import (
    ObservationPart,
    Policy,
    PolicySignature,
    SignatureTensor,
    StateTensor,
)
from policy_server.schema import ServerSchema
from policy_server.schema_fit import describe_signature

__all__ = ["RestoredNetwork", "describe_memory", "describe_scaling", "policy_of"]

_SCALED = {
    "normalized": "rescaled from [-1, 1] to the bounds and clipped",
    "clipped": "clipped to the bounds",
    "none": "neither rescaled nor clipped",
}


@dataclass(frozen=True, eq=False)
class RestoredNetwork:
    """A network with the actions that it gives.

    Attributes:
        network: from the observation, and the state, to the distribution's inputs or the Q values.
        memory: the tensors of its state; empty where it has none.
        actions: the actions, which take all outputs but the state.
        is_value_based: the outputs are Q values, of which the best is taken.
    """

    network: NumpyNetwork
    memory: tuple[StateTensor, ...]
    actions: Actions
    is_value_based: bool


def policy_of(
    restored: RestoredNetwork,
    schema: ServerSchema | None,
    *,
    width: int,
    parts: tuple[ObservationPart, ...],
    module: str | None,
    findings: Sequence[str],
    dtype: str = "float32",
) -> Policy:
    """Return the policy of a network.

    Args:
        restored: the network.
        schema: the contents of schema.yaml; None where there is none.
        width: how many numbers an observation has.
        parts: the parts of the environment's observation in the order of the row's columns; none
            where the file does not tell them.
        module: the policy's name in the file; None for one that was saved alone.
        findings: how the policy was read.
        dtype: the type of the observation's numbers.

    Raises:
        SchemaError: if schema.yaml disagrees with the policy.
    """
    network, actions, memory = restored.network, restored.actions, restored.memory
    signature = PolicySignature(
        observation_width=width,
        observation_dtype=dtype,
        inputs=(SignatureTensor("observations", dtype, (None, width)),),
        outputs=(SignatureTensor("action_dist_inputs", "float32", (None, actions.inputs)),),
        action_outputs=actions.outputs,
        components=actions.components,
        is_value_based=restored.is_value_based,
        basis="structure",
        is_tuple_of_one=actions.is_tuple_of_one,
        module=module,
        observation_parts=parts,
        memory=memory,
        findings=tuple(findings),
        engine="numpy",
        engine_reason=f"{len(network.steps)} operations, built from the policy's weights",
    )
    described = describe_signature(signature, schema, has_own_bounds=True)
    return NetworkPolicy(CompiledPolicy(described, network))


def describe_memory(memory: Sequence[StateTensor]) -> Sequence[str]:
    """Return lines for a recurrent network, and none for others.

    Args:
        memory: the tensors of its state.
    """
    lines = [
        f"an LSTM of {tensor.size} cells, whose state is zero when an episode begins"
        for tensor in memory[:1]
    ]
    previous = [tensor.role.replace("_", " ") for tensor in memory if tensor.role != "state"]
    if previous:
        lines.append(f"beside the observation it takes the {' and the '.join(previous)}")
    return lines


def describe_scaling(actions: Actions, scaling: Scaling) -> Sequence[str]:
    """Return a line for continuous actions, and none for others.

    Args:
        actions: the actions.
        scaling: how RLlib gives them to the environment.
    """
    if all(part.kind == "categorical" for part in actions.components):
        return []
    return [f"actions in the environment's units: {_SCALED[scaling]}, as the checkpoint tells"]
