"""What `inspect` and `schema` say of a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from policy_server.commands import model_report, schema_drafts, served_files
from policy_server.commands.native_logs import hidden_native_logs
from policy_server.errors import ModelError, SchemaError
from policy_server.formats.saved_model.mlp_policy import (
    Categorical,
    DenseLayer,
    MlpPolicy,
    Normal,
    SquashedNormal,
)
from policy_server.formats.saved_model.writing import pack_saved_model, write_saved_model
from policy_server.policy import ActionComponent, ActionOutput, PolicySignature, SignatureTensor
from policy_server.schema import parse_schema
from policy_server.settings import Settings
from tests.support.folders import ROOT
from tests.support.library_policies import unzipped
from tests.support.servers import SCHEMA

WIDTH = 3
MOUSE = ROOT / "examples" / "mouse_and_cheese"


def write_mlp(folder: Path, distribution: Categorical | Normal | SquashedNormal) -> None:
    """Write a saved_model.zip with a policy of one layer."""
    weights = np.random.default_rng(1).normal(size=(WIDTH, distribution.inputs))
    layer = DenseLayer(weights.astype(np.float32), np.zeros(distribution.inputs, np.float32))
    write_saved_model(MlpPolicy(WIDTH, (layer,), distribution), folder / "exported")
    pack_saved_model(folder / "exported", folder / "saved_model.zip")


def write_keras_only(folder: Path) -> None:
    """Write an unzipped network without a distribution, as Ray 2.9 exports it."""
    module = tf.Module()
    weights = np.random.default_rng(2).normal(size=(WIDTH, 5)).astype(np.float32)
    module.logits, module.value = tf.Variable(weights[:, :4]), tf.Variable(weights[:, 4:])

    def call(observations: tf.Tensor) -> dict[str, Any]:
        return {
            "fc_out": tf.matmul(observations, module.logits),
            "value_out": tf.matmul(observations, module.value),
        }

    specification = tf.TensorSpec([None, WIDTH], tf.float32, name="observations")
    traced = tf.function(call, input_signature=[specification])
    tf.saved_model.save(module, str(folder / "exported"), signatures=traced)
    (folder / "exported").rename(folder / "model")
    for path in (folder / "model").iterdir():
        path.rename(folder / path.name)


MODELS: dict[str, Callable[[Path], None]] = {
    "categorical": partial(write_mlp, distribution=Categorical((4,))),
    "multi_discrete": partial(write_mlp, distribution=Categorical((6, 2))),
    "normal": partial(write_mlp, distribution=Normal(2)),
    "squashed_normal": partial(write_mlp, distribution=SquashedNormal(1)),
    "keras_only": write_keras_only,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, write in MODELS.items():
        (folder / name).mkdir()
        write(folder / name)
    return folder


@pytest.fixture
def categorical(models: Path, tmp_path: Path) -> Path:
    """A folder with a policy of three inputs and four choices, and a schema.yaml that fits."""
    folder = tmp_path / "categorical"
    folder.mkdir()
    (folder / "saved_model.zip").write_bytes(
        (models / "categorical" / "saved_model.zip").read_bytes()
    )
    (folder / "schema.yaml").write_text(SCHEMA + "actions: {move: {labels: [up, down, in, out]}}\n")
    return folder


def test_inspect_shows_what_the_model_is(categorical: Path, settings: Settings) -> None:
    report = model_report.inspect_model(categorical, settings)

    text = "\n".join(model_report.report_as_text(report))
    for line in (
        f"model        {categorical}/saved_model.zip",
        "observations  float32 (N, 3)",
        "observation  3 values of float32",
        "actions      actions_0  integer, 1 value",
        "family       categorical(4)",
        "components   move  categorical, 4 choices: up, down, in, out",
        "proved       yes",
        "findings     proved as categorical(4)",
        "recurrent    no",
        "action mask  no",
        f"schema       {categorical}/schema.yaml fits",
    ):
        assert line in text
    report.check_fits()


def test_inspect_names_both_figures_where_the_schema_does_not_fit(
    categorical: Path, settings: Settings
) -> None:
    (categorical / "schema.yaml").write_text("observations: {x: {type: int}}")

    report = model_report.inspect_model(categorical / "saved_model.zip", settings)

    problem = "schema.yaml: gives 1 values, the policy expects 3"
    assert f"does not fit: {problem}" in model_report.report_as_text(report)[-1]
    assert report.signature.family == "categorical(4)"
    with pytest.raises(SchemaError, match=problem):
        report.check_fits()


def test_inspect_as_json_holds_the_same(categorical: Path, settings: Settings) -> None:
    (categorical / "schema.yaml").write_text("observations: [")

    document = json.loads(
        model_report.report_as_json(model_report.inspect_model(categorical, settings))
    )

    assert document["family"] == "categorical(4)"
    assert document["is_proved"] is True
    assert document["basis"] == "structure"
    assert document["components"][0]["size"] == 4
    assert document["inputs"][1] == {
        "name": "observations",
        "dtype": "float32",
        "shape": [None, 3],
    }
    assert document["schema_fits"] is False
    assert "is no YAML" in document["schema_problem"]


def test_inspect_without_a_path_takes_the_served_policy(categorical: Path) -> None:
    settings = Settings(home=categorical)
    by_zip = model_report.inspect_model(None, settings)
    served_files.unzip(settings)
    settings.zip_path.unlink()
    by_folder = model_report.inspect_model(None, settings)

    assert by_zip.source == settings.zip_path
    assert by_folder.source == settings.models_path
    assert by_folder.schema == settings.schema_path
    assert by_folder.signature.family == by_zip.signature.family


def test_inspect_takes_a_policy_of_any_name(categorical: Path) -> None:
    renamed = (categorical / "saved_model.zip").rename(categorical / "run 7.zip")

    served = model_report.inspect_model(None, Settings(home=categorical))
    by_folder = model_report.inspect_model(categorical, Settings(home=categorical / "other"))

    assert served.source == by_folder.source == renamed
    assert served.signature.family == by_folder.signature.family == "categorical(4)"


def test_inspect_without_a_schema_says_how_to_get_one(models: Path, settings: Settings) -> None:
    report = model_report.inspect_model(models / "normal", settings)

    shown = model_report.report_as_text(report)[-1]
    assert f"`python generate.py schema {models / 'normal'}`" in shown
    report.check_fits()


def test_inspect_of_a_path_with_a_space_says_a_command_that_can_be_copied(
    models: Path, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "my run"
    shutil.copytree(models / "normal", path)

    report = model_report.inspect_model(path, settings)

    assert f"`python generate.py schema '{path}'`" in model_report.report_as_text(report)[-1]


def test_inspect_of_an_examples_schema_says_where_to_draft_the_policys_own(
    categorical: Path, settings: Settings
) -> None:
    schema = categorical / "schema.yaml"
    shutil.copyfile(ROOT / "examples" / "mouse_and_cheese" / "schema.yaml", schema)

    report = model_report.inspect_model(categorical / "saved_model.zip", settings)

    assert report.problem is not None
    assert report.problem.endswith(
        f"`python generate.py schema {categorical / 'saved_model.zip'} --output {schema}`"
    )


def test_inspect_shows_bounds(models: Path, tmp_path: Path, settings: Settings) -> None:
    zip_path = tmp_path / "saved_model.zip"
    zip_path.write_bytes((models / "squashed_normal" / "saved_model.zip").read_bytes())
    (tmp_path / "schema.yaml").write_text("actions: {torque: {low: -2, high: 2}}")

    lines = model_report.report_as_text(model_report.inspect_model(zip_path, settings))

    assert any("torque" in line and "rescaled to [-2.0] .. [2.0]" in line for line in lines)


def test_inspect_shows_what_is_not_known() -> None:
    unknown = PolicySignature(
        observation_width=None,
        observation_dtype="int64",
        inputs=(SignatureTensor("observations", "int64", None),),
        outputs=(),
        action_outputs=(),
        components=None,
        engine_reason="its family is unknown",
    )
    hot = replace(unknown, components=(ActionComponent("categorical", 2, 0, 0, temperature=0.5),))

    report = model_report.ModelReport(Path("models"), unknown, None, None)

    assert model_report.report_as_text(report)[:-1] == [
        "model        models",
        "inputs       observations  int64 of any shape",
        "observation  any number of values of int64",
        "family       unknown",
        "components   unknown",
        "proved       no",
        "basis        graph: the file's own draws are answered; their distribution is not known",
        "findings     none",
        "engine       tensorflow: its family is unknown",
        "recurrent    no",
        "action mask  no",
    ]
    assert "components   0  categorical, 2 choices: temperature 0.5" in (
        model_report.report_as_text(replace(report, signature=hot))
    )
    normal = ActionComponent(
        "normal", 2, 0, 0, log_std_bounds=(-5.0, None), mean_bounds=(-1.0, 1.0), std_floor=0.1
    )
    assert (
        "components   0  normal, 2 dimensions: mean from -1 to 1: log of the deviation from -5: "
        "deviation + 0.1"
    ) in model_report.report_as_text(
        replace(report, signature=replace(unknown, components=(normal,)))
    )


def test_inspect_shows_no_control_characters_of_names() -> None:
    hostile = "\x1b[2J\nobs\x9b"
    signature = PolicySignature(
        observation_width=1,
        observation_dtype="float32",
        inputs=(SignatureTensor(hostile, "float32", (1,)),),
        outputs=(SignatureTensor(hostile, "float32", (1,)),),
        action_outputs=(ActionOutput(hostile, is_integer=True, columns=1, is_vector=False),),
        components=(ActionComponent("categorical", 2, 0, 0, labels=(hostile, "b"), name=hostile),),
        findings=(hostile,),
        engine_reason=hostile,
        mask_name=hostile,
    )

    lines = model_report.report_as_text(
        model_report.ModelReport(Path(hostile), signature, None, hostile)
    )

    assert all(line.isprintable() for line in lines)
    assert "inputs       \\x1b[2J\\nobs\\x9b  float32 (1)" in lines


def test_a_model_that_needs_its_schema_reports_the_schemas_mistake(
    models: Path, tmp_path: Path, settings: Settings
) -> None:
    folder = tmp_path / "keras"
    folder.mkdir()
    for path in (models / "keras_only").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "schema.yaml").write_text("observations: {x: {type: int}}")

    with pytest.raises(SchemaError, match="gives 1 values, the policy expects 3"):
        model_report.inspect_model(folder, settings)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "home/saved_model.zip: not found; name a file or a folder"),
        ("nowhere", "nowhere: not found; expected a policy"),
        (".", "holds no policy, a TensorFlow SavedModel.*; expected a policy"),
    ],
)
def test_inspect_says_what_it_looked_for(
    settings: Settings, path: str | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        model_report.inspect_model(None if path is None else Path(path), settings)


@pytest.mark.parametrize("is_served", [True, False])
def test_inspect_names_a_file_that_seems_to_be_a_policy(tmp_path: Path, *, is_served: bool) -> None:
    (tmp_path / "policy.zip").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    path = None if is_served else tmp_path

    with pytest.raises(ModelError, match=r"holds no policy, but policy\.zip \(a Git LFS pointer"):
        model_report.inspect_model(path, Settings(home=tmp_path))


@pytest.mark.parametrize("name", MODELS)
def test_a_drafted_schema_fits_its_model(
    name: str, models: Path, tmp_path: Path, settings: Settings
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for path in (models / name).iterdir():
        (folder / path.name).symlink_to(path)

    text = schema_drafts.draft_schema(folder, settings)
    schema_drafts.write_draft(text, folder / "schema.yaml", overwrite=False)

    report = model_report.inspect_model(folder, settings)
    assert report.problem is None
    assert parse_schema(text).width == WIDTH
    assert parse_schema(text).api_key


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("categorical", ["    # labels: [choice_0, choice_1, choice_2, choice_3]"]),
        ("multi_discrete", ["    # labels: [choice_0, choice_1, choice_2, choice_3, ...]"]),
        ("squashed_normal", ["    dimensions: 1", "    # low: [-1.0]", "  discrete: False"]),
        (
            "keras_only",
            [
                "# The file does not say what the network's output means. This",
                "#   Q values: `values: q_values` below choices",
            ],
        ),
    ],
)
def test_a_drafted_schema_shows_what_may_be_filled_in(
    name: str, lines: list[str], models: Path, settings: Settings
) -> None:
    text = schema_drafts.draft_schema(models / name, settings)

    for line in lines:
        assert line in text


def test_a_recurrent_policy_of_the_library_s_own_file_is_told(
    tmp_path: Path, settings: Settings
) -> None:
    folder = unzipped("sb3_recurrent_layers", "policy.zip", tmp_path)

    lines = model_report.report_as_text(model_report.inspect_model(folder, settings))
    text = schema_drafts.draft_schema(folder, settings)

    assert any(line.split() == ["recurrent", "h"] for line in lines)
    assert "# The policy's file has the bounds, in the environment's units." in text
    assert "low:" not in text


def test_inspect_as_json_has_no_infinity(tmp_path: Path, settings: Settings) -> None:
    folder = unzipped("rllib_checkpoints", "box_open_clip.zip", tmp_path)

    document = json.loads(
        model_report.report_as_json(model_report.inspect_model(folder, settings)),
        parse_constant=pytest.fail,
    )

    (part,) = document["components"]
    assert (part["low"], part["high"]) == ([-0.1, None], [None, 0.1])


def test_native_logs_are_shown_only_where_nothing_else_explains_the_failure(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(error: Exception) -> None:
        with hidden_native_logs():
            tf.print(f"log of {error}")
            raise error

    with pytest.raises(ModelError):
        fail(ModelError("ours"))
    with pytest.raises(ValueError, match="unforeseen"):
        fail(ValueError("unforeseen"))

    assert capfd.readouterr().err == "log of unforeseen\n"


def test_inspect_and_draft_tell_of_an_action_mask_beside_the_observation(
    settings: Settings,
) -> None:
    policy = ROOT / "tests" / "data" / "policies" / "sb3_maskable_ppo" / "policy.zip"

    lines = model_report.report_as_text(model_report.inspect_model(policy, settings))
    draft = schema_drafts.draft_schema(policy, settings)

    assert "action mask  action_mask, beside the observation: 1 or 0 for each of 5 choices" in lines
    assert "# Beside the observation a request may have action_mask, the action mask:" in draft
    observations = parse_schema(draft).observations or ()
    assert [item.max_items for item in observations] == [4], "the mask is no part of it"


def test_model_at_an_address_is_told_to_be_fetched(settings: Settings) -> None:
    settings.home.mkdir(exist_ok=True)
    settings.schema_path.write_text(
        "policies: {door: {model: 'https://example.invalid/door.zip'}}\nparameters: {api_key: k}\n"
    )

    with pytest.raises(ModelError, match=r"model of door is an address; get it with `.* fetch "):
        model_report.inspect_model(None, settings)
