"""RLModules in checkpoints of the old layout, as Ray 2.5 to 2.39 write them.

There the algorithm trains an RLModule of the new API stack, and its policy saves the RLModule's
weights. The RLModule's settings are those of the policy's model, under their older names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace
from policy_server.formats.pickles.unpickling import Stub
from policy_server.formats.rllib.checkpoint import RlModule
from policy_server.formats.rllib.module_kinds import ModuleKind, kind_of
from policy_server.formats.rllib.old_stack.policy_state import OldPolicy, name_of

__all__ = ["early_kind_of", "early_module_of"]

_SPECIFICATION = "__marl_module_spec"
# The names of Ray 2.40 and later.
_RENAMED = {
    "post_fcnet_hiddens": "head_fcnet_hiddens",
    "post_fcnet_activation": "head_fcnet_activation",
}


def early_module_of(policy: OldPolicy) -> RlModule | None:
    """Return the RLModule that a policy saved; None where it has a model of the old API stack.

    Args:
        policy: the policy.

    Raises:
        ModelError: if the file does not tell its class, or that is not RLlib's own.
    """
    if not any(name.startswith(("encoder.", "pi.")) for name in policy.weights):
        return None
    specification = policy.settings.get(_SPECIFICATION)
    states = specification.state if isinstance(specification, Stub) else {}
    modules = states.get("module_specs")
    found = (
        modules.get(policy.settings.get("__policy_id")) if isinstance(modules, Mapping) else modules
    )
    if not isinstance(found, Stub):
        raise ModelError(
            f"{policy.subject}: holds the weights of an RLModule and not its class; train it with "
            "Ray 2.40 or later and save it with `algo.save_to_path(FOLDER)`"
        )
    path = name_of(found.state.get("module_class"))
    for own in (path, name_of(found.state.get("catalog_class") or path)):
        if not own.startswith("ray.rllib."):
            raise ModelError(
                f"{policy.subject}: is made by {own}, which is not RLlib's own, and no code of a "
                "checkpoint is run; train RLlib's default network"
            )
    space = policy.model_space
    return RlModule(
        policy.subject,
        policy.name,
        path,
        # Numbers of any type become float32 ahead of it.
        replace(space, dtype="float32") if isinstance(space, BoxSpace) else space,
        policy.action_space,
        _settings(policy, found.state.get("model_config_dict")),
        policy.weights,
        policy.ray_version,
    )


def early_kind_of(module: RlModule) -> ModuleKind:
    """Return the kind of an RLModule that a policy saved.

    Args:
        module: the RLModule.

    Raises:
        ModelError: if it is none that is served, by its name.
    """
    kind = kind_of(module)
    # BC's weights have other names since.
    encoders = tuple(name.removeprefix("_") for name in kind.encoders)
    return replace(kind, encoders=encoders, head=kind.head.strip("_").removesuffix("_head"))


def _settings(policy: OldPolicy, stated: object) -> Mapping[str, Any]:
    """Return the RLModule's settings by their names of today."""
    model = policy.settings.get("model")
    settings = {
        **(model if isinstance(model, Mapping) else {}),
        **(stated if isinstance(stated, Mapping) else {}),
    }
    latent = settings.get("encoder_latent_dim")
    if latent:
        settings["fcnet_hiddens"] = [*settings.get("fcnet_hiddens", ()), latent]
    return {_RENAMED.get(name, name): value for name, value in settings.items()}
