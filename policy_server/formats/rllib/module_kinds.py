"""The RLModules that are served, by their classes, and the names of their weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace
from policy_server.formats.rllib.checkpoint import RlModule

__all__ = ["ModuleKind", "kind_of", "observation_shape"]


@dataclass(frozen=True)
class ModuleKind:
    """A kind of RLModule.

    Attributes:
        encoders: the names that its encoder's weights may begin with.
        head: the name that the weights of its head begin with.
        is_value_based: the head gives Q values, of which the best is taken.
        is_squashed: actions in a Box are those of a squashed normal.
        centers_choices: a dueling head of a distributional DQN takes the advantages' mean over the
            choices, as in the paper on dueling networks; otherwise over the atoms.
    """

    encoders: tuple[str, ...]
    head: str
    is_value_based: bool = False
    is_squashed: bool = False
    centers_choices: bool = False


# Their names, old and new. IMPALA and MARWIL train PPO's.
_KINDS = (
    (
        re.compile(r"a?ppo\.torch\.\w+\.(Default)?A?PPOTorchRLModule"),
        ModuleKind(("encoder.encoder", "encoder.actor_encoder"), "pi"),
    ),
    (
        re.compile(r"dqn\.torch\.\w+\.DefaultDQNTorchRLModule"),
        ModuleKind(("encoder",), "af", is_value_based=True),
    ),
    # Ray 2.40's own class.
    (
        re.compile(r"dqn\.torch\.\w+\.DQNRainbowTorchRLModule"),
        ModuleKind(("encoder",), "af", is_value_based=True, centers_choices=True),
    ),
    (
        re.compile(r"(sac|tqc|cql|iql)\.torch\.\w+\.(Default)?(SAC|TQC|CQL|IQL)TorchRLModule"),
        ModuleKind(("pi_encoder",), "pi", is_squashed=True),
    ),
    (
        re.compile(r"bc\.torch\.\w+\.(Default)?BCTorchRLModule"),
        ModuleKind(("_encoder",), "_pi_head"),
    ),
)
_FLAT, _IMAGE = 1, 3


def kind_of(module: RlModule) -> ModuleKind:
    """Return the kind of an RLModule.

    Args:
        module: the RLModule.

    Raises:
        ModelError: if it is none that is served, by its name.
    """
    name = module.path.removeprefix("ray.rllib.algorithms.")
    for pattern, kind in _KINDS:
        if pattern.fullmatch(name):
            return kind
    raise ModelError(
        f"{module.subject}: is {module.path}, which is not served; expected a policy of PPO, APPO, "
        "IMPALA, DQN, SAC, TQC, BC, MARWIL, CQL or IQL with RLlib's default network"
    )


def observation_shape(module: RlModule) -> tuple[int, ...]:
    """Return the shape of the observations that the network takes: (width,), or an image's.

    An image has its channels last: (height, width, channels).

    Args:
        module: the RLModule.

    Raises:
        ModelError: if it takes none of the two, or no floating-point numbers.
    """
    space = module.observation_space
    if not isinstance(space, BoxSpace) or len(space.shape) not in (_FLAT, _IMAGE):
        name = type(space).__name__.removesuffix("Space")
        shape = list(space.shape) if isinstance(space, BoxSpace) else ""
        raise ModelError(
            f"{module.subject}: takes a {name}{shape} observation that is neither a flat vector "
            "nor an image; train it with the connector FlattenObservations"
        )
    if space.dtype not in ("float32", "float64"):
        raise ModelError(
            f"{module.subject}: takes observations of {space.dtype}, with which RLlib's default "
            "network fails; train it on float32, or with the connector FlattenObservations"
        )
    return space.shape
