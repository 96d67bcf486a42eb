"""The folders of uploaded versions: each has its own, and what nobody needs goes."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policy_server.errors import DeploymentError, ModelError
from policy_server.formats.model_files import files_of_model, identify_model
from policy_server.formats.unpacking import unpack_model
from policy_server.schema import PolicySection, read_schema_file
from policy_server.serving import DeployedVersion, Deployment
from policy_server.serving.deployment_file import DeploymentFile
from policy_server.serving.deployment_store import one_basis
from policy_server.settings import Settings
from policy_server.version_files import VersionFiles
from policy_server.version_files.basis import basis_of
from tests.support.folders import EXPORTS
from tests.support.library_policies import POLICIES

ZIP = POLICIES / "sb3_v18_ppo_discrete" / "policy.zip"


@pytest.fixture
def section(tmp_path: Path) -> PolicySection:
    """Return the only policy of a server's folder."""
    (tmp_path / "schema.yaml").write_text("parameters: {api_key: k}")
    [section] = read_schema_file(tmp_path / "schema.yaml")
    return section


@pytest.fixture
def files(tmp_path: Path) -> VersionFiles:
    """Return the files of that folder."""
    return VersionFiles(Settings(home=tmp_path))


def uploaded(files: VersionFiles, name: str) -> DeployedVersion:
    """Upload a version."""
    with files.incoming("default", name) as upload:
        upload.write_bytes(ZIP.read_bytes())
        return DeployedVersion(name, files.take("default", name, upload), 100.0)


def names_in(home: Path) -> set[str]:
    """Return the names of the versions that have folders."""
    return {path.name.partition(".")[0] for path in (home / "versions" / "default").iterdir()}


def test_two_uploads_of_one_name_have_folders_of_their_own(
    files: VersionFiles, tmp_path: Path
) -> None:
    first, second = uploaded(files, "v2"), uploaded(files, "v2")

    files.forget("default", second)

    assert first.model is not None
    assert (tmp_path / first.model).is_dir()
    assert len(list((tmp_path / "versions" / "default").iterdir())) == 1


@pytest.mark.parametrize(
    ("version", "place"),
    [
        (DeployedVersion("v2", "gone.zip"), "model"),
        (DeployedVersion("v2", "gone.zip", digest="abc"), "versions.json: default: v2: model"),
        (DeployedVersion("", "own.zip"), "schema.yaml: model"),
        (DeployedVersion("abcd", "own.zip", digest="abc"), "schema.yaml: model"),
    ],
    ids=["asked", "deployed before", "schema.yaml's", "schema.yaml's, deployed before"],
)
def test_refusal_names_where_the_model_is_named(
    files: VersionFiles, section: PolicySection, version: DeployedVersion, place: str
) -> None:
    with pytest.raises(ModelError, match=rf"^{place}: .*\.zip: not found"):
        files.prepare(replace(section, model="own.zip"), version, lambda _model, _folder: False)


def test_refusal_of_a_named_version_names_schema_yaml(files: VersionFiles, tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(
        "policies: {a: {versions: {one: {model: gone.zip}}}}\nparameters: {api_key: k}"
    )
    [section] = read_schema_file(tmp_path / "schema.yaml")
    one = DeployedVersion("one", "gone.zip", 100.0)

    with pytest.raises(ModelError, match=r"^schema\.yaml: policies\.a: versions\.one\.model: "):
        files.prepare(section, one, lambda _model, _folder: False)


def test_upload_brings_nothing_that_a_start_makes_itself(
    files: VersionFiles, tmp_path: Path
) -> None:
    sent = {
        "saved_model.zip": ZIP.read_bytes(),
        "schema.yaml": b"{}",
        ".compiled-policy.npz": b"evil",
        "another/saved_model.pb": b"which makes two, so that the upload is no policy itself",
        "models/saved_model.pb": b"evil",
        "models/.source-sha256": b"evil",
        "beside/.hidden": b"evil",
    }
    with files.incoming("default", "v2") as upload:
        with zipfile.ZipFile(upload, "w") as archive:
            for name, content in sent.items():
                archive.writestr(name, content)
        home = tmp_path / files.take("default", "v2", upload)

    found = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert found == {"saved_model.zip", "schema.yaml", "another/saved_model.pb"}


def members_of(path: Path, below: str) -> dict[str, bytes]:
    """Return the files of a zip, as they lie in a folder."""
    with zipfile.ZipFile(path) as archive:
        return {f"{below}{name}": archive.read(name) for name in archive.namelist()}


ONNX = (POLICIES / "onnx_sb3_doc_ppo_box" / "policy.onnx").read_bytes()


@pytest.mark.parametrize(
    ("sent", "schema"),
    [
        (members_of(ZIP, "policy/"), "schema.yaml"),
        (members_of(ZIP, "new/policy/"), "new/schema.yaml"),
        (members_of(ZIP, ""), "schema.yaml"),
        ({"policy.onnx": ONNX}, "schema.yaml"),
        ({"new/policy.onnx": ONNX}, "new/schema.yaml"),
    ],
    ids=["unzipped", "a folder", "the policy itself", "ONNX", "a folder with ONNX"],
)
def test_schema_of_an_upload_counts_wherever_the_policy_lies(
    files: VersionFiles, section: PolicySection, sent: dict[str, bytes], schema: str
) -> None:
    with files.incoming("default", "v2") as upload:
        with zipfile.ZipFile(upload, "w") as archive:
            for name, content in sent.items():
                archive.writestr(name, content)
            archive.writestr(schema, "observations: {d: {type: float}, c: {type: float}}")
        version = DeployedVersion("v2", files.take("default", "v2", upload), 100.0)

    found = files.schema_of(version)
    assert found is not None
    assert [item.name for item in found.observations or ()] == ["d", "c"]
    assert files.prepare(section, version, lambda *_: False).is_dir()


@pytest.mark.parametrize("model", ["versions/..", "versions/default", "versions/a/../..", "models"])
def test_version_of_another_place_removes_nothing(
    files: VersionFiles, model: str, tmp_path: Path
) -> None:
    kept = uploaded(files, "v2")

    files.forget("default", DeployedVersion("v3", model, 100.0))

    assert (tmp_path / (kept.model or "")).is_dir()
    assert names_in(tmp_path) == {"v2"}


def test_start_removes_what_is_neither_deployed_nor_on_its_way(
    files: VersionFiles, section: PolicySection, tmp_path: Path
) -> None:
    deployed, interrupted = uploaded(files, "v2"), uploaded(files, "v3")
    abandoned = tmp_path / "versions" / "default" / ".incoming-v4.x1_y2z3w"
    abandoned.mkdir()
    deployment = Deployment.begin([deployed])

    with files.incoming("default", "v5") as upload:
        upload.write_bytes(ZIP.read_bytes())
        taken = files.take("default", "v5", upload)
        files.clear(section, lambda: deployment)
        while_coming = (upload.parent.is_dir(), (tmp_path / taken).is_dir())
    files.clear(section, lambda: deployment)

    assert interrupted.model is not None
    assert while_coming == (True, True)
    assert names_in(tmp_path) == {"v2"}
    assert not abandoned.exists()


@pytest.mark.parametrize("is_linked", [False, True], ids=["own folder", "link to a folder"])
def test_start_leaves_alone_what_no_server_has_made(
    files: VersionFiles, section: PolicySection, tmp_path: Path, *, is_linked: bool
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "kept").mkdir(parents=True)
    (elsewhere / "kept" / "weights.bin").write_text("7")
    versions = tmp_path / "versions"
    if is_linked:
        versions.symlink_to(elsewhere)
    folder = versions / "default"
    folder.mkdir(parents=True)
    for name in ("notes.txt", "v2.0123456789ab", ".gone-0123456789ab", ".incoming-v2.x1_y2z3w"):
        (folder / name).write_text("somebody's")
    for name in ("data", "v2", "v2.backup", ".gone-by", ".incoming-mail", "v2.0123456789AB"):
        (folder / name).mkdir()
    (folder / "v3.0123456789ab").symlink_to(elsewhere / "kept")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    interrupted = uploaded(files, "v4")
    for name in (".gone-0123456789cd", "schema.model.0123456789ab"):
        (folder / name).mkdir()

    files.clear(section, lambda: ())
    files.forget("default", DeployedVersion("v2", "versions/default/data", 100.0))

    after = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert interrupted.model is not None
    assert [path for path in after if path.name != ".default.lock"] == before


def test_start_names_the_versions_that_it_removes(
    files: VersionFiles,
    section: PolicySection,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = uploaded(files, "v3").model or ""
    (tmp_path / "versions" / "default" / ".gone-0123456789ab").mkdir()

    files.clear(section, lambda: ())
    files.clear(section, lambda: ())

    [record] = [record for record in caplog.records if record.msg == "versions_removed"]
    assert record.__dict__["folders"] == [Path(model).name]
    assert record.__dict__["path"] == str(tmp_path / "versions" / "default")


def changed(path: Path, entry: dict[str, Any]) -> None:
    """Write a deployment over another schema.yaml."""
    entry["default"]["basis"] = "another"
    path.write_text(json.dumps(entry))


def pipe(path: Path) -> None:
    """Put a named pipe, to which nobody writes, in a file's place."""
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "happen",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"default": {"basis": "today", "deployment": 7}}'),
        lambda path: changed(path, json.loads(path.read_text())),
        # What can't be opened, whoever asks: the file's rights say nothing to root.
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to(path.parent / "elsewhere" / "versions.json")),
        lambda path: path.write_text("[" * 100_000),
        pipe,
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    ],
    ids=[
        *("cut off", "no object", "damaged entry", "other schema.yaml", "unreadable"),
        *("link to nothing", "too deep", "named pipe", "device"),
    ],
)
def test_start_that_cannot_use_its_deployment_keeps_the_uploads(
    files: VersionFiles,
    section: PolicySection,
    tmp_path: Path,
    happen: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    version = uploaded(files, "v2")
    basis = one_basis({"default": "today"})
    DeploymentFile(tmp_path, basis).write("default", Deployment((version,), "v2", serial=1))
    happen(tmp_path / "versions.json")
    store = DeploymentFile(tmp_path, basis)

    used = store.read("default")
    files.clear(section, lambda: store.named("default"))

    assert used is None
    assert names_in(tmp_path) == {"v2"}
    assert [record.msg for record in caplog.records].count("deployment_not_used") == 1


def test_start_whose_disk_does_not_give_its_deployment_serves_no_other_one(
    files: VersionFiles, tmp_path: Path
) -> None:
    version = uploaded(files, "v2")
    basis = one_basis({"default": "today"})
    kept = tmp_path / "versions.json"
    DeploymentFile(tmp_path, basis).write("default", Deployment((version,), "v2", serial=1))
    content = kept.read_bytes()
    kept.unlink()
    # It opens, and its first bytes can't be read: an error of the disk.
    kept.symlink_to("/proc/self/mem")
    store = DeploymentFile(tmp_path, basis)

    with pytest.raises(DeploymentError, match=r"versions\.json: can't be read: Input/output error"):
        store.read("default")
    kept.unlink()
    kept.write_bytes(content)

    assert store.read("default") == Deployment((version,), "v2", serial=1)


def test_basis_of_a_policy_that_the_disk_does_not_give_is_no_other_basis(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text("observations: {speed: {type: float}}\n")
    (tmp_path / "policy.zip").symlink_to("/proc/self/mem")
    settings = Settings(home=tmp_path)

    with pytest.raises(ModelError, match=r"policy\.zip: can't be read: Input/output error"):
        basis_of(read_schema_file(tmp_path / "schema.yaml"), settings)


def test_basis_is_had_of_a_folder_that_differs_from_what_was_unpacked(tmp_path: Path) -> None:
    """That version alone is not served; the others, and other policies, are."""
    (unpack_model(ZIP, tmp_path / "v2", max_bytes=10**6) / "policy.pth").write_bytes(b"other")
    (tmp_path / "schema.yaml").write_text("policies: {default: {model: v2}, other: {model: v2}}\n")

    basis = basis_of(read_schema_file(tmp_path / "schema.yaml"), Settings(home=tmp_path))

    assert set(basis) == {"default", "other"}


def link_or_content(path: Path) -> Path | bytes:
    """Return where a link leads, or a file's bytes."""
    return path.readlink() if path.is_symlink() else path.read_bytes()


@pytest.mark.parametrize(
    "happen",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"default": 7}'),
        lambda path: path.write_text('{"default": {"basis": "today", "deployment": 7}}'),
        lambda path: (path.unlink(), path.symlink_to(path.parent / "elsewhere")),
        lambda path: path.write_text("[" * 100_000),
    ],
    ids=[
        *("cut off", "no text", "no object", "no entry", "damaged entry"),
        *("link to nothing", "too deep"),
    ],
)
def test_deployment_over_a_damaged_one_keeps_the_uploads_that_it_may_have_named(
    files: VersionFiles, section: PolicySection, tmp_path: Path, happen: Callable[[Path], None]
) -> None:
    old, new = uploaded(files, "v2"), uploaded(files, "v3")
    basis = one_basis({"default": "today"})
    kept = tmp_path / "versions.json"
    DeploymentFile(tmp_path, basis).write("default", Deployment((old,), "v2", serial=1))
    happen(kept)
    damaged = link_or_content(kept)

    DeploymentFile(tmp_path, basis).write("default", Deployment((new,), "v3", serial=1))
    later = DeploymentFile(tmp_path, basis)
    files.clear(section, lambda: later.named("default"))

    assert later.read("default") == Deployment((new,), "v3", serial=1)
    assert names_in(tmp_path) == {"v2", "v3"}
    aside = tmp_path / "versions.json.damaged"
    assert link_or_content(aside) == damaged
    assert not (tmp_path / "elsewhere").exists()
    aside.unlink()
    files.clear(section, lambda: later.named("default"))
    assert names_in(tmp_path) == {"v3"}


def test_files_that_are_not_here_are_fetched(
    files: VersionFiles, section: PolicySection, tmp_path: Path
) -> None:
    version = DeployedVersion("v2", "versions/default/v2.1234", 100.0)

    def fetch(_model: str, target: Path) -> bool:
        (target / "policy.zip").write_bytes(ZIP.read_bytes())
        return True

    with pytest.raises(ModelError, match="the version's files are gone: deploy it anew"):
        files.prepare(section, version, lambda *_: False)
    folder = files.prepare(section, version, fetch)

    assert folder.is_relative_to(tmp_path / "versions" / "default" / "v2.1234")
    assert names_in(tmp_path) == {"v2"}


def test_path_of_one_machine_cant_travel(files: VersionFiles, section: PolicySection) -> None:
    deployment = Deployment.begin([DeployedVersion("v2", "/somewhere/policy.zip", 100.0)])

    with pytest.raises(DeploymentError, match="is a path of one machine"):
        files.uploads(section, deployment)


def test_upload_whose_folder_can_not_be_removed_is_deployed_all_the_same(
    files: VersionFiles, tmp_path: Path
) -> None:
    with files.incoming("default", "v2") as upload:
        upload.write_bytes(ZIP.read_bytes())
        version = DeployedVersion("v2", files.take("default", "v2", upload), 100.0)
        # The end of the block expects a folder there.
        shutil.rmtree(upload.parent)
        upload.parent.touch()

    assert version.model is not None
    assert (tmp_path / version.model).is_dir()


def cut_off(path: Path) -> None:
    """Keep the head of a file, by which its format is told, and lose the end."""
    path.write_bytes(path.read_bytes()[:-200])


def with_a_damaged_network(path: Path) -> None:
    """Write a sound zip whose network is none."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            is_network = name.endswith((".pb", ".pth", ".pkl", ".h5"))
            archive.writestr(name, b"damaged" if is_network else content)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("source", "damage"),
    [
        (POLICIES / "onnx_sb3_doc_ppo_box" / "policy.onnx", cut_off),
        (POLICIES / "sb3_ppo_box" / "policy.zip", with_a_damaged_network),
        (POLICIES / "rllib_dqn" / "checkpoint.zip", with_a_damaged_network),
        (POLICIES / "keras_actor_softmax" / "actor.keras", with_a_damaged_network),
        (EXPORTS / "ppo_discrete" / "saved_model.zip", with_a_damaged_network),
    ],
    ids=["ONNX", "stable-baselines3", "RLlib", "Keras", "SavedModel"],
)
def test_damaged_file_leaves_the_policy_that_lies_in_models_alone(
    files: VersionFiles,
    section: PolicySection,
    tmp_path: Path,
    source: Path,
    damage: Callable[[Path], None],
) -> None:
    """The file of the policy that was unpacked has gone, so that models/ has the only copy."""
    only = DeployedVersion("", None, 100.0)
    (tmp_path / "first.zip").write_bytes(ZIP.read_bytes())
    models = files.prepare(section, only, lambda *_: False)
    (tmp_path / "first.zip").unlink()
    before = contents(models)
    damaged = tmp_path / f"new{source.suffix}"
    damaged.write_bytes(source.read_bytes())
    damage(damaged)

    with pytest.raises(ModelError) as caught:
        files.prepare(section, only, lambda *_: False)

    assert contents(models) == before
    assert caught.value.message.startswith(str(damaged))
    assert ".unfinished" not in caught.value.message
    assert [path.name for path in tmp_path.glob(".unfinished-*")] == []


def nothing_fetched(_model: str, _target: Path) -> bool:
    """Fetch no upload."""
    return False


def address_of(path: Path) -> str:
    """Return the address of a copy of the policy."""
    path.write_bytes(ZIP.read_bytes())
    return path.as_uri()


def test_path_that_is_deployed_is_not_unpacked_into_the_served_policy(
    files: VersionFiles, section: PolicySection, tmp_path: Path
) -> None:
    """The policy of the server's folder is `models/` itself."""
    with zipfile.ZipFile(ZIP) as archive:
        archive.extractall(tmp_path / "models")
    file = read_schema_file(tmp_path / "schema.yaml")
    version = DeployedVersion("v2", str(ZIP), 100.0)
    before = files.basis(file)

    folder = files.prepare(section, version, nothing_fetched)
    files.clear(section, lambda: [version])

    assert files.basis(file) == before
    assert folder.is_relative_to(tmp_path / "versions" / "default")
    assert files.prepare(section, version, nothing_fetched) == folder
    files.clear(section, lambda: [])
    assert names_in(tmp_path) == set()


def test_path_beside_a_policy_in_models_is_unpacked_elsewhere(tmp_path: Path) -> None:
    with zipfile.ZipFile(ZIP) as archive:
        archive.extractall(tmp_path / "models" / "door")
    shutil.copy(ZIP, tmp_path / "second.zip")
    (tmp_path / "schema.yaml").write_text(
        "parameters: {api_key: k}\n"
        "policies:\n"
        "  door: {versions: {v1: {model: models/door}, v2: {model: second.zip, traffic: 9}}}"
    )
    [section] = file = read_schema_file(tmp_path / "schema.yaml")
    files = VersionFiles(Settings(home=tmp_path))
    before = files.basis(file)

    files.prepare(section, DeployedVersion("v2", "second.zip"), nothing_fetched)
    files.clear(section, lambda: [])

    assert files.basis(file) == before
    assert {path.name.partition(".")[0] for path in (tmp_path / "versions/door").iterdir()} == {
        "v2"
    }


def test_version_of_another_address_keeps_its_files_when_the_name_was_anothers(
    files: VersionFiles, section: PolicySection, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    first = DeployedVersion("v2", address_of(tmp_path / "store" / "a.zip"))
    second = DeployedVersion("v2", address_of(tmp_path / "store" / "b.zip"))
    folders = [files.prepare(section, version, nothing_fetched) for version in (first, second)]

    files.forget("default", first)

    assert [folder.is_dir() for folder in folders] == [False, True]


@pytest.fixture
def fetched(files: VersionFiles, section: PolicySection, tmp_path: Path) -> DeployedVersion:
    """Return a version that was fetched from an address."""
    (tmp_path / "store").mkdir()
    version = DeployedVersion("v2", address_of(tmp_path / "store" / "policy.zip"), 100.0)
    files.prepare(section, version, nothing_fetched)
    return version


def test_files_that_another_process_deploys_or_has_deployed_are_not_forgotten(
    files: VersionFiles, section: PolicySection, fetched: DeployedVersion, tmp_path: Path
) -> None:
    deployed = [fetched]
    files.clear(section, lambda: deployed)

    files.forget("default", fetched)
    while_deployed = names_in(tmp_path)
    deployed.clear()
    with VersionFiles(Settings(home=tmp_path)).incoming("default", "v2"):
        files.forget("default", fetched)
        files.clear(section, lambda: deployed)
        while_coming = names_in(tmp_path)
    files.forget("default", fetched)

    assert while_deployed == {"v2"}
    assert while_coming == {"v2", ""}
    assert names_in(tmp_path) == set()


def test_nothing_is_forgotten_where_nobody_knows_the_deployment(
    files: VersionFiles, section: PolicySection, fetched: DeployedVersion, tmp_path: Path
) -> None:
    def unreadable() -> list[DeployedVersion]:
        raise DeploymentError("versions.json: can't be read")

    files.clear(section, unreadable)
    files.forget("default", fetched)

    assert names_in(tmp_path) == {"v2"}


def test_model_of_schema_yaml_has_one_folder_before_and_after_the_first_deployment(
    files: VersionFiles, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    address = address_of(tmp_path / "store" / "policy.zip")
    path = tmp_path / "schema.yaml"
    path.write_text(f"parameters: {{api_key: k}}\npolicies: {{door: {{model: '{address}'}}}}")
    [section] = read_schema_file(path)
    namesake = DeployedVersion("model", address)

    first = files.prepare(section, DeployedVersion("", address), nothing_fetched)
    files.prepare(section, namesake, nothing_fetched)
    files.clear(section, lambda: [])
    files.forget("door", namesake)
    version = identify_model(first).version
    deployed = DeployedVersion(version, address, digest=version)

    assert files.prepare(section, deployed, nothing_fetched) == first


@pytest.mark.parametrize("is_address", [True, False], ids=["address", "path"])
def test_deployed_version_is_served_from_its_copy_when_the_store_has_another(
    files: VersionFiles,
    section: PolicySection,
    tmp_path: Path,
    is_address: bool,  # noqa: FBT001 -- pytest's own
) -> None:
    (tmp_path / "store").mkdir()
    source = tmp_path / "store" / "policy.zip"
    address = address_of(source)
    version = DeployedVersion("v2", address if is_address else str(source), 100.0)
    folder = files.prepare(section, version, nothing_fetched)
    version = replace(version, digest=identify_model(folder).version)
    source.unlink()

    again = files.prepare(section, version, nothing_fetched)

    assert again == folder


@pytest.mark.parametrize("kind", ["address", "path", "upload"])
def test_damaged_copy_of_a_deployed_version_is_unpacked_anew_whatever_its_store_has(
    files: VersionFiles, section: PolicySection, tmp_path: Path, kind: str
) -> None:
    version, folder = deployed(files, section, tmp_path, kind)
    good = content_of(folder)
    for path in files_of_model(folder).values():
        path.write_bytes(b"damaged")

    again = files.prepare(section, version, nothing_fetched)

    assert again == folder
    assert content_of(again) == good


@pytest.mark.parametrize("kind", ["address", "path", "upload"])
def test_copy_that_an_earlier_version_of_this_program_unpacked_is_served_as_it_is(
    files: VersionFiles, section: PolicySection, tmp_path: Path, kind: str
) -> None:
    version, folder = deployed(files, section, tmp_path, kind)
    (folder / ".files-sha256.json").unlink()
    (folder / "policy.pth").write_bytes(b"other")
    before = content_of(folder)

    assert files.prepare(section, version, nothing_fetched) == folder
    assert content_of(folder) == before


def deployed(
    files: VersionFiles, section: PolicySection, home: Path, kind: str
) -> tuple[DeployedVersion, Path]:
    """Deploy a version, and return it and its folder; a store has its zip no more."""
    (home / "store").mkdir()
    source = home / "store" / "policy.zip"
    address = address_of(source)
    version = (
        uploaded(files, "v2")
        if kind == "upload"
        else DeployedVersion("v2", address if kind == "address" else str(source), 100.0)
    )
    folder = files.prepare(section, version, nothing_fetched)
    if kind != "path":
        source.unlink()
    return replace(version, digest=identify_model(folder).version), folder


def content_of(folder: Path) -> dict[str, bytes]:
    """Return a model's files by their names."""
    return {name: path.read_bytes() for name, path in files_of_model(folder).items()}


def test_deployed_copy_is_served_when_another_file_comes_to_lie_beside_its_path(
    files: VersionFiles, section: PolicySection, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    source = tmp_path / "store" / "policy.zip"
    shutil.copyfile(ZIP, source)
    version = DeployedVersion("v2", str(source), 100.0)
    folder = files.prepare(section, version, nothing_fetched)
    version = replace(version, digest=identify_model(folder).version)
    (source.parent / "vec_normalize.pkl").write_bytes(b"of another run")

    assert identify_model(files.prepare(section, version, nothing_fetched)).version == (
        version.digest
    )


def test_damaged_copy_of_a_deployed_path_that_is_gone_is_refused(
    files: VersionFiles, section: PolicySection, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    source = tmp_path / "store" / "policy.zip"
    address_of(source)
    version = DeployedVersion("v2", str(source), 100.0)
    folder = files.prepare(section, version, nothing_fetched)
    version = replace(version, digest=identify_model(folder).version)
    for path in files_of_model(folder).values():
        path.write_bytes(b"damaged")
    source.unlink()

    with pytest.raises(ModelError, match=r"was changed after it was unpacked; put the zip or"):
        files.prepare(section, version, nothing_fetched)


def earlier(folder: Path, name: str) -> tuple[Path, int]:
    """Give a version's files the folder of an earlier server, and return it and the zip's inode."""
    [own] = folder.iterdir()
    return own.rename(folder / name), (folder / name / "saved_model.zip").stat().st_ino


@pytest.mark.parametrize("name", ["v2", "model"])
def test_files_that_an_earlier_server_fetched_are_found(
    files: VersionFiles,
    section: PolicySection,
    fetched: DeployedVersion,
    tmp_path: Path,
    name: str,
) -> None:
    old, inode = earlier(tmp_path / "versions" / "default", name)
    files.clear(section, lambda: [fetched])
    is_kept = old.is_dir()

    folder = files.prepare(section, fetched, nothing_fetched)

    assert is_kept
    assert not old.exists()
    assert (folder.parent / "saved_model.zip").stat().st_ino == inode


def test_files_that_an_earlier_server_fetched_from_elsewhere_are_not_taken(
    files: VersionFiles, section: PolicySection, fetched: DeployedVersion, tmp_path: Path
) -> None:
    old, _ = earlier(tmp_path / "versions" / "default", fetched.name)
    other = DeployedVersion("v2", address_of(tmp_path / "store" / "other.zip"))

    files.prepare(section, other, nothing_fetched)

    assert old.is_dir()
