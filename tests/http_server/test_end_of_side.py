"""How long behind its last bytes a client ends its side of a connection."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from policy_server.http_server.end_of_side import ended_behind_s

REQUEST = b"GET / HTTP/1.1\r\nhost: server\r\n\r\n"


class Connected(asyncio.BaseTransport):
    """The transport of one end of a connection."""

    def __init__(self, end: socket.socket) -> None:
        super().__init__({"socket": end})


@pytest.mark.parametrize(("pause_s", "least", "most"), [(0.0, 0.0, 0.2), (0.6, 0.4, 60.0)])
def test_time_is_that_between_the_packets_whenever_it_is_asked_for(
    pause_s: float, least: float, most: float
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with client, ours:
        client.sendall(REQUEST)
        time.sleep(pause_s)
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.5)
        behind_s = ended_behind_s(Connected(ours))

    assert behind_s is not None
    assert least <= behind_s <= most


def test_other_connections_tell_no_time() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert ended_behind_s(Connected(ours)) is None
    assert ended_behind_s(asyncio.BaseTransport()) is None
