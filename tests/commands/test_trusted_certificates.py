"""A server with a certificate of its own, on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from policy_server.commands.client import PolicyClient
from policy_server.commands.realtime import Place
from policy_server.errors import ServerAnswerError, SettingsError
from tests.support.certificates import write_certificate
from tests.support.servers import served_app
from tests.support.web import KEY, build


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "server.pem"
    write_certificate(path)
    return path


@pytest.fixture
def secure_url(certificate: Path) -> Iterator[str]:
    with served_app(build(), ssl_certfile=str(certificate)) as port:
        yield f"https://127.0.0.1:{port}"


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_trusted_certificate_is_taken_on_loopback(
    name: str, secure_url: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, str(certificate))

    with PolicyClient(secure_url, KEY) as server:
        assert "policy" in server.schema()
    Place(url=secure_url).connect().close()


@pytest.mark.usefixtures("certificate")
def test_other_certificate_is_told_apart_from_no_server(secure_url: str) -> None:
    words = "no secure connection: .*certificate verify failed"

    with PolicyClient(secure_url, None) as server, pytest.raises(ServerAnswerError, match=words):
        server.schema()
    with pytest.raises(ServerAnswerError, match=words):
        Place(url=secure_url).connect()


def test_bundle_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "nowhere.pem")

    with pytest.raises(SettingsError, match=r"REQUESTS_CA_BUNDLE: nowhere\.pem: not found"):
        PolicyClient("https://127.0.0.1:1", None)
