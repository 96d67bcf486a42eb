"""The last frames that a web socket takes when the server ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from policy_server.http_server.last_frames import LastFrames


class Connection:
    """A transport, as far as it is asked."""

    def __init__(self, **extra: Any) -> None:  # noqa: ANN401 -- what transports have
        self._extra = extra

    def get_extra_info(self, name: str) -> Any:  # noqa: ANN401 -- what transports have
        return self._extra.get(name)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    client, server = socket.socketpair()
    with client, server:
        yield client, server


def last_frames(server: socket.socket, *, is_held_back: bool = False, **extra: Any) -> LastFrames:  # noqa: ANN401 -- see above
    connection: Any = Connection(socket=server, **extra)
    return LastFrames(connection, is_held_back=is_held_back)


def test_connection_of_which_all_was_read_takes_nothing_more(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    assert last_frames(pair[1]).is_over


def test_bytes_that_wait_are_due_and_those_behind_them_are_not(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, server = pair
    client.sendall(bytes(10))
    last = last_frames(server, is_held_back=True)
    client.sendall(bytes(5))

    assert not last.is_over
    assert [last.count_bytes(bytes(7)), last.count_bytes(bytes(8))] == [7, 3]
    assert last.is_over


def test_frames_that_are_taken_have_an_end(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    client.sendall(bytes(10))
    last = last_frames(server)

    assert all(last.take_frame() for _ in range(1024))
    assert not last.take_frame()
    assert last.is_over


def test_connection_is_quiet_when_no_bytes_have_come_since_it_was_asked(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, server = pair
    client.sendall(bytes(10))
    last = last_frames(server)
    last.count_bytes(bytes(3))

    assert [last.is_quiet(is_held_back=False) for _ in range(2)] == [False, True]


def test_connection_that_was_held_back_is_quiet_once_it_was_read_since(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, server = pair
    client.sendall(bytes(10))
    last = last_frames(server, is_held_back=True)

    found = [last.is_quiet(is_held_back=held) for held in (True, False, True, False, False)]
    assert found == [False, False, False, False, True]


def test_tls_connection_that_is_held_back_has_read_ahead(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    last = last_frames(pair[1], is_held_back=True, sslcontext=object())

    assert last.count_bytes(bytes(1000)) == 1000
    assert not last.is_over


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "none"])
def test_connection_without_a_socket_takes_nothing_more(
    pair: tuple[socket.socket, socket.socket], *, is_closed: bool
) -> None:
    pair[1].close()
    connection: Any = Connection(socket=pair[1] if is_closed else None)

    assert LastFrames(connection, is_held_back=False).is_over
