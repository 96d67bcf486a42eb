"""From a stable-baselines3 policy to saved_model.zip and schema.yaml."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from policy_server.commands import export as commands_export
from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import ExportError, MissingPackageError, ModelError
from policy_server.formats.known_formats import load_policy
from policy_server.formats.pickles.spaces import (
    BoxSpace,
    DictSpace,
    DiscreteSpace,
    MultiBinarySpace,
    MultiDiscreteSpace,
    Space,
    TupleSpace,
)
from policy_server.formats.saved_model.mlp_policy import MlpPolicy, Normal
from policy_server.formats.saved_model.writing import write_saved_model
from policy_server.formats.stable_baselines3.algorithms import algorithm_of
from policy_server.formats.stable_baselines3.zip_members import read_saved_policy
from policy_server.observations.models import observation_model
from policy_server.policy import Policy, PolicyInputs, PolicyOutputs
from policy_server.sb3_export import export_policy
from policy_server.sb3_export.describing import describe_policy
from policy_server.sb3_export.draft import (
    draft_action_fields,
    draft_observation_fields,
    draft_schema,
    find_action_mask,
    observation_width,
)
from policy_server.sb3_export.equality import prove_export, random_rows
from policy_server.schema import ServerSchema, number_range, parse_schema, read_schema
from tests.support.folders import ROOT

POLICIES = ROOT / "tests" / "data" / "policies"


def box(low: Any, high: Any, shape: tuple[int, ...], dtype: str = "float32") -> BoxSpace:  # noqa: ANN401 -- numbers or arrays
    """Return a Box with these bounds at each place."""
    bounds = [np.broadcast_to(np.asarray(bound, dtype), shape) for bound in (low, high)]
    return BoxSpace(shape, dtype, *bounds)


BOX = box(-1.0, 1.0, (6,))
MASKABLE = DictSpace({"position": box(-9.0, 9.0, (2,)), "action_mask": MultiBinarySpace((4,))})


def test_box_becomes_one_list_of_fixed_length() -> None:
    (field,) = draft_observation_fields(BOX)

    assert (field.name, field.kind, field.is_list) == ("observation", "float", True)
    assert (field.min_items, field.max_items, field.minimum, field.maximum) == (6, 6, -1.0, 1.0)


def test_names_make_single_values_of_a_box() -> None:
    fields = draft_observation_fields(box(0.0, 1.0, (2,)), ["row", "column"])

    assert [(field.name, field.is_list) for field in fields] == [("row", False), ("column", False)]


def test_names_with_counts_make_lists_of_a_box() -> None:
    low = np.array([0, 0, -5, -5, -5], np.float32)
    space = box(low, np.inf, (5,))

    position, speed = draft_observation_fields(space, {"position": 2, "speed": 3})

    assert (position.max_items, position.minimum, position.maximum) == (2, 0.0, None)
    assert (speed.max_items, speed.minimum, speed.maximum) == (3, -5.0, None)


def test_dictionary_keeps_its_keys_and_their_order() -> None:
    space = DictSpace(
        {
            "a mode": DiscreteSpace(3),
            "flags": MultiBinarySpace((2,)),
            "grid": box(0, 7, (2, 2), "int64"),
            "pair": MultiDiscreteSpace((2, 3), (0, 0)),
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
    (field,) = draft_observation_fields(MultiBinarySpace((3,)))
    model = observation_model((field,), number_range("float32"))

    assert (field.kind, field.minimum, field.maximum) == ("int", 0, 1)
    model.model_validate_json('{"observation": [0, 1, 1]}')
    with pytest.raises(ValidationError):
        model.model_validate_json('{"observation": [0, 1, 2]}')


@pytest.mark.parametrize("bound", [2.3, 0.1, 4.8, 1.2, 3e-5, 1e20], ids=str)
def test_bounds_are_drafted_as_people_write_them(bound: float) -> None:
    space = box(-bound, bound, (1,))

    (field,) = draft_observation_fields(space)
    (action,) = draft_action_fields(space)

    assert (field.minimum, field.maximum) == (-bound, bound)
    assert (action.low, action.high) == ((-bound,), (bound,))
    # What the environment gives at its bound, printed as NumPy's `tolist` has it, is taken too.
    model = observation_model((field,), number_range("float32"))
    for at_bound in (bound, -bound, float(np.float32(bound)), float(np.float32(-bound))):
        model.model_validate_json(f'{{"observation": {at_bound!r}}}')


def test_bounds_of_doubles_stay_as_they_are() -> None:
    space = box(-np.pi, 1 / 3, (1,), "float64")

    (field,) = draft_observation_fields(space)

    assert (field.minimum, field.maximum) == (-np.pi, 1 / 3)


def test_bounds_that_only_say_that_there_is_none_are_left_out() -> None:
    most = float(np.finfo(np.float32).max)
    space = DictSpace({"mode": DiscreteSpace(2), "speed": box(-most, most, (1,))})

    _, speed = draft_observation_fields(space)

    assert (speed.minimum, speed.maximum) == (None, None)


def test_keys_that_would_be_one_name_are_all_drafted() -> None:
    keys = ["speed x", "speed-x", "speed_x"]
    space = DictSpace({key: box(0, index + 1, (1,)) for index, key in enumerate(keys)})

    fields = draft_observation_fields(space)
    text = draft_schema(fields, draft_action_fields(DiscreteSpace(2)), source="model.zip")

    assert [(item.name, item.maximum) for item in parse_schema(text).observations or ()] == [
        ("speed_x_2", 1),
        ("speed_x_3", 2),
        ("speed_x", 3),
    ]


WRONG_OBSERVATIONS: dict[str, tuple[Space, Any, str]] = {
    "too_few_names": (BOX, ["a"], "expected names for 6 values"),
    "text_for_a_list": (BOX, "abcdef", "expected a list or a mapping, got the text 'abcdef'"),
    "name_given_twice": (BOX, ["a", "a", "b", "c", "d", "e"], "expected each name once"),
    "count_below_one": (BOX, {"a": 7, "b": -1}, "expected names for 6 values"),
    "names_of_a_dictionary": (MASKABLE, ["a"], "the keys of the Dict observation are the names"),
    "names_of_a_discrete": (DiscreteSpace(2), ["a", "b"], "expected one for a Discrete, got 2"),
    "image": (box(0, 255, (3, 36, 36), "uint8"), None, "observation: is an image"),
    "tuple": (TupleSpace(()), None, "observation: expected a Box"),
    "discrete_from_five": (DiscreteSpace(3, 5), None, "observation: expected a Box"),
}


@pytest.mark.parametrize(
    ("space", "names", "message"), WRONG_OBSERVATIONS.values(), ids=WRONG_OBSERVATIONS
)
def test_observation_that_can_not_be_drafted_is_refused(
    space: Space,
    names: Any,  # noqa: ANN401 -- what a user may give
    message: str,
) -> None:
    with pytest.raises(ExportError, match=message):
        draft_observation_fields(space, names)


def test_multi_discrete_has_one_action_for_each_part() -> None:
    fields = draft_action_fields(MultiDiscreteSpace((4, 2), (0, 0)), ["team", "queue"])

    assert [(field.name, field.choices) for field in fields] == [("team", 4), ("queue", 2)]


@pytest.mark.parametrize("is_normalized", [True, False], ids=["sac", "ppo"])
def test_box_has_one_action_with_bounds(is_normalized: bool) -> None:  # noqa: FBT001 -- a parameter
    space = box([-2, 0], [2, 5], (2,))

    (field,) = draft_action_fields(space, is_normalized=is_normalized)

    assert (field.low, field.high, field.dimensions) == ((-2.0, 0.0), (2.0, 5.0), 2)
    assert field.normalized is is_normalized


def test_box_without_bounds_has_none_in_the_schema() -> None:
    (field,) = draft_action_fields(box(-np.inf, np.inf, (2,)))

    assert field.low is None


WRONG_ACTIONS: dict[str, tuple[Space, Any, bool, str]] = {
    "two_names_for_one": (DiscreteSpace(3), ["a", "b"], False, "expected a list of 1, .* got 2"),
    "text_for_a_list": (MultiDiscreteSpace((2, 2), (0, 0)), "ab", False, "expected a list of 2"),
    "name_given_twice": (MultiDiscreteSpace((2, 2), (0, 0)), ["a", "a"], False, "each name once"),
    "multi_binary": (MultiBinarySpace((3,)), None, False, "expected Box, or Discrete"),
    "discrete_from_one": (DiscreteSpace(3, 1), None, False, "expected Box, or Discrete"),
    "squashed_without_bounds": (
        box(-np.inf, np.inf, (1,)),
        None,
        True,
        "needs finite bounds",
    ),
}


@pytest.mark.parametrize(
    ("space", "names", "is_normalized", "message"), WRONG_ACTIONS.values(), ids=WRONG_ACTIONS
)
def test_action_that_can_not_be_drafted_is_refused(
    space: Space,
    names: Any,  # noqa: ANN401 -- what a user may give
    is_normalized: bool,  # noqa: FBT001 -- a parameter
    message: str,
) -> None:
    with pytest.raises(ExportError, match=message):
        draft_action_fields(space, names, is_normalized=is_normalized)


def test_mask_is_found_by_its_name() -> None:
    fields = draft_observation_fields(box(0, 1, (6,)), {"position": 2, "action_mask": 4})

    assert find_action_mask(fields, DiscreteSpace(4)) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"position": 6}, "expected a part of the observation called action_mask, got position"),
        ({"position": 1, "action_mask": 5}, "expected 4 values, one for each choice, got 5"),
    ],
    ids=["missing", "wrong_size"],
)
def test_mask_that_is_not_there_is_refused(names: dict[str, int], message: str) -> None:
    fields = draft_observation_fields(box(0, 1, (6,)), names)

    with pytest.raises(ExportError, match=message):
        find_action_mask(fields, DiscreteSpace(4))


def test_drafted_schema_can_be_served() -> None:
    fields = draft_observation_fields(MASKABLE)
    actions = draft_action_fields(MultiDiscreteSpace((2, 2), (0, 0)), ["left", "right"])

    schema = parse_schema(draft_schema(fields, actions, source="model.zip"))

    assert schema.observations == fields
    assert schema.actions == actions
    assert (schema.discrete, schema.tuple) == (True, True)
    assert len(schema.api_key or "") >= 20


def test_name_that_a_schema_can_not_have_is_refused() -> None:
    fields = draft_observation_fields(box(0, 1, (2,)), ["row", "the column"])

    with pytest.raises(ExportError, match="the name 'the column' can't be used"):
        draft_schema(fields, draft_action_fields(DiscreteSpace(2)), source="model.zip")


def test_missing_tensorflow_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)

    with pytest.raises(MissingPackageError, match=r"pip install -r requirements\.txt"):
        commands_export.export_policy(
            tmp_path / "model.zip",
            tmp_path / "out",
            observation_names=None,
            action_names=None,
            normalization=None,
            overwrite=False,
            on_note=lambda _: None,
        )

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["saved_model.zip", "schema.yaml"])
def test_existing_file_is_kept_unless_told_otherwise(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")

    with pytest.raises(ExportError, match=rf"{name}: exists; .* --overwrite"):
        export_policy(tmp_path / "model.zip", tmp_path)

    assert (tmp_path / name).read_text() == "mine"


def zip_of(name: str) -> Path:
    """Return the .zip of a policy that stable-baselines3 wrote."""
    return POLICIES / name / "policy.zip"


EXPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "sb3_a2c_box_2d": ({}, "normal(4)"),
    "sb3_dqn_dict": ({}, "greedy over categorical(4)"),
    "sb3_maskable_box": (
        {"observation_names": {"values": 2, "action_mask": 4}},
        "categorical(4)",
    ),
    "sb3_maskable_dict": ({}, "categorical(4)"),
    "sb3_ppo_gelu": ({}, "categorical(3)"),
    "sb3_ppo_multidiscrete": ({}, "categorical(3) + categorical(2) + categorical(4)"),
    "sb3_ppo_vecnorm": ({}, "categorical(2)"),
    "sb3_sac": ({}, "squashed_normal(2)"),
    "sb3_tqc": ({}, "squashed_normal(2)"),
    "sb3_v10_ppo_shared": ({}, "categorical(3)"),
    "sb3_v18_ppo_discrete": ({}, "categorical(2)"),
}


@pytest.mark.parametrize(
    ("name", "options", "family"),
    [(name, *rest) for name, rest in EXPORTED.items()],
    ids=EXPORTED,
)
def test_export_answers_as_the_library_does(
    name: str, options: dict[str, Any], family: str, tmp_path: Path
) -> None:
    cases = json.loads((POLICIES / name / "cases.json").read_text())

    written = export_policy(zip_of(name), tmp_path / "out", **options)

    assert [path.name for path in written] == ["saved_model.zip", "schema.yaml"]
    with zipfile.ZipFile(written[0]) as archive:
        archive.extractall(tmp_path / "model")
    schema = read_schema(written[1])
    policy = load_policy(tmp_path / "model", schema)
    assert policy.signature.is_proved
    assert policy.signature.family == family
    assert policy.signature.observation_width == schema.width
    rows = np.array([case["raw"] for case in cases], np.float32)
    answers = policy.infer(PolicyInputs.of(rows, is_deterministic=True))
    expected = [
        np.ravel(
            case["expected"].get(
                "deterministic_action_env_space", case["expected"]["deterministic_action"]
            )
        )
        for case in cases
    ]
    assert answers.actions == pytest.approx(np.array(expected), abs=1e-5)
    check_probabilities(policy, answers, [case["expected"] for case in cases])


def check_probabilities(
    policy: Policy, answers: PolicyOutputs, wanted_of_rows: list[dict[str, Any]]
) -> None:
    """Hold the probabilities, means and deviations against the library's, where it gave them."""
    assert answers.distribution is not None
    parts = ActionDistribution(policy.signature.components or ()).describe(answers.distribution)
    for row, expected in enumerate(wanted_of_rows):
        for part, wanted in zip(parts, expected.get("components", [expected]), strict=True):
            for key in ("probabilities", "mean", "std"):
                if key in wanted and not policy.signature.is_value_based:
                    assert getattr(part, key)[row] == pytest.approx(wanted[key], abs=1e-5)


def test_statistics_may_lie_elsewhere_and_be_denied(tmp_path: Path) -> None:
    name = "sb3_ppo_vecnorm"
    alone = tmp_path / "policy.zip"
    shutil.copy(zip_of(name), alone)

    with pytest.raises(ModelError, match="was trained with VecNormalize, whose statistics are not"):
        export_policy(alone, tmp_path / "without")
    with pytest.raises(ModelError, match=r"nowhere\.pkl: can't be read: No such file"):
        export_policy(alone, tmp_path / "without", vec_normalize=tmp_path / "nowhere.pkl")
    assert not (tmp_path / "without").exists()

    export_policy(alone, tmp_path / "with", vec_normalize=POLICIES / name / "vec_normalize.pkl")
    export_policy(zip_of(name), tmp_path / "denied", is_unscaled=True)


@pytest.mark.parametrize("is_unscaled", [False, True])
def test_off_policy_file_that_shows_nothing_is_exported_with_a_note(
    is_unscaled: bool,  # noqa: FBT001 -- a parameter
    tmp_path: Path,
) -> None:
    notes: list[str] = []

    export_policy(
        zip_of("sb3_dqn_dict"), tmp_path / "out", is_unscaled=is_unscaled, on_note=notes.append
    )

    assert [line[:43] for line in notes] == (
        [] if is_unscaled else ["the file does not show whether VecNormalize"]
    )


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another algorithm": ("sb3_td3", {}, "is a TD3Policy; expected an MLP policy of "),
    "quantiles": ("sb3_qrdqn", {}, "is a QRDQNPolicy; expected"),
    "recurrent": ("sb3_recurrent_layers", {}, "is a RecurrentActorCriticPolicy; expected"),
    "an image": ("sb3_ppo_image_without_cnn", {}, "observation: is an image"),
    "state-dependent noise": ("sb3_ppo_gsde", {}, "gSDE"),
    "binary actions": ("sb3_ppo_multibinary", {}, "the action space: expected Box"),
    "actions from 1": ("sb3_ppo_start", {}, "the action space: expected Box"),
    "a mask without a name": ("sb3_maskable_box", {}, "called action_mask"),
    "an activation": ("sb3_sac_prelu", {}, "has the activation PReLU, expected one of ELU, "),
    "scaling of some keys": ("sb3_vecnorm_keys", {}, "scaled some keys of its observation only"),
}


@pytest.mark.parametrize(("name", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_policy_of_another_kind_is_refused_in_one_line(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        export_policy(zip_of(name), tmp_path / "out", **options)

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"not found; expected the \.zip"), (b"PK no zip", "no zip|damaged")],
    ids=["missing", "no_zip"],
)
def test_file_that_is_no_policy_is_refused(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "model.zip").write_bytes(content)

    with pytest.raises((ExportError, ModelError), match=message):
        export_policy(tmp_path / "model.zip", tmp_path / "out")


def test_policy_of_another_format_is_refused(tmp_path: Path) -> None:
    export = ROOT / "tests" / "data" / "exports" / "ppo_discrete" / "saved_model.zip"

    with pytest.raises(ExportError, match=r"saved_model\.zip: is not what .* model\.save writes"):
        export_policy(export, tmp_path / "out")


def described(name: str, folder: Path) -> tuple[dict[str, Path], MlpPolicy]:
    """Return a policy's files and its description."""
    with zipfile.ZipFile(zip_of(name)) as archive:
        archive.extractall(folder)
    files = {path.name: path for path in folder.iterdir()}
    saved = read_saved_policy(files)
    return files, describe_policy(saved, algorithm_of(saved))


def test_export_of_other_weights_is_not_proved(tmp_path: Path) -> None:
    files, right = described("sb3_a2c_box_2d", tmp_path / "policy")
    noise = np.full(4, 0.001, np.float32)
    wrong = replace(right, distribution=Normal(4, noise))
    write_saved_model(wrong, tmp_path / "model")
    schema = ServerSchema(source="schema.yaml")
    trained = load_policy(tmp_path / "policy", schema)
    space = read_saved_policy(files).observation_space

    with pytest.raises(ExportError, match=r"a standard deviation differs by \d"):
        prove_export(tmp_path / "model", trained, schema, random_rows(space, wrong))


def test_overwrite_replaces_both_files(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text("old")
    (tmp_path / "saved_model.zip").write_text("old")

    export_policy(zip_of("sb3_trpo"), tmp_path, overwrite=True, action_names=["turn"])

    schema: ServerSchema = read_schema(tmp_path / "schema.yaml")
    assert schema.actions is not None
    assert schema.actions[0].name == "turn"
    assert zipfile.is_zipfile(tmp_path / "saved_model.zip")
    assert {path.name for path in tmp_path.iterdir()} == {"saved_model.zip", "schema.yaml"}
