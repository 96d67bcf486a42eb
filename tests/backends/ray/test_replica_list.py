"""What replicas that died have left beside the list: the sockets at which they took calls."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from policy_server.backends.ray.call_notes import CallNote
from policy_server.backends.ray.replica_list import new_socket_path, remove_left_socket


def listening(path: Path) -> socket.socket:
    """Return a socket that listens at a path."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def left(path: Path) -> Path:
    """Leave a socket as a killed process does."""
    listening(path).close()
    return path


def test_socket_that_a_dead_replica_has_left_goes(tmp_path: Path) -> None:
    path = left(new_socket_path(tmp_path))
    assert path.exists()

    remove_left_socket(str(path), tmp_path)

    assert not path.exists()
    # Another process of the server may have been first.
    remove_left_socket(str(path), tmp_path)


def test_note_of_a_dead_replica_goes_with_its_socket(tmp_path: Path) -> None:
    path, note = left(new_socket_path(tmp_path)), CallNote()
    note.publish(path)
    assert len(list(tmp_path.iterdir())) == 2

    remove_left_socket(str(path), tmp_path)

    assert list(tmp_path.iterdir()) == []
    note.close()


def test_socket_of_a_replica_that_listens_stays(tmp_path: Path) -> None:
    path = new_socket_path(tmp_path)
    with listening(path):
        remove_left_socket(str(path), tmp_path)

    assert path.exists()


def _elsewhere(folder: Path) -> Path:
    (folder / "elsewhere").mkdir()
    return left(new_socket_path(folder / "elsewhere"))


def _linked(folder: Path) -> Path:
    path = new_socket_path(folder)
    path.symlink_to(left(folder / "other"))
    return path


def _file(folder: Path) -> Path:
    path = new_socket_path(folder)
    path.write_text("no socket")
    return path


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_elsewhere, "{path}"),
        (_elsewhere, "{folder}/ledger/../elsewhere/{name}"),
        (lambda folder: left(folder / "ledger" / "dashboard"), "{path}"),
        (lambda folder: left(folder / "ledger" / "calls-0123"), "{path}"),
        (lambda folder: _linked(folder / "ledger"), "{path}"),
        (lambda folder: _file(folder / "ledger"), "{path}"),
    ],
    ids=["another folder", "dots", "another name", "too short", "a link", "a file"],
)
def test_path_of_another_form_or_folder_is_left_alone(
    make: Callable[[Path], Path], told: str, tmp_path: Path
) -> None:
    """Whoever may write to Ray's store says the path."""
    (tmp_path / "ledger").mkdir()
    path = make(tmp_path)

    remove_left_socket(told.format(path=path, folder=tmp_path, name=path.name), tmp_path / "ledger")

    assert path.exists()


@pytest.mark.parametrize("path", ["", "relative", "\0abstract", "/" + "x" * 300])
def test_path_that_is_none_is_passed_over(path: str, tmp_path: Path) -> None:
    remove_left_socket(path, tmp_path)
