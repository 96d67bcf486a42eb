"""RLlib's own checkpoints, held against RLlib's own answers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.backends.local import open_local_backend
from policy_server.errors import ModelError, SchemaError
from policy_server.formats import load_policy
from policy_server.formats.model_files import identify_model
from policy_server.policy import PolicyInputs
from policy_server.schema import parse_schema, read_schema
from policy_server.settings import Settings
from tests.support.fakes import opened
from tests.support.library_policies import POLICIES, cases_of, raw_rows, unzipped
from tests.support.web import serve

SERVED = [
    ("rllib_ppo_discrete", "checkpoint.zip", "categorical(2)"),
    ("rllib_ppo_discrete", "checkpoint_msgpack.zip", "categorical(2)"),
    ("rllib_ppo_discrete", "module.zip", "categorical(2)"),
    ("rllib_ppo_discrete", "module_msgpack.zip", "categorical(2)"),
    ("rllib_ppo_box", "checkpoint.zip", "normal(2)"),
    ("rllib_ppo_box", "module.zip", "normal(2)"),
    ("rllib_ppo_dict", "checkpoint.zip", "categorical(4)"),
    ("rllib_ppo_meanstd", "checkpoint.zip", "categorical(2)"),
    ("rllib_ppo_multiagent", "module_left.zip", "categorical(4)"),
    ("rllib_dqn", "checkpoint.zip", "greedy over categorical(2)"),
    ("rllib_dqn", "module.zip", "greedy over categorical(2)"),
    ("rllib_sac", "module.zip", "squashed_normal(2)"),
]
CHECKPOINTS = {
    "clip": "clipped to the bounds",
    "neither": "neither rescaled nor clipped",
    "box_open_clip": "clipped to the bounds",
    "tuple": "rescaled from [-1, 1]",
    "tuple_nested": "actions of nested Tuples one after another",
    "dict_actions": "actions in the alphabetical order of their keys: go, turn",
    "discrete_start": "integer actions count from 0, as RLlib gives them to the environment",
    "flat_filter": "MeanStdFilter",
    "obs_nested": "integers one-hot",
    "obs_removed": "integers one-hot, without x",
    "appo": "DefaultAPPOTorchRLModule",
    "impala": "rescaled from [-1, 1]",
    "sac_box": "/predict_deterministic is RLlib's own evaluation: the mean before the tanh",
    "sac_clip": "clipped to the bounds",
    "sac_discrete": "DefaultSACTorchRLModule",
    "tqc_filter": "DefaultTQCTorchRLModule",
    "ppo_cnn_stride": "images of [10, 9, 2]",
    "ppo_cnn_valid": "images of [12, 9, 2]",
    "dqn_cnn": "images of [10, 10, 2]",
    "ray240_dqn_atoms": "Ray 2.40.0",
    "ray240_dqn_noisy": "by the defaults of Ray 2.40.0, as the file does not tell",
    "ray240_sac_filter": "MeanStdFilter",
    "ray240_obs_filter_dict": "MeanStdFilter",
}
RECURRENT = {
    "ppo_lstm_box": ("actor.h", "actor.c"),
    "ppo_lstm_filter": ("actor.h", "actor.c"),
    "ppo_cnn_lstm": ("actor.h", "actor.c"),
    "dqn_lstm": ("h", "c"),
}
ANSWERS = json.loads((POLICIES / "rllib_checkpoints" / "answers.json").read_text())
IMPORTS = """
import sys
from pathlib import Path
from policy_server.formats import load_policy
load_policy(Path(sys.argv[1]))
print([name for name in ("ray", "torch", "gymnasium", "tensorflow") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("name", "archive", "family"), SERVED, ids=lambda value: str(value).removesuffix(".zip")
)
def test_answers_are_those_of_rllib(tmp_path: Path, name: str, archive: str, family: str) -> None:
    cases = cases_of(name)
    rows = raw_rows(cases)
    policy = load_policy(
        unzipped(name, archive, tmp_path), read_schema(POLICIES / name / "schema.yaml")
    )
    asked = replace(PolicyInputs.of(rows), is_deterministic=np.ones(len(rows), np.bool_))

    answers = policy.infer(asked)

    expected = [case["expected"] for case in cases]
    modes = [
        case.get("deterministic_action_env_space", case["deterministic_action"])
        for case in expected
    ]
    assert policy.signature.family == family
    assert policy.signature.basis == "structure"
    assert answers.distribution == pytest.approx(
        np.array([case["action_dist_inputs"] for case in expected]), abs=1e-5
    )
    assert answers.actions == pytest.approx(np.array(modes).reshape(len(rows), -1), abs=1e-5)


@pytest.mark.parametrize(
    ("module", "ending", "family"),
    [("left", "", "categorical(4)"), ("right", "_right", "normal(2)")],
)
def test_schema_chooses_among_the_modules_of_a_checkpoint(
    tmp_path: Path, module: str, ending: str, family: str
) -> None:
    name = "rllib_ppo_multiagent"
    cases = cases_of(name, f"cases{ending}.json")
    rows = raw_rows(cases)
    text = (POLICIES / name / f"schema{ending}.yaml").read_text()
    asked = replace(PolicyInputs.of(rows), is_deterministic=np.ones(len(rows), np.bool_))

    policy = load_policy(
        unzipped(name, "checkpoint.zip", tmp_path), parse_schema(f"module: {module}\n{text}")
    )
    answers = policy.infer(asked)

    expected = [case["expected"] for case in cases]
    modes = [
        case.get("deterministic_action_env_space", case["deterministic_action"])
        for case in expected
    ]
    assert (policy.signature.module, policy.signature.family) == (module, family)
    assert answers.distribution == pytest.approx(
        np.array([case["action_dist_inputs"] for case in expected]), abs=1e-5
    )
    assert answers.actions == pytest.approx(np.array(modes).reshape(len(rows), -1), abs=1e-5)


def test_every_checkpoint_is_held_against_its_answers() -> None:
    assert set(ANSWERS) == {*CHECKPOINTS, *RECURRENT}


@pytest.mark.parametrize(("name", "says"), CHECKPOINTS.items(), ids=CHECKPOINTS)
def test_connectors_are_those_of_the_checkpoint(tmp_path: Path, name: str, says: str) -> None:
    expected = ANSWERS[name]
    rows = np.array(expected["raw"], np.float32)
    policy = load_policy(unzipped("rllib_checkpoints", f"{name}.zip", tmp_path))
    asked = replace(PolicyInputs.of(rows), is_deterministic=np.ones(len(rows), np.bool_))

    found = policy.infer(asked)

    assert any(says in line for line in policy.signature.findings)
    assert found.distribution == pytest.approx(np.array(expected["action_dist_inputs"]), abs=1e-5)
    assert found.actions == pytest.approx(
        np.array(expected["deterministic_action_env_space"]), abs=1e-5
    )


@pytest.mark.parametrize(("name", "memory"), RECURRENT.items(), ids=RECURRENT)
def test_memory_is_stepped_as_rllib_does(
    tmp_path: Path, name: str, memory: tuple[str, str]
) -> None:
    expected = ANSWERS[name]
    policy = load_policy(unzipped("rllib_checkpoints", f"{name}.zip", tmp_path))
    state = np.zeros((1, policy.signature.memory_width), np.float32)

    steps = []
    for row in np.array(expected["raw"], np.float32):
        asked = PolicyInputs.of(row[None], is_deterministic=True, state=state)
        steps.append(policy.infer(asked))
        assert steps[-1].state is not None
        state = steps[-1].state

    after = [
        np.hstack([_part(parts, tensor) for tensor in memory]) for parts in expected["state_out"]
    ]
    found, actions, states = (
        np.concatenate([getattr(step, part) for step in steps])
        for part in ("distribution", "actions", "state")
    )
    assert tuple(tensor.name for tensor in policy.signature.memory) == memory
    assert found == pytest.approx(np.array(expected["action_dist_inputs"]), abs=1e-5)
    assert actions == pytest.approx(np.array(expected["deterministic_action_env_space"]), abs=1e-5)
    assert states == pytest.approx(np.array(after), abs=1e-5)


def _part(state: dict[str, Any], name: str) -> list[float]:
    """Return a tensor of a state by its name, such as `actor.h`."""
    owner, _, last = name.rpartition(".")
    numbers: list[float] = (state[owner] if owner else state)[last]
    return numbers


@pytest.mark.parametrize("archive", ["checkpoint.zip", "module.zip"])
def test_policy_with_memory_answers_from_the_zero_state_without_one(
    tmp_path: Path, archive: str
) -> None:
    name = "rllib_ppo_lstm"
    cases = cases_of(name)
    rows = raw_rows(cases)
    policy = load_policy(
        unzipped(name, archive, tmp_path), read_schema(POLICIES / name / "schema.yaml")
    )

    forgetful = policy.infer(PolicyInputs.of(rows, is_deterministic=True))
    state = np.zeros((1, policy.signature.memory_width), np.float32)
    stepped = []
    for row in rows:
        answer = policy.infer(PolicyInputs.of(row[None], is_deterministic=True, state=state))
        assert answer.state is not None
        state = answer.state
        stepped.append(answer.distribution)

    for found, key in ((forgetful.distribution, "expected_zero_state"), (stepped, "expected")):
        expected = [case[key]["action_dist_inputs"] for case in cases]
        assert np.array(found).reshape(len(rows), -1) == pytest.approx(np.array(expected), abs=1e-5)
    assert "an LSTM of 24 cells" in " ".join(policy.signature.findings)


@pytest.mark.parametrize("module", ["hunter", "mouse"])
def test_module_of_several_agents_has_the_filter_of_its_own(tmp_path: Path, module: str) -> None:
    cases = json.loads((POLICIES / "rllib_agents" / "answers.json").read_text())[module]
    policy = load_policy(
        unzipped("rllib_agents", "checkpoint.zip", tmp_path), parse_schema(f"module: {module}")
    )

    answers = policy.infer(PolicyInputs.of(raw_rows(cases), is_deterministic=True))

    expected = [case["expected"] for case in cases]
    assert len(cases) == 8
    assert answers.distribution == pytest.approx(
        np.array([case["action_dist_inputs"] for case in expected]), abs=1e-5
    )
    assert answers.actions == pytest.approx(
        np.array([case["deterministic_action_env_space"] for case in expected]), abs=1e-5
    )


@pytest.mark.parametrize(
    ("module", "parts"),
    [("hunter", [("k", 2), ("p", 3)]), ("mouse", [("k", 3), ("p", 4)])],
)
def test_module_of_several_agents_has_the_observation_of_its_own(
    tmp_path: Path, module: str, parts: list[tuple[str, int]]
) -> None:
    policy = load_policy(
        unzipped("rllib_agents", "checkpoint.zip", tmp_path), parse_schema(f"module: {module}")
    )

    found = [(part.key, part.columns) for part in policy.signature.observation_parts]
    assert found == parts


def test_filter_of_an_agent_that_the_file_does_not_tell_is_refused(tmp_path: Path) -> None:
    folder = unzipped("rllib_agents", "checkpoint.zip", tmp_path)

    with pytest.raises(ModelError) as refused:
        load_policy(folder, parse_schema("module: extra"))

    assert "the agents 'cat', 'mouse', 'other', and none tells" in refused.value.message


def test_whole_checkpoint_knows_the_bounds_that_schema_leaves_out(tmp_path: Path) -> None:
    cases = cases_of("rllib_ppo_box")
    rows = raw_rows(cases)
    folder = unzipped("rllib_ppo_box", "checkpoint.zip", tmp_path)
    asked = replace(PolicyInputs.of(rows), is_deterministic=np.ones(len(rows), np.bool_))

    named = load_policy(folder, parse_schema("actions: {push: {dimensions: 2}}"))
    unnamed = load_policy(folder)

    expected = np.array([case["expected"]["deterministic_action_env_space"] for case in cases])
    assert named.signature.components is not None
    assert named.signature.components[0].name == "push"
    assert named.signature.components[0].low == (-1.0, 0.0)
    assert named.infer(asked).actions == pytest.approx(expected, abs=1e-5)
    assert unnamed.infer(asked).actions == pytest.approx(expected, abs=1e-5)


def test_module_alone_answers_in_its_own_numbers_and_says_so(tmp_path: Path) -> None:
    cases = cases_of("rllib_ppo_box")
    rows = raw_rows(cases)
    policy = load_policy(unzipped("rllib_ppo_box", "module.zip", tmp_path))
    asked = replace(PolicyInputs.of(rows), is_deterministic=np.ones(len(rows), np.bool_))

    answers = policy.infer(asked)

    assert answers.actions == pytest.approx(
        np.array([case["expected"]["deterministic_action"] for case in cases]), abs=1e-5
    )
    assert any("the RLModule alone" in line for line in policy.signature.findings)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("observations: {a: {type: float}}", "gives 1 values, the policy expects 6"),
        ("parameters: {discrete: true}", "the policy's actions are continuous"),
        (
            "actions: {push: {low: -2, high: 2}}",
            "actions.push.low: is -2, the policy's file says -1",
        ),
        (
            "actions: {push: {low: [-1, 0], high: [3, 0.5], normalized: false}}",
            "actions.push.normalized: is False, by the policy's file it is True",
        ),
    ],
    ids=["width", "discrete", "bounds", "normalized"],
)
def test_schema_that_disagrees_with_the_checkpoint_is_refused(
    tmp_path: Path, schema: str, says: str
) -> None:
    folder = unzipped("rllib_ppo_box", "checkpoint.zip", tmp_path)

    with pytest.raises(SchemaError) as refused:
        load_policy(folder, parse_schema(schema))

    assert says in refused.value.message


def test_bound_that_the_checkpoint_leaves_open_is_not_the_schemas_to_set(tmp_path: Path) -> None:
    folder = unzipped("rllib_checkpoints", "box_open_clip.zip", tmp_path)

    with pytest.raises(SchemaError) as refused:
        load_policy(folder, parse_schema("actions: {push: {low: -0.1, high: 0.1, normalized: no}}"))

    assert "actions.push.low: is -0.1, the policy's file says -inf" in refused.value.message


def test_engine_tensorflow_is_refused(tmp_path: Path) -> None:
    folder = unzipped("rllib_dqn", "module.zip", tmp_path)

    with pytest.raises(ModelError, match="POLICY_SERVER_ENGINE asks for tensorflow"):
        load_policy(folder, engine="tensorflow")


def test_loading_imports_no_training_library(tmp_path: Path) -> None:
    folder = unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path)

    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(folder)], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


async def test_checkpoint_answers_over_http(tmp_path: Path) -> None:
    case = cases_of("rllib_ppo_meanstd")[0]
    text = (POLICIES / "rllib_ppo_meanstd" / "schema.yaml").read_text()
    model = identify_model(unzipped("rllib_ppo_meanstd", "checkpoint.zip", tmp_path))

    async with (
        open_local_backend(model, parse_schema(text), Settings()) as backend,
        serve(schema=text, open_policy=lambda: opened(backend)) as client,
    ):
        distribution = await client.post("/distribution", json=case["observation"])
        decided = await client.post("/predict_deterministic", json=case["observation"])

    probabilities = distribution.json()["components"][0]["probabilities"]
    assert probabilities == pytest.approx(case["expected"]["probabilities"], abs=1e-5)
    assert decided.json()["actions"] == [case["expected"]["deterministic_action"]]
