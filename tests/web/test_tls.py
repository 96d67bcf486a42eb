"""HTTPS by uvicorn's options, with a certificate: Python's client, curl and a stream."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from tests.support import asking
from tests.support.certificates import write_certificate
from tests.support.servers import served_app
from tests.support.web import KEY, OBSERVATION, build


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "server.pem"
    write_certificate(path)
    return path


@pytest.fixture
def port(certificate: Path) -> Iterator[int]:
    with served_app(build(), ws=WebSocketProtocol, ssl_certfile=str(certificate)) as port:
        yield port


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def test_client_that_trusts_the_certificate_is_answered(port: int, certificate: Path) -> None:
    url = f"https://127.0.0.1:{port}"

    with httpx.Client(verify=trusting(certificate), headers={"access-token": KEY}) as client:
        answer = client.post(f"{url}/predict", json=OBSERVATION)
    with connect(
        f"wss://127.0.0.1:{port}/predict/stream",
        ssl=trusting(certificate),
        additional_headers={"access-token": KEY},
    ) as stream:
        stream.send(json.dumps(OBSERVATION))
        frame = json.loads(stream.recv())

    assert list(answer.json()) == list(frame) == ["actions", "probability", "log_probability"]


def test_client_that_does_not_trust_it_sends_no_key(port: int) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        asking.post(f"https://127.0.0.1:{port}/predict", headers={"access-token": KEY})


def test_plain_http_is_not_answered(port: int) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        asking.get(f"http://127.0.0.1:{port}/livez")


def test_curl_takes_the_certificate(port: int, certificate: Path) -> None:
    done = subprocess.run(
        ["curl", "--silent", "--noproxy", "*", "--cacert", str(certificate),
         "--header", f"access-token: {KEY}", "--json", json.dumps(OBSERVATION),
         f"https://127.0.0.1:{port}/predict"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip

    assert "actions" in json.loads(done.stdout)
