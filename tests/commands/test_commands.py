"""What the commands do, in this process."""

from __future__ import annotations

import http.server
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pydantic import SecretStr

from policy_server.commands import client, evaluation, export, model_report, served_files
from policy_server.commands.client import PolicyClient
from policy_server.commands.native_logs import hidden_native_logs
from policy_server.engine.cache import digest_of, read_outcome
from policy_server.errors import (
    ModelError,
    PolicyServerError,
    SchemaError,
    ServerAnswerError,
    SettingsError,
)
from policy_server.formats.model_files import identify_model, unpack_model
from policy_server.formats.saved_model.mlp_policy import (
    Categorical,
    DenseLayer,
    MlpPolicy,
    Normal,
    SquashedNormal,
)
from policy_server.formats.saved_model.writing import pack_saved_model, write_saved_model
from policy_server.policy import ActionComponent, PolicySignature, SignatureTensor
from policy_server.schema import parse_schema, read_schema
from policy_server.settings import Settings
from tests.support.folders import ROOT
from tests.support.servers import KEY, SCHEMA, Handler, answered_by, live_server

WIDTH = 3
MOUSE = ROOT / "examples" / "mouse_and_cheese"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("API_KEY", "HOME"):
        monkeypatch.delenv(f"POLICY_SERVER_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    put_policy(folder, "new")
    return folder


def put_policy(folder: Path, content: str) -> None:
    """Write a pair of files: an example's policy if `new`, else what is none if it is loaded."""
    folder.mkdir(exist_ok=True)
    (folder / "schema.yaml").write_text(f"parameters: {{api_key: {content}}}\n")
    if content == "new":
        shutil.copyfile(MOUSE / "saved_model.zip", folder / "saved_model.zip")
        return
    with zipfile.ZipFile(folder / "saved_model.zip", "w") as archive:
        archive.writestr("exported/saved_model.pb", content)


def put_old(settings: Settings) -> dict[str, bytes]:
    """Put a policy in its place as an earlier start has left it; return what lies there."""
    put_policy(settings.home, "old")
    unpack_model(settings.zip_path, settings.models_path, max_bytes=1000)
    return contents(settings.home)


def without_weights(path: Path) -> None:
    """Remove variables/ from a policy's zip."""
    with zipfile.ZipFile(path) as archive:
        model = archive.read("saved_model.pb")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("saved_model.pb", model)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file but the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


# copy_server_files, unzip, clean


def test_copying_replaces_both_files_and_the_unzipped_policy(
    source: Path, settings: Settings
) -> None:
    put_old(settings)

    served_files.copy_server_files(source, settings)

    assert settings.schema_path.read_bytes() == (source / "schema.yaml").read_bytes()
    assert settings.zip_path.read_bytes() == (source / "saved_model.zip").read_bytes()
    assert (settings.models_path / "saved_model.pb").read_text("latin-1") != "old"


def test_copying_makes_the_folder_and_leaves_nothing_else_in_it(
    source: Path, settings: Settings
) -> None:
    served_files.copy_server_files(source, settings)

    assert sorted(contents(settings.home)) == [
        "models/.compiled-policy.npz",
        "models/.source-sha256",
        "models/saved_model.pb",
        "models/variables/variables.data-00000-of-00001",
        "models/variables/variables.index",
        "saved_model.zip",
        "schema.yaml",
    ]


def test_copying_a_folder_onto_itself_keeps_it(source: Path) -> None:
    before = contents(source)

    served_files.copy_server_files(source, Settings(home=source))

    assert {name: contents(source)[name] for name in before} == before


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        pytest.param("saved_model.zip", b"no zip", "is no zip file or is damaged", id="no-zip"),
        pytest.param("schema.yaml", b"parameters: {key: 1}", "parameters.key", id="wrong-schema"),
        pytest.param("saved_model.zip", None, "holds no saved_model.zip; expected", id="zip-lacks"),
        pytest.param("schema.yaml", None, "holds no schema.yaml; expected", id="schema-lacks"),
    ],
)
def test_files_that_are_not_sound_change_nothing(
    source: Path, settings: Settings, file: str, content: bytes | None, message: str
) -> None:
    before = put_old(settings)
    (source / file).unlink()
    if content is not None:
        (source / file).write_bytes(content)

    with pytest.raises(PolicyServerError, match=message):
        served_files.copy_server_files(source, settings)

    assert contents(settings.home) == before


@pytest.mark.parametrize("old", [["old"], []], ids=["replacing", "first"])
def test_a_failure_after_copying_puts_the_old_files_back(
    source: Path, settings: Settings, old: list[str]
) -> None:
    settings.home.mkdir()
    for content in old:
        put_policy(settings.home, content)
    before = contents(settings.home)
    # A folder where the lock of models/ should be: unzipping fails there, and only there.
    (settings.home / ".models.lock").mkdir()

    with pytest.raises(ModelError, match=r"can't be written"):
        served_files.copy_server_files(source, settings)

    assert contents(settings.home) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: not found; expected a folder with schema.yaml and saved_model.zip"),
        ("source/schema.yaml", "source/schema.yaml: is a file; expected a folder"),
    ],
)
def test_copying_needs_a_folder(source: Path, settings: Settings, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        served_files.copy_server_files(source.parent / name, settings)


def test_copying_to_what_is_no_folder_is_said(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ModelError, match=r"file: can't be changed: File exists"):
        served_files.copy_server_files(source, Settings(home=tmp_path / "file"))


UNSERVABLE: dict[str, tuple[str, bool, dict[str, Any], str]] = {
    "no_weights": ("parameters: {api_key: x}", True, {}, "its weights are missing"),
    "no_weights_for_tensorflow": (
        "parameters: {api_key: x}",
        True,
        {"engine": "tensorflow"},
        "its weights are missing",
    ),
    "wrong_width": (
        "observations: {a: {type: float}}\nparameters: {api_key: x}",
        False,
        {},
        "gives 1 values, the policy expects 6",
    ),
    "wrong_actions": (
        "actions: {move: {choices: 9}}\nparameters: {api_key: x}",
        False,
        {},
        "gives 9 choices, the policy has 4",
    ),
    "no_key": ("parameters: {discrete: true}", False, {}, r"parameters\.api_key: is missing"),
}


@pytest.mark.parametrize(
    ("schema", "has_no_weights", "options", "message"), UNSERVABLE.values(), ids=UNSERVABLE
)
def test_what_a_start_would_refuse_is_refused_before_anything_is_replaced(
    source: Path,
    settings: Settings,
    schema: str,
    has_no_weights: bool,  # noqa: FBT001 -- a parameter
    options: dict[str, Any],
    message: str,
) -> None:
    (source / "schema.yaml").write_text(schema)
    if has_no_weights:
        without_weights(source / "saved_model.zip")
    before = put_old(settings)

    with pytest.raises(PolicyServerError, match=message) as caught:
        served_files.copy_server_files(source, settings.model_copy(update=options))

    assert ".incoming" not in caught.value.message
    assert contents(settings.home) == before


def test_unzipping_what_a_start_would_refuse_leaves_the_unzipped_policy(settings: Settings) -> None:
    put_old(settings)
    put_policy(settings.home, "new")
    without_weights(settings.zip_path)
    before = contents(settings.home)

    with pytest.raises(ModelError, match="its weights are missing"):
        served_files.unzip(settings)

    assert contents(settings.home) == before


def test_a_start_does_not_compile_again_what_was_checked(source: Path, settings: Settings) -> None:
    served_files.copy_server_files(source, settings)

    model = identify_model(settings.models_path)
    schema = read_schema(settings.schema_path)
    assert read_outcome(model.folder, digest_of(model.digest, schema)) is not None


async def test_files_are_checked_inside_a_running_loop(source: Path, settings: Settings) -> None:
    served_files.copy_server_files(source, settings)

    assert settings.zip_path.exists()


def test_unzipping_without_a_zip_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(ModelError, match=r"saved_model\.zip: not found; .*copy_server_files"):
        served_files.unzip(settings)


@pytest.mark.parametrize("place", ["zip", "unzipped", "address"])
def test_example_is_left_out_where_a_start_has_a_policy(settings: Settings, place: str) -> None:
    put_old(settings)
    if place != "zip":
        settings.zip_path.unlink()
    if place == "address":
        shutil.rmtree(settings.models_path)
        settings = settings.model_copy(update={"model_uri": SecretStr("s3://b/k")})

    assert served_files.is_served(settings)


def test_example_is_taken_where_there_is_no_policy_or_only_an_examples_schema(
    settings: Settings,
) -> None:
    assert not served_files.is_served(settings)
    settings.home.mkdir()
    shutil.copyfile(MOUSE / "schema.yaml", settings.schema_path)
    assert not served_files.is_served(settings)


def test_schema_of_ones_own_without_its_policy_is_told(settings: Settings) -> None:
    put_policy(settings.home, "mine")
    settings.zip_path.unlink()

    with pytest.raises(ModelError, match=r"schema\.yaml: is no example's, .* put its saved_model"):
        served_files.is_served(settings)


def test_cleaning_removes_the_policy_and_the_clients_only(settings: Settings) -> None:
    put_old(settings)
    (settings.models_path / ".gitkeep").touch()
    (settings.models_path / "variables").mkdir()
    (settings.home / "clients").mkdir()
    (settings.home / "clients" / "python.zip").touch()

    removed = served_files.clean(settings)

    assert sorted(path.relative_to(settings.home).as_posix() for path in removed) == [
        "clients",
        "models/.source-sha256",
        "models/saved_model.pb",
        "models/variables",
        "saved_model.zip",
    ]
    assert sorted(contents(settings.home)) == ["models/.gitkeep", "schema.yaml"]
    assert served_files.clean(settings) == []


def test_cleaning_removes_a_link_and_not_what_it_leads_to(
    settings: Settings, tmp_path: Path
) -> None:
    kept = tmp_path / "elsewhere" / "kept"
    kept.parent.mkdir()
    kept.touch()
    settings.home.mkdir()
    (settings.home / "clients").symlink_to(kept.parent)

    served_files.clean(settings)

    assert kept.exists()
    assert not (settings.home / "clients").is_symlink()


# inspect, schema


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


def test_inspect_without_a_schema_says_how_to_get_one(models: Path, settings: Settings) -> None:
    report = model_report.inspect_model(models / "normal", settings)

    assert "generate.py schema" in model_report.report_as_text(report)[-1]
    report.check_fits()


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
        (None, "home/saved_model.zip: not found; name a zip or a folder"),
        ("nowhere", "nowhere: not found; expected a zip"),
        (".", "holds no saved_model.zip and no saved_model.pb; expected a zip"),
    ],
)
def test_inspect_says_what_it_looked_for(
    settings: Settings, path: str | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        model_report.inspect_model(None if path is None else Path(path), settings)


@pytest.mark.parametrize("name", MODELS)
def test_a_drafted_schema_fits_its_model(
    name: str, models: Path, tmp_path: Path, settings: Settings
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for path in (models / name).iterdir():
        (folder / path.name).symlink_to(path)

    text = model_report.draft_schema(folder, settings)
    model_report.write_draft(text, folder / "schema.yaml", overwrite=False)

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
        ("keras_only", ["# The file does not say what the network's output means: if the"]),
    ],
)
def test_a_drafted_schema_shows_what_may_be_filled_in(
    name: str, lines: list[str], models: Path, settings: Settings
) -> None:
    text = model_report.draft_schema(models / name, settings)

    for line in lines:
        assert line in text


def test_a_draft_is_not_written_over_a_file_unasked(tmp_path: Path) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text("old")

    with pytest.raises(SchemaError, match=r"schema\.yaml: exists; .*--overwrite"):
        model_report.write_draft("new", file, overwrite=False)
    assert file.read_text() == "old"
    model_report.write_draft("new", file, overwrite=True)
    assert file.read_text() == "new"


def test_draft_takes_the_place_of_an_examples_schema_only_while_that_is_unchanged(
    tmp_path: Path,
) -> None:
    file = Path(shutil.copyfile(MOUSE / "schema.yaml", tmp_path / "schema.yaml"))

    model_report.write_draft("mine", file, overwrite=False)
    with pytest.raises(SchemaError, match="exists; give another file"):
        model_report.write_draft("new", file, overwrite=False)

    assert file.read_text() == "mine"


def test_a_draft_for_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="can't be written: No such file"):
        model_report.write_draft("new", tmp_path / "no" / "schema.yaml", overwrite=False)


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


# predict


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live_server() as address:
        yield address


@pytest.mark.parametrize(
    ("observation", "answer"),
    [
        ('{"links": [1, 2.5], "is_open": false}', "predict_deterministic"),
        ("[1, 2.5, 0]", "predict_deterministic"),
        ('{"obs": [1, 2.5, 0]}', "predict_deterministic"),
    ],
    ids=["named", "list", "raw"],
)
def test_asking_takes_named_and_flat_observations(url: str, observation: str, answer: str) -> None:
    with PolicyClient(url, KEY) as server:
        assert json.loads(client.ask(server, observation, answer)) == {
            "actions": [1],
            "probability": 0.8,
            "log_probability": pytest.approx(math.log(0.8)),
        }


def test_a_seed_makes_the_answer_reproducible(url: str) -> None:
    with PolicyClient(url, KEY) as server:
        answers = [
            [client.ask(server, "[0, 0, 0]", "predict", seed=seed) for seed in range(20)]
            for _ in range(2)
        ]

    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 2


def test_the_example_comes_from_the_server(url: str) -> None:
    with PolicyClient(url, None) as server:
        example = client.example_observation(server)

    assert json.loads(example) == {"links": [0.0, 0.0], "is_open": True}


def test_the_example_of_a_raw_server_is_a_list() -> None:
    with (
        live_server(f"parameters: {{api_key: {KEY}}}") as address,
        PolicyClient(address, KEY) as server,
    ):
        example = client.example_observation(server)
        assert json.loads(example) == [0.0, 0.0, 0.0]
        assert "actions" in client.ask(server, example, "predict")


def test_a_refused_observation_lists_each_field(url: str) -> None:
    with PolicyClient(url, KEY) as server, pytest.raises(ServerAnswerError) as caught:
        client.ask(server, '{"links": [1, NaN], "window": 1}', "predict")

    assert caught.value.message.splitlines() == [
        f"{url}/predict: refused, since",
        "  links.1: Input should be a finite number",
        "  is_open: Field required",
        "  window: Extra inputs are not permitted",
    ]


@pytest.mark.parametrize(
    ("key", "words"), [(None, "no access key"), ("guessed", "wrong access key")]
)
def test_a_refused_key_says_where_it_is_taken_from(url: str, key: str | None, words: str) -> None:
    with (
        PolicyClient(url, key) as server,
        pytest.raises(ServerAnswerError, match=f"{words}.*--key, POLICY_SERVER_API_KEY"),
    ):
        client.ask(server, "[0, 0, 0]", "predict")


class _Odd(Handler):
    def answer(self) -> None:
        status = int(self.path.strip("/").split("/")[0])
        body = b"<html>" if status == 200 else b"{}" if status == 202 else b"[]"
        self.reply(status, body, location="/")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (200, "the answer is no JSON; is it a Policy Server"),
        (202, "gives no example; name an observation"),
        (302, "/openapi.json: answered 302: Found"),
        (500, "/openapi.json: answered 500: Internal Server Error"),
    ],
)
def test_an_odd_answer_is_said(status: int, message: str) -> None:
    with (
        answered_by(_Odd) as address,
        PolicyClient(f"{address}/{status}", None) as server,
        pytest.raises(ServerAnswerError, match=message),
    ):
        client.example_observation(server)


def test_a_server_that_is_not_there_is_said(unused_tcp_port: int) -> None:
    with (
        PolicyClient(f"http://127.0.0.1:{unused_tcp_port}", None) as server,
        pytest.raises(ServerAnswerError, match=r"no server answers there; start one with `uvicorn"),
    ):
        server.get("/schema")


def test_a_server_that_is_silent_is_said() -> None:
    with (
        http.server.HTTPServer(("127.0.0.1", 0), _Odd) as silent,
        PolicyClient(f"http://127.0.0.1:{silent.server_port}", None, timeout_s=0.1) as server,
        pytest.raises(ServerAnswerError, match=r"no answer within 0\.1 s"),
    ):
        server.get("/schema")


def test_a_server_without_tls_is_said(url: str) -> None:
    with (
        PolicyClient(url.replace("http:", "https:"), None) as server,
        pytest.raises(ServerAnswerError, match="no secure connection"),
    ):
        server.get("/schema")


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://localhost", "", "http://"])
def test_an_address_has_to_be_one(address: str) -> None:
    with pytest.raises(SettingsError, match="--url: expected an address such as"):
        PolicyClient(address, None).get("/schema")


def test_a_key_that_no_header_carries_is_refused() -> None:
    with pytest.raises(SettingsError, match="the access key: expected printable ASCII"):
        PolicyClient("http://localhost", "schlüssel")


def test_the_key_is_the_given_the_environments_or_the_schemas(
    settings: Settings, tmp_path: Path
) -> None:
    put_policy(settings.home, "local")
    with_key = Settings.model_validate({"home": settings.home, "api_key": "environment"})
    elsewhere = Settings(home=tmp_path)

    assert client.find_api_key("given", with_key) == "given"
    assert client.find_api_key(None, with_key) == "environment"
    assert client.find_api_key(None, settings) == "local"
    assert client.find_api_key(None, elsewhere) is None


def test_an_observation_is_json_a_file_or_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "observation.json"
    file.write_text('{"a": 1.0}')

    assert client.read_observation(' {"a": true}', str) == ' {"a": true}'
    assert client.read_observation(str(file), str) == '{"a": 1.0}'
    assert client.read_observation("-", lambda: "[1e400]") == "[1e400]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1}", r"the observation: expected JSON, got '\{a: 1\}' \(Expecting property name"),
        ("7", "expected JSON, a file, or - for standard input, got '7'"),
        ("-", "standard input: expected a JSON object, or a list .*, got '7'"),
        (".", "'.': expected a readable text file"),
        ("x" * 300, "got 'xxx.*|'xxx.*: expected a readable text file: .*File name too long"),
    ],
)
def test_an_observation_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        client.read_observation(text, lambda: "7")


@pytest.mark.parametrize(
    ("options", "route"),
    [
        ((False, False, 3), "predict"),
        ((True, False, None), "predict_deterministic"),
        ((False, True, None), "distribution"),
        ((True, True, None), None),
        ((True, False, 3), None),
        ((False, True, 3), None),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    options: tuple[bool, bool, int | None], route: str | None
) -> None:
    is_deterministic, is_distribution, seed = options
    choose = partial(
        client.choose_answer,
        is_deterministic=is_deterministic,
        is_distribution=is_distribution,
        seed=seed,
    )

    if route is not None:
        assert choose() == route
    else:
        with pytest.raises(SettingsError):
            choose()


# evaluate

ENVIRONMENT = """
class Coin:
    '''Pays one for each of ten times that action 1 is taken, and a tenth of the seed's parity.'''

    def reset(self, *, seed=None):
        self.steps, self.bonus = 0, 0.1 * (seed % 2)
        return [0.5, 0.5, True], {}

    def step(self, action):
        assert action in (0, 1)
        self.steps += 1
        return [0.5, 0.5, True], action + self.bonus, False, self.steps == 10, {}

    def named_observation(self, observation):
        return {"links": observation[:2], "is_open": observation[2]}

    def action_from(self, actions):
        return actions[0]

    def random_action(self, generator):
        return int(generator.integers(2))


def make_environment():
    return Coin()
"""


@pytest.fixture
def coin(tmp_path: Path) -> Path:
    folder = tmp_path / "coin"
    folder.mkdir()
    (folder / "environment.py").write_text(ENVIRONMENT)
    (folder / "schema.yaml").write_text(SCHEMA)
    return folder


def evaluate(folder: Path, url: str, **options: object) -> evaluation.Evaluation:
    known: dict[str, Any] = {
        "episodes": 60,
        "seed": 0,
        "is_deterministic": False,
        "parallel": 4,
        "on_progress": lambda _done, _total: None,
    }
    return evaluation.evaluate(folder, lambda: PolicyClient(url, KEY), **known | options)


def test_the_policy_is_measured_as_served(coin: Path, url: str) -> None:
    result = evaluate(coin, url)

    # Ten steps of 0.8 and of 0.5, and 0.5 for the seeds; the errors are those of binomial draws.
    assert result.served.mean == pytest.approx(8.5, abs=4 * result.served.standard_error)
    assert result.random.mean == pytest.approx(5.5, abs=4 * result.random.standard_error)
    assert result.served.standard_error == pytest.approx(1.36 / 60**0.5, rel=0.4)
    assert (result.name, result.episodes) == ("coin", 60)


def test_the_same_seed_gives_the_same_returns_in_any_number_of_threads(
    coin: Path, url: str
) -> None:
    first = evaluate(coin, url, parallel=1, episodes=12)

    assert evaluate(coin, url, parallel=7, episodes=12) == first
    assert evaluate(coin, url, seed=1000, episodes=12) != first


def test_the_mode_is_measured_where_it_is_asked(coin: Path, url: str) -> None:
    result = evaluate(coin, url, is_deterministic=True, episodes=4)

    assert result.served.mean == pytest.approx(10.5)
    assert result.served.standard_error == pytest.approx(0.2887, abs=1e-4)


def test_a_flat_observation_goes_the_raw_way(coin: Path, url: str) -> None:
    file = coin / "environment.py"
    named = 'return {"links": observation[:2], "is_open": observation[2]}'
    file.write_text(ENVIRONMENT.replace(named, "return [0.5, 0.5, 1.0]"))

    assert evaluate(coin, url, episodes=2, is_deterministic=True).served.mean == 10.5


def test_progress_is_told_for_each_episode(coin: Path, url: str) -> None:
    told: list[tuple[int, int]] = []

    evaluate(coin, url, episodes=5, on_progress=lambda done, total: told.append((done, total)))

    assert told == [(done, 5) for done in range(1, 6)] * 2


def test_an_evaluation_reads_well() -> None:
    result = evaluation.Evaluation(
        "coin", 9, evaluation.MeanReturn(10.5, 0.25), evaluation.MeanReturn(-1.0, 0.125)
    )

    assert result.as_text() == [
        "mean return ± standard error of 9 episodes of coin",
        "policy as served  10.50 ± 0.25",
        "random actions    -1.00 ± 0.12",
    ]
    assert result.as_markdown() == "| coin | 9 | 10.50 ± 0.25 | -1.00 ± 0.12 |"


@pytest.mark.parametrize(
    "options",
    [{"episodes": 1}, {"parallel": 0}, {"seed": -1}],
    ids=["episodes", "parallel", "seed"],
)
def test_numbers_that_measure_nothing_are_refused(coin: Path, options: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="expected --episodes from 2"):
        evaluate(coin, "http://127.0.0.1:1", **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"environment\.py: not found; expected an example's folder"),
        ("import not_there.at_all", r"environment\.py: needs the package not_there"),
        ("import", r"environment\.py: can't be imported: SyntaxError"),
        ("1 / 0", r"environment\.py: can't be imported: ZeroDivisionError: division by zero"),
        ("", r"environment\.py: has no function make_environment"),
    ],
    ids=["missing", "package", "syntax", "error", "empty"],
)
def test_an_environment_that_is_none_is_said(coin: Path, text: str | None, message: str) -> None:
    file = coin / "environment.py"
    file.unlink()
    if text is not None:
        file.write_text(text)

    with pytest.raises(SettingsError, match=message):
        evaluate(coin, "http://127.0.0.1:1")


def test_a_server_with_another_schema_is_said(coin: Path, url: str) -> None:
    (coin / "schema.yaml").write_text("observations: {other: {type: int}}")

    with pytest.raises(ServerAnswerError, match=r"serves another schema than .*copy_server_files"):
        evaluate(coin, url)


def test_an_example_without_a_schema_is_not_compared(coin: Path, url: str) -> None:
    (coin / "schema.yaml").unlink()

    assert evaluate(coin, url, episodes=2, is_deterministic=True).served.mean == 10.5


def test_a_failing_episode_stops_the_others(coin: Path, url: str) -> None:
    file = coin / "environment.py"
    endless = ENVIRONMENT.replace("self.steps == 10", "False")
    file.write_text(
        endless.replace("self.steps += 1", "self.steps += 1; assert self.steps < 30 or self.bonus")
    )

    with pytest.raises(AssertionError):
        evaluate(coin, url, episodes=2, parallel=2)


# export


def test_names_are_read_with_their_numbers_of_values() -> None:
    assert export.parse_names("observation-names", "speed, position:2,mask:10") == {
        "speed": 1,
        "position": 2,
        "mask": 10,
    }


@pytest.mark.parametrize("text", ["", "a,,b", "a,a", "a:", "a:x", ":2", "a:-1"])
def test_names_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--observation-names: expected names such as"):
        export.parse_names("observation-names", text)
