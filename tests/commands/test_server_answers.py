"""Answers of servers that are none, never end, or are not ours."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from policy_server.commands import client
from policy_server.commands.client import PolicyClient
from policy_server.commands.clients import served_document
from policy_server.commands.served_policies import served_as_team
from policy_server.errors import ServerAnswerError
from tests.support.servers import Handler, answered_by, in_thread

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
_CHUNKED = _HEAD + b"transfer-encoding: chunked\r\n\r\n"
_BROKEN = r"the answer broke off, or is no HTTP; is it a Policy Server"


@contextmanager
def talking(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """Answer each connection with bytes of a test's own; give the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            # The end of the block closes the socket.
            with suppress(OSError):
                while True:
                    link = listening.accept()[0]
                    with link, suppress(OSError):
                        link.recv(65536)
                        talk(link)

        def stop() -> None:
            listening.shutdown(socket.SHUT_RDWR)

        with in_thread(serve, stop):
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(_HEAD + b'content-length: 100\r\n\r\n{"a"', id="part of a body"),
        pytest.param(_CHUNKED + b"4\r\n{", id="part of a chunk"),
        pytest.param(_CHUNKED + b"no number\r\n", id="chunk of no length"),
        pytest.param(_HEAD + b"content-encoding: gzip\r\n\r\n{}", id="no gzip"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200, id="endless head"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_answer_that_breaks_off_or_is_no_http_is_not_a_server_that_is_not_there(
    said: bytes,
) -> None:
    with (
        talking(lambda link: link.sendall(said)) as url,
        PolicyClient(url, None, timeout_s=10) as server,
        pytest.raises(ServerAnswerError, match=_BROKEN),
    ):
        server.get("/schema")


@pytest.mark.parametrize(
    "start", [_HEAD + b"x-slow: ", _HEAD + b"\r\n[", _CHUNKED], ids=["head", "body", "chunks"]
)
def test_answer_that_comes_byte_by_byte_ends_with_the_timeout(start: bytes) -> None:
    def talk(link: socket.socket) -> None:
        link.sendall(start)
        while True:
            link.sendall(b"1")
            time.sleep(0.05)

    began = time.monotonic()
    with (
        talking(talk) as url,
        PolicyClient(url, None) as server,
        pytest.raises(ServerAnswerError, match=r"no answer within 0\.5 s"),
    ):
        server.request("GET", "/schema", timeout_s=0.5)

    assert time.monotonic() - began < 10


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "packed"])
def test_answer_without_an_end_is_refused_at_its_limit(is_packed: bool) -> None:  # noqa: FBT001 -- a case
    megabyte = b" " * 1024 * 1024

    def talk(link: socket.socket) -> None:
        if is_packed:
            link.sendall(_HEAD + b"content-encoding: gzip\r\n\r\n" + gzip.compress(megabyte * 100))
            return
        link.sendall(_HEAD + b"\r\n")
        while True:
            link.sendall(megabyte)

    with (
        talking(talk) as url,
        PolicyClient(url, None) as server,
        pytest.raises(ServerAnswerError, match="the answer is larger than 64 MB"),
    ):
        server.get("/schema")


def test_deadline_of_an_answer_is_none_of_the_connections_next_request() -> None:
    class Kept(Handler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.reply(200, json.dumps({"port": self.client_address[1]}).encode())

    with answered_by(Kept) as url, PolicyClient(url, None, timeout_s=0.5) as server:
        first = server.get("/")
        time.sleep(0.6)
        assert server.get("/") == first


def test_socket_that_is_not_there_is_a_server_that_is_not_there(tmp_path: Path) -> None:
    with (
        PolicyClient("http://localhost", None, uds=str(tmp_path / "none")) as server,
        pytest.raises(ServerAnswerError, match="none: no server answers there"),
    ):
        server.get("/schema")


@contextmanager
def answering(status: int, body: bytes) -> Iterator[PolicyClient]:
    """Give a client of a server with one answer."""

    class Same(Handler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.reply(status, body)

    with answered_by(Same) as url, PolicyClient(url, None) as server:
        yield server


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"[1, 2]", "the answer is no JSON object"),
        (200, b"null", "the answer is no JSON object"),
        (204, b"", "the answer is no JSON; "),
        (200, b"[" * 200_000, "the answer is no JSON; "),
        (200, b'"\xff"', "the answer is no JSON; "),
        (422, b'{"detail": ["x"]}', "/predict_raw: answered 422: Unprocessable"),
        (422, b'{"detail": [{"loc": 1, "msg": ""}]}', "/predict_raw: answered 422: Unprocessable"),
        (422, b'["x"]', "/predict_raw: answered 422: Unprocessable"),
        (422, b"[" * 200_000, "/predict_raw: answered 422: Unprocessable"),
        (401, b'{"detail": {}}', "access denied"),
    ],
    ids=lambda item: item[:20] if isinstance(item, bytes) else "",
)
def test_answer_that_is_none_of_ours_is_said(status: int, body: bytes, message: str) -> None:
    with answering(status, body) as server, pytest.raises(ServerAnswerError, match=message):
        client.ask(server, "[1]", "predict")


def test_key_that_an_answer_has_not_is_said() -> None:
    with (
        answering(200, b'{"policy": {}}') as server,
        pytest.raises(ServerAnswerError, match="the answer has no 'memory_width'; is it a Policy"),
    ):
        server.schema()["policy"]["memory_width"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"policy": null}',
        b'{"policy": {}, "observations": [1]}',
        b"""
     {"policy": {}, "observations": {"x": 1}}""",
    ],
    ids=["policy", "observations", "field"],
)
def test_schema_that_is_none_is_said(body: bytes) -> None:
    with answering(200, body) as server, pytest.raises(ServerAnswerError, match="with no schema"):
        server.schema()


def test_team_that_is_none_is_said() -> None:
    with (
        answering(200, b'{"multi_agent": [1]}') as server,
        pytest.raises(ServerAnswerError, match="answered with no multi_agent"),
    ):
        served_as_team(server, ["a"])


@pytest.mark.parametrize("paths", [b"null", b"[]", b"{}"])
def test_document_without_routes_is_another_api(paths: bytes) -> None:
    with (
        answering(200, b'{"paths": %b}' % paths) as server,
        pytest.raises(ServerAnswerError, match="expected a Policy Server, got another API"),
    ):
        served_document(server.url)
