"""Settings in `data` that are of another kind than stable-baselines3 writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy_server.errors import ModelError
from policy_server.formats.known_formats import load_policy
from tests.support.changed_pickles import changed_pickle
from tests.support.library_policies import changed_data
from tests.support.library_policies import unzipped_sb3 as unzipped


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        (
            "sb3_recurrent_layers",
            {"policy_kwargs": {"lstm_kwargs": 5}},
            "data: policy_kwargs: lstm_kwargs: expected a dictionary",
        ),
        ("sb3_ppo_box", {"use_sde": "yes"}, "data: use_sde: expected true or false, got 'yes'"),
        (
            "sb3_ppo_box",
            {"policy_kwargs": {"use_sde": []}},
            "data: policy_kwargs: use_sde: expected true or false, got '[]'",
        ),
        (
            "sb3_ppo_box",
            {"use_sde": True},
            "policy.pth: log_std has the shape (2,), and gSDE by use_sde takes a matrix",
        ),
        ("sb3_ppo_gsde", {"use_sde": False}, "policy.pth: its weights don't fit data's"),
        (
            "sb3_ppo_gsde",
            {"policy_kwargs": {"use_expln": "no"}},
            "data: policy_kwargs: use_expln: expected true or false, got 'no'",
        ),
        (
            "sb3_ppo_gsde",
            {"policy_kwargs": {"squash_output": "no"}},
            "data: policy_kwargs: squash_output: expected true or false, got 'no'",
        ),
        (
            "sb3_sac_gsde",
            {"policy_kwargs": {"clip_mean": "x", "use_sde": True}},
            "data: policy_kwargs: clip_mean: expected a number, got 'x'",
        ),
        (
            "sb3_crossq",
            {"policy_kwargs": {"batch_norm_eps": float("nan")}},
            "data: policy_kwargs: batch_norm_eps: expected a number, got 'nan'",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_setting_of_another_kind_is_refused_by_its_name(
    tmp_path: Path, name: str, changes: dict[str, object], says: str
) -> None:
    folder = unzipped(name, tmp_path)
    changed_data(folder, **changes)

    with pytest.raises(ModelError) as refused:
        load_policy(folder)

    assert refused.value.message.startswith(says)
    assert "\n" not in refused.value.message


def test_flags_of_numbers_are_read_as_python_does(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_box", tmp_path)
    changed_data(folder, use_sde=0)

    assert load_policy(folder).signature.family == "normal(2)"


@pytest.mark.parametrize(
    ("key", "value"),
    [("epsilon", -1e9), ("epsilon", float("nan")), ("clip_obs", float("nan")), ("clip_obs", -1)],
)
def test_statistics_that_scale_nothing_are_refused(tmp_path: Path, key: str, value: float) -> None:
    folder = unzipped("sb3_ppo_vecnorm", tmp_path)
    path = folder / "vec_normalize.pkl"
    path.write_bytes(
        changed_pickle(path.read_bytes(), lambda found: vars(found).update({key: value}))
    )

    with pytest.raises(
        ModelError, match=r"^vec_normalize.pkl: holds statistics that are no finite"
    ):
        load_policy(folder)
