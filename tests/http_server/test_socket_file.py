"""The file of a UNIX socket when its server ends."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy_server.errors import SettingsError
from policy_server.http_server.socket_file import SocketFile
from policy_server.ports import check_unix_socket, remove_dead_unix_socket


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Listen at `s`, as a supervisor's workers do."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        listening.settimeout(10)
        yield listening


def connected(path: Path, *, timeout_s: float | None = 10.0) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(timeout_s)
    try:
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_removed_file_leaves_those_that_wait_in_the_queue(
    tmp_path: Path, listener: socket.socket
) -> None:
    with connected(tmp_path / "s"):
        SocketFile(str(tmp_path / "s")).remove()

        listener.accept()[0].close()

    assert names(tmp_path) == []


def test_file_that_another_server_has_put_there_stays(
    tmp_path: Path, listener: socket.socket
) -> None:
    path = tmp_path / "s"
    known = SocketFile(str(path), supervisor=1)
    # So that its number is not given to the next file.
    path.rename(tmp_path / "former")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        known.remove()
        known.put_aside()
        known.put_back(listener)

        connected(path).close()

    assert names(tmp_path) == ["former", "s"]


def test_no_file_is_nothing_to_remove(tmp_path: Path) -> None:
    SocketFile(str(tmp_path / "s")).remove()


def test_clients_are_refused_while_it_is_aside_and_those_that_wait_are_not(
    tmp_path: Path, listener: socket.socket
) -> None:
    path = tmp_path / "s"
    known = SocketFile(str(path), supervisor=1)
    with connected(path):
        known.put_aside()
        known.put_aside()

        with pytest.raises(ConnectionRefusedError):
            connected(path)
        with pytest.raises(SettingsError, match="another server has it"):
            check_unix_socket(str(path))
        listener.accept()[0].close()
    known.put_back(listener)


def test_clients_wait_behind_it_until_the_supervisor_has_removed_it(
    tmp_path: Path, listener: socket.socket
) -> None:
    path = tmp_path / "s"
    known = SocketFile(str(path), supervisor=1)
    known.put_aside()
    known.put_back(listener)
    assert names(tmp_path) == ["s"]
    ends: list[OSError] = []

    def connect() -> None:
        try:
            connected(path, timeout_s=None).close()
        except OSError as error:
            ends.append(error)

    waiting = threading.Thread(target=connect)
    waiting.start()
    path.unlink()
    listener.close()
    waiting.join(10)

    assert [type(end) for end in ends] == [FileNotFoundError]


def test_next_worker_takes_clients_again(tmp_path: Path, listener: socket.socket) -> None:
    path = tmp_path / "s"
    known = SocketFile(str(path), supervisor=1)
    known.put_aside()
    known.put_back(listener)

    listener.listen()
    connected(path).close()

    assert names(tmp_path) == ["s"]


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    """Leave a socket as a server that was killed does while it ended, and return its path."""
    path = tmp_path / "s.1"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    return path


@pytest.mark.usefixtures("dead", "listener")
def test_worker_does_not_put_back_what_a_killed_server_has_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "s"

    SocketFile(str(path), supervisor=1)
    connected(path).close()

    assert names(tmp_path) == ["s"]


@pytest.mark.usefixtures("dead", "listener")
def test_what_a_killed_server_has_put_aside_is_removed(tmp_path: Path) -> None:
    remove_dead_unix_socket(str(tmp_path / "s"))

    assert names(tmp_path) == ["s"]


@pytest.mark.usefixtures("listener")
def test_file_that_cant_be_removed_any_more_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = SocketFile(str(tmp_path / "s"), supervisor=1)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("unlink", "rename"):
        monkeypatch.setattr(Path, name, refuse)
    known.remove()
    known.put_aside()

    connected(tmp_path / "s").close()


def test_socket_of_another_user_is_neither_taken_nor_removed(
    dead: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    remove_dead_unix_socket(str(dead))

    assert dead.is_socket()
    with pytest.raises(SettingsError, match="can't be used: Permission denied"):
        check_unix_socket(str(dead))


def test_next_worker_puts_back_what_one_before_it_has_put_aside(
    tmp_path: Path, listener: socket.socket
) -> None:
    path = tmp_path / "s"
    former = SocketFile(str(path), supervisor=1)
    former.put_aside()

    SocketFile(str(path), supervisor=1)
    connected(path).close()
    # The former may be slow to end: the queue stays as long as the next worker has made it.
    former.put_back(listener)

    clients = [connected(path) for _ in range(4)]
    for client in clients:
        client.close()
    assert names(tmp_path) == ["s"]


def test_stand_in_that_was_removed_meanwhile_is_not_replaced(
    tmp_path: Path, listener: socket.socket
) -> None:
    path = tmp_path / "s"
    known = SocketFile(str(path), supervisor=1)
    known.put_aside()
    path.unlink()

    known.put_back(listener)

    assert names(tmp_path) == []


def test_name_that_is_too_long_stays_where_it_is(tmp_path: Path) -> None:
    # A socket's path may have 107 bytes.
    path = Path(os.path.relpath(tmp_path)) / "s"
    path = path.with_name("s" * (107 - len(str(path.absolute())) + 1))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path.absolute()))
        listening.listen()
        known = SocketFile(str(path), supervisor=1)

        known.put_aside()
        known.put_back(listening)
        connected(path.absolute()).close()

    assert names(tmp_path) == [path.name]
