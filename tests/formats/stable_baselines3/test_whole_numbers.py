"""VecNormalize over a Box of integers takes all their digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.formats.known_formats import load_policy
from policy_server.policy import PolicyInputs
from tests.support.changed_pickles import changed_in_json, changed_pickle
from tests.support.library_policies import cases_of
from tests.support.library_policies import unzipped_sb3 as unzipped

FAR = 1e8


def retype(folder: Path, dtype: str) -> None:
    """Give a policy's observations another type."""

    def change(space: Any) -> None:  # noqa: ANN401 -- a stand-in of gymnasium's Box
        space.dtype = np.dtype(dtype)
        space.low, space.high = (np.full(space.low.shape, bound, dtype) for bound in (0, 100))

    data = json.loads((folder / "data").read_text())
    data["observation_space"] = changed_in_json(data["observation_space"], change)
    (folder / "data").write_text(json.dumps(data))


def move(folder: Path) -> None:
    """Move the statistics far off."""

    def change(found: Any) -> None:  # noqa: ANN401 -- a stand-in of VecNormalize
        found.obs_rms.mean = found.obs_rms.mean + FAR

    path = folder / "vec_normalize.pkl"
    path.write_bytes(changed_pickle(path.read_bytes(), change))


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_scaled_integers_keep_all_their_digits(tmp_path: Path, dtype: str) -> None:
    near, far = (unzipped("sb3_ppo_vecnorm", tmp_path / name) for name in ("near", "far"))
    retype(far, dtype)
    move(far)
    rows = np.rint([case["raw"] for case in cases_of("sb3_ppo_vecnorm")])

    expected = load_policy(near).infer(PolicyInputs.of(rows.astype(np.float32)))
    policy = load_policy(far)
    asked: NDArray[Any] = (rows + FAR).astype(policy.signature.row_dtype)
    found = policy.infer(PolicyInputs.of(asked))

    assert policy.signature.observation_dtype == "float64"
    assert found.distribution == pytest.approx(expected.distribution, abs=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_scaled_integers_that_float32_holds_stay_float32(tmp_path: Path, dtype: str) -> None:
    folder = unzipped("sb3_ppo_vecnorm", tmp_path)
    retype(folder, dtype)

    assert load_policy(folder).signature.observation_dtype == "float32"


def test_integers_that_nothing_scales_stay_float32(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_box", tmp_path)
    retype(folder, "int64")

    assert load_policy(folder).signature.observation_dtype == "float32"
