"""The parts of the environment's observation, ahead of RLlib's connectors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from policy_server.formats.pickles.space_parts import parts_of_space
from policy_server.formats.pickles.spaces import BoxSpace, DictSpace, Space, width_of
from policy_server.formats.rllib.checkpoint import Checkpoint, Connector
from policy_server.formats.rllib.pipelines import FLATTENING
from policy_server.policy import ObservationPart

__all__ = ["environment_space_of", "read_parts"]


def read_parts(
    checkpoint: Checkpoint, width: int, *, is_normalized: bool
) -> tuple[ObservationPart, ...]:
    """Return the parts of an observation in the order of the network's columns.

    FlattenObservations brings the keys of a Dict into alphabetical order, those of nested ones too.

    Args:
        checkpoint: the policy; an RLModule alone tells its own space only.
        width: how many numbers the network takes.
        is_normalized: whether a filter of the checkpoint normalizes them.

    Returns:
        The parts; none where the checkpoint does not tell which column is which.
    """
    space = environment_space_of(checkpoint, width)
    parts = () if space is None else parts_of_space(space, is_sorted=True)
    if not _flattening_of(checkpoint) and checkpoint.environment_space is not space:
        # A filter would have changed the bounds.
        parts = tuple(replace(part, low=None, high=None) for part in parts)
    if sum(part.columns for part in parts) != width:
        return ()
    return tuple(replace(part, is_normalized=is_normalized) for part in parts)


def environment_space_of(checkpoint: Checkpoint, width: int) -> Space | None:
    """Return the environment's space of the observations that go to the network; None if not known.

    Args:
        checkpoint: the policy.
        width: how many numbers the network takes.
    """
    flattening = _flattening_of(checkpoint)
    return _flattened(checkpoint, flattening[0], width) if flattening else _own_space(checkpoint)


def _flattening_of(checkpoint: Checkpoint) -> list[Connector]:
    return [item for item in checkpoint.env_to_module or () if item.name == FLATTENING]


def _flattened(checkpoint: Checkpoint, connector: Connector, width: int) -> Space | None:
    """Return the space whose parts a connector flattens; None where it is not known.

    Of several agents it is that of the agent of the RLModule's name, or the only one that gives as
    many numbers as the network takes.
    """
    space, settings = checkpoint.environment_space, connector.settings
    removed = settings.get("keys_to_remove") or ()
    if space is None or not settings.get("multi_agent"):
        return space if space is None else _without(space, removed)
    agents = space.parts if isinstance(space, DictSpace) else {}
    spaces = {
        agent: _without(part, removed)
        for agent, part in agents.items()
        if agent in (settings.get("agent_ids") or agents)
    }
    fitting = {agent: part for agent, part in spaces.items() if width_of(part) == width}
    if checkpoint.module.name in fitting:
        return fitting[checkpoint.module.name]
    return next(iter(fitting.values())) if len(fitting) == 1 else None


def _without(space: Space, keys: Collection[str]) -> Space:
    if not isinstance(space, DictSpace):
        return space
    return DictSpace({key: part for key, part in space.parts.items() if key not in keys})


def _own_space(checkpoint: Checkpoint) -> Space | None:
    """Return the environment's space of what the network takes unflattened; None if not known."""
    space, known = checkpoint.module.observation_space, checkpoint.environment_space
    if not isinstance(space, BoxSpace):
        return None
    if isinstance(known, BoxSpace):
        return known if known.shape == space.shape else None
    # An RLModule alone, or one of several agents.
    return space
