"""Policies put in place, unzipped and removed."""

from __future__ import annotations

import contextlib
import logging
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from policy_server.commands import served_files
from policy_server.engine.cache import digest_of, read_outcome
from policy_server.errors import ModelError, PolicyServerError
from policy_server.formats.model_files import files_of_model, identify_model
from policy_server.formats.unpacking import unpack_model
from policy_server.remote_files import fetch_files, parse_uri
from policy_server.schema import read_schema
from policy_server.settings import Settings
from tests.support.folders import ROOT

MOUSE = ROOT / "examples" / "mouse_and_cheese"


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
        "models/.files-sha256.json",
        "models/.source-sha256",
        "models/saved_model.pb",
        "models/variables/variables.data-00000-of-00001",
        "models/variables/variables.index",
        "saved_model.zip",
        "schema.yaml",
    ]


class Signalled(logging.Handler):
    """Lets Ctrl-C come once the policy has been unpacked in its place."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._in_place = settings.zip_path

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "model_unpacked" and vars(record)["path"] == str(self._in_place):
            raise KeyboardInterrupt


@contextlib.contextmanager
def signalled(settings: Settings) -> Iterator[None]:
    logger, handler = logging.getLogger("policy_server.formats.unpacking"), Signalled(settings)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.parametrize("way", ["copied", "fetched"])
@pytest.mark.parametrize("is_zipped", [True, False], ids=["zip", "models-only"])
def test_signal_while_a_policy_is_put_in_place_leaves_the_old_one_unzipped_too(
    source: Path, settings: Settings, way: str, *, is_zipped: bool
) -> None:
    before = put_old(settings)
    if not is_zipped:
        settings.zip_path.unlink()
        del before[settings.zip_path.name]

    def put_in_place() -> object:
        if way == "copied":
            return served_files.copy_server_files(source, settings)
        model = parse_uri(str(source / "saved_model.zip"), name="model")
        return fetch_files(settings, model=model, schema=None, check=lambda _model, _schema: None)

    with signalled(settings), pytest.raises(KeyboardInterrupt):
        put_in_place()

    assert contents(settings.home) == before


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "replacing"])
def test_copies_are_as_private_as_the_files_that_they_come_from_or_replace(
    source: Path, settings: Settings, *, is_first: bool
) -> None:
    """schema.yaml holds the access key."""
    names = [settings.schema_path.name, settings.zip_path.name]
    if not is_first:
        put_old(settings)
    for name in names:
        ((source if is_first else settings.home) / name).chmod(0o600)

    served_files.copy_server_files(source, settings)

    assert [stat.S_IMODE((settings.home / name).stat().st_mode) for name in names] == [0o600] * 2


def test_copying_a_folder_onto_itself_keeps_it(source: Path) -> None:
    before = contents(source)

    served_files.copy_server_files(source, Settings(home=source))

    assert {name: contents(source)[name] for name in before} == before


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        pytest.param("saved_model.zip", b"no zip", "is no zip file or is damaged", id="no-zip"),
        pytest.param("schema.yaml", b"parameters: {key: 1}", "parameters.key", id="wrong-schema"),
        pytest.param("saved_model.zip", None, "holds no policy; expected", id="zip-lacks"),
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


@pytest.mark.parametrize("kind", ["zip", "folder", "folder itself"])
def test_policy_of_any_name_becomes_saved_model_zip(
    source: Path, settings: Settings, kind: str
) -> None:
    put_old(settings)
    files = {}
    with zipfile.ZipFile(source / "saved_model.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist() if "." in name}
        if kind != "zip":
            archive.extractall(source / "run" if kind == "folder" else source)
    if kind == "zip":
        (source / "saved_model.zip").rename(source / "run.zip")
    else:
        (source / "saved_model.zip").unlink()

    copied_to = served_files.copy_server_files(source, settings)

    policy = {"zip": source / "run.zip", "folder": source / "run"}.get(kind, source)
    assert copied_to == {policy: settings.zip_path}
    with zipfile.ZipFile(settings.zip_path) as archive:
        copied = {name: archive.read(name) for name in archive.namelist() if "." in name}
    assert {name: copied[name] for name in files} == files
    served = {
        name: path.read_bytes() for name, path in files_of_model(settings.models_path).items()
    }
    assert {name: served[name] for name in files} == files


def test_policy_that_lies_in_the_servers_folder_is_not_copied_onto_itself(source: Path) -> None:
    (source / "saved_model.zip").rename(source / "run.zip")
    before = contents(source)

    with pytest.raises(ModelError, match=r"run\.zip: is in the server's folder already; a start"):
        served_files.copy_server_files(source, Settings(home=source))

    assert contents(source) == before


def test_file_that_seems_to_be_a_policy_is_named(source: Path, settings: Settings) -> None:
    (source / "saved_model.zip").unlink()
    (source / "policy.zip").write_bytes(b"<html>sign in</html>")
    says = r"holds no policy, but policy\.zip \(a web page"

    with pytest.raises(ModelError, match=says):
        served_files.copy_server_files(source, settings)
    with pytest.raises(ModelError, match=says):
        served_files.unzip(Settings(home=source))


def test_unzipping_a_folder_says_that_nothing_is_to_do(settings: Settings) -> None:
    put_old(settings)
    settings.zip_path.unlink()

    with pytest.raises(ModelError, match=r"models: is unzipped; a start serves it as it lies"):
        served_files.unzip(settings)


def test_zip_of_any_name_is_unzipped(source: Path) -> None:
    (source / "saved_model.zip").rename(source / "run.zip")

    zip_path, models = served_files.unzip(Settings(home=source))

    assert (zip_path, models) == (source / "run.zip", source / "models")
    assert (models / "saved_model.pb").is_file()


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
        ("nowhere", "nowhere: not found; expected a folder with schema.yaml and a policy, such"),
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

    with pytest.raises(ModelError, match=r"schema\.yaml: is no example's, .* put its policy"):
        served_files.is_served(settings)


def test_cleaning_removes_the_policy_and_the_clients_only(settings: Settings) -> None:
    put_old(settings)
    (settings.models_path / ".gitkeep").touch()
    (settings.models_path / "variables").mkdir()
    put_client(settings.home / "clients" / "python")

    removed = served_files.clean(settings)

    assert sorted(path.relative_to(settings.home).as_posix() for path in removed) == [
        "clients",
        "models/.files-sha256.json",
        "models/.source-sha256",
        "models/saved_model.pb",
        "models/variables",
        "saved_model.zip",
    ]
    assert sorted(contents(settings.home)) == ["models/.gitkeep", "schema.yaml"]
    assert served_files.clean(settings) == []


def put_client(folder: Path) -> None:
    (folder / ".openapi-generator").mkdir(parents=True)
    (folder / ".openapi-generator" / "VERSION").touch()


def test_cleaning_leaves_what_else_lies_beside_clients(settings: Settings) -> None:
    clients = settings.home / "clients"
    put_client(clients / "java")
    (clients / "mine").mkdir()
    (clients / "mine" / "customers.csv").touch()

    removed = served_files.clean(settings)

    assert removed == [clients / "java"]
    assert [path.name for path in clients.iterdir()] == ["mine"]


def test_cleaning_leaves_a_policy_that_somebody_put_there(settings: Settings) -> None:
    for name in ("left/.source-sha256", "left/.compiled-policy.npz", "left/saved_model.pb"):
        (settings.models_path / name).parent.mkdir(parents=True, exist_ok=True)
        (settings.models_path / name).touch()
    own = {"models/export/saved_model.pb", "run/saved_model.pb", "ppo.onnx", "vec_normalize.pkl"}
    made = {"models/export/.compiled-policy.npz", "run/.compiled-policy.npz", ".fetched.json"}
    for name in own | made:
        (settings.home / name).parent.mkdir(parents=True, exist_ok=True)
        (settings.home / name).touch()

    removed = served_files.clean(settings)

    assert {path.relative_to(settings.home).as_posix() for path in removed} == {
        "models/left",
        *made,
    }
    assert contents(settings.home).keys() == own


def test_cleaning_removes_a_link_and_not_what_it_leads_to(
    settings: Settings, tmp_path: Path
) -> None:
    kept = tmp_path / "elsewhere" / "kept"
    kept.parent.mkdir()
    kept.touch()
    settings.home.mkdir()
    settings.zip_path.symlink_to(kept)

    served_files.clean(settings)

    assert kept.exists()
    assert not settings.zip_path.is_symlink()


def test_cleaning_leaves_what_is_called_clients_and_has_none(settings: Settings) -> None:
    settings.home.mkdir()
    clients = settings.home / "clients"
    clients.write_text("mine")

    assert served_files.clean(settings) == []
    assert clients.read_text() == "mine"

    clients.unlink()
    clients.mkdir()
    assert served_files.clean(settings) == []
    assert clients.is_dir()


def test_cleaning_leaves_a_link_called_clients(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "mine").mkdir(parents=True)
    settings.home.mkdir()
    link = settings.home / "clients"
    link.symlink_to(tmp_path / "elsewhere")

    assert served_files.clean(settings) == []
    assert link.is_symlink()


def put_scaled(folder: Path) -> Path:
    """Write a stable-baselines3 policy with the statistics that belong to its zip."""
    folder.mkdir()
    for name in ("policy.zip", "vec_normalize.pkl"):
        shutil.copyfile(
            ROOT / "tests" / "data" / "policies" / "sb3_ppo_vecnorm" / name, folder / name
        )
    (folder / "schema.yaml").write_text("parameters: {discrete: true, api_key: x}")
    return folder


def test_file_beside_a_zip_is_copied_within_it(tmp_path: Path, settings: Settings) -> None:
    scaled = put_scaled(tmp_path / "scaled")

    served_files.copy_server_files(scaled, settings)

    statistics = (scaled / "vec_normalize.pkl").read_bytes()
    assert (settings.models_path / "vec_normalize.pkl").read_bytes() == statistics
    assert not (settings.home / "vec_normalize.pkl").exists()


def test_statistics_of_another_policy_in_the_servers_folder_are_refused(
    tmp_path: Path, settings: Settings
) -> None:
    scaled = put_scaled(tmp_path / "scaled")
    settings.home.mkdir()
    (settings.home / "vec_normalize.pkl").write_bytes(b"of another")

    with pytest.raises(ModelError, match=r"vec_normalize\.pkl: would be taken for the one of pol"):
        served_files.copy_server_files(scaled, settings)

    assert list(contents(settings.home)) == ["vec_normalize.pkl"]


def test_policy_of_another_format_in_the_servers_folder_is_refused(
    source: Path, settings: Settings, tmp_path: Path
) -> None:
    settings.home.mkdir()
    shutil.copyfile(put_scaled(tmp_path / "scaled") / "policy.zip", settings.home / "ppo.zip")

    with pytest.raises(ModelError, match=r"holds 2 policies \(.*, ppo\.zip: a stable-baselines3 P"):
        served_files.copy_server_files(source, settings)

    assert list(contents(settings.home)) == ["ppo.zip"]


def test_file_that_is_no_zip_is_copied_with_the_one_beside_it(
    tmp_path: Path, settings: Settings
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    names = ("policy.onnx", "policy.onnx.data", "schema.yaml")
    for name in names:
        shutil.copyfile(ROOT / "tests/data/policies/onnx_rsl_rl_lstm" / name, source / name)

    copied = served_files.copy_server_files(source, settings)

    assert copied == {source / "policy.onnx": settings.zip_path}
    with zipfile.ZipFile(settings.zip_path) as archive:
        assert archive.namelist() == ["policy.onnx", "policy.onnx.data"]
    for name in names[:2]:
        assert (settings.models_path / name).read_bytes() == (source / name).read_bytes()
    assert served_files.unzip(settings) == (settings.zip_path, settings.models_path)


SEVERAL = """
policies:
  walker:
    versions:
      v1: {model: walker.zip, traffic: 90}
      v2: {model: other.zip, traffic: 10}
  greedy: {model: other.zip}
parameters: {api_key: new}
"""


def put_several(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "schema.yaml").write_text(SEVERAL)
    policies = ROOT / "tests" / "data" / "policies"
    for name, policy in {"walker": "sb3_v18_ppo_discrete", "other": "sb3_trpo"}.items():
        shutil.copyfile(policies / policy / "policy.zip", folder / f"{name}.zip")


def test_several_policies_are_copied_with_their_zips_and_unzipped_where_a_start_looks(
    source: Path, settings: Settings
) -> None:
    put_several(source)

    copied = served_files.copy_server_files(source, settings)

    assert copied == {source / name: settings.home / name for name in ("other.zip", "walker.zip")}
    for path in [*copied, source / "schema.yaml"]:
        assert (settings.home / path.name).read_bytes() == path.read_bytes()
    for place in ("walker/v1", "walker/v2", "greedy"):
        assert identify_model(settings.models_path / place).folder.is_dir()
    assert not (settings.home / "saved_model.zip").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(None, "of which other.zip is no zip beside it", id="missing"),
        pytest.param("no zip", "of which other.zip is no zip beside it", id="no zip"),
        pytest.param("PK", "holds no policy", id="no policy"),
    ],
)
def test_several_policies_of_which_one_can_not_be_copied_change_nothing(
    source: Path, settings: Settings, content: str | None, says: str
) -> None:
    old = put_old(settings)
    put_several(source)
    other = source / "other.zip"
    other.unlink()
    if content == "PK":
        with zipfile.ZipFile(other, "w") as archive:
            archive.writestr("notes.txt", "none")
    elif content is not None:
        other.write_text(content)

    with pytest.raises(PolicyServerError, match=says):
        served_files.copy_server_files(source, settings)

    assert contents(settings.home) == old
