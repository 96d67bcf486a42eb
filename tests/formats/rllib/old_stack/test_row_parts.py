"""The parts of observations in the rows that RLlib's preprocessors make."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    DiscreteSpace,
    Space,
    TupleSpace,
    width_of,
)
from policy_server.formats.rllib.old_stack.policy_state import OldPolicy
from policy_server.formats.rllib.old_stack.row_parts import environment_parts, read_observations


def box(*shape: int, dtype: str = "float32") -> BoxSpace:
    return BoxSpace(shape, dtype, np.zeros(shape, dtype), np.ones(shape, dtype))


def policy_of(space: Space, *, is_preprocessed: bool) -> OldPolicy:
    taken = box(width_of(space)) if is_preprocessed else space
    actions = DiscreteSpace(2)
    return OldPolicy(
        "it", None, "PPOTorchPolicy", "", taken, space, actions, {}, {}, None, None, {}
    )


def test_parts_are_in_the_order_of_the_network_and_of_the_row() -> None:
    space = DictSpace({"z": DiscreteSpace(3), "a": TupleSpace((box(2), box(4, 4, 1)))})

    found = read_observations(policy_of(space, is_preprocessed=True))

    # The row has the space's own order, the network the keys' alphabetical one.
    assert [(part.first, part.columns) for part in found.parts] == [(3, 2), (5, 16), (0, 3)]
    assert [part.is_image for part in found.parts] == [False, True, False]
    assert found.width == 21
    assert not found.is_flat


@pytest.mark.parametrize(
    ("space", "is_preprocessed", "is_flat"),
    [
        (box(4), False, True),
        (DiscreteSpace(4), True, True),
        (DiscreteSpace(4), False, False),
        (DictSpace({"a": box(4)}), True, True),
        (DictSpace({"a": box(4, 2)}), True, False),
        (box(4, 2), False, False),
    ],
    ids=["Box", "one-hot", "integer", "Dict", "Dict of a matrix", "matrix"],
)
def test_network_of_flat_vectors_is_chosen_as_rllib_chooses(
    *, space: Space, is_preprocessed: bool, is_flat: bool
) -> None:
    assert read_observations(policy_of(space, is_preprocessed=is_preprocessed)).is_flat == is_flat


def test_memory_of_an_atari_game_is_scaled_where_rllib_scales() -> None:
    space = DictSpace({"a": box(2), "b": box(128)})

    scaled = read_observations(policy_of(space, is_preprocessed=True))
    taken = read_observations(policy_of(space, is_preprocessed=False))

    assert scaled.is_memory is not None
    assert scaled.is_memory.tolist() == [False] * 2 + [True] * 128
    assert taken.is_memory is None


def test_images_that_rllib_resizes_are_refused() -> None:
    space = box(210, 160, 3)

    with pytest.raises(ModelError, match="210 x 160 x 3, which RLlib cuts and resizes"):
        read_observations(policy_of(space, is_preprocessed=True))
    assert read_observations(policy_of(space, is_preprocessed=False)).width == 100_800


def test_parts_of_the_environment_are_told_where_their_order_is_known() -> None:
    parts: dict[str, Space] = {"b": box(2), "a": DiscreteSpace(3)}
    known = policy_of(DictSpace(dict(sorted(parts.items()))), is_preprocessed=True)
    unknown = policy_of(DictSpace(parts), is_preprocessed=True)

    told = environment_parts(known, is_normalized=True)

    assert [(part.key, part.columns, part.is_normalized) for part in told] == [
        ("a", 3, True),
        ("b", 2, True),
    ]
    assert environment_parts(unknown, is_normalized=True) == ()
