"""The policy of a server's folder: candidates by their contents, and refusals of none or two."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from policy_server.errors import ModelError
from policy_server.files.archives import is_zip, is_zip_of
from policy_server.files.regular import check_system
from policy_server.formats.finding import (
    find_model,
    find_policy,
    format_of_folder,
    policy_at,
    prepare_model,
    prepare_policy,
    served_names,
)
from policy_server.formats.known_formats import FORMATS, Format, expected_formats
from policy_server.formats.model_files import files_of_model
from policy_server.formats.recognition import describe_file
from policy_server.settings import Settings
from tests.support.folders import ROOT
from tests.support.formats import NotesFormat
from tests.support.zips import FILES, zip_of

BOTH: list[Format] = [*FORMATS, NotesFormat()]
NOTES = {"weights.txt": b"0.5"}
ONNX = ROOT / "tests" / "data" / "policies" / "onnx_sb3_doc_ppo_box" / "policy.onnx"
PPO = ROOT / "tests" / "data" / "policies" / "sb3_ppo_vecnorm" / "policy.zip"


def find(home: Path) -> Path | None:
    """Find the policy of either format."""
    return find_policy(Settings(home=home), formats=BOTH)


def folder_of(path: Path, name: str) -> Path:
    """Make a folder that holds one file."""
    path.mkdir(parents=True)
    (path / name).write_bytes(b"x")
    return path


def test_prepare_unpacks_the_zip_of_the_home(tmp_path: Path) -> None:
    zip_of(tmp_path / "saved_model.zip")

    folder = prepare_model(Settings(home=tmp_path))

    assert set(files_of_model(folder)) == set(FILES)


def test_start_removes_what_one_that_was_killed_has_unpacked(tmp_path: Path) -> None:
    zip_of(tmp_path / "saved_model.zip")
    settings = Settings(home=tmp_path)
    prepare_model(settings)
    left = tmp_path / ".unfinished-models-abc"
    left.mkdir()
    os.utime(left, (1e9, 1e9))

    prepare_model(settings)

    assert not left.exists()


@pytest.mark.parametrize("content", [PPO.read_bytes()[:-2000], b""], ids=["cut off", "empty"])
def test_file_that_can_not_be_served_is_told_where_models_is_served_in_its_place(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path / "models", "saved_model.pb")
    (tmp_path / "notes.txt").touch()
    prepare_model(Settings(home=tmp_path))
    told_before = len(caplog.records)
    (tmp_path / "cartpole.zip").write_bytes(content)

    assert prepare_model(Settings(home=tmp_path)) == folder
    [line] = caplog.records
    assert (told_before, line.message) == (0, "policy_passed_over")
    assert [item.split()[0] for item in vars(line)["seen"]] == ["cartpole.zip"]
    assert vars(line)["served"] == str(folder)


def test_prepare_takes_an_unzipped_policy_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "export"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")

    assert prepare_model(Settings(home=tmp_path)) == folder


@pytest.mark.parametrize("has_folder", [True, False])
def test_prepare_without_any_policy_says_what_to_do(tmp_path: Path, *, has_folder: bool) -> None:
    if has_folder:
        (tmp_path / "models").mkdir()

    with pytest.raises(ModelError) as caught:
        prepare_model(Settings(home=tmp_path))

    assert caught.value.message == (
        f"{tmp_path}/saved_model.zip: not found; put your policy there, {expected_formats()}, "
        "zipped, or try an example with "
        "`python generate.py copy_server_files examples/mouse_and_cheese`"
    )


@pytest.fixture
def placed(tmp_path: Path) -> Settings:
    """Return the settings of a folder in which deploy/place-policy.sh has put a mounted one."""
    home = folder_of(tmp_path / "home", ".placed")
    (home / "schema.yaml").symlink_to("/srv/given/schema.yaml")
    return Settings(home=home)


def test_prepare_names_the_mounted_folder_that_has_no_policy(placed: Settings) -> None:
    with pytest.raises(ModelError) as caught:
        prepare_model(placed)

    assert caught.value.message == (
        f"/srv/given/saved_model.zip: not found; put your policy there, {expected_formats()}, "
        "zipped, and start the server again"
    )


def test_prepare_names_the_mounted_folder_of_a_named_policy(placed: Settings) -> None:
    with pytest.raises(ModelError, match=r"^/srv/given/doors/a\.zip: not found; expected "):
        prepare_policy(placed.home / "doors/a.zip", placed.home / "models/a", placed)


def test_prepare_names_the_mounted_folder_that_holds_no_policy(placed: Settings) -> None:
    (placed.home / "page.zip").write_text("<html>")

    with pytest.raises(ModelError, match=r"^/srv/given: holds no policy, but page\.zip"):
        prepare_model(placed)


def test_link_of_ones_own_is_no_mounted_folder(placed: Settings) -> None:
    (placed.home / ".placed").unlink()

    with pytest.raises(ModelError, match=re.escape(f"{placed.home}/saved_model.zip: not found")):
        prepare_model(placed)


def test_two_unzipped_policies_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()

    with pytest.raises(ModelError, match=r"holds 2 policies \(a, b\); keep one"):
        find_model(tmp_path)


def test_current_folder_is_named_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        folder_of(tmp_path / name, "saved_model.pb")
    monkeypatch.chdir(tmp_path)

    for find_any in (find_model, lambda home: find_policy(Settings(home=home))):
        with pytest.raises(ModelError, match=r"^this folder: holds 2 policies \(a"):
            find_any(Path())


def test_zip_of_any_name_is_unpacked_by_its_content(tmp_path: Path) -> None:
    zip_of(tmp_path / "run 7.ZIP", NOTES, under="best/")
    zip_of(tmp_path / "images.zip", {"a.png": b"x"})
    (tmp_path / "broken.zip").write_bytes(b"PK")

    folder = prepare_model(Settings(home=tmp_path), formats=BOTH)

    assert folder == tmp_path / "models"
    assert set(files_of_model(folder)) == set(NOTES)


def test_policy_that_is_one_file_of_any_name_is_found_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "run 7").write_bytes(b"notes: 0.5")
    (tmp_path / "schema.yaml").touch()
    (tmp_path / "readme.txt").write_bytes(b"some notes")

    folder = prepare_model(Settings(home=tmp_path), formats=BOTH)

    assert folder == tmp_path / "models"
    assert set(files_of_model(folder)) == {"weights.txt"}


def test_zip_without_the_suffix_is_found_by_its_content(tmp_path: Path) -> None:
    zipped = zip_of(tmp_path / "actor.keras", NOTES)
    zip_of(tmp_path / "sheet.xlsx", {"a.xml": b"x"})

    assert find(tmp_path) == zipped


def test_folder_is_served_where_it_lies(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", "weights.txt")
    folder_of(tmp_path / ".hidden", "weights.txt")
    folder_of(tmp_path / "deep" / "below", "weights.txt")
    (tmp_path / "schema.yaml").touch()

    assert prepare_model(Settings(home=tmp_path), formats=BOTH) == folder


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.zip", "b.zip"), ("a.zip", "b"), ("a", "b"), ("a", "models"), ("a", "b.txt")],
)
def test_two_candidates_are_one_line_that_names_both(
    tmp_path: Path, first: str, second: str
) -> None:
    for name in (first, second):
        if name.endswith(".zip"):
            zip_of(tmp_path / name, NOTES)
        elif name.endswith(".txt"):
            (tmp_path / name).write_bytes(b"notes")
        else:
            folder_of(tmp_path / name, "weights.txt")

    with pytest.raises(ModelError) as caught:
        find(tmp_path)

    assert caught.value.message == (
        f"{tmp_path}: holds 2 policies ({first}: a policy of notes, {second}: a policy of notes); "
        "keep one"
    )


def test_policy_of_another_format_beside_saved_model_zip_is_a_second_candidate(
    tmp_path: Path,
) -> None:
    zip_of(tmp_path / "saved_model.zip")
    zip_of(tmp_path / "ppo.zip", NOTES)

    with pytest.raises(ModelError) as caught:
        find(tmp_path)

    assert caught.value.message == (
        f"{tmp_path}: holds 2 policies (saved_model.zip: a TensorFlow SavedModel, ppo.zip: a "
        "policy of notes); keep one"
    )


def test_saved_model_zip_is_served_beside_the_folder_that_was_zipped(tmp_path: Path) -> None:
    zipped = zip_of(tmp_path / "saved_model.zip")
    zip_of(tmp_path / "older.zip")
    folder_of(tmp_path / "exported", "saved_model.pb")
    folder_of(tmp_path / "models", "saved_model.pb")

    assert find(tmp_path) == zipped


def test_damaged_saved_model_zip_is_told_and_no_other_policy_is_served(tmp_path: Path) -> None:
    (tmp_path / "saved_model.zip").write_bytes(b"no zip")
    zip_of(tmp_path / "ppo.zip", NOTES)

    with pytest.raises(ModelError, match=r"saved_model\.zip: is no zip file or is damaged"):
        prepare_model(Settings(home=tmp_path), formats=BOTH)


def test_unzipped_policy_is_left_where_a_zip_lies(tmp_path: Path) -> None:
    folder_of(tmp_path / "models", "saved_model.pb")
    zipped = zip_of(tmp_path / "ppo.zip", NOTES)

    assert find(tmp_path) == zipped


def test_folder_without_a_policy_says_what_lies_there(tmp_path: Path) -> None:
    shutil.copyfile(PPO, tmp_path / "ppo.zip")
    (tmp_path / "policy.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    (tmp_path / "page.zip").write_bytes(b"<html>")
    (tmp_path / "index.html").write_bytes(b"<html>")
    zip_of(tmp_path / "two.zip", {"a/weights.txt": b"1", "b/weights.txt": b"2"})
    for name in ("class_and_ctor_args.pkl", "metadata.json", "state.pkl"):
        (tmp_path / "learner").mkdir(exist_ok=True)
        (tmp_path / "learner" / name).touch()

    with pytest.raises(ModelError) as caught:
        prepare_model(Settings(home=tmp_path), formats=[NotesFormat()])

    assert caught.value.message == (
        f"{tmp_path}: holds no policy, but learner (the folder of the optimizer or of the "
        "environment runner in an RLlib checkpoint, without the network; give the whole "
        "checkpoint), page.zip (a web page; the address asks for a login, or shows the file "
        f"instead of giving it), policy.onnx ({describe_file(tmp_path / 'policy.onnx')}), ppo.zip "
        "(a stable-baselines3 PPO), two.zip (holds 2 policies (a, b); keep one); expected a policy "
        "of notes, zipped or not"
    )


def test_folder_of_files_that_are_no_policy_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    shutil.copyfile(ROOT / "tests/data/torch_files/rsl_rl.pt", tmp_path / "logs" / "model_100.pt")

    with pytest.raises(
        ModelError, match=r"logs \(a folder with model_100\.pt, a checkpoint of RSL-RL"
    ):
        prepare_model(Settings(home=tmp_path))


def test_file_with_the_suffix_of_cleanrl_is_named(tmp_path: Path) -> None:
    weights = ROOT / "tests/data/torch_files/rsl_rl.pt"
    shutil.copyfile(weights, tmp_path / "cartpole.cleanrl_model")

    with pytest.raises(ModelError, match=r"but cartpole\.cleanrl_model \("):
        prepare_model(Settings(home=tmp_path))


def test_folder_above_a_policy_is_none_and_the_policy_is_the_highest(tmp_path: Path) -> None:
    """An RLlib checkpoint holds folders that a format reads too."""
    checkpoint = folder_of(tmp_path / "checkpoint", "weights.txt")
    folder_of(checkpoint / "learner_group" / "learner", "weights.txt")

    assert find(tmp_path) == checkpoint
    assert find_model(tmp_path, formats=BOTH) == checkpoint
    assert format_of_folder(tmp_path, BOTH) is None
    assert format_of_folder(checkpoint / "learner_group", BOTH) is None


def test_policy_that_lies_loose_in_the_servers_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "weights.txt").touch()

    with pytest.raises(ModelError) as caught:
        prepare_model(Settings(home=tmp_path), formats=BOTH)

    assert caught.value.message == (
        f"{tmp_path}: holds the files of a policy beside others; move them to a folder of their "
        f"own, such as {tmp_path}/models"
    )


@pytest.mark.parametrize("name", ["policy.onnx", "actor.keras"])
@pytest.mark.parametrize(
    ("content", "seems"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; "),
        (b"<!DOCTYPE html><html>", "a web page; "),
        (b"", "an empty file"),
        (b"\x00\x01\x02\x03", "no .{} file by its contents"),
    ],
)
def test_policys_name_with_other_contents_is_told(
    tmp_path: Path, name: str, content: bytes, seems: str
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ModelError) as caught:
        prepare_model(Settings(home=tmp_path))

    found = seems.format(name.partition(".")[2])
    assert caught.value.message.startswith(f"{tmp_path}: holds no policy, but {name} ({found}")


def test_folder_with_one_policy_in_it_is_told_from_a_folder_that_is_one(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    checkpoint = folder_of(tmp_path / "checkpoint", "weights.txt")
    mixed = folder_of(tmp_path / "mixed", "weights.txt")
    (mixed / "weights.txt").write_bytes(b"notes")

    assert policy_at(checkpoint, settings, formats=BOTH) == checkpoint
    assert policy_at(mixed, settings, formats=BOTH) == mixed / "weights.txt"
    assert policy_at(tmp_path / "absent", settings, formats=BOTH) is None


def test_names_that_a_start_reads_are_the_policys_and_those_beside_it(tmp_path: Path) -> None:
    shutil.copyfile(PPO, tmp_path / "ppo.zip")
    (tmp_path / "schema.yaml").touch()

    assert served_names(Settings(home=tmp_path)) == [
        "ppo.zip",
        "vec_normalize.pkl",
        "vecnormalize.pkl",
    ]


@pytest.mark.parametrize("form", ["file", "zip", "folder", "folder of a zip", "folder above"])
def test_policy_of_a_path_lies_unzipped(tmp_path: Path, form: str) -> None:
    path = tmp_path / "run"
    if form == "file":
        path.write_bytes(b"notes")
    elif form == "zip":
        zip_of(path, NOTES)
    elif form == "folder of a zip":
        path.mkdir()
        zip_of(path / "best.zip", NOTES)
    else:
        folder_of(path / "checkpoints" / "10" if form == "folder above" else path, "weights.txt")

    folder = prepare_policy(path, tmp_path / "left", Settings(home=tmp_path), formats=BOTH)

    assert set(files_of_model(folder)) == {"weights.txt"}
    assert (folder == tmp_path / "left") == (form in ("file", "zip", "folder of a zip"))


@pytest.mark.parametrize(
    ("name", "says"),
    [("absent", "not found; expected"), ("empty", "is a folder without a policy; expected")],
)
def test_path_without_a_policy_is_one_line(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(ModelError) as caught:
        prepare_policy(tmp_path / name, tmp_path / "left", Settings(home=tmp_path))

    assert caught.value.message.startswith(f"{tmp_path / name}: {says}")


@pytest.mark.parametrize("name", ["policy.zip", "policy.onnx", "saved_model.zip"])
def test_file_that_the_disk_does_not_give_is_told_and_no_other_policy_taken(
    tmp_path: Path, name: str
) -> None:
    other = folder_of(tmp_path / "other", "policy.onnx")
    shutil.copy(ONNX, other / "policy.onnx")
    # Its first bytes can't be read: an error of the disk, by the system's own word.
    (tmp_path / name).symlink_to("/proc/self/mem")

    with pytest.raises(ModelError, match=rf"{name}: can't be read: Input/output error; try again"):
        find_policy(Settings(home=tmp_path))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.EUCLEAN])
def test_file_of_which_the_disk_tells_nothing_is_not_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    first = tmp_path / "saved_model.zip"
    shutil.copy(PPO, first)
    # Of the policy that was there before.
    shutil.copy(ONNX, folder_of(tmp_path / "models", "policy.onnx") / "policy.onnx")
    fail_to_look_at(monkeypatch, first, number)

    with pytest.raises(ModelError, match=r"saved_model\.zip: can't be read: .*; try again"):
        find_policy(Settings(home=tmp_path))


def make_unreadable(path: Path, fails_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the disk fail with EIO where a file is read, or already where it is looked at."""
    if fails_by == "read":
        path.symlink_to("/proc/self/mem")
    else:
        path.touch()
        fail_to_look_at(monkeypatch, path, errno.EIO)


@pytest.mark.parametrize("fails_by", ["read", "stat"])
def test_what_lies_beside_saved_model_zip_may_be_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_by: str
) -> None:
    first, notes = tmp_path / "saved_model.zip", tmp_path / "notes.bin"
    shutil.copy(PPO, first)
    make_unreadable(notes, fails_by, monkeypatch)

    assert find_policy(Settings(home=tmp_path)) == first


@pytest.mark.parametrize("fails_by", ["read", "stat"])
@pytest.mark.parametrize("policy", ["policy.onnx", "export"])
def test_what_no_library_names_its_policies_by_may_be_unreadable_beside_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, fails_by: str
) -> None:
    path, notes = tmp_path / policy, tmp_path / "notes.txt"
    is_file = policy.endswith(".onnx")
    shutil.copy(ONNX, path if is_file else folder_of(path, "policy.onnx") / "policy.onnx")
    make_unreadable(notes, fails_by, monkeypatch)

    assert find_policy(Settings(home=tmp_path)) == path
    assert (policy in served_names(Settings(home=tmp_path))) is is_file


@pytest.mark.parametrize("name", ["policy.zip", "model.pt", "a.tar", "policy", "notes.txt"])
def test_file_that_may_be_the_policy_is_told_where_the_disk_does_not_give_it(
    tmp_path: Path, name: str
) -> None:
    # Of a policy that was unpacked before, perhaps of this file.
    shutil.copy(ONNX, folder_of(tmp_path / "models", "policy.onnx") / "policy.onnx")
    if name != "notes.txt":
        shutil.copy(ONNX, tmp_path / "other.onnx")
    (tmp_path / name).symlink_to("/proc/self/mem")

    with pytest.raises(ModelError, match=rf"{name}: can't be read: Input/output error; try again"):
        find_policy(Settings(home=tmp_path))


def fail_to_look_at(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Let the system fail where it is asked what lies at a path, as a share without its server."""
    look = os.stat

    def failing(asked: str | Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if str(asked) == str(path):
            raise OSError(number, os.strerror(number), str(path))
        return look(asked, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "stat", failing)


def test_zip_that_the_disk_gives_in_part_is_no_damaged_one(tmp_path: Path) -> None:
    error = zipfile.BadZipFile("File is not a zip file")
    error.__context__ = OSError(errno.EIO, "Input/output error")

    with pytest.raises(ModelError, match=r"policy\.zip: can't be read: Input/output error"):
        check_system(error, tmp_path / "policy.zip")
    check_system(zipfile.BadZipFile("File is not a zip file"), tmp_path / "policy.zip")
    check_system(PermissionError(errno.EACCES, "Permission denied"), tmp_path / "policy.zip")


def test_zip_of_which_a_read_fails_once_is_not_taken_for_no_zip(tmp_path: Path) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, f"Input/output error of {size} bytes")

    with pytest.raises(ModelError, match="can't be read: Input/output error"):
        is_zip_of(Failing(PPO.read_bytes()), tmp_path / "policy.zip")
    assert is_zip(PPO)
    assert not is_zip(ONNX)
    assert not is_zip(tmp_path)
