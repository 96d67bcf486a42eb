"""Every example: its environment, its schema and its policy fit together."""

from __future__ import annotations

import importlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.seeding import np_random

from policy_server.formats import load_policy
from policy_server.policy import Float32Array, Policy, PolicyInputs
from policy_server.schema import ServerSchema, read_schema
from tests.support.folders import ROOT

EXAMPLES = ROOT / "examples"
# The return that a policy has to have in the mean of ten episodes: far from a random policy's.
NAMES_AND_RETURNS = {
    "action_masking": 140.0,
    "call_center": -250.0,
    "conveyor": 18.0,
    "lpoc": 2.0,
    "mouse_and_cheese": 0.5,
    "pendulum": -400.0,
    "stock": 10.0,
}
FILES = ["README.md", "environment.py", "saved_model.zip", "schema.yaml", "train.py"]

every_example = pytest.mark.parametrize("name", NAMES_AND_RETURNS)


def environment_of(name: str) -> Any:  # noqa: ANN401 -- each example has a class of its own
    return importlib.import_module(f"examples.{name}.environment").make_environment()


def policy_of(name: str, folder: Path) -> tuple[ServerSchema, Policy]:
    with zipfile.ZipFile(EXAMPLES / name / "saved_model.zip") as archive:
        archive.extractall(folder)
    schema = read_schema(EXAMPLES / name / "schema.yaml")
    return schema, load_policy(folder, schema)


def mean_return(
    name: str, policy: Policy | None, *, episodes: int, keeps_memory: bool = True
) -> float:
    environment, total = environment_of(name), 0.0
    generator, _ = np_random(5)
    for episode in range(episodes):
        observation, _ = environment.reset(seed=episode)
        is_over, state = False, zero_state(policy)
        while not is_over:
            if policy is None:
                action = environment.random_action(generator)
            else:
                named = environment.named_observation(observation)
                row = flat_values(named)[None].astype(np.float32)
                inputs = PolicyInputs.of(
                    row, is_deterministic=True, seeds=np.full(1, -1), state=state
                )
                outputs = policy.infer(inputs)
                state = outputs.state if keeps_memory else state
                action = environment.action_from(outputs.actions[0].tolist())
            observation, reward, is_terminated, is_truncated, _ = environment.step(action)
            total += reward
            is_over = is_terminated or is_truncated
    return total / episodes


def zero_state(policy: Policy | None) -> Float32Array | None:
    if policy is None or not policy.signature.memory:
        return None
    return np.zeros((1, policy.signature.memory_width), np.float32)


def flat_values(named: Any) -> np.ndarray[Any, np.dtype[np.float64]]:  # noqa: ANN401 -- a dictionary or a list
    parts = named.values() if isinstance(named, dict) else named
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.float64)


def test_every_folder_of_examples_is_tested() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/schema.yaml")}

    assert folders == set(NAMES_AND_RETURNS)


@every_example
def test_example_has_its_files_and_a_small_policy(name: str) -> None:
    files = {path.name: path.stat().st_size for path in (EXAMPLES / name).iterdir()}

    assert [file for file in FILES if not files.get(file)] == []
    assert files["saved_model.zip"] < 300_000


# The pendulum's bounds are a motor's, in N m: that the server answers in them is its point.
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")
@every_example
def test_environment_follows_gymnasium(name: str) -> None:
    check_env(environment_of(name), skip_render_check=True)


@every_example
def test_environment_repeats_itself_under_a_seed(name: str) -> None:
    runs = []
    for _ in range(2):
        environment, (generator, _) = environment_of(name), np_random(0)
        observation, _ = environment.reset(seed=1)
        seen = [flat_values(environment.named_observation(observation))]
        for _ in range(30):
            observation, reward, is_terminated, is_truncated, _ = environment.step(
                environment.random_action(generator)
            )
            seen.append(np.append(flat_values(environment.named_observation(observation)), reward))
            if is_terminated or is_truncated:
                break
        runs.append(np.concatenate(seen))

    np.testing.assert_array_equal(runs[0], runs[1])


@every_example
def test_observations_are_what_the_schema_describes(name: str) -> None:
    schema = read_schema(EXAMPLES / name / "schema.yaml")
    environment = environment_of(name)

    for seed in range(20):
        named = environment.named_observation(environment.reset(seed=seed)[0])

        if schema.observations is None:
            assert isinstance(named, list)
            continue
        assert list(named) == [field.name for field in schema.observations]
        for field in schema.observations:
            values = named[field.name] if field.is_list else [named[field.name]]
            kinds = {"int": int, "float": float, "bool": bool}
            assert {type(value) for value in values} == {kinds[field.kind]}
            assert field.minimum is None or min(values) >= field.minimum
            assert field.maximum is None or max(values) <= field.maximum
            if field.is_list:
                assert len(values) == field.min_items == field.max_items


@every_example
def test_schema_explains_every_observation(name: str) -> None:
    schema = read_schema(EXAMPLES / name / "schema.yaml")

    assert schema.api_key == "1234567asdfgh"
    for field in schema.observations or ():
        assert field.description
        assert field.example is not None


def test_lpoc_has_the_eleven_observations_in_order() -> None:
    schema = read_schema(EXAMPLES / "lpoc" / "schema.yaml")

    assert schema.observations is not None
    assert [(field.name, field.kind) for field in schema.observations] == [
        ("id", "int"),
        ("coordinates_0", "int"),
        ("coordinates_1", "int"),
        ("has_up_neighbour", "bool"),
        ("is_up_free", "bool"),
        ("has_right_neighbour", "bool"),
        ("is_right_free", "bool"),
        ("has_down_neighbour", "bool"),
        ("is_down_free", "bool"),
        ("has_left_neighbour", "bool"),
        ("is_left_free", "bool"),
    ]


@every_example
def test_policy_is_proved_and_fits_the_schema(name: str, tmp_path: Path) -> None:
    schema, policy = policy_of(name, tmp_path)

    width = flat_values(
        environment_of(name).named_observation(environment_of(name).reset(seed=0)[0])
    ).size
    assert policy.signature.is_proved
    assert policy.signature.observation_width == width
    assert schema.observations is None or schema.width == width


@every_example
def test_policy_clearly_beats_a_random_one(name: str, tmp_path: Path) -> None:
    _, policy = policy_of(name, tmp_path)

    trained, random = (mean_return(name, chosen, episodes=10) for chosen in (policy, None))

    assert trained > NAMES_AND_RETURNS[name] > random


def test_conveyor_is_sorted_by_memory_alone(tmp_path: Path) -> None:
    _, policy = policy_of("conveyor", tmp_path)

    # One of three lanes is right by chance.
    assert mean_return("conveyor", policy, episodes=10, keeps_memory=False) < 9.0
