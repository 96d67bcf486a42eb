"""Real RLlib exports, held against RLlib's own answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

from policy_server.distributions.action_distribution import ComponentDistribution
from policy_server.policy import Policy
from policy_server.schema import read_schema
from tests.support.folders import EXPORTS
from tests.support.hand_built import answer, describe, load_policy

NAMES = sorted(path.parent.name for path in EXPORTS.glob("*/cases.json"))
FAMILIES = {
    "dqn_discrete": "greedy over categorical(2)",
    "ppo_discrete": "categorical(2)",
    "ppo_lstm": "categorical(4)",
    "ppo_tuple": " + ".join(
        f"categorical({size})" for size in (3, 12, 2, 4, 5, 2, 3, 6, 2, 7, 3, 4)
    ),
    "ppo_box": "normal(1)",
    "ray070_dqn_discrete": "greedy over categorical(2)",
    "ray07_a2c_discrete": "categorical(4)",
    "ray07_ppo_discrete": "categorical(2)",
    "ray07_ppo_lstm": "categorical(4)",
    "ray082_ppo_box": "normal(1)",
    "ray083_ppo_tuple": "categorical(3) + categorical(5) + categorical(2) + categorical(4)",
    "ray10_ppo_discrete": "categorical(2)",
    "ray29_tf2_ppo_discrete": "categorical(2)",
    "sac_box": "squashed_normal(1)",
}
TOLERANCE = 1e-5
DRAWS = 4000
# What a chi-square of one degree of freedom or more exceeds once in a million draws, in its own
# standard deviations.
TOO_FAR = 16.0


@cache
def load(name: str) -> Policy:
    """Return an export as the server loads it."""
    folder = EXPORTS / name
    unzipped = Path(_FOLDERS[0]) / name
    ZipFile(folder / "saved_model.zip").extractall(unzipped)
    return load_policy(unzipped, read_schema(folder / "schema.yaml"))


_FOLDERS: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def unzipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the exports a folder for as long as these tests run."""
    _FOLDERS[:] = [tmp_path_factory.mktemp("exports")]
    yield
    load.cache_clear()


def cases(name: str) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the observations with RLlib's answers; those without memory for a recurrent policy."""
    entries = json.loads((EXPORTS / name / "cases.json").read_text())
    rows = np.array([entry["raw"] for entry in entries])
    return rows, [entry.get("expected_zero_state", entry["expected"]) for entry in entries]


def hold_against(
    found: ComponentDistribution, index: int, action: np.ndarray, expected: dict[str, Any]
) -> None:
    """Compare one component's distribution and mode with RLlib's."""
    if found.probabilities is not None:
        exact = expected.get("greedy_probabilities", expected["probabilities"])
        assert found.probabilities[index] == pytest.approx(exact, abs=TOLERANCE)
        assert action[0] == expected.get("deterministic_action", expected["argmax"])
    else:
        assert found.mean is not None
        assert found.std is not None
        std = np.exp(expected["log_std"])
        assert found.mean[index] == pytest.approx(expected["mean"], rel=TOLERANCE, abs=TOLERANCE)
        assert found.std[index] == pytest.approx(std, rel=TOLERANCE, abs=TOLERANCE)
        assert action == pytest.approx(expected["deterministic_action"], abs=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_distribution_and_mode_of_a_real_export_are_rllibs(name: str) -> None:
    policy = load(name)
    rows, expected = cases(name)

    components = describe(policy, rows)
    actions = answer(policy, rows, is_deterministic=True).actions

    assert policy.signature.family == FAMILIES[name]
    stated = "schema" if name == "ray29_tf2_ppo_discrete" else "structure"
    assert policy.signature.basis == stated, policy.signature.findings
    for index, answers in enumerate(expected):
        parts = answers.get("components", [answers])
        assert len(parts) == len(components)
        for component, part in zip(components, parts, strict=True):
            first = component.component.first_column
            columns = slice(first, first + component.component.columns)
            hold_against(component, index, actions[index, columns], part)


@pytest.mark.parametrize("name", NAMES)
def test_real_export_is_served_by_numpy(name: str) -> None:
    signature = load(name).signature

    assert signature.engine == "numpy"
    # A policy with memory is compared from the zero state, and from others.
    times = 2 if signature.memory else 1
    assert f"equal to TensorFlow on {times * 194} probes" in signature.engine_reason
    # How many of them overflow depends on the processor, whose instructions order the sums.
    assert re.search(rf"and on (\d+ of )?{times * 304} extreme ones", signature.engine_reason)


@pytest.mark.parametrize("name", NAMES)
def test_draws_of_a_real_export_follow_rllibs_distribution(name: str) -> None:
    policy = load(name)
    rows, _ = cases(name)

    drawn = answer(policy, np.repeat(rows[:2], DRAWS, axis=0)).actions.reshape(2, DRAWS, -1)

    for component in describe(policy, rows[:2]):
        first = component.component.first_column
        for index in range(2):
            values = drawn[index, :, first]
            if component.probabilities is None:
                assert component.mean is not None
                assert component.std is not None
                values = np.arctanh(values) if "squashed" in policy.signature.family else values
                deviation = (values.mean() - component.mean[index, 0]) / component.std[index, 0]
                assert abs(deviation) * np.sqrt(DRAWS) < 5
                continue
            chances = component.probabilities[index]
            counts = np.bincount(values.astype(int), minlength=len(chances))
            possible = chances > 0
            assert not counts[~possible].any()
            expected = chances[possible] * DRAWS
            chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
            freedom = max(possible.sum() - 1, 1)
            assert (chi_square - freedom) / np.sqrt(2 * freedom) < TOO_FAR
