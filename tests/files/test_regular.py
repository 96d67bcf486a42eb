"""Files that are opened, and paths that lead to something else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from policy_server.errors import ModelError, SchemaError
from policy_server.files.archives import ArchiveLimits, open_archive
from policy_server.files.regular import open_file
from policy_server.formats.model_files import digest_of_path
from policy_server.formats.recognition import describe_file
from policy_server.remote_files.stores import opened
from policy_server.remote_files.uris import parse_uri
from policy_server.schema.sections import read_schema_text


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
