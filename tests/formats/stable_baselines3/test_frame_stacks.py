"""VecFrameStack over VecNormalize: the statistics of one frame hold for each."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.known_formats import load_policy
from policy_server.formats.pickles.spaces import BoxSpace
from policy_server.formats.stable_baselines3.frame_stacks import FrameStack, frame_stack
from policy_server.policy import PolicyInputs
from tests.support.changed_pickles import changed_pickle
from tests.support.library_policies import cases_of
from tests.support.library_policies import unzipped_sb3 as unzipped

NAME = "sb3_ppo_vecnorm"


def scale_by(folder: Path, frame: slice, repeats: int) -> None:
    """Keep a part of the statistics, as many times over."""

    def change(found: Any) -> None:  # noqa: ANN401 -- a stand-in of VecNormalize
        for name in ("mean", "var"):
            setattr(found.obs_rms, name, np.tile(getattr(found.obs_rms, name)[frame], repeats))

    path = folder / "vec_normalize.pkl"
    path.write_bytes(changed_pickle(path.read_bytes(), change))


def show_original(folder: Path, original: object) -> None:
    """Write the last observation as it was before the scaling."""
    data = json.loads((folder / "data").read_text())
    content = base64.b64encode(pickle.dumps(original)).decode()
    data["_last_original_obs"] = {":type:": "<class 'numpy.ndarray'>", ":serialized:": content}
    (folder / "data").write_text(json.dumps(data))


@pytest.mark.parametrize(("width", "frames"), [(2, 2), (1, 4)])
@pytest.mark.parametrize(("has_original", "source"), [(True, "read"), (False, "assumed")])
def test_each_frame_is_scaled_by_the_same_statistics(
    width: int, frames: int, *, has_original: bool, source: str, tmp_path: Path
) -> None:
    whole, stacked = (unzipped(NAME, tmp_path / name) for name in ("whole", "stacked"))
    scale_by(whole, slice(width), frames)
    scale_by(stacked, slice(width), 1)
    show_original(stacked, np.zeros((1, width), np.float32) if has_original else None)
    rows = np.array([case["raw"] for case in cases_of(NAME)], np.float32)

    policy = load_policy(stacked)

    expected = load_policy(whole).infer(PolicyInputs.of(rows)).distribution
    assert policy.infer(PolicyInputs.of(rows)).distribution == pytest.approx(expected, abs=1e-6)
    assert (
        f"{source}: an observation is {frames} frames, the oldest first, each with the same "
        "statistics, as VecFrameStack over VecNormalize gives them" in policy.signature.findings
    )


@pytest.mark.parametrize("width", [2, 4])
def test_statistics_of_no_frame_that_the_file_shows_are_refused(width: int, tmp_path: Path) -> None:
    folder = unzipped(NAME, tmp_path)
    scale_by(folder, slice(2), 1)
    show_original(folder, np.zeros((1, 5 - width), np.float32))

    with pytest.raises(ModelError, match=r"has statistics of 2 values, an observation has 4$"):
        load_policy(folder)


def test_statistics_of_no_whole_number_of_frames_are_refused(tmp_path: Path) -> None:
    folder = unzipped(NAME, tmp_path)
    scale_by(folder, slice(3), 1)
    show_original(folder, None)

    with pytest.raises(ModelError, match=r"has statistics of 3 values, an observation has 4$"):
        load_policy(folder)


def box(*shape: int, dtype: str = "float32") -> BoxSpace:
    high = 255 if dtype == "uint8" else 1
    return BoxSpace(shape, dtype, np.zeros(shape), np.full(shape, high))


@pytest.mark.parametrize(
    ("shape", "space", "expected"),
    [
        ((5,), box(15), FrameStack(0, 3)),
        ((5, 3), box(5, 9), FrameStack(1, 3)),
        ((5, 3), box(15, 3), FrameStack(0, 3)),
        ((8, 6, 3), box(8, 6, 12), FrameStack(2, 4)),
        ((8, 6, 1), box(4, 8, 6, dtype="uint8"), FrameStack(2, 4)),
        ((1, 8, 6), box(4, 8, 6, dtype="uint8"), FrameStack(0, 4, has_channels_first=True)),
        ((5,), box(16), None),
        ((5,), box(5), None),
        ((5, 3), box(10, 6), None),
        ((15,), box(5, 3), None),
        ((), box(5), None),
    ],
)
def test_frames_lie_along_the_axis_that_is_longer(
    shape: tuple[int, ...], space: BoxSpace, expected: FrameStack | None
) -> None:
    assert frame_stack(shape, space) == expected


def test_frames_of_an_image_lie_in_the_order_of_its_channels() -> None:
    frame = np.arange(6).reshape(1, 2, 3)

    last, first = FrameStack(2, 2).repeated(frame), FrameStack(0, 2).repeated(frame)

    assert last.tolist() == [[[0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]]]
    assert first.tolist() == [[[0, 1, 2], [3, 4, 5]]] * 2
