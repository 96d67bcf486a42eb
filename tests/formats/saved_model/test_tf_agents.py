"""Policies that TF-Agents' PolicySaver wrote, with the library's own answers."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import UnsupportedAnswerError
from policy_server.formats.known_formats import load_policy
from policy_server.policy import Policy, PolicyInputs
from policy_server.schema import parse_schema
from tests.support.folders import ROOT
from tests.support.library_policies import POLICIES, unzipped

FAMILIES = {
    "ddpg_policy": "deterministic(2)",
    "dictobs_collect": "categorical(3)",
    "dqn_greedy": "greedy over categorical(3)",
    "dqn_rnn_greedy": "greedy over categorical(3)",
    "ppo_box_collect": "normal(2)",
    "ppo_disc_collect": "categorical(3)",
    "sac_policy": "squashed_normal(2)",
}


@cache
def loaded(name: str, schema: str | None = None) -> Policy:
    """Return a policy of TF-Agents', loaded once: the state of an episode is its asker's."""
    stated = None if schema is None else parse_schema(schema)
    with TemporaryDirectory() as folder:
        return load_policy(unzipped("tf_agents", f"{name}.zip", Path(folder)), stated)


def answers_of(name: str) -> dict[str, Any]:
    answers: dict[str, Any] = json.loads((POLICIES / "tf_agents" / f"{name}.json").read_text())
    assert len(answers["raw"]) == 20, "a file of answers is whole"
    return {key: np.array(value) for key, value in answers.items()}


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_distribution_and_greedy_action_are_the_librarys(name: str, family: str) -> None:
    theirs = answers_of(name)

    policy = loaded(name)

    rows = theirs["raw"].astype(np.float32)
    found = policy.infer(PolicyInputs.of(rows, is_deterministic=True))
    signature = policy.signature
    assert (signature.family, signature.basis, signature.engine) == (family, "structure", "numpy")
    assert found.actions == pytest.approx(theirs["greedy"].reshape(20, -1), abs=1e-5)
    assert found.distribution is not None
    assert signature.components is not None
    distribution = ActionDistribution(signature.components, is_greedy=signature.is_value_based)
    (part,) = distribution.describe(found.distribution)
    if "probs" in theirs:
        assert part.probabilities == pytest.approx(theirs["probs"], abs=1e-6)
    if "mean" in theirs:
        assert part.mean == pytest.approx(theirs["mean"], abs=1e-5)
        assert part.std == pytest.approx(theirs["std"], abs=1e-5)


def test_recurrent_policy_steps_as_its_own_graph() -> None:
    policy = loaded("dqn_rnn_greedy")
    steps = np.load(ROOT / "tests" / "data" / "sequences" / "tf_agents_rnn.npz")
    assert steps["start"].sum() > 1, "an episode begins in the middle"
    zero = np.zeros((1, policy.signature.memory_width), np.float32)
    state, actions, states = zero, [], []

    for row, start in zip(steps["raw"], steps["start"], strict=True):
        asked = PolicyInputs.of(row[None], is_deterministic=True)
        found = policy.infer(replace(asked, state=zero if start else state))
        assert found.state is not None
        state = found.state
        actions.append(int(found.actions[0, 0]))
        states.append(state[0])

    assert actions == steps["greedy"].tolist()
    assert np.array(states) == pytest.approx(steps["state"], abs=1e-5)


def test_policy_that_explores_is_answered_by_its_own_draws() -> None:
    policy = loaded("dqn_collect")

    rows = answers_of("dqn_greedy")["raw"].astype(np.float32)
    found = policy.infer(PolicyInputs.of(rows))
    assert policy.signature.basis == "graph"
    assert set(found.actions.ravel()) <= {0.0, 1.0, 2.0}
    with pytest.raises(UnsupportedAnswerError):
        policy.infer(PolicyInputs.of(rows, is_deterministic=True))


def test_bounds_of_a_squashed_policy_are_the_files() -> None:
    policy = loaded("sac_policy", "actions: {torque: {dimensions: 2}}")

    assert policy.signature.components is not None
    (part,) = policy.signature.components
    assert (part.name, part.low, part.high) == ("torque", (-2.0, -2.0), (2.0, 2.0))


def test_parts_of_an_observation_come_in_schema_yamls_order() -> None:
    theirs = answers_of("dictobs_collect")
    field = "{type: 'List[float]', min_items: 2, max_items: 2}"

    policy = loaded("dictobs_collect", f"observations: {{b: {field}, a: {field}}}")

    rows = theirs["raw"].astype(np.float32)[:, [2, 3, 0, 1]]
    found = policy.infer(PolicyInputs.of(rows, is_deterministic=True))
    assert found.actions.ravel().tolist() == theirs["greedy"].ravel().tolist()
    assert "an observation is the inputs b, a, one after another" in policy.signature.findings
