"""Limits of connections behind TLS: they hold for clients that never end their handshake."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from policy_server.http_server import tls_handshakes
from policy_server.http_server.connection_limits import MOST_REFUSED, ConnectionWatch
from tests.support.certificates import write_certificate
from tests.support.connections import LIMITS
from tests.support.servers import answer_lifespan, free_port, in_thread, served_app
from tests.support.waiting import wait_until

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    write_certificate(path)
    return path


@pytest.fixture
def refused() -> list[int]:
    """Return the list to which the statuses of refused connections are added."""
    return []


@pytest.fixture
def serving(certificate: Path, refused: list[int]) -> Callable[..., Any]:
    """Return a function that serves by TLS, with the limits and uvicorn's options of its call."""
    return partial(served, certificate, refused)


class CountedWatch(ConnectionWatch):
    """A watch whose refusals a test reads."""

    refused: list[int]

    def count_refused(self, status: int) -> None:
        self.refused.append(status)


def application(refused: list[int], limits: dict[str, Any]) -> Any:  # noqa: ANN401 -- an ASGI application
    """Return an application that answers the scheme of a request."""
    watch = CountedWatch(replace(LIMITS, **limits))
    watch.refused = refused

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if scope["type"] == "lifespan":
            await answer_lifespan(receive, send, lambda server: server.use_protocols(watch))
            return
        body = scope["scheme"].encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


@contextmanager
def served(
    certificate: Path, refused: list[int], *, loop: str = "auto", **limits: float
) -> Iterator[int]:
    """Serve by TLS, and give the port."""
    options: dict[str, Any] = {"ssl_certfile": str(certificate), "lifespan": "on", "loop": loop}
    with served_app(application(refused, limits), **options) as port:
        yield port


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def asked(port: int, certificate: Path) -> bytes:
    """Return the answer to a request of an honest client."""
    with connected(port) as raw, secured(raw, certificate) as client:
        client.sendall(REQUEST)
        return whole_answer(client)


def whole_answer(client: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith((b"https", b"}")):
        received = client.recv(65536)
        assert received, answer
        answer += received
    return answer


HOST = "127.0.0.1"


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def secured(raw: socket.socket, certificate: Path) -> ssl.SSLSocket:
    return trusting(certificate).wrap_socket(raw, server_hostname=HOST)


class Client:
    """A client's part of a handshake, whose bytes a test sends when it likes."""

    def __init__(self, certificate: Path) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = trusting(certificate).wrap_bio(
            self.incoming, self.outgoing, server_hostname=HOST
        )

    def hello(self) -> bytes:
        """Return the first bytes of a handshake."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    def last_bytes(self, received: bytes) -> bytes:
        """Return the end of the handshake, after the server's bytes, with a request behind it."""
        self.incoming.write(received)
        self.tls.do_handshake()
        self.tls.write(REQUEST)
        return self.outgoing.read()

    def read(self, received: bytes) -> bytes:
        """Return bytes of the server's in clear."""
        self.incoming.write(received)
        text = b""
        try:
            while piece := self.tls.read():
                text += piece
        except ssl.SSLWantReadError:
            return text
        return text


def is_closed(client: socket.socket) -> bool:
    """Return whether the server has closed a connection on which it has said nothing."""
    client.settimeout(0)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def listens(port: int) -> bool:
    try:
        connected(port).close()
    except ConnectionRefusedError:
        return False
    return True


@LOOPS
@pytest.mark.parametrize("is_begun", [False, True], ids=["silent", "begun"])
def test_handshake_that_does_not_end_is_closed_in_time(
    loop: str,
    certificate: Path,
    serving: Callable[..., Any],
    refused: list[int],
    *,
    is_begun: bool,
) -> None:
    with serving(loop=loop, header_timeout_s=0.3) as port, connected(port) as client:
        client.sendall(Client(certificate).hello()[:-1] if is_begun else b"")
        wait_until(lambda: is_closed(client), timeout_s=20)

    assert refused == [408]


@LOOPS
def test_handshake_that_drips_is_closed_in_time(
    loop: str, certificate: Path, serving: Callable[..., Any], refused: list[int]
) -> None:
    with serving(loop=loop, header_timeout_s=0.5) as port, connected(port) as client:
        ended_at = time.monotonic() + 20
        drops = iter(Client(certificate).hello())
        while not is_closed(client):
            assert time.monotonic() < ended_at
            client.send(bytes([next(drops)]))
            time.sleep(0.1)

    assert refused == [408]


@LOOPS
@pytest.mark.parametrize("sent", [b"\x00" * 100, REQUEST], ids=["garbage", "plain HTTP"])
def test_what_is_no_handshake_is_closed_at_once_without_a_word_in_the_log(
    loop: str,
    sent: bytes,
    serving: Callable[..., Any],
    refused: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(loop=loop, header_timeout_s=600) as port, connected(port) as client:
        client.sendall(sent)
        while client.recv(4096):
            """OpenSSL may send an alert."""
        wait_until(lambda: refused)

    assert refused == [400]
    assert [line for line in caplog.records if line.levelno >= logging.WARNING] == []


@LOOPS
def test_client_that_goes_in_its_handshake_is_no_refusal(
    loop: str,
    certificate: Path,
    serving: Callable[..., Any],
    refused: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(loop=loop, max_address_connections=1) as port:
        for sent in (b"", Client(certificate).hello()[:20], Client(certificate).hello()):
            with connected(port) as client:
                client.sendall(sent)
        # The address has its place again.
        wait_until(lambda: b" 200 " in asked(port, certificate))

    assert set(refused) <= {429}
    assert [line for line in caplog.records if line.levelno >= logging.WARNING] == []


@LOOPS
def test_honest_clients_are_served_while_others_are_silent(
    loop: str, certificate: Path, serving: Callable[..., Any], refused: list[int]
) -> None:
    most, count = 8, 300
    with ExitStack() as stack:
        port = stack.enter_context(serving(loop=loop, header_timeout_s=600, max_connections=most))
        silent = []
        answers = []
        for index in range(count):
            silent.append(stack.enter_context(connected(port)))
            if index % 50 == 0:
                answers.append(asked(port, certificate))
        answers.append(asked(port, certificate))
        wait_until(lambda: sum(map(is_closed, silent)) >= count - most - MOST_REFUSED)

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert all(answer.endswith(b"https") for answer in answers)
    assert set(refused) == {503}


@LOOPS
def test_connection_beyond_the_limit_is_told_so(
    loop: str, certificate: Path, serving: Callable[..., Any]
) -> None:
    with (
        serving(loop=loop, max_connections=1) as port,
        connected(port) as raw,
        secured(raw, certificate) as client,
    ):
        client.sendall(REQUEST)
        first = whole_answer(client)
        second = asked(port, certificate)

    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 503")


@LOOPS
def test_handshakes_count_for_their_address(
    loop: str, certificate: Path, serving: Callable[..., Any], refused: list[int]
) -> None:
    with ExitStack() as stack:
        limits = {"header_timeout_s": 600, "max_address_connections": 2}
        port = stack.enter_context(serving(loop=loop, **limits))
        silent = [stack.enter_context(connected(port)) for _ in range(2)]
        beyond = asked(port, certificate)
        more = [stack.enter_context(connected(port)) for _ in range(MOST_REFUSED + 10)]
        wait_until(lambda: sum(map(is_closed, more)) == 10)
        for client in (*silent, *more):
            client.close()
        wait_until(lambda: b" 200 " in asked(port, certificate))

    assert beyond.startswith(b"HTTP/1.1 429")
    assert set(refused) == {429}


@LOOPS
def test_request_right_behind_the_handshake_is_answered(
    loop: str, certificate: Path, serving: Callable[..., Any]
) -> None:
    client = Client(certificate)
    with serving(loop=loop) as port, connected(port) as raw:
        raw.sendall(client.hello())
        raw.sendall(client.last_bytes(raw.recv(65536)))
        answer = b""
        while not answer.endswith(b"https"):
            answer += client.read(raw.recv(65536))

    assert answer.startswith(b"HTTP/1.1 200")


@LOOPS
def test_end_waits_for_the_rest_of_a_handshake_and_not_for_silence(
    loop: str, certificate: Path, refused: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_handshakes, "_REST_S", 5.0)
    client = Client(certificate)
    app = application(refused, {"header_timeout_s": 600})
    port = free_port()
    options: dict[str, Any] = {"ssl_certfile": str(certificate), "lifespan": "on", "loop": loop}
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, **options))
    with in_thread(server.run, partial(setattr, server, "should_exit", True)):  # noqa: FBT003 -- a value
        wait_until(lambda: server.started)
        silent, raw = connected(port), connected(port)
        raw.sendall(client.hello())
        server.should_exit = True
        wait_until(lambda: not listens(port))
        raw.sendall(client.last_bytes(raw.recv(65536)))
        answer = b""
        while not answer.endswith(b"https"):
            answer += client.read(raw.recv(65536))
        wait_until(lambda: is_closed(silent), timeout_s=30)
        silent.close()
        raw.close()

    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer
    assert refused == [503]
