"""Requests that offer HTTP/2."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from policy_server.http_server import ignore_http2_offers
from policy_server.http_server.upgrades import without_http2_offer
from tests.web.harness import KEY, OBSERVATION, build

BODY = json.dumps(OBSERVATION).encode()
# As Java's HttpClient sends its first request.
REQUEST = (
    b"POST /predict HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: %d\r\n"
    b"Host: localhost\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\naccess-token: %b\r\n\r\n%b"
) % (len(BODY), KEY.encode(), BODY)


@pytest.fixture
def port() -> Iterator[int]:
    ignore_http2_offers()
    config = uvicorn.Config(build(), log_config=None, ws="none", http="httptools")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def test_request_that_offers_http2_is_answered_with_its_body_read(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(REQUEST)
        # Head and body may come apart.
        answer = b""
        while not answer.endswith(b"}"):
            received = client.recv(65536)
            assert received, answer
            answer += received

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'{"actions":[' in answer


@pytest.mark.parametrize(
    "data",
    [
        REQUEST.replace(b"Upgrade: h2c\r\n", b""),
        REQUEST.replace(b"h2c", b"websocket"),
        b'\r\nUpgrade: h2c\r\n{"a": 1}',
        b"POST / HTTP/1.1\r\nHost: a\r\n\r\n\r\nUpgrade: h2c\r\n",
    ],
    ids=["no offer", "web socket", "middle of a body", "in a body"],
)
def test_other_data_stays_as_it_is(data: bytes) -> None:
    assert without_http2_offer(data) == data


def test_only_the_offer_is_taken_out() -> None:
    expected = REQUEST.replace(b"Upgrade: h2c\r\n", b"")

    assert without_http2_offer(REQUEST) == expected
    assert without_http2_offer(REQUEST.replace(b"Upgrade: h2c", b"upgrade:h2c ")) == expected


def test_teaching_twice_changes_nothing() -> None:
    ignore_http2_offers()
    once = HttpToolsProtocol.data_received
    ignore_http2_offers()

    assert HttpToolsProtocol.data_received is once
