"""The RLModules that are served, by their classes, and the names of their weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace
from policy_server.formats.rllib.checkpoint import RlModule

__all__ = ["ModuleKind", "kind_of", "width_of_module"]


@dataclass(frozen=True)
class ModuleKind:
    """A kind of RLModule.

    Attributes:
        encoders: the names that its encoder's weights may begin with.
        head: the name that the weights of its head begin with.
        is_value_based: the head gives Q values, of which the best is taken.
    """

    encoders: tuple[str, ...]
    head: str
    is_value_based: bool = False


_ACTOR_CRITIC = ModuleKind(("encoder.encoder", "encoder.actor_encoder"), "pi")
_Q_VALUES = ModuleKind(("encoder",), "af", is_value_based=True)
# Their names, old and new. IMPALA trains PPO's.
_KINDS = (
    (
        re.compile(r"a?ppo\.torch\.\w+\.(Default)?A?PPOTorchRLModule"),
        _ACTOR_CRITIC,
    ),
    (re.compile(r"dqn\.torch\.\w+\.(DefaultDQN|DQNRainbow)TorchRLModule"), _Q_VALUES),
)
_SQUASHED = re.compile(r"(sac|tqc|cql|iql)\.torch\..+")


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
    if _SQUASHED.fullmatch(name):
        raise ModelError(
            f"{module.subject}: is {module.path}, whose deterministic action RLlib takes before "
            "the tanh; policies of SAC and TQC come with a later version"
        )
    raise ModelError(
        f"{module.subject}: is {module.path}, which is not served; expected a policy of PPO, APPO, "
        "IMPALA or DQN with RLlib's default network"
    )


def width_of_module(module: RlModule) -> int:
    """Return how many numbers the network takes.

    Args:
        module: the RLModule.

    Raises:
        ModelError: if it takes no flat vector, or has a memory.
    """
    weights, space = module.weights, module.observation_space
    if module.settings.get("use_lstm") or any(".lstm." in name for name in weights):
        raise ModelError(
            f"{module.subject}: has an LSTM; memory comes with a later version, train it with "
            "use_lstm=False"
        )
    if any(".cnn." in name for name in weights):
        raise ModelError(
            f"{module.subject}: has a convolutional network (CNN); images come with a later "
            "version, train it on a flat vector"
        )
    if not isinstance(space, BoxSpace) or len(space.shape) != 1:
        name = type(space).__name__.removesuffix("Space")
        raise ModelError(
            f"{module.subject}: takes a {name} observation that is no flat vector; train it with "
            "the connector FlattenObservations"
        )
    return space.shape[0]
