"""The spaces that pickles hold, read without gymnasium."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import (
    SPACE_NAMES,
    BoxSpace,
    DictSpace,
    DiscreteSpace,
    MultiBinarySpace,
    MultiDiscreteSpace,
    Space,
    TupleSpace,
    read_space,
    width_of,
)
from policy_server.formats.pickles.unpickling import unpickle

spaces = pytest.importorskip("gymnasium.spaces")


def _read(space: object) -> Space:
    content = pickle.dumps(space)
    return read_space(unpickle(content, "x.pkl", library=re.compile(SPACE_NAMES)), "x.pkl: space")


@pytest.mark.parametrize(
    ("space", "expected", "width"),
    [
        (spaces.Discrete(4, start=-1), DiscreteSpace(4, -1), 4),
        (spaces.MultiDiscrete([3, 2]), MultiDiscreteSpace((3, 2), (0, 0)), 5),
        (spaces.MultiBinary(3), MultiBinarySpace((3,)), 3),
        (spaces.MultiBinary([2, 3]), MultiBinarySpace((2, 3)), 6),
        (
            spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.MultiBinary(1))]),
            DictSpace({"b": DiscreteSpace(2), "a": MultiBinarySpace((1,))}),
            3,
        ),
        (
            spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
            TupleSpace((DiscreteSpace(2), DiscreteSpace(3))),
            5,
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_space_is_read(
    space: Any,  # noqa: ANN401 -- gymnasium, which need not be there
    expected: Space,
    width: int,
) -> None:
    # The generator of a space that was sampled is pickled with it.
    space.seed(3)
    assert _read(space) == expected
    assert width_of(expected) == width


def test_box_keeps_its_bounds() -> None:
    read = _read(spaces.Box(np.array([-1, -2], np.float32), np.array([3, np.inf], np.float32)))

    assert isinstance(read, BoxSpace)
    assert (read.shape, read.dtype) == ((2,), "float32")
    np.testing.assert_array_equal(read.low, [-1, -2])
    np.testing.assert_array_equal(read.high, [3, np.inf])


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(np.nan, 1, "are nan and 1.0"), (-1, np.nan, "are -1.0 and nan"), (5, 1, "are 5.0 and 1.0")],
)
def test_bounds_without_a_number_between_them_are_refused(
    low: float, high: float, says: str
) -> None:
    space = spaces.Box(np.zeros(2, np.float32), np.ones(2, np.float32))
    space.low[1], space.high[1] = low, high

    with pytest.raises(ModelError) as refused:
        _read(space)

    assert refused.value.message == (
        f"x.pkl: space: is no Box that can be read: ValueError: its bounds at [1] {says}"
    )


def test_bounds_of_one_number_are_read() -> None:
    space = spaces.Box(np.ones(2, np.float32), np.ones(2, np.float32))

    assert isinstance(_read(space), BoxSpace)


def test_what_is_no_space_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^x: expected a space of gymnasium or gym, got list$"):
        read_space([], "x")


def test_width_of_a_space_of_any_size_is_exact() -> None:
    assert width_of(MultiBinarySpace((2**31 - 1,) * 3)) == (2**31 - 1) ** 3


@pytest.mark.parametrize("size", [float("inf"), float("nan"), -1, 0, 2**70, "x", None, [], {}])
def test_size_that_is_none_is_refused_in_one_line(size: object) -> None:
    for space, name in ((spaces.Discrete(2), "n"), (spaces.MultiBinary(2), "n")):
        vars(space)[name] = size
        with pytest.raises(ModelError, match=r"^x[^\n]*: is no \w+ that can be read: [^\n]+$"):
            _read(space)


def test_space_that_holds_its_parts_many_times_over_is_refused() -> None:
    space = spaces.Tuple([spaces.Discrete(2)])
    for _ in range(40):
        space = spaces.Tuple([space])
        space.spaces = (space.spaces[0],) * 2

    with pytest.raises(ModelError, match=r"has more than 1000 parts$"):
        _read(space)
