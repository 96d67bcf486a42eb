"""Restoring: from the files of an RLlib checkpoint to a policy that answers by NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.errors import ModelError
from policy_server.formats.rllib.actions import Actions, Scaling, read_actions
from policy_server.formats.rllib.checkpoint import Checkpoint, read_checkpoint
from policy_server.formats.rllib.environment_parts import read_parts
from policy_server.formats.rllib.module_kinds import kind_of, observation_shape
from policy_server.formats.rllib.networks import BuiltNetwork, build_network
from policy_server.formats.rllib.pipelines import describe_connectors, read_filter, read_scaling
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

_UNSQUASHED = (
    "/predict_deterministic is RLlib's own evaluation: the mean before the tanh, not the squashed "
    "normal's own mode; its probability is null where no draw can be"
)

_ALONE = (
    "the RLModule alone holds neither connectors nor filters, nor whether RLlib rescales actions: "
    "observations go to it as they come, actions are its own; a whole checkpoint "
    "(`algo.save_to_path`) tells all of it"
)


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
    width = math.prod(observation_shape(module))
    observation_filter = read_filter(checkpoint.env_to_module or (), width, module=module.name)
    scaling: Scaling = read_scaling(checkpoint.module_to_env or ())
    actions = read_actions(
        module.action_space, module.subject, scaling=scaling, is_squashed=kind.is_squashed
    )
    built = build_network(
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
        observation_parts=read_parts(
            checkpoint, width, is_normalized=observation_filter is not None
        ),
        recurrent_inputs=tuple(tensor.name for tensor in built.memory),
        memory=built.memory,
        findings=_findings(checkpoint, built, actions, scaling),
        engine="numpy",
        engine_reason=f"{len(built.network.steps)} operations, built from the RLModule's weights",
    )
    described = describe_signature(signature, schema, has_own_bounds=True)
    policy = NetworkPolicy(CompiledPolicy(described, built.network))
    policy.infer(PolicyInputs.of(np.zeros((1, width), np.float32)))
    return policy


def _findings(
    checkpoint: Checkpoint,
    built: BuiltNetwork,
    actions: Actions,
    scaling: Scaling,
) -> tuple[str, ...]:
    module = checkpoint.module
    version = f"Ray {module.ray_version}" if module.ray_version else "an unknown Ray"
    found = [
        f"{module.subject} of {version}: {module.path}",
        "class, spaces and weights are RLlib's own; the file holds no draws to compare",
        *built.assumed,
        *actions.notes,
    ]
    if any(part.has_unsquashed_mode for part in actions.components):
        found.append(_UNSQUASHED)
    if built.memory:
        found.append(
            f"an LSTM of {built.memory[0].size} cells, whose state is zero when an episode begins"
        )
    shape = observation_shape(module)
    if len(shape) > 1:
        found.append(f"observations are images of {list(shape)}, flat and with the channels last")
    if checkpoint.env_to_module is None or checkpoint.module_to_env is None:
        return (*found, _ALONE)
    found += describe_connectors(checkpoint.env_to_module)
    if any(part.kind != "categorical" for part in actions.components):
        found.append(f"actions in the environment's units: {_SCALED[scaling]}")
    return tuple(found)
