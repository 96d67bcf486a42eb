"""Observations ahead of a MeanStdFilter: as exact, and as whole, as RLlib has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats import load_policy
from policy_server.formats.model_files import files_of_model
from policy_server.formats.pickles.spaces import (
    DictSpace,
    DiscreteSpace,
    MultiBinarySpace,
    Space,
    TupleSpace,
)
from policy_server.formats.rllib.checkpoint import read_checkpoint
from policy_server.formats.rllib.filtered_numbers import with_whole_numbers
from policy_server.formats.rllib.pipelines import ObservationFilter, array_of_text, read_filter
from policy_server.policy import Policy, PolicyInputs
from tests.support.changed_pickles import changed_pickle
from tests.support.library_policies import cases_of, raw_rows, unzipped

PIPELINE = Path("env_runner/env_to_module_connector")
DESCRIPTION = PIPELINE / "class_and_ctor_args.pkl"
STATE = PIPELINE / "MeanStdFilter/state.pkl"
MODULE = Path("learner_group/learner/rl_module/default_policy")
FAR = 1e7
# Its filter stands ahead of FlattenObservations; the part "b" has the last three numbers.
MIXED = "ray240_obs_filter_dict"


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    """Change a pickle of a checkpoint."""
    path.write_bytes(changed_pickle(path.read_bytes(), change))


def retype(space: Any, dtype: str) -> None:  # noqa: ANN401 -- a stand-in of gymnasium's Box
    """Give a Box another type, with bounds that hold all numbers of the tests."""
    space.dtype = np.dtype(dtype)
    space.low, space.high = (np.full(space.low.shape, bound, dtype) for bound in (0, 100))


def moved(folder: Path, dtype: str) -> Path:
    """Return the policy with a filter, whose environment has another type, and numbers far off."""
    folder = unzipped("rllib_ppo_meanstd", "checkpoint.zip", folder)
    rewrite(folder / DESCRIPTION, lambda it: retype(it["ctor_args_and_kwargs"][0][0], dtype))
    rewrite(folder / STATE, _move)
    return folder


def _move(state: Any) -> None:  # noqa: ANN401 -- a filter's state by agent
    (stats,) = state[None]["running_stats"]
    stats["mean_array"] = array_of_text(stats["mean_array"]) + FAR


def logits(policy: Policy, rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return the distribution's inputs, of rows in the type that the policy takes."""
    typed: NDArray[Any] = rows.astype(policy.signature.row_dtype)
    found = policy.infer(PolicyInputs.of(typed, is_deterministic=True)).distribution
    assert found is not None
    return np.asarray(found, np.float64)


def test_filter_takes_numbers_as_exact_as_the_environment_s(tmp_path: Path) -> None:
    cases = cases_of("rllib_ppo_meanstd")
    rows = raw_rows(cases).astype(np.float64) + FAR

    policy = load_policy(moved(tmp_path, "float64"))

    expected = np.array([case["expected"]["action_dist_inputs"] for case in cases])
    assert policy.signature.observation_dtype == "float64"
    assert logits(policy, rows) == pytest.approx(expected, abs=1e-5)


def test_filter_of_float32_numbers_takes_them_rounded(tmp_path: Path) -> None:
    assert load_policy(moved(tmp_path, "float32")).signature.observation_dtype == "float32"


def of_whole_numbers(folder: Path, dtype: str, **state: Any) -> Path:  # noqa: ANN401 -- a filter's
    """Return a checkpoint whose filter takes a Box of float32, and one of another type."""
    folder = unzipped("rllib_checkpoints", f"{MIXED}.zip", folder)

    def change(described: Any) -> None:  # noqa: ANN401 -- as Ray describes a pipeline
        retype(described["ctor_args_and_kwargs"][0][0].spaces["b"], dtype)

    rewrite(folder / DESCRIPTION, change)
    rewrite(folder / STATE, lambda found: found[None].update(state))
    return folder


def filtered(folder: Path, rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return rows behind the filter of a checkpoint, by Ray's rule without its types."""
    found = read_filter(read_checkpoint(files_of_model(folder)).env_to_module or (), rows.shape[1])
    assert found is not None
    assert found.limit is not None
    return np.clip((rows - found.mean) / found.deviation, -found.limit, found.limit)


@pytest.mark.parametrize("dtype", ["int8", "int64"])
def test_filter_of_integers_gives_them_without_their_fraction(tmp_path: Path, dtype: str) -> None:
    folder = of_whole_numbers(tmp_path, dtype)
    rows = np.random.default_rng(1).integers(-1, 2, (8, 7))
    expected = filtered(folder, rows)
    assert (expected[:, 4:] != np.trunc(expected[:, 4:])).any(axis=0).all()
    expected[:, 4:] = np.trunc(expected[:, 4:])

    found = logits(load_policy(folder), rows)

    network = load_policy(folder / MODULE)
    assert found == pytest.approx(logits(network, expected), abs=1e-5)


def test_filter_behind_flat_numbers_keeps_the_fraction_of_integers(tmp_path: Path) -> None:
    folder = of_whole_numbers(tmp_path, "int64")

    def change(described: Any) -> None:  # noqa: ANN401 -- as Ray describes a pipeline
        pieces = described["ctor_args_and_kwargs"][1]["connectors"]
        pieces[:2] = pieces[1::-1]

    rewrite(folder / DESCRIPTION, change)
    rows = np.random.default_rng(1).integers(-1, 2, (8, 7))

    policy = load_policy(folder)

    expected = logits(load_policy(folder / MODULE), filtered(folder, rows))
    assert policy.signature.observation_dtype == "float32"
    assert logits(policy, rows) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("dtype", "state"),
    [
        ("uint8", {}),
        ("bool", {}),
        ("int64", {"clip_by_value": None}),
        ("int8", {"clip_by_value": 128.0}),
    ],
    ids=["without a sign", "bool", "without a limit", "beyond its numbers"],
)
def test_filter_whose_numbers_its_type_does_not_hold_is_refused(
    tmp_path: Path, dtype: str, state: dict[str, Any]
) -> None:
    folder = of_whole_numbers(tmp_path, dtype, **state)

    with pytest.raises(ModelError, match=f"^MeanStdFilter: gives its numbers as {dtype}, as the "):
        load_policy(folder)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (TupleSpace((MultiBinarySpace((2,)), DiscreteSpace(3))), [True] * 2 + [False] * 3),
        (DictSpace({"b": MultiBinarySpace((1,)), "a": DiscreteSpace(2)}), [False, False, True]),
    ],
    ids=["tuple", "dictionary"],
)
def test_whole_numbers_are_in_the_order_of_the_filter(space: Space, expected: list[bool]) -> None:
    width = len(expected)

    found = with_whole_numbers(ObservationFilter(np.zeros(width), np.ones(width), 10.0), space)

    assert found.is_whole is not None
    assert found.is_whole.tolist() == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_filter_of_the_old_stack_takes_numbers_as_exact(tmp_path: Path, dtype: str) -> None:
    folder = unzipped("rllib_old", "ppo_filter.zip", tmp_path)

    def change(state: Any) -> None:  # noqa: ANN401 -- as Ray writes a policy's state
        state["policy_spec"]["observation_space"]["space"]["dtype"] = dtype

    (path,) = folder.rglob("policy_state.pkl")
    rewrite(path, change)

    assert load_policy(folder).signature.observation_dtype == dtype
