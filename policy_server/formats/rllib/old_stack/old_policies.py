"""Restoring: from the files of a checkpoint of RLlib's old API stack to a policy of NumPy."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace, DictSpace, TupleSpace
from policy_server.formats.pickles.unpickling import Stub
from policy_server.formats.rllib.actions import Actions, Scaling, read_actions
from policy_server.formats.rllib.checkpoint import RlModule
from policy_server.formats.rllib.filtered_numbers import row_dtype
from policy_server.formats.rllib.networks import build_network
from policy_server.formats.rllib.old_stack.algorithm_heads import head_of, module_of
from policy_server.formats.rllib.old_stack.default_models import Model
from policy_server.formats.rllib.old_stack.early_modules import early_kind_of, early_module_of
from policy_server.formats.rllib.old_stack.lstm_steps import LstmSteps
from policy_server.formats.rllib.old_stack.policy_state import OldPolicy, read_policy
from policy_server.formats.rllib.old_stack.row_parts import (
    Observations,
    environment_parts,
    read_observations,
)
from policy_server.formats.rllib.old_stack.slim_layers import SlimLayers
from policy_server.formats.rllib.old_stack.tensorflow_names import with_torch_names
from policy_server.formats.rllib.pipelines import ObservationFilter, filter_of
from policy_server.formats.rllib.restored_networks import (
    RestoredNetwork,
    describe_memory,
    describe_scaling,
    policy_of,
)
from policy_server.policy import Policy
from policy_server.schema import ServerSchema

__all__ = ["load_old_policy"]

_FILTER = "MeanStdFilter"
_FILTER_CONNECTORS = (
    "MeanStdObservationFilterAgentConnector",
    "ConcurrentMeanStdObservationFilterAgentConnector",
)
# RLlib's own: they change numbers by its preprocessor, its filter and its scaling of actions alone.
_CONNECTORS = (
    *_FILTER_CONNECTORS,
    "ObsPreprocessorConnector",
    "StateBufferConnector",
    "ViewRequirementAgentConnector",
    "ClipRewardAgentConnector",
    "ConvertToNumpyConnector",
    "NormalizeActionsConnector",
    "ClipActionsConnector",
    "ImmutableActionsConnector",
)
# Critics, target values, and constants of the algorithms: they choose no action.
_OTHER_WEIGHTS = re.compile(
    r"(.*\.)?(_value_branch|_value_branch_separate|value_layer)\."
    r"|(twin_)?q_(net|model)\.|value_module\.|(cnn|one_hot|flatten)_\d+\.|action_model\.\w+_\d+\."
    r"|log_alpha$|target_entropy$"
)


def load_old_policy(files: Mapping[str, Path], schema: ServerSchema | None) -> Policy:
    """Load a policy of RLlib's old API stack, and warm it up.

    Args:
        files: the checkpoint's files by their names below its folder.
        schema: the contents of schema.yaml; None where there is none.

    Returns:
        The policy, ready to answer.

    Raises:
        ModelError: if the files can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    policy = with_torch_names(read_policy(files, name=None if schema is None else schema.module))
    _refuse_own_connectors(policy)
    scaling = _scaling(policy)
    observations = read_observations(policy)
    found = _read_filter(policy, observations.width)
    module = early_module_of(policy)
    actions = read_actions(policy.action_space, policy.subject, scaling=scaling)
    built = (
        _build(policy, observations, found, actions)
        if module is None
        else _build_early(module, observations, found, actions)
    )
    return policy_of(
        built,
        schema,
        width=observations.width,
        parts=environment_parts(policy, is_normalized=found is not None),
        module=policy.name,
        findings=_findings(policy, module, found, built, scaling),
        dtype=row_dtype(None if found is None else policy.model_space),
    )


def _scaling(policy: OldPolicy) -> Scaling:
    if policy.settings.get("normalize_actions"):
        return "normalized"
    return "clipped" if policy.settings.get("clip_actions") else "none"


def _refuse_own_connectors(policy: OldPolicy) -> None:
    for name, _ in (*(policy.agent_connectors or ()), *(policy.action_connectors or ())):
        if name not in _CONNECTORS:
            raise ModelError(
                f"{policy.subject}: the connector {str(name)[:80]}: changes what the policy sees "
                "or does, and is not served; train without it, or move it into the environment"
            )


def _read_filter(policy: OldPolicy, width: int) -> ObservationFilter | None:
    """Return the filter of a policy's observations; None where it has none."""
    if policy.settings.get("observation_filter", "NoFilter") == "NoFilter":
        return None
    space = policy.model_space
    if not isinstance(space, BoxSpace) or np.dtype(space.dtype).kind != "f":
        raise ModelError(
            f"{policy.subject}: has a {_FILTER} over observations that are no numbers of one Box, "
            "which is not served; train it without"
        )
    state = _filter_state(policy)
    try:
        return filter_of(
            state["running_stats"],
            width,
            is_centered=state["demean"],
            is_scaled=state["destd"],
            limit=state["clip"],
        )
    except (ArithmeticError, LookupError, TypeError, ValueError, zlib.error) as error:
        raise ModelError(
            f"{_FILTER}: its state can't be read: {error}; save the checkpoint anew"
        ) from error


def _filter_state(policy: OldPolicy) -> Mapping[str, Any]:
    """Return the state of a filter: a connector's, or that of the algorithm's filter."""
    for name, state in policy.agent_connectors or ():
        if name in _FILTER_CONNECTORS and isinstance(state, Mapping):
            return state
    found = policy.filters.get(policy.name or "")
    if not isinstance(found, Stub):
        raise ModelError(
            f"{policy.subject}: was trained with a {_FILTER}, which is not in the file; take the "
            "whole checkpoint of `algo.save(FOLDER)`"
        )
    stats = found.state.get("running_stats")
    return {**found.state, "running_stats": [stats.state if isinstance(stats, Stub) else stats]}


def _build(
    policy: OldPolicy,
    observations: Observations,
    found: ObservationFilter | None,
    actions: Actions,
) -> RestoredNetwork:
    """Return the network of a policy's own model and its algorithm's head."""
    head = head_of(policy)
    module = module_of(policy, head)
    try:
        actions = head.describe(policy, actions)
        has_lstm = bool(module.settings.get("use_lstm"))
        steps = LstmSteps.of(module.settings, actions) if has_lstm else None
        layers = SlimLayers(module, observations.width + (0 if steps is None else steps.width))
        model = Model(layers, observations)
        x = 0 if steps is None else layers.columns(0, 0, observations.width)
        x = layers.filtered(_add_preprocessor(layers, x, observations), found)
        x = head.add(policy, model, x, actions) if steps is None else steps.add(model, x)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        words = f"{type(error).__name__}: {error}"
        raise ModelError(
            f"{policy.subject}: its weights don't fit its settings: {words}; save the checkpoint "
            "anew"
        ) from error
    layers.refuse_unused(_OTHER_WEIGHTS)
    memory = () if steps is None else steps.memory
    network = layers.builder.finish(x)
    return RestoredNetwork(network, memory, actions, is_value_based=head.is_value_based)


def _build_early(
    module: RlModule,
    observations: Observations,
    found: ObservationFilter | None,
    actions: Actions,
) -> RestoredNetwork:
    """Return the network of an RLModule."""
    if observations.is_memory is not None:
        raise ModelError(
            f"{module.subject}: takes the memory of an Atari game with an RLModule of an early "
            "version, which is not served; train it with Ray 2.40 or later"
        )
    kind = early_kind_of(module)
    built = build_network(module, kind, outputs=actions.inputs, observation_filter=found)
    return RestoredNetwork(built.network, built.memory, actions, is_value_based=kind.is_value_based)


def _add_preprocessor(layers: SlimLayers, x: int, observations: Observations) -> int:
    """Return the register of rows with RLlib's scaling of an Atari game's memory."""
    if observations.is_memory is None:
        return x
    half = np.where(observations.is_memory, np.float32(128), np.float32(0))
    x = layers.by("Sub", layers.add("Cast", x, dtype="float32"), half)
    return layers.by("RealDiv", x, np.maximum(half, np.float32(1)))


def _findings(
    policy: OldPolicy,
    module: RlModule | None,
    found: ObservationFilter | None,
    built: RestoredNetwork,
    scaling: Scaling,
) -> tuple[str, ...]:
    version = f"Ray {policy.ray_version}" if policy.ray_version else "an unknown Ray"
    lines = [
        f"{policy.subject} of {version}, old API stack: {policy.path}",
        "class, spaces and weights are RLlib's own; the file holds no draws to compare",
        *built.actions.notes,
    ]
    if module is not None:
        lines.append(f"its network is the RLModule {module.path}")
    if found is not None:
        lines.append(f"observations pass the checkpoint's {_FILTER}, which learns no more")
    if isinstance(policy.observation_space, DictSpace | TupleSpace):
        lines.append("observations are flat: the parts in the space's order, integers one-hot")
    return (*lines, *describe_memory(built.memory), *describe_scaling(built.actions, scaling))
