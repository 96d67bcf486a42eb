"""The files and the socket that a server is started with."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from policy_server.commands import serving_files
from policy_server.commands.serving_files import check_serving_files
from policy_server.errors import SettingsError, UsageError
from tests.support.certificates import write_certificate

FILES = {
    "ssl_certfile": "UVICORN_SSL_CERTFILE",
    "ssl_keyfile": "UVICORN_SSL_KEYFILE",
    "ssl_ca_certs": "UVICORN_SSL_CA_CERTS",
}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_certificate(Path("own.pem"))
    write_certificate(Path("other.pem"))
    Path("text.pem").write_text("no certificate\n")
    key = load_pem_private_key(Path("own.pem").read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))
    Path("locked.pem").write_bytes(locked)


@pytest.mark.parametrize("is_variable", [False, True], ids=["option", "variable"])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"ssl_certfile": "none"},
            "--ssl-certfile: none: expected a file that can be read: No suc",
        ),
        ({"ssl_certfile": "."}, "--ssl-certfile: .: expected a file that can be read: Is a direct"),
        (
            {"ssl_certfile": "text.pem"},
            "--ssl-certfile: text.pem: expected a certificate in PEM, got ",
        ),
        (
            {"ssl_certfile": "own.pem", "ssl_keyfile": "none"},
            "--ssl-keyfile: none: expected a file that can be read: No such file or directory",
        ),
        (
            {"ssl_certfile": "own.pem", "ssl_keyfile": "other.pem"},
            "--ssl-keyfile: other.pem: expected the key of the certificate own.pem, got that of",
        ),
        (
            {"ssl_certfile": "own.pem", "ssl_ca_certs": "text.pem"},
            "--ssl-ca-certs (UVICORN_SSL_CA_CERTS): text.pem: expected certificates in PEM",
        ),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_file_of_tls_that_cannot_be_used_is_refused(
    files: dict[str, str], message: str, *, is_variable: bool
) -> None:
    environment = {FILES[option]: file for option, file in files.items()} if is_variable else {}

    with pytest.raises(SettingsError) as caught:
        check_serving_files({} if is_variable else files, environment)

    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uds": "s", "port": 0}, "--uds: stands in place of a host and a port; leave --port out"),
        ({"uds": "s", "host": ""}, "--uds: stands in place of a host and a port; leave --host out"),
        ({"ssl_keyfile": "own.pem"}, "--ssl-keyfile: is of no use alone; give --ssl-certfile too"),
    ],
    ids=["port", "host", "key"],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, str | int], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_serving_files(options, {})

    assert caught.value.message == message


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ({}, {}),
        ({"uds": "s"}, {}),
        ({"ssl_certfile": "own.pem"}, {}),
        ({"ssl_certfile": "own.pem", "ssl_keyfile": "own.pem"}, {}),
        ({"ssl_certfile": "own.pem", "ssl_keyfile": "locked.pem"}, {}),
        (
            {"ssl_certfile": "own.pem", "ssl_keyfile": "locked.pem"},
            {"UVICORN_SSL_KEYFILE_PASSWORD": "word"},
        ),
        ({"ssl_certfile": "own.pem"}, {"UVICORN_SSL_CA_CERTS": "other.pem"}),
    ],
    ids=["none", "socket", "one file", "two files", "unknown password", "password", "authority"],
)
def test_files_that_uvicorn_can_use_are_taken(
    options: dict[str, str], environment: dict[str, str]
) -> None:
    check_serving_files(options, environment)

    assert not Path("s").exists()


def test_wrong_password_is_refused_without_asking_for_one() -> None:
    options = {"ssl_certfile": "own.pem", "ssl_keyfile": "locked.pem"}

    with pytest.raises(SettingsError, match=r"--ssl-keyfile: locked\.pem: is not opened by"):
        check_serving_files(options, {"UVICORN_SSL_KEYFILE_PASSWORD": "other"})


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("UVICORN_SSL_CIPHERS", "none", "--ssl-ciphers: OpenSSL has none of 'none'"),
        ("UVICORN_SSL_VERSION", "99", "--ssl-version: expected a protocol of servers"),
        ("UVICORN_SSL_CERT_REQS", "7", "--ssl-cert-reqs: expected 0, 1 or 2, got 7"),
    ],
)
def test_option_of_tls_that_no_worker_could_use_is_refused(
    variable: str, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        check_serving_files({"ssl_certfile": "own.pem"}, {variable: text})


@pytest.mark.parametrize("has_terminal", [True, False], ids=["terminal", "no terminal"])
@pytest.mark.parametrize("workers", [None, 1, 2])
def test_workers_are_not_started_where_none_can_ask_for_the_password(
    workers: int | None, *, has_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_files, "has_terminal", lambda: has_terminal)
    options = {"ssl_certfile": "own.pem", "ssl_keyfile": "locked.pem", "workers": workers}

    if workers == 2 and not has_terminal:
        with pytest.raises(SettingsError, match=r"--ssl-keyfile: locked\.pem: is encrypted, and"):
            check_serving_files(options, {})
    else:
        check_serving_files(options, {})


def test_socket_in_a_folder_that_is_missing_is_refused() -> None:
    for options, environment in (({"uds": "no/s"}, {}), ({}, {"UVICORN_UDS": "no/s"})):
        with pytest.raises(SettingsError, match="--uds: no/s can't be used: No such file"):
            check_serving_files(options, environment)


def test_unix_socket_of_a_killed_server_is_removed() -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind("s")

    check_serving_files({"uds": "s", "workers": 2}, {})

    assert not Path("s").exists()


@pytest.mark.parametrize("place", ["a server", "a file"])
def test_unix_socket_that_is_no_killed_servers_stays(place: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        if place == "a file":
            Path("s").touch()
        else:
            other.bind("s")

        with pytest.raises(SettingsError, match="--uds: s can't be used"):
            check_serving_files({"uds": "s"}, {})

        assert Path("s").exists()


@pytest.mark.parametrize(
    ("options", "environment", "reload"),
    [
        ({"workers": 2}, {}, False),
        ({}, {"WEB_CONCURRENCY": "2"}, False),
        ({}, {}, True),
    ],
    ids=["workers", "variable", "reload"],
)
def test_pipe_is_refused_where_several_processes_would_read_it(
    options: dict[str, str | int],
    environment: dict[str, str],
    reload: bool,  # noqa: FBT001 -- a parameter
) -> None:
    os.mkfifo("pipe")
    files: dict[str, str | int | None] = {"ssl_certfile": "own.pem", "ssl_keyfile": "pipe"}

    with pytest.raises(SettingsError, match=r"--ssl-keyfile: pipe: expected a file, since each"):
        check_serving_files({**files, **options}, environment, reload=reload)


def test_pipe_that_one_process_reads_is_left_to_it() -> None:
    os.mkfifo("pipe")

    check_serving_files({"ssl_certfile": "own.pem", "ssl_keyfile": "pipe", "workers": 1}, {})
