"""Every example: its environment, its schema and its policy fit together."""

from __future__ import annotations

import importlib
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.seeding import np_random

from policy_server import create_app
from policy_server.commands.client import PolicyClient
from policy_server.commands.evaluation import evaluate
from policy_server.formats import load_policy
from policy_server.policy import Float32Array, Policy, PolicyInputs
from policy_server.schema import ServerSchema, read_schema, read_schema_file
from tests.support.folders import ROOT
from tests.support.servers import served_app

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
TEAMS = ["pursuit"]
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

    assert folders == {*NAMES_AND_RETURNS, *TEAMS}


@pytest.mark.parametrize("name", [*NAMES_AND_RETURNS, *TEAMS])
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


# Teams


def test_game_of_a_team_repeats_itself_under_a_seed_and_ends() -> None:
    runs = []
    for _ in range(2):
        environment, (generator, _) = environment_of("pursuit"), np_random(0)
        observations, _ = environment.reset(seed=1)
        seen: list[Any] = []
        while environment.agents:
            assert list(observations) == environment.agents == environment.possible_agents
            for agent, observation in observations.items():
                assert environment.observation_spaces[agent].contains(observation)
            actions = {
                agent: environment.random_action(agent, generator) for agent in environment.agents
            }
            assert all(
                environment.action_spaces[agent].contains(actions[agent]) for agent in actions
            )
            observations, rewards, terminated, truncated, _ = environment.step(actions)
            seen.append(np.concatenate([*observations.values(), list(rewards.values())]))
        assert set(terminated.values()) == {True} or set(truncated.values()) == {True}
        assert len(seen) <= environment.max_steps
        runs.append(np.array(seen))

    np.testing.assert_array_equal(runs[0], runs[1])


@pytest.mark.parametrize(
    ("cells", "actions", "is_caught"),
    [
        pytest.param([(2, 2), (0, 0), (2, 3)], [2, 0, 0], True, id="reached"),
        pytest.param([(2, 2), (0, 0), (2, 3)], [2, 0, 4], True, id="changed cells"),
        pytest.param([(2, 2), (0, 0), (2, 3)], [2, 0, 2], False, id="followed"),
        pytest.param([(6, 5), (0, 0), (6, 6)], [2, 0, 3], True, id="against the wall"),
    ],
)
def test_prey_is_caught_where_a_hunter_meets_it(
    cells: list[tuple[int, int]],
    actions: list[int],
    is_caught: bool,  # noqa: FBT001 -- a parameter
) -> None:
    environment = environment_of("pursuit")
    environment.reset(seed=0, options={"cells": cells})

    _, rewards, terminated, _, _ = environment.step(
        dict(zip(environment.possible_agents, actions, strict=True))
    )

    assert set(terminated.values()) == {is_caught}
    assert list(rewards.values()) == ([1.0, 1.0, -1.0] if is_caught else [-0.05, -0.05, 0.05])


def test_observations_of_a_team_are_what_the_schema_describes() -> None:
    file = read_schema_file(EXAMPLES / "pursuit" / "schema.yaml")
    environment = environment_of("pursuit")
    observations, _ = environment.reset(seed=0)

    assert file.agents is not None
    assert file.api_key == "1234567asdfgh"
    for agent, observation in observations.items():
        fields = file.choose(file.agents.policy_of(agent)).schema.observations
        named = environment.named_observation(agent, observation)
        assert fields is not None
        assert list(named) == [field.name for field in fields]
        for field in fields:
            assert field.description
            assert field.example is not None
            assert field.minimum is not None
            assert field.maximum is not None
            assert field.minimum <= named[field.name] <= field.maximum


def test_policies_of_a_team_beat_random_ones_in_their_place(tmp_path: Path) -> None:
    for name in ("schema.yaml", "saved_model.zip"):
        shutil.copy(EXAMPLES / "pursuit" / name, tmp_path / name)
    with served_app(create_app(tmp_path), ws="none") as port:
        result = evaluate(
            EXAMPLES / "pursuit",
            lambda: PolicyClient(f"http://127.0.0.1:{port}", "1234567asdfgh"),
            episodes=20,
            seed=0,
            is_deterministic=False,
            keeps_memory=True,
            parallel=2,
            on_progress=lambda _done, _total: None,
        )

    hunter, prey = result.comparisons
    assert hunter.served.mean > 0.3 > -1.0 > hunter.random.mean
    assert prey.served.mean > -0.65 > -0.7 > prey.random.mean
