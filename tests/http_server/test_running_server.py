"""How uvicorn was started: its address, its keep-alive, and whether its port is free."""

from __future__ import annotations

import getpass
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from starlette.types import Receive, Scope, Send

from policy_server.errors import SettingsError
from policy_server.http_server import running_server
from policy_server.http_server.running_server import HttpServer, find_http_server
from tests.support.certificates import write_certificate
from tests.support.servers import silent


def server_of(*sockets: socket.socket, **options: Any) -> HttpServer:  # noqa: ANN401 -- uvicorn's own
    return HttpServer(uvicorn.Config(silent, log_config=None, **options), sockets)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({}, "http://127.0.0.1:8000/docs"),
        ({"port": 8001}, "http://127.0.0.1:8001/docs"),
        ({"host": "203.0.113.7"}, "http://203.0.113.7:8000/docs"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:8000/docs"),  # noqa: S104 -- a name, nothing listens
        ({"host": "::"}, "http://[::1]:8000/docs"),
        ({"host": "2001:db8::1"}, "http://[2001:db8::1]:8000/docs"),
        ({"ssl_certfile": "a.pem", "ssl_keyfile": "b.pem"}, "https://127.0.0.1:8000/docs"),
        ({"uds": "/run/p.sock"}, "http://localhost/docs (UNIX socket /run/p.sock)"),
    ],
    ids=["none", "port", "host", "all", "all of IPv6", "IPv6", "TLS", "socket"],
)
def test_address_is_where_people_reach_the_server(options: dict[str, Any], address: str) -> None:
    assert server_of(**options).address().of("/docs") == address


def test_address_is_that_of_sockets_which_the_server_was_given(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        socket.create_server(("127.0.0.1", 0)) as bound,
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.bind(str(path))
        port = bound.getsockname()[1]
        addresses = [
            server_of(bound, port=0).address(),
            server_of(local).address(),
            server_of(fd=bound.fileno()).address(),
        ]

    assert [item.of("/") for item in addresses] == [
        f"http://127.0.0.1:{port}/",
        f"http://localhost/ (UNIX socket {path})",
        f"http://127.0.0.1:{port}/",
    ]


@pytest.mark.parametrize(
    ("options", "arguments", "variables", "expected"),
    [
        ({}, [], {}, 75.0),
        ({"timeout_keep_alive": 20}, [], {}, 20),
        ({"timeout_keep_alive": 5}, ["--timeout-keep-alive", "5"], {}, 5),
        ({"timeout_keep_alive": 5}, ["--timeout-keep-alive=5"], {}, 5),
        ({"timeout_keep_alive": 5}, [], {"UVICORN_TIMEOUT_KEEP_ALIVE": "5"}, 5),
    ],
    ids=["default", "in code", "option", "option with =", "variable"],
)
def test_keep_alive_is_ours_unless_uvicorn_was_told(
    options: dict[str, int],
    arguments: list[str],
    variables: dict[str, str],
    expected: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["uvicorn", "app:app", *arguments])
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    server = server_of(**options)

    server.keep_alive(75.0)

    assert server.config.timeout_keep_alive == expected


def test_taken_port_is_refused_before_anything_is_loaded(taken: int) -> None:
    with pytest.raises(SettingsError) as caught:
        server_of(port=taken).claim()

    assert caught.value.message == (
        f"port {taken} of 127.0.0.1 can't be used: Address already in use; stop what has it, or "
        "choose another with --port"
    )


def test_host_that_is_not_of_this_machine_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"8000 of 203\.0\.113\.7 can't be used: Cannot assign"):
        server_of(host="203.0.113.7").claim()
    with pytest.raises(SettingsError, match=r"--host: 'no\.such\.host\.invalid' is no address"):
        server_of(host="no.such.host.invalid").claim()


def test_port_that_uvicorn_was_to_choose_is_chosen() -> None:
    server = server_of(port=0)

    server.claim()

    assert server.config.port > 0
    assert str(server.config.port) in server.address().url


@pytest.mark.parametrize("state", ["listening", "not yet", "full"])
def test_unix_socket_that_another_server_has_is_refused(tmp_path: Path, state: str) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
        other.bind(path)
        if state != "not yet":
            other.listen(0 if state == "full" else 8)
        if state == "full":
            client.connect(path)
        with pytest.raises(SettingsError) as caught:
            server_of(uds=path).claim()

    assert caught.value.message == (
        f"--uds: {path} can't be used: another server has it; stop that, or choose another path"
    )

    # What a server that died left behind.
    server_of(uds=path).claim()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no/s", "No such file or directory"),
        ("file", "Address already in use"),
        ("file/s", "Not a directory"),
        ("s" * 200, "AF_UNIX path too long"),
    ],
)
def test_unix_socket_that_cannot_be_opened_is_refused_before_anything_is_loaded(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name

    with pytest.raises(SettingsError) as caught:
        server_of(uds=str(path)).claim()

    assert caught.value.message == (
        f"--uds: {path} can't be used: {reason}; expected the path of a new socket, in a folder "
        "that is there and may be written to"
    )
    server_of(uds=str(tmp_path / "new")).claim()
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_opened_sockets_are_not_looked_at(taken: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server_of(bound, port=taken).claim()

    assert server_of(uds="/nowhere").port is None


async def test_uvicorn_is_found_from_the_lifespan_and_only_there() -> None:
    found: list[HttpServer | None] = []

    async def looking(_scope: Scope, receive: Receive, send: Send) -> None:
        found.append(find_http_server())
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "enough"})

    config = uvicorn.Config(looking, log_config=None, port=0, lifespan="on")
    with pytest.raises(SystemExit):
        await uvicorn.Server(config).serve()

    assert find_http_server() is None
    assert [server.config for server in found if server is not None] == [config]


def test_wrong_files_of_tls_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    own, other = tmp_path / "own.pem", tmp_path / "other.pem"
    write_certificate(own)
    write_certificate(other)

    with pytest.raises(SettingsError, match=r"--ssl-keyfile: \S+other\.pem: expected the key of"):
        server_of(port=0, ssl_certfile=own, ssl_keyfile=other).claim()


def test_context_of_tls_that_a_program_makes_is_its_own() -> None:
    server_of(port=0, ssl_certfile="none", ssl_context_factory=lambda *_: None).claim()


def test_files_of_tls_that_uvicorn_has_loaded_are_not_read_again() -> None:
    server = server_of(port=0, ssl_certfile="none", ssl_keyfile="none")
    server.config.ssl = None

    server.claim()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("word", None),
        ("other", "is not opened by the password that was given"),
        ("", "is encrypted, and no password was given; set it in UVICORN_SSL_KEYFILE_PASSWORD"),
        (EOFError(), "is encrypted, and no password was given"),
        (KeyboardInterrupt(), "is encrypted, and no password was given"),
    ],
    ids=["right", "wrong", "none", "end of input", "Ctrl-C"],
)
@pytest.mark.parametrize("has_terminal", [True, False], ids=["terminal", "input"])
def test_password_of_the_key_is_asked_for_once(
    typed: str | BaseException,
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    has_terminal: bool,
) -> None:
    own, locked = tmp_path / "own.pem", tmp_path / "locked.pem"
    write_certificate(own)
    key = load_pem_private_key(own.read_bytes(), None)
    encryption = BestAvailableEncryption(b"word")
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    server = server_of(port=0, ssl_certfile=own, ssl_keyfile=locked)

    def answer(prompt: str = str(locked)) -> str:
        assert str(locked) in prompt
        if isinstance(typed, BaseException):
            raise typed
        return typed

    monkeypatch.setattr(running_server, "has_terminal", lambda: has_terminal)
    monkeypatch.setattr(getpass, "getpass", answer)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(readline=answer))

    if message is None:
        server.claim()
        assert server.config.ssl_keyfile_password == "word"
    else:
        with pytest.raises(SettingsError, match=message):
            server.claim()
