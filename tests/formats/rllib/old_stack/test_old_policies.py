"""Policies of RLlib's old API stack, held against RLlib's own answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.errors import ModelError, SchemaError
from policy_server.formats import load_policy
from policy_server.formats.model_files import identify_model
from policy_server.policy import PolicyInputs
from policy_server.schema import parse_schema
from tests.support.library_policies import POLICIES, unzipped

ANSWERS: dict[str, Any] = json.loads((POLICIES / "rllib_old" / "answers.json").read_text())
FAMILIES = {
    "ppo_discrete": "categorical(3)",
    "ppo_box": "normal(2)",
    "ppo_box_clip": "normal(2)",
    "ppo_box_free": "normal(2)",
    "ppo_tuple": "categorical(3) + normal(2) + categorical(2) + categorical(4)",
    "ppo_multidiscrete": "categorical(2) + categorical(3)",
    "ppo_dict": "categorical(3)",
    "ppo_ram": "categorical(3)",
    "ppo_2d": "categorical(3)",
    "ppo_post_only": "categorical(3)",
    "ppo_noprep_dict": "categorical(3)",
    "ppo_order": "categorical(3)",
    "ppo_lstm": "categorical(3)",
    "ppo_cnn_post": "categorical(3)",
    "ppo_cnn_lstm": "categorical(3)",
    "ppo_filter": "categorical(3)",
    "ppo_filter_discrete": "categorical(3)",
    "ppo_filter_off": "normal(2)",
    "dqn": "greedy over categorical(3)",
    "dqn_nohiddens": "greedy over categorical(3)",
    "dqn_atoms": "greedy over categorical(3)",
    "dqn_cnn": "greedy over categorical(3)",
    "sac": "squashed_normal(2)",
    "sac_discrete": "categorical(3)",
    "sac_raw": "normal(2)",
    "sac_cnn": "squashed_normal(2)",
    "td3": "deterministic(2)",
    "ddpg_open": "deterministic(2)",
    "pg": "categorical(3)",
    "ppo_dictact": "normal(1) + categorical(3)",
    "ddpg_state": "deterministic(2)",
    "early_latent": "categorical(3)",
    "early_free": "normal(2)",
    "early_bc": "categorical(3)",
    "early_cnn": "categorical(3)",
    "tf_lstm": "categorical(3)",
    "tf_free": "normal(2)",
    "tf_sac": "squashed_normal(2)",
}
REFUSED = {
    "ppo_attention": "has an attention network (use_attention)",
    "custom_model": "model: custom_model: is mine, whose code is not in the file",
    "custom_dist": "model: custom_action_dist: is mydist, whose code is not in the file",
    "dqn_noisy": "has noisy layers (noisy)",
    "dqn_param_noise": "explores by ParameterNoise",
    "r2d2": "is a R2D2TorchPolicy, which is not served",
    "tf_cnn": "is a PPOTF1Policy of TensorFlow, whose weights' names don't tell the network",
    "tf_dqn": "is a DQNTFPolicy of TensorFlow, whose weights' names don't tell the network",
    "tf2_ppo": 'was trained with framework="tf2", which saves weights without names',
}
IMPORTS = """
import sys
from pathlib import Path
from policy_server.formats import load_policy
load_policy(Path(sys.argv[1]))
print([name for name in ("ray", "torch", "gymnasium", "tensorflow") if name in sys.modules])
"""


def rows_of(cases: list[dict[str, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the observations of cases."""
    assert len(cases) >= 3, "a policy has its cases"
    return np.array([case["raw"] for case in cases], np.float32)


def close_to(cases: list[dict[str, Any]], key: str) -> object:
    """Return what RLlib answered, to be compared with; images take part of float32's digits."""
    expected = np.array([case[key] for case in cases])
    return pytest.approx(expected, abs=2e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize(("name", "family"), FAMILIES.items(), ids=FAMILIES)
def test_policy_answers_as_rllib(tmp_path: Path, name: str, family: str) -> None:
    cases = ANSWERS[name]["policies"]["default_policy"]
    policy = load_policy(unzipped("rllib_old", f"{name}.zip", tmp_path))
    asked = PolicyInputs.of(rows_of(cases), is_deterministic=True)
    if policy.signature.memory:
        # Each case is a step of one episode; the zero state is ahead of the first.
        states = [np.concatenate([*case["state_out"]]) for case in cases[:-1]]
        states.insert(0, np.zeros(policy.signature.memory_width))
        asked = replace(asked, state=np.array(states, np.float32))

    answers = policy.infer(asked)

    assert policy.signature.family == family
    assert policy.signature.basis == "structure"
    assert answers.distribution == close_to(cases, "action_dist_inputs")
    assert answers.actions == close_to(cases, "deterministic_action_env_space")
    if policy.signature.memory:
        after = np.array([np.concatenate([*case["state_out"]]) for case in cases])
        assert answers.state == pytest.approx(after, abs=2e-5)


def test_every_policy_is_held_against_its_answers() -> None:
    assert FAMILIES.keys() | {"multi", "dqn_softq"} == ANSWERS.keys()


def test_recurrent_policy_answers_from_the_zero_state(tmp_path: Path) -> None:
    cases = ANSWERS["ppo_lstm"]["policies"]["default_policy"]
    policy = load_policy(unzipped("rllib_old", "ppo_lstm.zip", tmp_path))

    answers = policy.infer(PolicyInputs.of(rows_of(cases)[:1]))

    assert [tensor.name for tensor in policy.signature.memory] == ["h", "c"]
    assert answers.distribution == close_to(cases[:1], "action_dist_inputs")


def test_draws_of_soft_q_learning_are_those_of_its_temperature(tmp_path: Path) -> None:
    cases = ANSWERS["dqn_softq"]["policies"]["default_policy"]
    policy = load_policy(unzipped("rllib_old", "dqn_softq.zip", tmp_path))

    answers = policy.infer(PolicyInputs.of(rows_of(cases)))

    assert policy.signature.components is not None
    assert policy.signature.components[0].temperature == 0.5
    assert answers.distribution is not None
    # RLlib gives Q values that are divided already.
    assert answers.distribution / 0.5 == close_to(cases, "action_dist_inputs")


@pytest.mark.parametrize("name", ["left", "right"])
def test_module_of_schema_chooses_the_policy(tmp_path: Path, name: str) -> None:
    cases = ANSWERS["multi"]["policies"][name]
    folder = unzipped("rllib_old", "multi.zip", tmp_path)

    policy = load_policy(folder, parse_schema(f"module: {name}"))

    assert policy.signature.module == name
    answers = policy.infer(PolicyInputs.of(rows_of(cases), is_deterministic=True))
    assert answers.distribution == close_to(cases, "action_dist_inputs")
    assert answers.actions == close_to(cases, "deterministic_action_env_space")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (None, "holds 2 policies ('left', 'right'), and schema.yaml names none"),
        ("module: up", "holds 2 policies ('left', 'right'), and schema.yaml names 'up'"),
    ],
    ids=["none", "another"],
)
def test_policies_are_named_where_schema_chooses_none(
    tmp_path: Path, schema: str | None, says: str
) -> None:
    folder = unzipped("rllib_old", "multi.zip", tmp_path)

    with pytest.raises(ModelError) as refused:
        load_policy(folder, None if schema is None else parse_schema(schema))

    assert says in refused.value.message


@pytest.mark.parametrize(("name", "says"), REFUSED.items(), ids=REFUSED)
def test_policy_that_the_file_does_not_give_is_refused_by_name(
    tmp_path: Path, name: str, says: str
) -> None:
    with pytest.raises(ModelError) as refused:
        load_policy(unzipped("rllib_old", f"{name}.zip", tmp_path))

    assert says in refused.value.message
    assert "\n" not in refused.value.message


def test_policy_whose_filter_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = unzipped("rllib_old", "ppo_filter_off.zip", tmp_path) / "policies/default_policy"

    with pytest.raises(ModelError, match="MeanStdFilter, which is not in the file"):
        load_policy(folder)


def test_bounds_of_schema_are_held_against_the_file(tmp_path: Path) -> None:
    folder = unzipped("rllib_old", "ppo_box.zip", tmp_path)

    with pytest.raises(SchemaError, match=r"actions\.push\.low: is -2, the policy's file says -1"):
        load_policy(folder, parse_schema("actions: {push: {low: [-2, 0], high: [3, 0.5]}}"))


def test_loading_imports_no_training_library(tmp_path: Path) -> None:
    folder = unzipped("rllib_old", "ppo_filter.zip", tmp_path)

    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(folder)], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


def test_policy_is_one_of_its_files(tmp_path: Path) -> None:
    folder = unzipped("rllib_old", "dqn.zip", tmp_path)
    alone = tmp_path / "alone"
    shutil.copytree(folder / "policies" / "default_policy", alone)

    assert identify_model(alone).digest != identify_model(folder).digest
    assert load_policy(alone).signature.family == "greedy over categorical(3)"
