"""Connections of a closed loop to servers that misbehave."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterable, Iterator

import pytest

from policy_server.commands.realtime.connections import HttpConnection, Place
from policy_server.errors import ServerAnswerError

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n"


@contextlib.contextmanager
def answering(pieces: Iterable[bytes], *, every_s: float = 0.0) -> Iterator[str]:
    """Serve one connection, which gets the pieces until it closes; give the URL."""
    is_over = threading.Event()

    def send() -> None:
        link, _ = listener.accept()
        with link, contextlib.suppress(OSError):
            for piece in pieces:
                link.sendall(piece)
                if is_over.wait(every_s):
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            is_over.set()
            thread.join()


def test_answer_that_trickles_in_has_one_deadline() -> None:
    trickle = itertools.chain([HEAD], itertools.repeat(b" ", 200))
    with answering(trickle, every_s=0.02) as url:
        connection = HttpConnection(Place(url=url, timeout_s=0.4), "/predict")
        with (
            contextlib.closing(connection),
            pytest.raises(ServerAnswerError, match=r"no answer within 0\.4 s"),
        ):
            connection.ask(connection.encode(b"{}"))


def test_answer_without_end_is_refused() -> None:
    flood = itertools.chain([HEAD], itertools.repeat(bytes(1 << 20), 80))
    with answering(flood) as url:
        connection = HttpConnection(Place(url=url, timeout_s=60), "/predict")
        with (
            contextlib.closing(connection),
            pytest.raises(ServerAnswerError, match="the answer is larger than 64 MB"),
        ):
            connection.ask(connection.encode(b"{}"))
