"""The parts of an observation, as the environment of a stable-baselines3 policy gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from policy_server.formats.pickles.spaces import BoxSpace, DictSpace, DiscreteSpace
from policy_server.formats.stable_baselines3.saved_parts import read_parts
from policy_server.formats.stable_baselines3.vec_normalize import Scaling
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy

# As the file has it: with the channels first.
IMAGE = BoxSpace((3, 2, 4), "uint8", np.zeros((3, 2, 4)), np.full((3, 2, 4), 255))
SPEED = BoxSpace((2,), "float32", np.full(2, -1.0), np.full(2, 1.0))
SPACE = DictSpace({"speed": SPEED, "camera": IMAGE, "gear": DiscreteSpace(2)})
WIDTHS = [2, 24, 2]


def saved_with(**arguments: object) -> SavedPolicy:
    """Return a policy with these `policy_kwargs`."""
    return SavedPolicy("", arguments, SPACE, DiscreteSpace(2), {}, "2.9.2", has_sde=False)


def scaling_of(*limits: float, **known: Any) -> Scaling:  # noqa: ANN401 -- what a `Scaling` has
    """Return a scaling with a limit for each part."""
    columns = np.repeat(limits, WIDTHS)
    return Scaling(np.zeros(len(columns)), np.ones(len(columns)), columns, **known)


@pytest.mark.parametrize(
    ("scaling", "arguments", "normalized"),
    [
        pytest.param(None, {}, ["camera"], id="images by 255"),
        pytest.param(None, {"normalize_images": False}, [], id="nothing"),
        pytest.param(
            scaling_of(10, np.inf, np.inf), {}, ["speed", "camera"], id="a key, by VecNormalize"
        ),
    ],
)
def test_parts_say_what_the_policy_normalizes_itself(
    scaling: Scaling | None, arguments: dict[str, object], normalized: list[str]
) -> None:
    parts = read_parts(saved_with(**arguments), scaling, frozenset({"camera"}))

    assert [part.key for part in parts] == ["speed", "camera", "gear"]
    assert [part.key for part in parts if part.is_normalized] == normalized


@pytest.mark.parametrize(
    ("turned", "shape"),
    [
        pytest.param(frozenset({"camera"}), (2, 4, 3), id="last"),
        pytest.param(frozenset(), (3, 2, 4), id="first"),
    ],
)
def test_image_has_its_channels_where_the_environment_has_them(
    turned: frozenset[str | None], shape: tuple[int, ...]
) -> None:
    _, camera, _ = read_parts(saved_with(), None, turned)

    assert camera.shape == shape
