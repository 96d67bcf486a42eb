"""The parts of the environment's observation ahead of RLlib's connectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policy_server.formats.pickles.spaces import BoxSpace, DictSpace, DiscreteSpace, Space
from policy_server.formats.rllib.checkpoint import Checkpoint, Connector, RlModule
from policy_server.formats.rllib.environment_parts import read_parts

DICT = DictSpace({"b": DiscreteSpace(3), "a": DiscreteSpace(2), "c": DiscreteSpace(4)})
FLATTENING = Connector("FlattenObservations", {"multi_agent": False, "keys_to_remove": None})


def box(width: int, bound: float = 1.0) -> BoxSpace:
    """Return a Box of one dimension."""
    return BoxSpace((width,), "float32", np.full(width, -bound), np.full(width, bound))


def checkpoint_of(width: int, space: Space | None, *connectors: Connector) -> Checkpoint:
    """Return a checkpoint of a network that takes so many numbers."""
    module = RlModule(
        subject="the RLModule",
        name=None,
        path="",
        observation_space=box(width),
        action_space=DiscreteSpace(2),
        settings={},
        weights={},
        ray_version="",
    )
    return Checkpoint(module, connectors, (), space)


@pytest.mark.parametrize(
    ("settings", "width", "keys"),
    [
        pytest.param({}, 9, ["a", "b", "c"], id="sorted"),
        pytest.param({"keys_to_remove": ["b"]}, 6, ["a", "c"], id="without keys that are removed"),
        pytest.param({"multi_agent": True}, 9, [], id="of several agents"),
        pytest.param({}, 8, [], id="of another width"),
    ],
)
def test_flattened_keys_are_in_the_networks_order(
    settings: dict[str, Any], width: int, keys: list[str]
) -> None:
    connector = Connector("FlattenObservations", {**FLATTENING.settings, **settings})
    checkpoint = checkpoint_of(width, DICT, connector)

    parts = read_parts(checkpoint, width, is_normalized=False)

    assert [part.key for part in parts] == keys


@pytest.mark.parametrize(
    ("name", "agent_ids", "keys"),
    [
        pytest.param("cat", None, ["a", "b"], id="by its name"),
        pytest.param("shared", None, [], id="of two that fit"),
        pytest.param("shared", ["dog", "mouse"], ["c", "d"], id="of the only one that fits"),
    ],
)
def test_parts_are_those_of_the_modules_agent(
    name: str, agent_ids: list[str] | None, keys: list[str]
) -> None:
    agents = DictSpace(
        {
            "cat": DictSpace({"b": DiscreteSpace(3), "a": DiscreteSpace(2)}),
            "dog": DictSpace({"d": DiscreteSpace(1), "c": DiscreteSpace(4)}),
            "mouse": DiscreteSpace(9),
        }
    )
    connector = Connector("FlattenObservations", {"multi_agent": True, "agent_ids": agent_ids})
    checkpoint = checkpoint_of(5, agents, connector)
    named = replace(checkpoint, module=replace(checkpoint.module, name=name))

    parts = read_parts(named, 5, is_normalized=False)

    assert [part.key for part in parts] == keys


def test_bounds_are_the_environments_and_not_those_behind_a_filter() -> None:
    known = read_parts(checkpoint_of(3, box(3, 7.5)), 3, is_normalized=True)
    unknown = read_parts(checkpoint_of(3, None), 3, is_normalized=True)

    assert [(part.low, part.high, part.is_normalized) for part in known] == [(-7.5, 7.5, True)]
    assert [(part.low, part.high, part.is_normalized) for part in unknown] == [(None, None, True)]


def test_space_that_connectors_changed_in_an_unknown_way_tells_nothing() -> None:
    assert read_parts(checkpoint_of(3, box(2)), 3, is_normalized=False) == ()
    assert read_parts(checkpoint_of(3, None, FLATTENING), 3, is_normalized=False) == ()
