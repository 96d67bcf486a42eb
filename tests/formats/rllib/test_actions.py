"""Action spaces as RLlib's distributions take them."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    DiscreteSpace,
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
        # RLlib leaves a Box with an open side as it is.
        ("normalized", -np.inf, (None, None, True)),
    ],
)
def test_bounds_are_those_that_rllib_applies(
    scaling: Scaling, low: float, bounds: tuple[object, ...]
) -> None:
    (part,) = read_actions(box([low, 0.0], [2.3, 1.0]), "it", scaling=scaling).components

    assert (part.low, part.high, part.is_normalized) == bounds


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (DiscreteSpace(3, 1), "begin at [1]"),
        (MultiDiscreteSpace((2, 3), (0, 2)), "begin at [0, 2]"),
        (DictSpace({"a": DiscreteSpace(2)}), "a Dict space"),
        (TupleSpace((TupleSpace((DiscreteSpace(2),)),)), "a Tuple space"),
        (box([0], [3], "int64"), "a Box of int64[1]"),
        (box([-np.inf, 0.0], [1.0, 1.0]), "some are open"),
    ],
    ids=["start", "starts", "Dict", "nested Tuple", "integers", "open side"],
)
def test_space_that_is_not_served_is_refused(space: Space, says: str) -> None:
    with pytest.raises(ModelError) as refused:
        read_actions(space, "the RLModule", scaling="clipped")

    assert refused.value.message.startswith("the RLModule: ")
    assert says in refused.value.message
