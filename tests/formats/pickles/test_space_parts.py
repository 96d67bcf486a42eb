"""The parts of spaces, in the order that libraries flatten them."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.formats.pickles.space_parts import parts_of_space
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    DiscreteSpace,
    MultiBinarySpace,
    MultiDiscreteSpace,
    Space,
    TupleSpace,
)
from policy_server.policy import ObservationPart


def box(low: float, high: float, shape: tuple[int, ...] = (2,), dtype: str = "float32") -> BoxSpace:
    """Return a Box."""
    return BoxSpace(shape, dtype, np.full(shape, low, dtype), np.full(shape, high, dtype))


NESTED = DictSpace({"b": DiscreteSpace(3), "a": TupleSpace((box(0, 1), DiscreteSpace(2)))})


@pytest.mark.parametrize(
    ("space", "part"),
    [
        pytest.param(DiscreteSpace(4), ("one_hot", (), (4,)), id="Discrete"),
        pytest.param(
            MultiDiscreteSpace((2, 3), (0, 0)), ("one_hot", (2,), (2, 3)), id="MultiDiscrete"
        ),
        pytest.param(MultiBinarySpace((2, 3)), ("binary", (2, 3), ()), id="MultiBinary"),
        pytest.param(box(0, 1, (2, 3)), ("box", (2, 3), ()), id="Box"),
        # Whether 1 or 2 has the second place, libraries don't agree.
        pytest.param(DiscreteSpace(4, 1), ("box", (4,), ()), id="Discrete from 1 on"),
        pytest.param(
            MultiDiscreteSpace((2, 3), (0, 1)), ("box", (5,), ()), id="MultiDiscrete from 1 on"
        ),
    ],
)
def test_space_without_keys_is_one_part(
    space: Space, part: tuple[str, tuple[int, ...], tuple[int, ...]]
) -> None:
    (found,) = parts_of_space(space, is_sorted=True)

    assert (found.key, found.kind, found.shape, found.sizes) == ("", *part)


@pytest.mark.parametrize(
    ("is_sorted", "keys"), [(True, ["a.0", "a.1", "b"]), (False, ["b", "a.0", "a.1"])]
)
def test_parts_of_nested_spaces_are_in_the_rows_order(is_sorted: bool, keys: list[str]) -> None:  # noqa: FBT001 -- a parameter of the test
    parts = parts_of_space(NESTED, is_sorted=is_sorted)

    assert [part.key for part in parts] == keys


@pytest.mark.parametrize(
    ("space", "bounds"),
    [
        pytest.param(box(-2.3, 2.3), (-2.3, 2.3), id="as people write them"),
        pytest.param(box(0, 255, dtype="uint8"), (0, 255), id="integers"),
        pytest.param(box(-np.inf, 1), (None, None), id="none on one side"),
        pytest.param(box(-3.4028234663852886e38, 1), (None, None), id="none, as gym wrote it"),
        pytest.param(box(0, 1, (0,)), (None, None), id="no number"),
    ],
)
def test_bounds_are_told_where_both_are_known(
    space: BoxSpace, bounds: tuple[float | None, float | None]
) -> None:
    (part,) = parts_of_space(space, is_sorted=True)

    assert (part.low, part.high) == bounds


def test_integers_are_told() -> None:
    parts: list[ObservationPart] = [
        part
        for space in (box(0, 1), box(0, 1, dtype="uint8"), DiscreteSpace(2), MultiBinarySpace((1,)))
        for part in parts_of_space(space, is_sorted=True)
    ]

    assert [part.is_integer for part in parts] == [False, True, True, True]
