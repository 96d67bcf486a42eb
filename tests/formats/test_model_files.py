"""A model's digests and version."""

from __future__ import annotations

import hashlib
import os
import subprocess
from io import BufferedReader
from pathlib import Path

import pytest

from policy_server.errors import ModelError
from policy_server.files.regular import open_file
from policy_server.formats.finding import format_of_folder
from policy_server.formats.model_files import (
    digest_of_files,
    digest_of_path,
    files_of_model,
    identify_model,
    read_mark,
)
from policy_server.formats.unpacking import unpack_model
from tests.support.formats import NotesFormat
from tests.support.zips import zip_of


def test_version_is_the_start_of_the_digest_that_a_pin_states(tmp_path: Path) -> None:
    zipped = zip_of(tmp_path / "saved_model.zip")

    model = identify_model(unpack_model(zipped, tmp_path / "models", max_bytes=1000))

    assert model.version == hashlib.sha256(zipped.read_bytes()).hexdigest()[:12]


def test_version_of_files_without_a_zip_is_that_of_their_contents(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "saved_model.pb").write_bytes(folder.name.encode())

    first, second = (identify_model(folder) for folder in folders)

    assert first.version == first.digest[:12] != second.version


def test_version_of_a_zip_with_a_file_beside_it_is_that_of_all_contents(tmp_path: Path) -> None:
    zipped = zip_of(tmp_path / "policy.zip", {"weights.txt": b"0.5"})
    versions = set()

    for content in (b"2", b"3"):
        (tmp_path / "scale.txt").write_bytes(content)
        folder = unpack_model(zipped, tmp_path / "models", max_bytes=1000, formats=[NotesFormat()])
        versions.add(identify_model(folder).version)

    assert len(versions) == 2
    assert hashlib.sha256(zipped.read_bytes()).hexdigest()[:12] not in versions


def test_unpacked_files_that_differ_are_never_named_by_the_zip_that_is_gone(tmp_path: Path) -> None:
    zipped = zip_of(tmp_path / "saved_model.zip")
    folder = unpack_model(zipped, tmp_path / "models", max_bytes=1000)
    zipped.unlink()
    (folder / "saved_model.pb").write_bytes(b"other")

    with pytest.raises(ModelError) as caught:
        identify_model(folder)

    assert caught.value.message == (
        f"{folder}: 'saved_model.pb' was changed after it was unpacked; put the zip or file that "
        f"the policy was unpacked from back, or remove {folder / '.source-sha256'} to serve the "
        "files as they are"
    )
    (folder / ".source-sha256").unlink()
    model = identify_model(folder)
    assert model.version == model.digest[:12]


def test_folder_that_another_process_replaces_while_it_is_read_is_identified_as_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the old zip are held against its listing, not against that of the new one."""
    zipped = zip_of(tmp_path / "saved_model.zip")
    folder = unpack_model(zipped, tmp_path / "models", max_bytes=1000)
    replaced: list[Path] = []

    def open_and_replace(path: Path) -> BufferedReader:
        file = open_file(path)
        if path == folder / "saved_model.pb" and not replaced:
            replaced.append(path)
            zip_of(zipped, {"saved_model.pb": b"new"})
            unpack_model(zipped, folder, max_bytes=1000)
        return file

    monkeypatch.setattr("policy_server.formats.model_files.open_file", open_and_replace)

    assert identify_model(folder).version == hashlib.sha256(zipped.read_bytes()).hexdigest()[:12]
    assert replaced


def test_added_file_of_another_program_makes_no_other_version(tmp_path: Path) -> None:
    """It is named by all contents, since a file from beside the zip belongs to it."""
    zipped = zip_of(tmp_path / "policy.zip", {"weights.txt": b"0.5"})
    (tmp_path / "scale.txt").write_bytes(b"2")
    folder = unpack_model(zipped, tmp_path / "models", max_bytes=1000, formats=[NotesFormat()])
    model = identify_model(folder)

    (folder / "Thumbs.db").write_bytes(b"x")

    assert identify_model(folder) == model


@pytest.mark.parametrize(
    "listing",
    [None, b"", b"[1]", b'"a"', b"\xff", b'{"saved_model.pb": 5}', b'{"saved_model.pb": [1]}'],
    ids=["none", "empty", "list", "text", "bytes", "number", "nested"],
)
def test_unpacked_files_without_a_listing_are_named_by_their_zip(
    tmp_path: Path, listing: bytes | None
) -> None:
    """An earlier version of this program wrote none; the zip may be gone by now."""
    zipped = zip_of(tmp_path / "saved_model.zip")
    folder = unpack_model(zipped, tmp_path / "models", max_bytes=1000)
    mark = folder / ".files-sha256.json"
    mark.unlink() if listing is None else mark.write_bytes(listing)

    assert identify_model(folder).version == hashlib.sha256(zipped.read_bytes()).hexdigest()[:12]


@pytest.mark.parametrize("text", ["", "evil\nname", "0" * 63, "A" * 64, "0" * 64 + "\n"])
def test_mark_that_states_no_digest_is_as_none(tmp_path: Path, text: str) -> None:
    folder = unpack_model(zip_of(tmp_path / "saved_model.zip"), tmp_path / "models", max_bytes=1000)
    (folder / ".source-sha256").write_text(text)

    model = identify_model(folder)

    assert model.version == model.digest[:12]


def test_damaged_mark_of_files_beside_the_zip_is_not_taken_for_a_policy_of_the_zip_alone(
    tmp_path: Path,
) -> None:
    zipped = zip_of(tmp_path / "policy.zip", {"weights.txt": b"0.5"})
    (tmp_path / "scale.txt").write_bytes(b"2")
    folder = unpack_model(zipped, tmp_path / "models", max_bytes=1000, formats=[NotesFormat()])
    good = identify_model(folder).version
    (folder / ".beside-sha256").write_bytes(b"\xff")

    assert identify_model(folder).version == good


def test_name_of_a_file_that_is_no_text_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "\udcff weights.txt"
    path.write_bytes(b"notes")
    folders = [
        unpack_model(path, tmp_path / "models", max_bytes=1000, formats=[NotesFormat()])
        for _ in range(2)
    ]
    identify_model(folders[1])

    (folders[1] / path.name).write_bytes(b"other")

    with pytest.raises(ModelError, match=r"'\\udcff weights.txt' was changed"):
        identify_model(folders[1])


def test_digest_of_files_is_that_of_what_sha256sum_prints(tmp_path: Path) -> None:
    for name in ("b", "a/c d", "a\\b", "line\nend", "a-b", "é"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    names = sorted(
        (path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()),
        key=os.fsencode,
    )
    printed = subprocess.run(
        ["sha256sum", "--", *names], cwd=tmp_path, capture_output=True, check=True
    ).stdout

    digest = digest_of_files({name: tmp_path / name for name in reversed(names)})

    assert digest == hashlib.sha256(printed).hexdigest()


def test_mark_that_can_not_be_read_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    mark = tmp_path / ".beside-sha256"
    assert read_mark(mark) is None
    assert read_mark(tmp_path / "no-folder" / mark.name) is None

    # Each read of it fails with EIO.
    mark.symlink_to("/proc/self/mem")
    with pytest.raises(ModelError, match=r"\.beside-sha256: can't be read: Input/output error"):
        read_mark(mark)


def test_digest_of_a_path_is_that_of_the_file_or_of_the_folders_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("weights", ".hidden", "events.out.tfevents.1"):
        (folder / name).write_bytes(name.encode())

    line = f"{hashlib.sha256(b'weights').hexdigest()}  weights\n".encode()
    assert digest_of_path(folder) == hashlib.sha256(line).hexdigest()
    assert digest_of_path(folder / "weights") == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize(("name", "says"), [("none", "can't be read"), ("", "holds no files")])
def test_digest_of_nothing_is_one_line(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        digest_of_path(tmp_path / name)


def test_folder_of_more_files_than_a_policy_has_is_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policy_server.formats.model_files._MOST_FILES", 3)
    for name in ("first", "second", ".hidden"):
        (tmp_path / name).touch()
    assert sorted(files_of_model(tmp_path)) == ["first", "second"]

    (tmp_path / "events.out.tfevents.1").touch()

    with pytest.raises(ModelError, match="holds more than 3 files; a policy has a few: name the"):
        files_of_model(tmp_path)


def test_entries_that_may_not_be_looked_at_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    # Refused to every user, root too, as /proc/1/cwd is in a container.
    (tmp_path / "link").symlink_to("x" * 300)
    (tmp_path / "dead").symlink_to("nowhere")

    assert list(files_of_model(tmp_path)) == ["saved_model.pb"]
    assert format_of_folder(tmp_path) is not None
