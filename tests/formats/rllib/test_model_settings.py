"""Settings of RLlib's default networks, and the defaults where a file leaves them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace, DiscreteSpace
from policy_server.formats.rllib.checkpoint import RlModule
from policy_server.formats.rllib.model_settings import (
    Convolution,
    assumed_settings,
    convolutions_of,
)


def module_of(settings: Mapping[str, Any], *, version: str = "2.50.0") -> RlModule:
    """Return an RLModule without weights."""
    space = BoxSpace((1,), "float32", np.zeros(1), np.ones(1))
    return RlModule("it", "left", "", space, DiscreteSpace(2), settings, {}, version)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ([4, 3, 2], Convolution(4, (3, 3), (2, 2))),
        ([4, [3, 2], [1, 2]], Convolution(4, (3, 2), (1, 2))),
        ((4, (3, 2), 1.0, "same"), Convolution(4, (3, 2), (1, 1))),
        ([4, 3, 2, "valid"], Convolution(4, (3, 3), (2, 2), is_same=False)),
    ],
)
def test_convolutions_are_read_as_rllib_reads_them(stated: object, expected: Convolution) -> None:
    module = module_of({"conv_filters": [stated]})

    assert convolutions_of(module, (9, 9, 1)) == (expected,)


@pytest.mark.parametrize(
    "stated", [[[4, 3]], [4, 3, 2], [["a", 3, 2]], [[4, [3, 3, 3], 2]], [[4, 3, 0]]]
)
def test_convolutions_that_rllib_does_not_take_are_refused(stated: object) -> None:
    with pytest.raises(ModelError, match="conv_filters: expected lists of filters, kernel"):
        convolutions_of(module_of({"conv_filters": stated}), (9, 9, 1))


@pytest.mark.parametrize(
    ("shape", "kernels"),
    [
        ((84, 84, 4), [8, 4, 11]),
        ((64, 64, 3), [4, 4, 4, 4]),
        # RLlib's rule takes the last two sizes for an image's too.
        ((3, 42, 42), [4, 4, 11]),
    ],
    ids=str,
)
def test_convolutions_by_default_are_those_of_the_images_size(
    shape: tuple[int, ...], kernels: list[int]
) -> None:
    found = convolutions_of(module_of({}), shape)

    assert [one.kernel for one in found] == [(size, size) for size in kernels]


def test_image_without_a_default_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no default for an image of \[30, 40, 3\]"):
        convolutions_of(module_of({"conv_filters": None}), (30, 40, 3))


@pytest.mark.parametrize(
    ("one", "sizes", "padding"),
    [
        (Convolution(1, (3, 3), (2, 2)), (9, 10), [(1, 1), (0, 1)]),
        (Convolution(1, (4, 2), (1, 1)), (5, 5), [(1, 2), (0, 1)]),
        # Where steps are wider than the kernel, RLlib cuts.
        (Convolution(1, (1, 1), (2, 3)), (10, 9), [(-1, 0), (-1, -1)]),
        (Convolution(1, (3, 3), (2, 2), is_same=False), (9, 10), [(0, 0), (0, 0)]),
    ],
)
def test_padding_is_rllibs(
    one: Convolution, sizes: tuple[int, int], padding: list[tuple[int, int]]
) -> None:
    assert one.padding_of(sizes) == padding


@pytest.mark.parametrize(
    ("version", "says"), [("2.50.0", "of Ray 2.50.0,"), ("", "of Ray 2.40 to 2.60,")]
)
def test_assumed_settings_are_told_with_their_version(version: str, says: str) -> None:
    module = module_of({"fcnet_hiddens": [4]}, version=version)

    (line,) = assumed_settings(module, ["fcnet_hiddens", "fcnet_activation"])

    assert says in line
    assert line.endswith(": fcnet_activation tanh")
    assert assumed_settings(module, ["fcnet_hiddens"]) == []
