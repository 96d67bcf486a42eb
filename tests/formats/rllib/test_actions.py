"""Action spaces as RLlib's distributions take them."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    DiscreteSpace,
    MultiBinarySpace,
    MultiDiscreteSpace,
    Space,
    TupleSpace,
)
from policy_server.formats.rllib.actions import Scaling, read_actions


def box(low: list[float], high: list[float], dtype: str = "float32") -> BoxSpace:
    return BoxSpace((len(low),), dtype, np.array(low, dtype), np.array(high, dtype))


@pytest.mark.parametrize(
    ("scaling", "low", "bounds"),
    [
        ("normalized", -1.1, ((-1.1, 0.0), (2.3, 1.0), True)),
        ("clipped", -1.1, ((-1.1, 0.0), (2.3, 1.0), False)),
        ("none", -1.1, (None, None, True)),
        # RLlib leaves a Box with an open side as it is, and clips it at the other.
        ("normalized", -np.inf, (None, None, True)),
        ("clipped", -np.inf, ((-np.inf, 0.0), (2.3, 1.0), False)),
    ],
)
def test_bounds_are_those_that_rllib_applies(
    scaling: Scaling, low: float, bounds: tuple[object, ...]
) -> None:
    (part,) = read_actions(box([low, 0.0], [2.3, 1.0]), "it", scaling=scaling).components

    assert (part.low, part.high, part.is_normalized) == bounds


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_only_common_floats_are_rescaled(dtype: str) -> None:
    (part,) = read_actions(box([0.0], [4.0], dtype), "it", scaling="normalized").components

    assert part.low == (None if dtype == "float16" else (0.0,))


def test_parts_are_in_the_order_of_rllibs_outputs() -> None:
    space = DictSpace(
        {
            "turn": box([-1.0], [1.0]),
            "go": TupleSpace((MultiDiscreteSpace((2, 3), (0, 0)), DiscreteSpace(4, 7))),
        }
    )

    actions = read_actions(space, "it", scaling="none")

    found = [(part.name, part.size, part.first_input) for part in actions.components]
    assert found == [("go.0", 2, 0), ("go.1", 3, 2), ("go", 4, 5), ("turn", 1, 9)]
    assert [item.columns for item in actions.outputs] == [2, 1, 1]
    assert actions.notes[0] == "actions in the alphabetical order of their keys: go, go, turn"
    assert "whose space begins at [0, 0, 7]" in actions.notes[1]


def test_box_of_a_squashed_policy_is_evaluated_before_the_tanh() -> None:
    (part,) = read_actions(
        box([0.0], [4.0]), "it", scaling="normalized", is_squashed=True
    ).components

    assert (part.kind, part.log_std_bounds) == ("squashed_normal", (-5.0, 2.0))
    assert part.has_unsquashed_mode


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (MultiBinarySpace((3,)), "a MultiBinary space"),
        (box([0], [3], "int64"), "a Box of int64[1]"),
        (BoxSpace((2, 2), "float32", np.zeros((2, 2)), np.ones((2, 2))), "a Box of float32[2, 2]"),
    ],
    ids=["MultiBinary", "integers", "matrix"],
)
def test_space_that_is_not_served_is_refused(space: Space, says: str) -> None:
    with pytest.raises(ModelError) as refused:
        read_actions(TupleSpace((DiscreteSpace(2), space)), "the RLModule", scaling="clipped")

    assert refused.value.message.startswith("the RLModule: ")
    assert says in refused.value.message


def test_several_actions_of_a_squashed_policy_are_refused() -> None:
    space = TupleSpace((DiscreteSpace(2), DiscreteSpace(2)))

    with pytest.raises(ModelError, match="has several actions"):
        read_actions(space, "the RLModule", scaling="none", is_squashed=True)
