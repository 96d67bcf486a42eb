"""Restoring: from the files of an RLlib checkpoint to a policy that answers by NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.errors import ModelError
from policy_server.formats.rllib.actions import Actions, Scaling, read_actions
from policy_server.formats.rllib.checkpoint import Checkpoint, RlModule, read_checkpoint
from policy_server.formats.rllib.module_kinds import kind_of, width_of_module
from policy_server.formats.rllib.networks import build_network
from policy_server.formats.rllib.pipelines import ObservationFilter, read_filter, read_scaling
from policy_server.policy import (
    Policy,
    PolicyInputs,
    PolicySignature,
    SignatureTensor,
)
from policy_server.schema import ServerSchema
from policy_server.schema_fit import describe_signature
from policy_server.settings import Engine

__all__ = ["load_policy"]

_SCALED: Mapping[Scaling, str] = {
    "normalized": "rescaled from [-1, 1] to the bounds and clipped, as the checkpoint tells",
    "clipped": "clipped to the bounds, as the checkpoint tells",
    "none": "neither rescaled nor clipped, as the checkpoint tells",
}


def load_policy(
    files: Mapping[str, Path], schema: ServerSchema | None = None, *, engine: Engine = "auto"
) -> Policy:
    """Load the policy of an RLlib checkpoint, and warm it up.

    Args:
        files: the checkpoint's files by their names below its folder.
        schema: the contents of schema.yaml; None where there is none.
        engine: `numpy` or `auto`.

    Returns:
        The policy, ready to answer.

    Raises:
        ModelError: if the files can't give a policy, or not by the engine that was asked for.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    if engine == "tensorflow":
        raise ModelError(
            "the RLlib checkpoint: is computed by NumPy, and POLICY_SERVER_ENGINE asks for "
            "tensorflow; set it to auto or numpy"
        )
    checkpoint = read_checkpoint(files, name=None if schema is None else schema.module)
    module = checkpoint.module
    kind = kind_of(module)
    width = width_of_module(module)
    observation_filter = read_filter(checkpoint.env_to_module or (), width, module=module.name)
    scaling: Scaling = read_scaling(checkpoint.module_to_env or ())
    actions = read_actions(module.action_space, module.subject, scaling=scaling)
    network = build_network(
        module, kind, outputs=actions.inputs, observation_filter=observation_filter
    )
    signature = PolicySignature(
        observation_width=width,
        observation_dtype="float32",
        inputs=(SignatureTensor("observations", "float32", (None, width)),),
        outputs=(SignatureTensor("action_dist_inputs", "float32", (None, actions.inputs)),),
        action_outputs=actions.outputs,
        components=actions.components,
        is_value_based=kind.is_value_based,
        basis="structure",
        is_tuple_of_one=actions.is_tuple_of_one,
        module=module.name,
        findings=_findings(checkpoint, observation_filter, actions, scaling),
        engine="numpy",
        engine_reason=f"{len(network.steps)} operations, built from the RLModule's weights",
    )
    described = describe_signature(signature, schema, has_own_bounds=True)
    policy = NetworkPolicy(CompiledPolicy(described, network))
    policy.infer(PolicyInputs.of(np.zeros((1, width), np.float32)))
    return policy


def _findings(
    checkpoint: Checkpoint,
    observation_filter: ObservationFilter | None,
    actions: Actions,
    scaling: Scaling,
) -> tuple[str, ...]:
    module = checkpoint.module
    version = f"Ray {module.ray_version}" if module.ray_version else "an unknown Ray"
    found = [
        f"{module.subject} of {version}: {module.path}",
        "class, spaces and weights are RLlib's own; the file holds no draws to compare",
        *_assumed(module),
    ]
    if checkpoint.env_to_module is None or checkpoint.module_to_env is None:
        return (
            *found,
            "the RLModule alone holds neither connectors nor filters, nor whether RLlib rescales "
            "actions: observations go to it as they come, actions are its own; a whole checkpoint "
            "(`algo.save_to_path`) tells all of it",
        )
    if observation_filter is not None:
        found.append("observations pass the checkpoint's MeanStdFilter, which learns no more")
    if any(part.name == "FlattenObservations" for part in checkpoint.env_to_module):
        found.append(
            "observations are flat: the keys of a Dict in alphabetical order, integers one-hot"
        )
    if any(part.kind == "normal" for part in actions.components):
        found.append(f"actions in the environment's units: {_SCALED[scaling]}")
    return tuple(found)


def _assumed(module: RlModule) -> Sequence[str]:
    """Return a line for the network's settings that the file leaves to RLlib's defaults."""
    names = [
        name
        for name in ("fcnet_hiddens", "fcnet_activation", "head_fcnet_activation")
        if name not in module.settings
    ]
    return [f"{', '.join(names)}: RLlib's default, as the file does not tell"] if names else []
