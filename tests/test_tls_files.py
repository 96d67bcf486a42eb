"""Wrong files of TLS are refused in one line that names the option, the file and the remedy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from policy_server.errors import SettingsError, UsageError
from policy_server.tls_files import TlsFiles
from tests.support.certificates import write_certificate
from tests.support.permissions import read_only


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_certificate(Path("own.pem"))
    write_certificate(Path("other.pem"))
    content = Path("own.pem").read_bytes()
    certificate, _, key = content.partition(b"-----BEGIN PRIVATE KEY-----")
    Path("alone.pem").write_bytes(certificate)
    Path("cut.pem").write_bytes(certificate[: len(certificate) // 2])
    Path("cut.key").write_bytes(b"-----BEGIN PRIVATE KEY-----" + key[: len(key) // 2])
    Path("text.pem").write_text("no certificate\n")
    Path("empty.pem").write_text("\n")
    locked = BestAvailableEncryption(b"word")
    private = load_pem_private_key(content, None)
    Path("locked.key").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    other_kind = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    Path("rsa.key").write_bytes(
        other_kind.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"certificate": "none"}, "--ssl-certfile: none: expected a file that can be read: No su"),
        ({"certificate": "."}, "--ssl-certfile: .: expected a file that can be read: Is a direct"),
        (
            {"certificate": "text.pem"},
            "--ssl-certfile: text.pem: expected a certificate in PEM, got none; give the whole",
        ),
        (
            {"certificate": "empty.pem", "key": "own.pem"},
            "--ssl-certfile: empty.pem: expected a certificate in PEM, got an empty file; give",
        ),
        (
            {"certificate": "cut.pem", "key": "own.pem"},
            "--ssl-certfile: cut.pem: expected a certificate in PEM, got a damaged one; give",
        ),
        ({"certificate": "alone.pem"}, "--ssl-certfile: alone.pem: holds no key that is whole;"),
        (
            {"certificate": "own.pem", "key": "none"},
            "--ssl-keyfile: none: expected a file that can be read: No such file or directory;",
        ),
        (
            {"certificate": "own.pem", "key": "other.pem"},
            "--ssl-keyfile: other.pem: expected the key of the certificate own.pem, got that of",
        ),
        (
            {"certificate": "own.pem", "key": "rsa.key"},
            "--ssl-keyfile: rsa.key: expected the key of the certificate own.pem, got that of",
        ),
        (
            {"certificate": "own.pem", "key": "cut.key"},
            "--ssl-keyfile: cut.key: expected a private key in PEM, got a damaged one; give",
        ),
        (
            {"certificate": "own.pem", "key": "empty.pem"},
            "--ssl-keyfile: empty.pem: expected a private key in PEM, got an empty file; give",
        ),
        (
            {"certificate": "own.pem", "key": "text.pem"},
            "--ssl-keyfile: text.pem: expected a private key in PEM, got none; give",
        ),
        (
            {"certificate": "own.pem", "key": "locked.key", "password": "other"},
            "--ssl-keyfile: locked.key: is not opened by the password that was given; set",
        ),
        (
            {"certificate": "other.pem", "key": "locked.key", "password": "word"},
            "--ssl-keyfile: locked.key: expected the key of the certificate other.pem, got that",
        ),
        (
            {"certificate": "own.pem", "authorities": "cut.pem"},
            "--ssl-ca-certs (UVICORN_SSL_CA_CERTS): cut.pem: expected certificates in PEM, got a",
        ),
        ({"certificate": "own.pem", "ciphers": "x"}, "--ssl-ciphers: OpenSSL has none of 'x';"),
        ({"certificate": "own.pem", "version": 99}, "--ssl-version: expected a protocol of serv"),
        ({"certificate": "own.pem", "version": 16}, "--ssl-version: expected a protocol of serv"),
        (
            {"certificate": "own.pem", "client_certificates": 7},
            "--ssl-cert-reqs: expected 0, 1 or 2, got 7; 2 asks clients",
        ),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_file_that_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        TlsFiles(**options).check()

    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message
    assert "_ssl.c" not in caught.value.message


def test_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(UsageError, match="--ssl-keyfile: is of no use alone"):
        TlsFiles(None, key="own.pem").check()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key": "own.pem"},
        {"key": "locked.key", "password": "word"},
        {"authorities": "other.pem", "client_certificates": 2, "ciphers": "ECDHE+AESGCM"},
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_files_that_fit_are_taken(options: dict[str, Any]) -> None:
    assert TlsFiles("own.pem", **options).check() is False


def test_password_that_is_missing_is_told() -> None:
    assert TlsFiles("own.pem", key="locked.key").check() is True


# Pipes, which can be read once


@pytest.fixture
def pipe_of() -> Iterator[Callable[[str], str]]:
    """Give the path of a pipe with a file's content, as a shell's `<(cat FILE)` does."""
    with ExitStack() as open_ends:

        def make(file: str) -> str:
            reading, writing = os.pipe()
            open_ends.callback(os.close, reading)
            os.write(writing, Path(file).read_bytes())
            os.close(writing)
            return f"/dev/fd/{reading}"

        yield make


@pytest.mark.parametrize(
    "pipes",
    [{"key"}, {"certificate"}, {"certificate", "key"}, {"authorities"}],
    ids=lambda pipes: " ".join(sorted(pipes)),
)
@pytest.mark.parametrize("key", ["own.pem", "locked.key"])
def test_pipe_is_left_to_be_read_by_uvicorn(
    pipes: set[str], key: str, pipe_of: Callable[[str], str]
) -> None:
    files = {"certificate": "own.pem", "key": key, "authorities": "other.pem"}
    given: dict[str, Any] = {
        name: pipe_of(file) if name in pipes else file for name, file in files.items()
    }

    lacks_password = TlsFiles(**given).check()

    assert lacks_password is (pipes == {"authorities"} and key == "locked.key")
    for name in pipes:
        assert Path(given[name]).read_bytes() == Path(files[name]).read_bytes()


def test_named_pipe_is_not_waited_for() -> None:
    os.mkfifo("pipe")

    assert TlsFiles("own.pem", key="pipe").check() is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"certificate": "text.pem", "key": "pipe"},
            "--ssl-certfile: text.pem: expected a certificate in PEM, got none; give the whole",
        ),
        (
            {"certificate": "pipe", "key": "none"},
            "--ssl-keyfile: none: expected a file that can be read: No such file or directory; ",
        ),
        (
            {"certificate": "own.pem", "key": "pipe", "authorities": "text.pem"},
            "--ssl-ca-certs (UVICORN_SSL_CA_CERTS): text.pem: expected certificates in PEM, got ",
        ),
        (
            {"certificate": "own.pem", "key": "pipe", "ciphers": "none"},
            "--ssl-ciphers: OpenSSL has none of 'none'",
        ),
        (
            {"certificate": "pipe"},
            "--ssl-keyfile: pipe: expected a file, since it is read for --ssl-certfile too, got a "
            "pipe, which can be read once; give each its own",
        ),
        (
            {"certificate": "pipe", "key": "./pipe"},
            "--ssl-keyfile: ./pipe: expected a file, since it is read for --ssl-certfile too, got "
            "a pipe, which can be read once; give each its own",
        ),
        (
            {"certificate": "own.pem", "key": "pipe", "authorities": "pipe"},
            "--ssl-ca-certs (UVICORN_SSL_CA_CERTS): pipe: expected a file, since it is read for "
            "--ssl-keyfile too, got a pipe, which can be read once; give each its own",
        ),
        (
            {"certificate": "own.pem", "key": os.devnull},
            f"--ssl-keyfile: {os.devnull}: expected a file that can be read: it is a device; mend",
        ),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_wrong_files_beside_a_pipe_are_refused(options: dict[str, Any], message: str) -> None:
    os.mkfifo("pipe")

    with pytest.raises(SettingsError) as caught:
        TlsFiles(**options).check()

    assert caught.value.message.startswith(message)


def test_pipe_that_this_user_may_not_read_is_refused(tmp_path: Path) -> None:
    os.mkfifo("pipe", mode=0o200)

    with (
        read_only(tmp_path),
        pytest.raises(SettingsError, match="pipe: expected a file that can be read: Permission"),
    ):
        TlsFiles("own.pem", key="pipe").check()


@pytest.mark.parametrize("option", ["certificate", "key", "authorities"])
def test_pipe_that_several_processes_would_read_is_refused(option: str) -> None:
    os.mkfifo("pipe")
    given: dict[str, Any] = {"certificate": "own.pem", "key": "own.pem", option: "pipe"}
    files = TlsFiles(**given)

    with pytest.raises(
        SettingsError,
        match=r"pipe: expected a file, since each process of the server reads it, got a pipe, "
        r"which can be read once; give a file$",
    ):
        files.check(is_read_again=True)


def test_files_that_several_processes_read_are_taken() -> None:
    assert TlsFiles("own.pem", key="own.pem").check(is_read_again=True) is False
