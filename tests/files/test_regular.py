"""Files that are opened, and paths that lead to something else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from policy_server.engine.cache import OUTCOME_FILE, read_outcome
from policy_server.errors import ModelError, SchemaError
from policy_server.files.archives import ArchiveLimits, open_archive
from policy_server.files.regular import open_file, read_json, read_text, target_of
from policy_server.formats.model_files import digest_of_path, read_mark
from policy_server.formats.recognition import describe_file
from policy_server.remote_files import RECORD_FILE, is_copy_of
from policy_server.remote_files.stores import opened
from policy_server.remote_files.uris import parse_uri
from policy_server.schema.sections import read_schema_text
from policy_server.schema.shipped import find_example_of
from policy_server.settings import Settings


@pytest.mark.parametrize("target", ["/nowhere/schema.yaml", "../schema.yaml"])
def test_link_names_its_target_and_another_path_itself(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "file").touch()

    assert target_of(tmp_path / "link") == tmp_path / target
    assert target_of(tmp_path / "file") == tmp_path / "file"
    assert target_of(tmp_path / "nothing") == tmp_path / "nothing"


def pipe(folder: Path) -> Path:
    """Return a named pipe to which nobody writes."""
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def bound_socket(folder: Path) -> Path:
    """Return the path of a socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    return folder / "socket"


def device(_: Path) -> Path:
    """Return a device that never ends."""
    return Path("/dev/zero")


KINDS = pytest.mark.parametrize("kind", [pipe, bound_socket, device])


def test_file_is_read_by_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")

    with open_file(tmp_path / "link") as file:
        content = file.read()

    assert content == b"text"


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)


@pytest.mark.parametrize(
    ("kind", "told"), [(pipe, "a named pipe"), (device, "a device")], ids=["pipe", "device"]
)
def test_path_that_never_ends_is_refused_at_once(kind: object, told: str, tmp_path: Path) -> None:
    assert callable(kind)
    with pytest.raises(OSError, match=f"it is {told}; expected a file"):
        open_file(kind(tmp_path))


@KINDS
def test_model_that_is_no_file_is_one_line(kind: object, tmp_path: Path) -> None:
    assert callable(kind)
    path = kind(tmp_path)
    limits = ArchiveLimits(max_bytes=10**6, max_members=10, size_setting="a setting")

    with pytest.raises(ModelError, match=f"{path}: can't be read: "):
        digest_of_path(path)
    with (
        pytest.raises(ModelError, match=f"{path}: can't be "),
        open_archive(path, limits),
    ):
        pass
    with (
        pytest.raises(ModelError, match=f"{path}: can't be read: "),
        opened(parse_uri(str(path), name="a model"), known_etag=None, silence_s=1),
    ):
        pass
    assert describe_file(path) is None


@KINDS
def test_schema_that_is_no_file_is_one_line(kind: object, tmp_path: Path) -> None:
    assert callable(kind)
    path = kind(tmp_path)
    with pytest.raises(SchemaError, match=f"{path}: can't be read: "):
        read_schema_text(path)


def test_small_file_has_a_bound(tmp_path: Path) -> None:
    (tmp_path / "within").write_text("é" * 2**23)
    (tmp_path / "beyond").write_text("é" * 2**23 + "e")

    assert len(read_text(tmp_path / "within")) == 2**23
    with pytest.raises(ValueError, match="it has more than 16777216 bytes"):
        read_text(tmp_path / "beyond")


def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[" * 100_000)

    with pytest.raises(ValueError, match="it is nested too deeply"):
        read_json(tmp_path / "file")


def test_record_that_is_no_file_of_json_counts_as_none(tmp_path: Path) -> None:
    uri = parse_uri("https://host/policy.zip", name="a model")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / RECORD_FILE).write_text("[" * 100_000)
    pipe(tmp_path).rename(tmp_path / RECORD_FILE)

    assert not is_copy_of(uri, Settings(home=tmp_path / "deep"))
    assert not is_copy_of(uri, Settings(home=tmp_path))


def test_small_files_beside_a_model_that_are_pipes_hold_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = pipe(tmp_path)
    with pytest.raises(ModelError, match=f"{path}: can't be read: it is a named pipe"):
        read_mark(path)
    assert find_example_of(path) is None
    path.rename(tmp_path / OUTCOME_FILE)

    assert read_outcome(tmp_path, "digest") is None
    assert [record.msg for record in caplog.records] == ["compiled_policy_unusable"]
