"""Restoring: from the files of an RLlib checkpoint to a policy that answers by NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from policy_server.errors import ModelError
from policy_server.formats.rllib.actions import Actions, Scaling, read_actions
from policy_server.formats.rllib.checkpoint import Checkpoint, read_checkpoint
from policy_server.formats.rllib.environment_parts import read_parts
from policy_server.formats.rllib.filtered_numbers import (
    filtered_space,
    row_dtype,
    with_whole_numbers,
)
from policy_server.formats.rllib.module_kinds import kind_of, observation_shape
from policy_server.formats.rllib.networks import BuiltNetwork, build_network
from policy_server.formats.rllib.old_stack.old_policies import load_old_policy
from policy_server.formats.rllib.old_stack.policy_state import is_old_checkpoint
from policy_server.formats.rllib.pipelines import describe_connectors, read_filter, read_scaling
from policy_server.formats.rllib.restored_networks import (
    RestoredNetwork,
    describe_memory,
    describe_scaling,
    policy_of,
)
from policy_server.policy import Policy
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["load_policy"]

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
    if is_old_checkpoint(files):
        return load_old_policy(files, schema)
    checkpoint = read_checkpoint(files, name=None if schema is None else schema.module)
    module = checkpoint.module
    kind = kind_of(module)
    width = math.prod(observation_shape(module))
    observation_filter = read_filter(checkpoint.env_to_module or (), width, module=module.name)
    filtered = filtered_space(checkpoint, width)
    if observation_filter is not None:
        observation_filter = with_whole_numbers(observation_filter, filtered)
    scaling: Scaling = read_scaling(checkpoint.module_to_env or ())
    actions = read_actions(
        module.action_space, module.subject, scaling=scaling, is_squashed=kind.is_squashed
    )
    built = build_network(
        module, kind, outputs=actions.inputs, observation_filter=observation_filter
    )
    restored = RestoredNetwork(
        built.network, built.memory, actions, is_value_based=kind.is_value_based
    )
    return policy_of(
        restored,
        schema,
        width=width,
        parts=read_parts(checkpoint, width, is_normalized=observation_filter is not None),
        module=module.name,
        findings=_findings(checkpoint, built, actions, scaling),
        dtype=row_dtype(filtered),
    )


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
    found += describe_memory(built.memory)
    shape = observation_shape(module)
    if len(shape) > 1:
        found.append(f"observations are images of {list(shape)}, flat and with the channels last")
    if checkpoint.env_to_module is None or checkpoint.module_to_env is None:
        return (*found, _ALONE)
    found += describe_connectors(checkpoint.env_to_module)
    return (*found, *describe_scaling(actions, scaling))
