"""An action beside a mean: the mean itself, clipped or scaled, its tanh, or another action."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.formats.mean_actions import MeanAction, mean_action

Array = NDArray[np.float32]
MEAN = np.random.default_rng(3).normal(size=(64, 2)).astype(np.float32) * 2
MOST = np.array([2, 0.5], np.float32)


@pytest.mark.parametrize(
    ("action", "is_squashed", "scale", "offset"),
    [
        (lambda mean: mean, False, (1, 1), (0, 0)),
        (lambda mean: mean.clip(-1, 1), False, (1, 1), (0, 0)),
        (lambda mean: mean.clip([-1, 0], [3, 0.5]), False, (1, 1), (0, 0)),
        (lambda mean: mean * MOST + 1, False, (2, 0.5), (1, 1)),
        (lambda mean: mean.clip(-1, 1) * MOST + 1, False, (2, 0.5), (1, 1)),
        (lambda mean: mean * [2, -0.5], False, (2, -0.5), (0, 0)),
        (np.tanh, True, (1, 1), (0, 0)),
        (lambda mean: np.tanh(mean) * MOST + 1, True, (2, 0.5), (1, 1)),
    ],
    ids=["mean", "clip", "two clips", "scaled", "clip scaled", "negative", "tanh", "tanh scaled"],
)
def test_way_from_the_mean_is_told_by_the_numbers(
    action: Callable[[Array], Array],
    is_squashed: bool,  # noqa: FBT001 -- a parameter
    scale: tuple[float, float],
    offset: tuple[float, float],
) -> None:
    found = mean_action(action(MEAN), MEAN, has_tanh=False)

    assert isinstance(found, MeanAction)
    assert found.is_squashed == is_squashed
    assert found.scale == pytest.approx(np.array(scale), abs=1e-5)
    assert found.offset == pytest.approx(np.array(offset), abs=1e-5)


@pytest.mark.parametrize(
    "action",
    [
        lambda mean: -np.tanh(mean),
        np.sin,
        lambda mean: mean**3,
        lambda mean: mean[:, ::-1],
        lambda mean: mean[:, :1],
        lambda mean: np.full_like(mean, np.nan),
    ],
    ids=["negative tanh", "sine", "cube", "other order", "other width", "nan"],
)
def test_other_action_is_none_of_the_mean(action: Callable[[Array], Array]) -> None:
    assert mean_action(action(MEAN), MEAN, has_tanh=False) is None


@pytest.mark.parametrize("scale", [1, MOST])
def test_saturated_action_is_a_tanh_where_the_graph_shows_one(scale: Array) -> None:
    mean = np.sign(MEAN) * (np.abs(MEAN) + 10)

    found = mean_action(np.tanh(mean) * scale, mean, has_tanh=True)

    assert isinstance(found, MeanAction)
    assert found.is_squashed
    assert found.scale.tolist() == np.broadcast_to(scale, 2).tolist()
    assert mean_action(np.tanh(mean) * scale, mean, has_tanh=False) == "not told"


@pytest.mark.parametrize("has_tanh", [False, True])
def test_dimension_of_one_mean_takes_the_others_way(
    has_tanh: bool,  # noqa: FBT001 -- a parameter
) -> None:
    mean = MEAN.copy()
    mean[:, 1] = 0.3

    found = mean_action(np.tanh(mean) * MOST, mean, has_tanh=has_tanh)

    assert isinstance(found, MeanAction)
    assert found.is_squashed
    assert found.scale == pytest.approx(MOST, abs=1e-5)


@pytest.mark.parametrize(
    "action",
    [
        lambda mean: (mean * 1000).clip(-1, 1) * MOST,
        lambda mean: mean * [3, 0],
        np.zeros_like,
    ],
    ids=["few free points", "constant dimension", "constant"],
)
def test_way_that_too_few_numbers_show_is_not_told(action: Callable[[Array], Array]) -> None:
    assert mean_action(action(MEAN), MEAN, has_tanh=False) == "not told"


def test_other_action_is_told_by_one_dimension() -> None:
    mean = MEAN.copy()
    mean[:, 1] = 0.3

    assert mean_action(np.sin(mean), mean, has_tanh=False) is None
