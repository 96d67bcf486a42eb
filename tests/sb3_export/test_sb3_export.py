"""From a stable-baselines3 policy to the two files; what needs no training package runs without."""

from __future__ import annotations

import base64
import importlib.util
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pydantic import ValidationError

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import ExportError, MissingPackageError
from policy_server.formats.saved_model.loading import load_policy
from policy_server.formats.saved_model.mlp_policy import Normal
from policy_server.formats.saved_model.writing import write_saved_model
from policy_server.observations.models import observation_model
from policy_server.policy import PolicyInputs
from policy_server.sb3_export import export_policy
from policy_server.sb3_export.describing import describe_policy
from policy_server.sb3_export.draft import (
    draft_action_fields,
    draft_observation_fields,
    draft_schema,
    find_action_mask,
    observation_width,
)
from policy_server.sb3_export.equality import prove_export
from policy_server.sb3_export.normalization import check_unscaled
from policy_server.sb3_export.restored_classes import ForeignNameError, MissingNameError, unpickle
from policy_server.sb3_export.saved_policy import TrainedPolicy, read_policy
from policy_server.sb3_export.training_spaces import name_keys, open_bounds
from policy_server.schema import ServerSchema, number_range, parse_schema, read_schema
from tests.support.folders import ROOT

HAS_TRAINING = all(importlib.util.find_spec(name) for name in ("sb3_contrib", "torch"))
BOX = spaces.Box(-1.0, 1.0, (6,), np.float32)
POLICIES = ROOT / "tests" / "data" / "policies"
MASKABLE = spaces.Dict(
    {"position": spaces.Box(-9.0, 9.0, (2,)), "action_mask": spaces.MultiBinary(4)}
)


def training(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs stable-baselines3 and PyTorch."""
    reason = "needs the training packages: pip install -r requirements-train.txt"
    if_installed = pytest.mark.skipif(not HAS_TRAINING, reason=reason)
    marked: Callable[..., None] = pytest.mark.training(if_installed(test))
    return marked


class RandomEnvironment(gymnasium.Env[Any, Any]):
    """Gives observations that mean nothing."""

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401, ARG002 -- gymnasium's
        return self.observation_space.sample(), 0.0, True, False, {}


def save_untrained(
    folder: Path,
    algorithm: str,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    policy: str | None = None,
    **options: Any,  # noqa: ANN401 -- stable-baselines3's own
) -> Path:
    """Save a policy with the weights that it begins with."""
    import sb3_contrib
    import stable_baselines3

    classes = {**vars(stable_baselines3), **vars(sb3_contrib)}
    is_dict = isinstance(observation_space, spaces.Dict)
    name = policy or ("MultiInputPolicy" if is_dict else "MlpPolicy")
    environment = RandomEnvironment(observation_space, action_space)
    model = classes[algorithm](name, environment, device="cpu", seed=1, **options)
    model.save(folder / "model.zip")
    return folder / "model.zip"


def test_box_becomes_one_list_of_fixed_length() -> None:
    (field,) = draft_observation_fields(BOX)

    assert (field.name, field.kind, field.is_list) == ("observation", "float", True)
    assert (field.min_items, field.max_items, field.minimum, field.maximum) == (6, 6, -1.0, 1.0)


def test_names_make_single_values_of_a_box() -> None:
    fields = draft_observation_fields(spaces.Box(0.0, 1.0, (2,)), ["row", "column"])

    assert [(field.name, field.is_list) for field in fields] == [("row", False), ("column", False)]


def test_names_with_counts_make_lists_of_a_box() -> None:
    low = np.array([0, 0, -5, -5, -5], np.float32)
    space = spaces.Box(low, np.full(5, np.inf, np.float32))

    position, speed = draft_observation_fields(space, {"position": 2, "speed": 3})

    assert (position.max_items, position.minimum, position.maximum) == (2, 0.0, None)
    assert (speed.max_items, speed.minimum, speed.maximum) == (3, -5.0, None)


def test_dictionary_keeps_its_keys_and_their_order() -> None:
    space = spaces.Dict(
        {
            "a mode": spaces.Discrete(3),
            "flags": spaces.MultiBinary(2),
            "grid": spaces.Box(0, 7, (2, 2), np.int64),
            "pair": spaces.MultiDiscrete([2, 3]),
        }
    )

    fields = draft_observation_fields(space)

    assert [(field.name, field.kind, field.max_items) for field in fields] == [
        ("a_mode", "int", 3),
        ("flags", "int", 2),
        ("grid", "int", 4),
        ("pair", "int", 5),
    ]
    assert observation_width(fields) == 14
    assert [field.example for field in fields] == [
        [1, 0, 0],
        [0, 0],
        [0, 0, 0, 0],
        [1, 0, 1, 0, 0],
    ]
    assert "one-hot" in (fields[0].description or "")
    assert "'a mode' in the environment" in (fields[0].description or "")


def test_multi_binary_takes_the_zeros_and_ones_that_gymnasium_gives() -> None:
    (field,) = draft_observation_fields(spaces.MultiBinary(3))
    model = observation_model((field,), number_range("float32"))

    assert (field.kind, field.minimum, field.maximum) == ("int", 0, 1)
    model.model_validate_json('{"observation": [0, 1, 1]}')
    with pytest.raises(ValidationError):
        model.model_validate_json('{"observation": [0, 1, 2]}')


@pytest.mark.parametrize("bound", [2.3, 0.1, 4.8, 1.2, 3e-5, 1e20], ids=str)
def test_bounds_are_drafted_as_people_write_them(bound: float) -> None:
    space = spaces.Box(-bound, bound, (1,), np.float32)

    (field,) = draft_observation_fields(space)
    (action,) = draft_action_fields(space)

    assert (field.minimum, field.maximum) == (-bound, bound)
    assert (action.low, action.high) == ((-bound,), (bound,))
    # What the environment gives at its bound, printed as NumPy's `tolist` has it, is taken too.
    model = observation_model((field,), number_range("float32"))
    for at_bound in (bound, -bound, float(np.float32(bound)), float(np.float32(-bound))):
        model.model_validate_json(f'{{"observation": {at_bound!r}}}')


def test_bounds_of_doubles_stay_as_they_are() -> None:
    space = spaces.Box(-np.pi, 1 / 3, (1,), np.float64)

    (field,) = draft_observation_fields(space)

    assert (field.minimum, field.maximum) == (-np.pi, 1 / 3)


def test_bounds_that_only_say_that_there_is_none_are_left_out() -> None:
    most = float(np.finfo(np.float32).max)
    space = spaces.Dict({"speed": spaces.Box(-most, most, (1,)), "mode": spaces.Discrete(2)})

    _, speed = draft_observation_fields(open_bounds(space))

    assert (speed.minimum, speed.maximum) == (None, None)


KEYS: dict[str, tuple[list[str], list[str]]] = {
    "three_that_are_one": (
        ["speed x", "speed-x", "speed_x"],
        ["speed_x_2", "speed_x_3", "speed_x"],
    ),
    "the_number_is_taken": (["a b", "a-b", "a_b_2"], ["a_b", "a_b_3", "a_b_2"]),
    "digits": (["1", "_1", "1 "], ["_1_2", "_1", "_1_"]),
    "no_letter_of_ours": (["速度", "位置", "-", ""], ["__", "___2", "_", "__2"]),
    "names_already": (["b", "a"], ["b", "a"]),
}


@pytest.mark.parametrize(("keys", "names"), KEYS.values(), ids=KEYS)
def test_each_key_has_a_name_of_its_own(keys: list[str], names: list[str]) -> None:
    assert name_keys(keys) == dict(zip(keys, names, strict=True))


def test_keys_that_would_be_one_name_are_all_drafted() -> None:
    keys = ["speed x", "speed-x", "speed_x"]
    space = spaces.Dict([(key, spaces.Box(0, index + 1, (1,))) for index, key in enumerate(keys)])

    fields = draft_observation_fields(space)
    text = draft_schema(fields, draft_action_fields(spaces.Discrete(2)), source="model.zip")

    assert [(item.name, item.maximum) for item in parse_schema(text).observations or ()] == [
        ("speed_x_2", 1),
        ("speed_x_3", 2),
        ("speed_x", 3),
    ]


WRONG_OBSERVATIONS: dict[str, tuple[spaces.Space[Any], Any, str]] = {
    "too_few_names": (BOX, ["a"], "expected names for 6 values"),
    "text_for_a_list": (BOX, "abcdef", "expected a list or a mapping, got the text 'abcdef'"),
    "name_given_twice": (BOX, ["a", "a", "b", "c", "d", "e"], "expected each name once"),
    "count_below_one": (BOX, {"a": 7, "b": -1}, "expected names for 6 values"),
    "names_of_a_dictionary": (MASKABLE, ["a"], "the keys of the Dict observation are the names"),
    "names_of_a_discrete": (spaces.Discrete(2), ["a", "b"], "expected one for a Discrete, got 2"),
    "image": (spaces.Box(0, 255, (36, 36, 3), np.uint8), None, "observation: is an image"),
    "text": (spaces.Text(3), None, "observation: expected a Box"),
    "discrete_from_five": (spaces.Discrete(3, start=5), None, "observation: expected a Box"),
}


@pytest.mark.parametrize(
    ("space", "names", "message"), WRONG_OBSERVATIONS.values(), ids=WRONG_OBSERVATIONS
)
def test_observation_that_can_not_be_drafted_is_refused(
    space: spaces.Space[Any],
    names: Any,  # noqa: ANN401 -- what a user may give
    message: str,
) -> None:
    with pytest.raises(ExportError, match=message):
        draft_observation_fields(space, names)


def test_multi_discrete_has_one_action_for_each_part() -> None:
    fields = draft_action_fields(spaces.MultiDiscrete([4, 2]), ["team", "queue"])

    assert [(field.name, field.choices) for field in fields] == [("team", 4), ("queue", 2)]


@pytest.mark.parametrize("is_normalized", [True, False], ids=["sac", "ppo"])
def test_box_has_one_action_with_bounds(is_normalized: bool) -> None:  # noqa: FBT001 -- a parameter
    space = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 5], np.float32))

    (field,) = draft_action_fields(space, is_normalized=is_normalized)

    assert (field.low, field.high, field.dimensions) == ((-2.0, 0.0), (2.0, 5.0), 2)
    assert field.normalized is is_normalized


def test_box_without_bounds_has_none_in_the_schema() -> None:
    (field,) = draft_action_fields(spaces.Box(-np.inf, np.inf, (2,)))

    assert field.low is None


WRONG_ACTIONS: dict[str, tuple[spaces.Space[Any], Any, bool, str]] = {
    "two_names_for_one": (spaces.Discrete(3), ["a", "b"], False, "expected a list of 1, .* got 2"),
    "text_for_a_list": (spaces.MultiDiscrete([2, 2]), "ab", False, "expected a list of 2"),
    "name_given_twice": (spaces.MultiDiscrete([2, 2]), ["a", "a"], False, "each name once"),
    "multi_binary": (spaces.MultiBinary(3), None, False, "expected Box, or Discrete"),
    "discrete_from_one": (spaces.Discrete(3, start=1), None, False, "expected Box, or Discrete"),
    "squashed_without_bounds": (
        spaces.Box(-np.inf, np.inf, (1,)),
        None,
        True,
        "needs finite bounds",
    ),
}


@pytest.mark.parametrize(
    ("space", "names", "is_normalized", "message"), WRONG_ACTIONS.values(), ids=WRONG_ACTIONS
)
def test_action_that_can_not_be_drafted_is_refused(
    space: spaces.Space[Any],
    names: Any,  # noqa: ANN401 -- what a user may give
    is_normalized: bool,  # noqa: FBT001 -- a parameter
    message: str,
) -> None:
    with pytest.raises(ExportError, match=message):
        draft_action_fields(space, names, is_normalized=is_normalized)


def test_mask_is_found_by_its_name() -> None:
    fields = draft_observation_fields(spaces.Box(0, 1, (6,)), {"position": 2, "action_mask": 4})

    assert find_action_mask(fields, spaces.Discrete(4)) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"position": 6}, "expected a part of the observation called action_mask, got position"),
        ({"position": 1, "action_mask": 5}, "expected 4 values, one for each choice, got 5"),
    ],
    ids=["missing", "wrong_size"],
)
def test_mask_that_is_not_there_is_refused(names: dict[str, int], message: str) -> None:
    fields = draft_observation_fields(spaces.Box(0, 1, (6,)), names)

    with pytest.raises(ExportError, match=message):
        find_action_mask(fields, spaces.Discrete(4))


def test_drafted_schema_can_be_served() -> None:
    fields = draft_observation_fields(MASKABLE)
    actions = draft_action_fields(spaces.MultiDiscrete([2, 2]), ["left", "right"])

    schema = parse_schema(draft_schema(fields, actions, source="model.zip"))

    assert schema.observations == fields
    assert schema.actions == actions
    assert (schema.discrete, schema.tuple) == (True, True)
    assert len(schema.api_key or "") >= 20


def test_name_that_a_schema_can_not_have_is_refused() -> None:
    fields = draft_observation_fields(spaces.Box(0, 1, (2,)), ["row", "the column"])

    with pytest.raises(ExportError, match="the name 'the column' can't be used"):
        draft_schema(fields, draft_action_fields(spaces.Discrete(2)), source="model.zip")


def test_missing_packages_are_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)

    with pytest.raises(MissingPackageError, match=r"pip install -r requirements-train\.txt"):
        export_policy(tmp_path / "model.zip", tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["saved_model.zip", "schema.yaml"])
def test_existing_file_is_kept_unless_told_otherwise(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")

    with pytest.raises(ExportError, match=rf"{name}: exists; .* --overwrite"):
        export_policy(tmp_path / "model.zip", tmp_path)

    assert (tmp_path / name).read_text() == "mine"


EXPORTED: dict[str, tuple[str, spaces.Space[Any], spaces.Space[Any], dict[str, Any], str]] = {
    "ppo_discrete": ("PPO", BOX, spaces.Discrete(4), {}, "categorical(4)"),
    "ppo_multi_discrete": (
        "PPO",
        BOX,
        spaces.MultiDiscrete([4, 2]),
        {},
        "categorical(4) + categorical(2)",
    ),
    "ppo_box": ("PPO", BOX, spaces.Box(-2, 3, (2,)), {}, "normal(2)"),
    "ppo_of_a_grid": ("PPO", spaces.Box(-9, 9, (2, 3)), spaces.Discrete(2), {}, "categorical(2)"),
    "ppo_of_a_dictionary": ("PPO", MASKABLE, spaces.Discrete(4), {}, "categorical(4)"),
    "ppo_of_one_hot": ("PPO", spaces.Discrete(7), spaces.Discrete(2), {}, "categorical(2)"),
    "ppo_of_several_one_hots": (
        "PPO",
        spaces.MultiDiscrete([3, 4]),
        spaces.Discrete(2),
        {},
        "categorical(2)",
    ),
    "a2c_box": ("A2C", BOX, spaces.Box(-2, 3, (2,)), {}, "normal(2)"),
    "dqn": ("DQN", BOX, spaces.Discrete(3), {}, "greedy over categorical(3)"),
    "sac": ("SAC", BOX, spaces.Box(-2, 3, (2,)), {}, "squashed_normal(2)"),
    "maskable": ("MaskablePPO", MASKABLE, spaces.Discrete(4), {}, "categorical(4)"),
    "maskable_multi_discrete": (
        "MaskablePPO",
        BOX,
        spaces.MultiDiscrete([2, 2]),
        {"observation_names": {"position": 2, "action_mask": 4}},
        "categorical(2) + categorical(2)",
    ),
}


@training
@pytest.mark.parametrize(
    ("algorithm", "observations", "actions", "options", "family"), EXPORTED.values(), ids=EXPORTED
)
def test_export_writes_two_files_that_fit(
    algorithm: str,
    observations: spaces.Space[Any],
    actions: spaces.Space[Any],
    options: dict[str, Any],
    family: str,
    tmp_path: Path,
) -> None:
    saved = save_untrained(tmp_path, algorithm, observations, actions)

    written = export_policy(saved, tmp_path / "out", **options)

    assert [path.name for path in written] == ["saved_model.zip", "schema.yaml"]
    with zipfile.ZipFile(written[0]) as archive:
        archive.extractall(tmp_path / "model")
    schema = read_schema(written[1])
    signature = load_policy(tmp_path / "model", schema).signature
    assert signature.is_proved
    assert signature.family == family
    assert signature.observation_width == schema.width


@training
@pytest.mark.parametrize(
    "activation", ["ReLU", "LeakyReLU", "ELU", "SiLU", "GELU", "Sigmoid", "Softplus"]
)
def test_every_activation_is_proved_equal(activation: str, tmp_path: Path) -> None:
    import torch

    layers = {"net_arch": [8], "activation_fn": getattr(torch.nn, activation)}
    saved = save_untrained(tmp_path, "PPO", BOX, spaces.Discrete(3), policy_kwargs=layers)

    assert len(export_policy(saved, tmp_path / "out")) == 2


@training
def test_scaling_of_vec_normalize_is_part_of_the_export(tmp_path: Path) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    space, actions = spaces.Box(-100, 300, (6,), np.float32), spaces.Discrete(4)
    environments = VecNormalize(
        DummyVecEnv([lambda: RandomEnvironment(space, actions)]), clip_obs=1
    )
    model = PPO("MlpPolicy", environments, n_steps=64, batch_size=64, device="cpu", seed=0)
    model.learn(64)
    model.save(tmp_path / "model.zip")
    environments.save(str(tmp_path / "statistics.pkl"))

    export_policy(
        tmp_path / "model.zip", tmp_path / "out", vec_normalize=tmp_path / "statistics.pkl"
    )

    trained = read_policy(tmp_path / "model.zip", vec_normalize=tmp_path / "statistics.pkl")
    scaling = describe_policy(trained).scaling
    assert scaling is not None
    np.testing.assert_allclose(scaling.mean, environments.obs_rms.mean, rtol=1e-5)
    assert scaling.limit == 1


SPACE = spaces.Box(-1, 1, (2,), np.float32)
INSIDE, OUTSIDE = np.array([[0.5, -1]], np.float32), np.array([[0.5, -3]], np.float32)
LAST: dict[str, tuple[Any, Any, bool, bool]] = {
    "on_policy": (INSIDE, INSIDE, True, True),
    "on_policy_without": (INSIDE, None, True, False),
    "off_policy_outside_of_the_space": (OUTSIDE, INSIDE, False, True),
    "off_policy_of_another_type": (INSIDE, INSIDE.astype(np.float64), False, True),
    "off_policy_without": (INSIDE, INSIDE / 2, False, False),
    "off_policy_of_an_environment_that_leaves_its_space": (OUTSIDE, OUTSIDE, False, False),
    "untrained": (None, None, False, False),
}


@pytest.mark.parametrize(
    ("last", "original", "is_on_policy", "is_refused"), LAST.values(), ids=LAST
)
def test_policy_whose_file_shows_vec_normalize_is_refused_without_it(
    last: Any,  # noqa: ANN401 -- as stable-baselines3 keeps it
    original: Any,  # noqa: ANN401 -- likewise
    is_on_policy: bool,  # noqa: FBT001 -- a parameter
    is_refused: bool,  # noqa: FBT001 -- likewise
) -> None:
    for space, kept in (
        (SPACE, (last, original)),
        (
            spaces.Dict({"x": SPACE}),
            tuple(None if item is None else {"x": item} for item in (last, original)),
        ),
    ):
        if not is_refused:
            check_unscaled(Path("model.zip"), space, *kept, is_on_policy=is_on_policy)
            continue
        with pytest.raises(ExportError, match=r"--normalization vec_normalize\.pkl.* none"):
            check_unscaled(Path("model.zip"), space, *kept, is_on_policy=is_on_policy)


@training
def test_forgotten_vec_normalize_is_asked_for(tmp_path: Path) -> None:
    saved = POLICIES / "sb3_ppo_vecnorm" / "policy.zip"
    statistics = POLICIES / "sb3_ppo_vecnorm" / "vec_normalize.pkl"

    with pytest.raises(ExportError, match=r"was trained with VecNormalize, .* --normalization"):
        export_policy(saved, tmp_path / "without")
    assert not (tmp_path / "without").exists()

    export_policy(saved, tmp_path / "with", vec_normalize=statistics)
    export_policy(saved, tmp_path / "denied", is_unscaled=True)


@training
def test_off_policy_file_that_shows_nothing_is_exported_with_a_note(tmp_path: Path) -> None:
    from stable_baselines3 import DQN

    environment = RandomEnvironment(SPACE, spaces.Discrete(2))
    model = DQN("MlpPolicy", environment, learning_starts=10, device="cpu", seed=1)
    model.learn(20)
    model.save(tmp_path / "model.zip")
    notes: list[str] = []

    export_policy(tmp_path / "model.zip", tmp_path / "out", on_note=notes.append)
    (note,) = notes
    assert "does not show whether VecNormalize" in note
    export_policy(
        tmp_path / "model.zip",
        tmp_path / "out",
        is_unscaled=True,
        overwrite=True,
        on_note=notes.append,
    )
    assert len(notes) == 1


@training
def test_keys_under_another_name_are_told(tmp_path: Path) -> None:
    space = spaces.Dict({"speed x": SPACE, "speed_x": SPACE})
    notes: list[str] = []

    export_policy(
        save_untrained(tmp_path, "PPO", space, spaces.Discrete(2)),
        tmp_path / "out",
        on_note=notes.append,
    )

    assert notes == ["the observation 'speed x' is called speed_x_2 in schema.yaml"]


@training
def test_policy_of_gym_answers_as_it_did_in_stable_baselines3_1(tmp_path: Path) -> None:
    folder = POLICIES / "sb3_v18_ppo_discrete"

    model, schema = export_policy(folder / "policy.zip", tmp_path / "out")

    with zipfile.ZipFile(model) as archive:
        archive.extractall(tmp_path / "model")
    policy = load_policy(tmp_path / "model", read_schema(schema))
    cases = json.loads((folder / "cases.json").read_text())
    rows = np.array([case["raw"] for case in cases], np.float32)
    outputs = policy.infer(PolicyInputs.of(rows, is_deterministic=True))
    assert outputs.distribution is not None
    (part,) = ActionDistribution(policy.signature.components or ()).describe(outputs.distribution)
    wanted = [case["expected"]["probabilities"] for case in cases]
    assert part.probabilities is not None
    np.testing.assert_allclose(part.probabilities, wanted, atol=1e-6)


def foreign(name: str) -> bytes:
    """Return a pickle that calls what it names, with a file's name."""
    module, _, function = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + function.encode() + b"\n(S'called'\ntR."


@pytest.mark.parametrize(
    "name",
    [
        "os.mkdir",
        "builtins.exec",
        "builtins.getattr",
        "numpy.save",
        "numpy.f2py.crackfortran.markinnerspaces",
        "torch.hub.load",
        "my_project.networks.Extractor",
        "stable_baselines3.common.save_util.open_path",
        "gymnasium.spaces.space.seeding",
        "cloudpickle.cloudpickle._make_function",
    ],
)
def test_what_is_not_on_the_list_is_not_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ForeignNameError) as caught:
        unpickle(foreign(name))

    assert caught.value.name == name
    assert list(tmp_path.iterdir()) == []


def test_name_that_the_installed_packages_lack_is_told_from_a_foreign_one() -> None:
    with pytest.raises(MissingNameError, match=r"gym\.spaces\.older\.Older"):
        unpickle(foreign("gym.spaces.older.Older"))


def test_spaces_of_gym_become_those_of_gymnasium() -> None:
    pickled = pickle.dumps(spaces.Dict({"a": spaces.Discrete(3), "b": BOX}), protocol=3)

    assert unpickle(pickled.replace(b"cgymnasium.", b"cgym.")) == spaces.Dict(
        {"a": spaces.Discrete(3), "b": BOX}
    )


def changed(saved: Path, target: Path, **parts: bytes) -> Path:
    """Write a policy's file with other pickles in its `data`."""
    with zipfile.ZipFile(saved) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(files["data"])
    for key, pickled in parts.items():
        data[key] = {":type:": "changed", ":serialized:": base64.b64encode(pickled).decode()}
    files["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


MISSING: dict[str, tuple[dict[str, bytes], str]] = {
    "own_class": (
        {"policy_kwargs": b"(S'activation_fn'\ncmy_project.networks\nSwish\nd."},
        "policy_kwargs names my_project.networks.Swish, a class or function from outside",
    ),
    "older_class": (
        {"policy_class": b"cstable_baselines3.older.policies\nOldPolicy\n."},
        r"policy_class names .*OldPolicy, which the packages of .* don't have; the file was saved "
        r"by stable-baselines3 1\.8\.0",
    ),
    "damaged": ({"action_space": b"nonsense"}, "is not what .* writes: action_space: "),
}


@training
@pytest.mark.parametrize(("parts", "message"), MISSING.values(), ids=MISSING)
def test_missing_code_is_not_called_damage(
    parts: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    saved = POLICIES / "sb3_v18_ppo_discrete" / "policy.zip"

    with pytest.raises(ExportError, match=message) as caught:
        export_policy(changed(saved, tmp_path / "model.zip", **parts), tmp_path / "out")

    assert ("is not what" in str(caught.value)) == ("is not what" in message)


@training
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (foreign("os.mkdir"), r"names os\.mkdir; expected the statistics of VecNormalize\.save"),
        (b"(l.", r"expected the statistics of VecNormalize\.save, got a list"),
        (b"no pickle", "can't be read as the statistics"),
    ],
    ids=["foreign", "another_object", "damaged"],
)
def test_file_that_holds_no_statistics_is_refused(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    statistics = tmp_path / "statistics.pkl"
    statistics.write_bytes(content)

    with pytest.raises(ExportError, match=message):
        export_policy(
            POLICIES / "sb3_ppo_vecnorm" / "policy.zip", tmp_path / "out", vec_normalize=statistics
        )

    assert list(tmp_path.iterdir()) == [statistics]


REFUSED: dict[str, tuple[str, spaces.Space[Any], spaces.Space[Any], dict[str, Any], str]] = {
    "td3": (
        "TD3",
        BOX,
        spaces.Box(-1, 1, (1,)),
        {},
        "is a TD3Policy of .*; expected an MLP policy",
    ),
    "quantile_dqn": ("QRDQN", BOX, spaces.Discrete(2), {}, "is a QRDQNPolicy of "),
    "recurrent": (
        "RecurrentPPO",
        BOX,
        spaces.Discrete(2),
        {"policy": "MlpLstmPolicy"},
        "is recurrent",
    ),
    "images": (
        "PPO",
        spaces.Box(0, 255, (36, 36, 3), np.uint8),
        spaces.Discrete(2),
        {"policy": "CnnPolicy"},
        "is an image",
    ),
    "state_dependent_noise": ("PPO", BOX, spaces.Box(-1, 1, (1,)), {"use_sde": True}, "gSDE"),
    "binary_actions": ("PPO", BOX, spaces.MultiBinary(2), {}, "the action space: expected Box"),
    "mask_without_a_name": ("MaskablePPO", BOX, spaces.Discrete(2), {}, "called action_mask"),
}


@training
@pytest.mark.parametrize(
    ("algorithm", "observations", "actions", "options", "message"), REFUSED.values(), ids=REFUSED
)
def test_policy_of_another_kind_is_refused_in_one_line(
    algorithm: str,
    observations: spaces.Space[Any],
    actions: spaces.Space[Any],
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    saved = save_untrained(tmp_path, algorithm, observations, actions, **options)

    with pytest.raises(ExportError, match=message) as caught:
        export_policy(saved, tmp_path / "out")

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@training
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "not found; expected the .zip"), (b"PK no zip", "is not what .* model.save writes")],
    ids=["missing", "no_zip"],
)
def test_file_that_is_no_policy_is_refused(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "model.zip").write_bytes(content)

    with pytest.raises(ExportError, match=message):
        export_policy(tmp_path / "model.zip", tmp_path / "out")


@training
def test_layer_that_is_not_understood_is_named(tmp_path: Path) -> None:
    import torch

    layers = {"net_arch": [8], "activation_fn": torch.nn.Hardswish}
    saved = save_untrained(tmp_path, "PPO", BOX, spaces.Discrete(3), policy_kwargs=layers)

    with pytest.raises(ExportError, match=r"a layer: expected one of .*, got Hardswish"):
        export_policy(saved, tmp_path / "out")


@training
def test_export_of_other_weights_is_not_proved(tmp_path: Path) -> None:
    saved = save_untrained(tmp_path, "PPO", BOX, spaces.Box(-1, 1, (1,)))
    trained = read_policy(saved)
    described = describe_policy(trained)
    with_other_noise = type(described)(
        described.observation_width, described.layers, Normal(1, np.array([0.001], np.float32))
    )
    write_saved_model(with_other_noise, tmp_path / "model")

    with pytest.raises(ExportError, match=r"a standard deviation differs by \d"):
        prove_export(tmp_path / "model", trained, with_other_noise)


@training
def test_overwrite_replaces_both_files(tmp_path: Path) -> None:
    saved = save_untrained(tmp_path, "PPO", BOX, spaces.Discrete(2))
    (tmp_path / "schema.yaml").write_text("old")
    (tmp_path / "saved_model.zip").write_text("old")

    export_policy(saved, tmp_path, overwrite=True, action_names=["turn"])

    schema: ServerSchema = read_schema(tmp_path / "schema.yaml")
    assert schema.actions is not None
    assert schema.actions[0].name == "turn"
    assert zipfile.is_zipfile(tmp_path / "saved_model.zip")
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.zip",
        "saved_model.zip",
        "schema.yaml",
    }


@training
def test_policy_is_in_evaluation_mode(tmp_path: Path) -> None:
    trained: TrainedPolicy = read_policy(save_untrained(tmp_path, "DQN", BOX, spaces.Discrete(2)))

    assert not trained.policy.training
