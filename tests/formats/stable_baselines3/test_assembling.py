"""Policies of stable-baselines3's own .zip, held against the library's own answers."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import ModelError, SchemaError
from policy_server.formats.known_formats import load_policy
from policy_server.policy import Policy, PolicyInputs, PolicyOutputs
from policy_server.schema import parse_schema, read_schema
from tests.support.folders import ROOT
from tests.support.library_policies import changed_data
from tests.support.library_policies import unzipped_sb3 as unzipped

POLICIES = ROOT / "tests" / "data" / "policies"
# The cases of the maskable ones need a mask beside the observation, or a schema.
_ALL = sorted(path.name for path in POLICIES.glob("sb3_*"))
RECURRENT = [name for name in _ALL if "recurrent" in name]
# Their mask is beside the observation.
MASKED = ["sb3_maskable_multibinary", "sb3_maskable_multidiscrete", "sb3_maskable_ppo"]
SERVED = [name for name in _ALL if name not in (*RECURRENT, *MASKED, "sb3_maskable_box")]
MASK = """
observations:
  values: {type: "List[float]", min_items: 2, max_items: 2}
  action_mask: {type: "List[int]", min_items: 4, max_items: 4}
parameters: {api_key: k}
"""
UNSCALED = "parameters: {normalization: none, api_key: k}"
IMPORTS = """
import sys
from pathlib import Path
from policy_server.formats.known_formats import load_policy
print(load_policy(Path(sys.argv[1])).signature.family)
names = ("gym", "gymnasium", "stable_baselines3", "sb3_contrib", "torch", "tensorflow", "ray")
print([name for name in names if name in sys.modules])
"""


def cases_of(name: str) -> list[dict[str, Any]]:
    """Return observations and the library's own answers."""
    cases: list[dict[str, Any]] = json.loads((POLICIES / name / "cases.json").read_text())
    assert len(cases) >= 8
    return cases


def asked(policy: Policy, cases: list[dict[str, Any]]) -> PolicyOutputs:
    """Ask for the deterministic action and the distribution of each case."""
    rows = np.array([case["raw"] for case in cases], np.float64)
    is_double = policy.signature.row_dtype is np.float64
    inputs = PolicyInputs.of(rows if is_double else rows.astype(np.float32), is_deterministic=True)
    return policy.infer(inputs)


def pickled(value: object, **described: str) -> dict[str, str]:
    """Return a setting as stable-baselines3 keeps it."""
    return {":serialized:": base64.b64encode(pickle.dumps(value)).decode(), **described}


@pytest.mark.parametrize("name", SERVED)
def test_deterministic_action_is_the_library_s_in_the_environment_s_units(
    name: str, tmp_path: Path
) -> None:
    cases = cases_of(name)

    answers = asked(load_policy(unzipped(name, tmp_path)), cases)

    expected = [
        case["expected"].get(
            "deterministic_action_env_space", case["expected"]["deterministic_action"]
        )
        for case in cases
    ]
    for answer, action in zip(answers.actions, expected, strict=True):
        assert answer == pytest.approx(np.ravel(action), abs=1e-5)


@pytest.mark.parametrize("name", SERVED)
def test_distribution_is_the_library_s(name: str, tmp_path: Path) -> None:
    cases = cases_of(name)
    policy = load_policy(unzipped(name, tmp_path))

    check_distribution(policy, asked(policy, cases), [case["expected"] for case in cases])


def check_distribution(
    policy: Policy, answers: PolicyOutputs, wanted_of_rows: list[dict[str, Any]]
) -> None:
    """Hold each row's distribution, or values, against the library's own."""
    components = policy.signature.components
    assert components is not None
    assert answers.distribution is not None
    parts = ActionDistribution(components).describe(answers.distribution)
    compared = 0
    for row, expected in enumerate(wanted_of_rows):
        wanted = expected.get("components", [expected])
        for part, component in zip(parts, wanted, strict=True):
            for key, found in (
                ("probabilities", part.probabilities),
                ("mean", part.mean),
                ("std", part.std),
            ):
                if key in component and not policy.signature.is_value_based:
                    assert found is not None
                    assert found[row] == pytest.approx(np.ravel(component[key]), abs=1e-5)
                    compared += 1
        if "q_values" in expected:
            assert answers.distribution[row] == pytest.approx(expected["q_values"], abs=1e-5)
            compared += 1
    is_fixed = all(part.kind == "deterministic" for part in components)
    assert compared >= len(wanted_of_rows) or is_fixed


@pytest.mark.parametrize("name", RECURRENT)
def test_memory_steps_as_the_library_s(name: str, tmp_path: Path) -> None:
    cases = cases_of(name)
    policy = load_policy(unzipped(name, tmp_path))
    rows = np.array([case["raw"] for case in cases], np.float32)
    zero = np.zeros((1, policy.signature.memory_width), np.float32)
    state = zero

    for row, case in zip(rows, cases, strict=True):
        before = zero if case.get("episode_start") else state
        answers = policy.infer(PolicyInputs.of(row[None], is_deterministic=True, state=before))
        assert answers.state is not None
        state = answers.state
        expected = case["expected"]
        check_distribution(policy, answers, [expected])
        assert answers.actions[0] == pytest.approx(
            np.ravel(expected["deterministic_action"]), abs=1e-5
        )
        after = np.concatenate([np.ravel(expected["state_out"][key]) for key in "hc"])
        assert state[0] == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize("name", RECURRENT)
def test_memory_is_zero_where_no_state_is_given(name: str, tmp_path: Path) -> None:
    cases = cases_of(name)
    policy = load_policy(unzipped(name, tmp_path))

    answers = asked(policy, cases)

    assert answers.state is None
    check_distribution(policy, answers, [case["expected_zero_state"] for case in cases])


def test_memory_is_the_hidden_and_the_cell_states_of_every_layer(tmp_path: Path) -> None:
    signature = load_policy(unzipped("sb3_recurrent_layers", tmp_path)).signature

    assert [(part.name, part.shape) for part in signature.memory] == [("h", (2, 6)), ("c", (2, 6))]
    assert any("an LSTM with 2 layers of 6 units" in line for line in signature.findings)


def test_lstm_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    folder = unzipped("sb3_recurrent_layers", tmp_path)
    changed_data(folder, policy_kwargs={"lstm_kwargs": {"proj_size": 3}})

    with pytest.raises(ModelError, match=r"^data: policy_kwargs: lstm_kwargs: proj_size is not "):
        load_policy(folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "sb3_ppo_start",
            "read: the actions' space counts from 1; stable-baselines3 counts from 0",
        ),
        ("sb3_ppo_gelu", "read: the activation GELU, with PyTorch's default arguments"),
        ("sb3_ppo_box", "assumed: the activation Tanh, which its class has"),
        ("sb3_ppo_dict_image", "assumed: images come with their channels last"),
        ("sb3_v16_vecnorm_image", "read: VecNormalize scaled the observations"),
        ("sb3_sac", "assumed: observations were not scaled by VecNormalize"),
        ("sb3_sac", "if the training had it, the answers are wrong until its statistics lie"),
        ("sb3_ppo_cnn", "the `shape` of the observation in schema.yaml tells it"),
    ],
)
def test_findings_say_what_was_read_and_what_was_assumed(
    name: str, expected: str, tmp_path: Path
) -> None:
    findings = load_policy(unzipped(name, tmp_path)).signature.findings

    assert sum(expected in line for line in findings) == 1


@pytest.mark.parametrize("name", ["sb3_ppo_box", "sb3_ppo_dict_order", "sb3_td3", "sb3_ppo_cnn"])
def test_schema_that_a_user_wrote_fits_the_file(name: str, tmp_path: Path) -> None:
    policy = load_policy(unzipped(name, tmp_path), read_schema(POLICIES / name / "schema.yaml"))

    assert policy.signature.basis == "structure"
    assert policy.signature.engine == "numpy"


def test_schema_may_say_that_the_channels_of_an_image_come_first(tmp_path: Path) -> None:
    name = "sb3_ppo_image_without_cnn"
    cases = cases_of(name)
    images = np.array([case["raw"] for case in cases]).reshape(-1, 5, 6, 3)
    rows = images.transpose(0, 3, 1, 2).reshape(len(cases), -1)
    turned = [case | {"raw": row} for case, row in zip(cases, rows.tolist(), strict=True)]
    text = "observations: {image: {type: 'List[int]', shape: [3, 5, 6]}}\nparameters: {api_key: k}"

    policy = load_policy(unzipped(name, tmp_path), parse_schema(text))

    check_distribution(policy, asked(policy, turned), [case["expected"] for case in cases])
    assert "stated: images come with their channels first, by schema.yaml" in (
        policy.signature.findings
    )


def test_bounds_of_the_file_need_no_word_in_the_schema(tmp_path: Path) -> None:
    schema = parse_schema("actions: {force: {}}\nparameters: {api_key: k}")

    policy = load_policy(unzipped("sb3_ppo_box", tmp_path), schema)

    (component,) = policy.signature.components or ()
    assert (component.name, component.low, component.high) == ("force", (-1.0, 0.0), (3.0, 0.5))
    assert not component.is_normalized


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        (
            "{force: {low: [-1, 0], high: [3, 0.6], normalized: false}}",
            r"^schema\.yaml: actions\.force\.high: is 0\.6, the policy's file says 0\.5; ",
        ),
        (
            "{force: {low: [-1, 0], high: [3, 0.5], normalized: true}}",
            r"^schema\.yaml: actions\.force\.normalized: is True, by the policy's file it is False",
        ),
    ],
    ids=["another bound", "another scale"],
)
def test_schema_that_contradicts_the_file_is_refused(
    actions: str, expected: str, tmp_path: Path
) -> None:
    schema = parse_schema(f"actions: {actions}\nparameters: {{api_key: k}}")

    with pytest.raises(SchemaError, match=expected):
        load_policy(unzipped("sb3_ppo_box", tmp_path), schema)


def test_policy_of_another_version_of_gym_is_read(tmp_path: Path) -> None:
    policy = load_policy(unzipped("sb3_v18_ppo_discrete", tmp_path))

    assert any("stable-baselines3 1.8.0" in line for line in policy.signature.findings)


def test_missing_statistics_of_vec_normalize_are_asked_for(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_vecnorm", tmp_path)
    (folder / "vec_normalize.pkl").unlink()

    refusal = (
        r"^the stable-baselines3 policy: was trained with VecNormalize.*as vec_normalize\.pkl, or "
    )
    with pytest.raises(ModelError, match=refusal):
        load_policy(folder)


def test_missing_statistics_are_not_asked_for_where_the_schema_says_there_were_none(
    tmp_path: Path,
) -> None:
    folder = unzipped("sb3_ppo_vecnorm", tmp_path)
    (folder / "vec_normalize.pkl").unlink()
    cases = cases_of("sb3_ppo_vecnorm")
    seen = [case | {"raw": case["normalized"]} for case in cases]

    policy = load_policy(folder, parse_schema(UNSCALED))

    check_distribution(policy, asked(policy, seen), [case["expected"] for case in cases])
    assert any(line.startswith("stated: ") for line in policy.signature.findings)


def test_statistics_may_have_the_name_that_the_zoo_gives_them(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_vecnorm", tmp_path)
    statistics = (folder / "vec_normalize.pkl").rename(folder / "vecnormalize.pkl")
    cases = cases_of("sb3_ppo_vecnorm")

    policy = load_policy(folder)

    check_distribution(policy, asked(policy, cases), [case["expected"] for case in cases])
    assert "read: VecNormalize scaled the observations, from vecnormalize.pkl" in (
        policy.signature.findings
    )
    shutil.copy(statistics, folder / "vec_normalize.pkl")
    with pytest.raises(ModelError, match=r"^vec_normalize\.pkl and vecnormalize\.pkl: both lie "):
        load_policy(folder)


def test_statistics_of_rewards_alone_leave_the_observations(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_vecnorm", tmp_path)
    path = folder / "vec_normalize.pkl"
    # As VecNormalize(norm_obs=False) is: the setting is a byte of its own.
    before, key, after = path.read_bytes().partition(b"\x8c\x08norm_obs\x94\x88")
    path.write_bytes(before + key[:-1] + b"\x89" + after)
    cases = cases_of("sb3_ppo_vecnorm")
    seen = [case | {"raw": case["normalized"]} for case in cases]

    policy = load_policy(folder)

    check_distribution(policy, asked(policy, seen), [case["expected"] for case in cases])
    assert "read: VecNormalize scaled no observations, from vec_normalize.pkl" in (
        policy.signature.findings
    )


def test_statistics_beside_a_policy_that_was_not_scaled_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"^vec_normalize\.pkl: lies beside the policy, and schema\.yaml says "
    ):
        load_policy(unzipped("sb3_ppo_vecnorm", tmp_path), parse_schema(UNSCALED))


def test_statistics_of_one_array_are_refused_for_a_dict(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_dict_order", tmp_path)
    shutil.copy(POLICIES / "sb3_ppo_vecnorm" / "vec_normalize.pkl", folder)

    with pytest.raises(
        ModelError, match=r"^vec_normalize\.pkl: has no statistics of the policy's observation; "
    ):
        load_policy(folder)


def test_statistics_of_another_observation_are_refused(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_box", tmp_path)
    shutil.copy(POLICIES / "sb3_ppo_vecnorm" / "vec_normalize.pkl", folder)

    with pytest.raises(
        ModelError, match=r"^vec_normalize\.pkl: has statistics of 4 values, an observation has 6$"
    ):
        load_policy(folder)


def test_mask_may_be_a_field_of_the_schema(tmp_path: Path) -> None:
    name = "sb3_maskable_box"
    cases = cases_of(name)

    answers = asked(load_policy(unzipped(name, tmp_path), parse_schema(MASK)), cases)

    expected = [case["expected"]["deterministic_action"] for case in cases]
    assert answers.actions.tolist() == expected


@pytest.mark.parametrize("name", MASKED)
def test_mask_beside_the_observation_gives_the_library_s_answers(name: str, tmp_path: Path) -> None:
    cases = cases_of(name)
    policy = load_policy(unzipped(name, tmp_path))
    rows = np.array([case["raw"] for case in cases], np.float32)
    masks = np.array([case["action_mask"] for case in cases]) != 0
    inputs = PolicyInputs.of(rows, is_deterministic=True)
    components = policy.signature.components
    assert components is not None

    assert policy.signature.mask_name == "action_mask"
    for key, asked_with in (
        ("expected", replace(inputs, masks=masks)),
        ("expected_without_mask", inputs),
    ):
        answers = policy.infer(asked_with)
        expected = [case[key] for case in cases]
        actions = [np.ravel(case["deterministic_action"]).tolist() for case in expected]
        assert answers.actions.tolist() == actions
        assert answers.log_probability == pytest.approx(
            np.array([case["log_prob_of_deterministic"] for case in expected]), abs=1e-5
        )
        assert answers.distribution is not None
        described = ActionDistribution(components).describe(answers.distribution)
        wanted = [case.get("components", [case]) for case in expected]
        for place, part in enumerate(described):
            assert part.probabilities == pytest.approx(
                np.array([parts[place]["probabilities"] for parts in wanted]), abs=1e-5
            )


@pytest.mark.parametrize(
    ("name", "another", "expected"),
    [
        ("sb3_maskable_multidiscrete", "sb3_maskable_ppo", "gives 9 numbers, .* take 5; "),
        ("sb3_qrdqn_cnn", "sb3_dqn_dict", "has 15 quantiles of 4 actions"),
        ("sb3_dqn_dict", "sb3_qrdqn", "gives 4 numbers, .* take 2; "),
        ("sb3_td3", "sb3_a2c_box_2d", "gives 2 numbers, .* take 4; "),
        ("sb3_recurrent_layers", "sb3_a2c_box_2d", "gives 4 numbers, .* take 8; "),
    ],
    ids=["logits", "quantiles", "values", "an action", "a mean and a deviation"],
)
def test_network_that_does_not_fit_its_actions_is_refused(
    name: str, another: str, expected: str, tmp_path: Path
) -> None:
    folder = unzipped(name, tmp_path)
    data = json.loads((unzipped(another, tmp_path / "other") / "data").read_text())
    changed_data(folder, action_space=data["action_space"])

    with pytest.raises(ModelError, match=rf"^policy\.pth: {expected}"):
        load_policy(folder)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            "values: {type: 'List[float]'}, action_mask: {type: 'List[int]', max_items: 3}",
            r"^schema\.yaml: observations\.action_mask: the policy's action mask is a list of 5 "
            r"items, one a choice, got 0 to 3; mend it, or rename what is no mask$",
        ),
        (
            "action_mask: {type: int}, values: {type: 'List[float]'}",
            r"observations\.action_mask: .* a list of 5 items, one a choice, got no list; mend",
        ),
        (
            "action_mask: {type: 'List[int]'}, values: {type: 'List[float]', max_items: 3}",
            r"^schema\.yaml: gives at most 3 values beside action_mask, the policy expects 4; mend",
        ),
        (
            "action_mask: {type: 'List[int]'}",
            r"^schema\.yaml: gives 0 values beside action_mask, the policy expects 4; list each",
        ),
        (
            "values: {type: 'List[float]'}, action_mask: {type: 'List[int]', maximum: 9}",
            r"observations\.action_mask: an action mask holds 0 and 1; leave minimum and maximum",
        ),
        (
            "values: {type: 'List[float]'}, action_mask: {type: 'List[int]', example: [0,0,0,0,0]}",
            r"observations\.action_mask\.example: expected 0 and 1, of which some 1 for each "
            r"action, got \[0, 0, 0, 0, 0\]; mend it or leave it out$",
        ),
    ],
    ids=["too-short", "no-list", "other-width", "nothing-else", "bounds", "example"],
)
def test_observation_of_the_mask_s_name_that_is_no_mask_is_refused(
    fields: str, expected: str, tmp_path: Path
) -> None:
    schema = parse_schema(f"observations: {{{fields}}}\nparameters: {{api_key: k}}")

    with pytest.raises(SchemaError, match=expected):
        load_policy(unzipped("sb3_maskable_ppo", tmp_path), schema)


def test_observation_of_the_mask_s_name_may_describe_it(tmp_path: Path) -> None:
    schema = parse_schema(
        "observations: {action_mask: {type: 'List[bool]'}, values: {type: 'List[float]'}}\n"
        "parameters: {api_key: k}"
    )

    policy = load_policy(unzipped("sb3_maskable_ppo", tmp_path), schema)

    assert policy.signature.mask_name == "action_mask"
    assert policy.signature.observation_width == 4


class _Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self._made = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self._made


@pytest.mark.parametrize(
    "key", ["policy_class", "policy_kwargs", "observation_space", "action_space", "_last_obs"]
)
def test_hostile_pickle_in_a_setting_runs_nothing(key: str, tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_box", tmp_path / "policy")
    target = tmp_path / "ran"
    changed_data(folder, **{key: pickled({"a": [_Calls(os.mkdir, str(target))]})})

    with pytest.raises(ModelError, match=rf"^data: {key}: names posix\.mkdir, a class or function"):
        load_policy(folder)

    assert not target.exists()


def test_hostile_statistics_run_nothing(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_box", tmp_path / "policy")
    target = tmp_path / "ran"
    (folder / "vec_normalize.pkl").write_bytes(pickle.dumps(_Calls(os.mkdir, str(target))))

    with pytest.raises(ModelError, match=r"^vec_normalize\.pkl: names posix\.mkdir"):
        load_policy(folder)

    assert not target.exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"policy_class": pickled(None, __module__="__main__")},
            r"^data: policy_class: uses a class of __main__, which is not",
            id="own policy class",
        ),
        pytest.param(
            {
                "policy_kwargs": pickled(
                    {}, features_extractor_class="<class '__main__.OwnExtractor'>"
                )
            },
            r"^data: policy_kwargs: uses __main__\.OwnExtractor, which is not",
            id="own extractor",
        ),
        pytest.param(
            {
                "policy_kwargs": {
                    ":type:": "<class 'dict'>",
                    **pickled({}, activation_fn="<function <lambda> at 0x7f16b98a67a0>"),
                }
            },
            r"^data: policy_kwargs: uses function <lambda> as activation_fn, which is not",
            id="own function",
        ),
        pytest.param(
            {
                "policy_kwargs": {
                    ":type:": "<class 'dict'>",
                    **pickled({}, activation_fn="functools.partial(<class 'torch.nn.X'>, 0.2)"),
                }
            },
            r"^data: policy_kwargs: uses functools\.partial as activation_fn, which is not",
            id="arguments of an activation",
        ),
        pytest.param(
            {"policy_kwargs": {"net_arch": [32, 32], "dueling": True}},
            r"^data: policy_kwargs: dueling is not known",
            id="unknown setting",
        ),
        pytest.param(
            {"policy_kwargs": pickled({"activation_fn": PurePosixPath})},
            r"^data: policy_kwargs: names pathlib\.PurePosixPath, a class or function that is not",
            id="own activation",
        ),
        pytest.param(
            {"use_sde": True, "policy_kwargs": {"sde_net_arch": []}},
            r"^data: policy_kwargs: sde_net_arch is not computed",
            id="features of the noise",
        ),
        pytest.param({"policy_class": None}, r"^data: holds no policy_class", id="no class"),
        pytest.param(
            {"action_space": {":serialized:": "AAAA"}},
            r"^data: action_space: is no pickle that can be read",
            id="damaged pickle",
        ),
        pytest.param(
            {"action_space": None},
            r"^data: action_space: expected a space of gymnasium or gym, got NoneType$",
            id="no space",
        ),
    ],
)
def test_what_is_not_the_library_s_own_is_refused_by_name(
    changes: dict[str, object], expected: str, tmp_path: Path
) -> None:
    folder = unzipped("sb3_ppo_box", tmp_path)
    changed_data(folder, **changes)

    with pytest.raises(ModelError, match=expected):
        load_policy(folder)


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("sb3_qrdqn", "sb3_ppo_box", "a Discrete, as a policy of QRDQN has, got Box"),
        (
            "sb3_qrdqn",
            "sb3_ppo_multidiscrete",
            "a Discrete, as a policy of QRDQN has, got MultiDiscrete",
        ),
        ("sb3_dqn_dict", "sb3_ppo_box", "a Discrete, as a policy of DQN has, got Box"),
        ("sb3_sac", "sb3_v18_ppo_discrete", "a Box, as a policy of SAC has, got Discrete"),
        ("sb3_td3", "sb3_ppo_multibinary", "a Box, as a policy of TD3, DDPG has, got MultiBinary"),
        (
            "sb3_ars_linear",
            "sb3_ppo_multidiscrete",
            "a Box or Discrete, as a policy of ARS has, got MultiDiscrete",
        ),
    ],
)
def test_space_of_actions_that_the_algorithm_has_not_is_named_with_its_own(
    name: str, other: str, words: str, tmp_path: Path
) -> None:
    folder = unzipped(name, tmp_path / "policy")
    settings = json.loads((unzipped(other, tmp_path / "other") / "data").read_text())
    changed_data(folder, action_space=settings["action_space"])

    with pytest.raises(ModelError, match=f"^data: action_space: expected {words}; save the pol"):
        load_policy(folder)


def test_space_of_actions_that_no_algorithm_has_is_refused(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_box", tmp_path / "policy")
    settings = json.loads((unzipped("sb3_ppo_dict_order", tmp_path / "other") / "data").read_text())
    changed_data(folder, action_space=settings["observation_space"])
    words = (
        "expected a Box, Discrete, MultiDiscrete or MultiBinary, as a policy of PPO, A2C, TRPO has"
    )

    with pytest.raises(ModelError, match=f"{words}, got Dict"):
        load_policy(folder)


def test_space_that_the_weights_can_t_be_of_is_refused(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_box", tmp_path)
    # As a pickle of Discrete(100_000_000) is, without gymnasium.
    space = b"cgymnasium.spaces.discrete\nDiscrete\n)\x81}(U\x01nI100000000\nU\x05startI0\nub."
    changed_data(folder, observation_space={":serialized:": base64.b64encode(space).decode()})

    with pytest.raises(ModelError, match=r"^data: an observation has 100000000 numbers, and the "):
        load_policy(folder)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_box", tmp_path)
    path = folder / "policy.pth"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            is_first_layer = name.endswith("/data/1")
            archive.writestr(name, b"\xff" * len(content) if is_first_layer else content)

    with pytest.raises(ModelError, match=r"^policy\.pth: [\w.]+ holds NaN or infinity"):
        load_policy(folder)


def test_data_that_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_box", tmp_path)
    (folder / "data").write_text("{")

    with pytest.raises(ModelError, match=r"^data: is no JSON that can be read"):
        load_policy(folder)


def test_tensorflow_is_no_engine_for_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"set POLICY_SERVER_ENGINE to auto or numpy$"):
        load_policy(unzipped("sb3_ppo_box", tmp_path), engine="tensorflow")


def test_loading_imports_no_training_library(tmp_path: Path) -> None:
    folder = unzipped("sb3_ppo_dict_order", tmp_path)

    found = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )

    assert found.stdout.split("\n")[:2] == ["categorical(3)", "[]"]
