"""uvicorn's HTTP protocol as it is served here: offers of HTTP/2, and one write a response."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from policy_server.http_server.http_protocol import HttpProtocol
from tests.support import asking
from tests.support.connections import Transport
from tests.support.servers import CHUNKED, served_app
from tests.support.waiting import turns
from tests.support.web import KEY, OBSERVATION, build

BODY = json.dumps(OBSERVATION).encode()
# As Java's HttpClient sends its first request.
OFFER = (
    b"POST /predict HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: %d\r\n"
    b"Host: localhost\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\naccess-token: %b\r\n\r\n%b"
) % (len(BODY), KEY.encode(), BODY)
PLAIN = b"POST /plain HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
# A request with an offer, as somebody's body.
NESTED = b"POST /x HTTP/1.1\r\nupgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\nz"
HOLDING = b"PUT /holding HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(NESTED), NESTED)
CLOSING = b"GET /closing HTTP/1.1\r\nConnection: close, Upgrade\r\nUpgrade: foo/2\r\n\r\n"


class Recorder:
    """An application that keeps the requests it is asked, and answers each with an empty body."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes]] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        body, has_more = b"", True
        while has_more:
            message = await receive()
            assert message["type"] == "http.request", message
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
        self.requests.append((scope["method"], scope["path"], body))
        self.headers.append(list(scope["headers"]))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


async def received(*segments: bytes) -> tuple[Recorder, Transport]:
    """Hand a connection's segments to the protocol, one in each turn of the event loop."""
    recorder, transport, state = Recorder(), Transport(), ServerState()
    config = uvicorn.Config(recorder, log_config=None, lifespan="off", proxy_headers=False)
    config.load()
    protocol = HttpProtocol(config, state, {})
    protocol.connection_made(transport)
    for segment in segments:
        protocol.data_received(segment)
        await turns(1)
    while state.tasks:
        await asyncio.gather(*state.tasks)
        await turns(1)
    protocol.connection_lost(None)
    return recorder, transport


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("::ffff:203.0.113.9", 5), ("203.0.113.9", 5)),
        (("::ffff:1:2:3", 5), ("::ffff:1:2:3", 5)),
        (("2001:db8::1", 5), ("2001:db8::1", 5)),
        (("203.0.113.9", 5), ("203.0.113.9", 5)),
        (None, None),
    ],
)
async def test_client_of_a_socket_for_both_families_has_its_own_address(
    client: tuple[str, int] | None, expected: tuple[str, int] | None
) -> None:
    recorder = Recorder()
    config = uvicorn.Config(recorder, log_config=None, lifespan="off", proxy_headers=False)
    config.load()
    protocol = HttpProtocol(config, ServerState(), {})

    protocol.connection_made(Transport(client))

    assert protocol.client == expected


@pytest.mark.parametrize(("version", "interim"), [("1.1", 1), ("1.0", 0)])
async def test_client_of_http_1_0_is_told_no_100(version: str, interim: int) -> None:
    head = f"POST /a HTTP/{version}\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"

    _, transport = await received(head.encode(), b"x")

    assert transport.written.count(b"100 Continue") == interim


@pytest.fixture
def port() -> Iterator[int]:
    with served_app(build(), ws="none", http=HttpProtocol) as served:
        yield served


def read_answer(client: socket.socket) -> bytes:
    """Read one answer: head and body may come apart."""
    client.settimeout(10)
    answer = b""
    while not answer.endswith(b"}"):
        part = client.recv(65536)
        assert part, answer
        answer += part
    return answer


def test_request_that_offers_http2_is_answered_with_its_body_read(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(OFFER)
        answer = read_answer(client)
        client.sendall(OFFER.replace(b"Upgrade: h2c\r\n", b""))
        next_answer = read_answer(client)

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'{"actions":[' in answer
    assert next_answer.startswith(b"HTTP/1.1 200 OK\r\n")


def test_body_whose_segment_looks_like_an_offer_arrives_whole(port: int) -> None:
    body = b"POST /x HTTP/1.1\r\nupgrade: h2c\r\n\r\n"
    head = b"POST /predict HTTP/1.1\r\naccess-token: %b\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(head % (KEY.encode(), len(body) + 1) + b" ")
        # It is answered only when the head was read: the body is a segment of its own then.
        with socket.create_connection(("127.0.0.1", port)) as other:
            other.sendall(OFFER)
            read_answer(other)
        client.sendall(body)
        answer = read_answer(client)

    assert answer.startswith(b"HTTP/1.1 422 ")


CONNECTIONS = {
    "offer": (OFFER, [("POST", "/predict", BODY)]),
    "chunked": (
        CHUNKED + PLAIN,
        [("POST", "/chunked", b"abcPOST / HTTP/1.1\r\nUp:"), ("POST", "/plain", b"abc")],
    ),
    "offer in a body": (
        HOLDING + OFFER + PLAIN,
        [("PUT", "/holding", NESTED), ("POST", "/predict", BODY), ("POST", "/plain", b"abc")],
    ),
    "after others": (
        PLAIN + CHUNKED + OFFER + CLOSING,
        [
            ("POST", "/plain", b"abc"),
            ("POST", "/chunked", b"abcPOST / HTTP/1.1\r\nUp:"),
            ("POST", "/predict", BODY),
            ("GET", "/closing", b""),
        ],
    ),
}


@pytest.mark.parametrize("name", CONNECTIONS)
async def test_offer_is_passed_over_wherever_segments_are_split(name: str) -> None:
    data, expected = CONNECTIONS[name]

    for end in range(1, len(data)):
        recorder, _ = await received(data[:end], data[end:])
        assert recorder.requests == expected, end


@pytest.mark.parametrize("name", CONNECTIONS)
@pytest.mark.parametrize("length", [1, 2, 7, 1000])
async def test_offer_is_passed_over_in_segments_of_any_length(name: str, length: int) -> None:
    data, expected = CONNECTIONS[name]

    recorder, transport = await received(
        *(data[start : start + length] for start in range(0, len(data), length))
    )

    assert recorder.requests == expected
    assert transport.written.count(b"HTTP/1.1 204 No Content\r\n") == len(expected)


@pytest.mark.parametrize(
    "body",
    [
        NESTED,
        OFFER,
        b"\r\n\r\n",
        b"\r\nUpgrade: h2c\r\n",
        b"\x00\xff" * 50,
        b"PRI * HTTP/2.0\r\n\r\n",
    ],
    ids=["request", "whole offer", "ends of heads", "header", "binary", "preface of HTTP/2"],
)
@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
async def test_body_of_any_content_arrives_whole(body: bytes, upgrade: bytes) -> None:
    head = b"POST /any HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (upgrade, len(body))
    expected = [("POST", "/any", body), ("POST", "/plain", b"abc")]

    whole, _ = await received(head + body + PLAIN)
    apart, _ = await received(head, body, PLAIN)
    in_halves, _ = await received(head, body[: len(body) // 2], body[len(body) // 2 :] + PLAIN)

    assert whole.requests == apart.requests == in_halves.requests == expected


async def test_headers_are_the_clients_without_the_offer() -> None:
    recorder, _ = await received(CHUNKED)

    assert recorder.headers == [
        [
            (b"connection", b"upgrade"),
            (b"x", b"a\tb"),
            (b"transfer-encoding", b"chunked"),
        ]
    ]


@pytest.mark.parametrize(
    "head",
    [
        b"POST /x HTTP/1.1\r\nContent-Length: 3\r\n",
        b"GET /x HTTP/1.1\r\nContent-Length: 3\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: 0\r\n",
        b"GET /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
    ],
    ids=["post", "get with a body", "empty post", "chunked"],
)
async def test_request_that_can_open_no_web_socket_is_answered_as_any_other(head: bytes) -> None:
    body = b"" if b": 0" in head else b"abc"
    sent = b"3\r\nabc\r\n0\r\n\r\n" if b"chunked" in head else body
    offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    opening = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

    recorder, _ = await received(head + offer + opening + sent, PLAIN)

    method = head.split()[0].decode()
    assert recorder.requests == [(method, "/x", body), ("POST", "/plain", b"abc")]


async def test_handshake_by_http_1_0_is_a_plain_request() -> None:
    offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\nHost: a\r\n"
    opening = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

    recorder, transport = await received(b"GET /stream HTTP/1.0\r\n" + offer + opening)

    assert [path for _, path, _ in recorder.requests] == ["/stream"]
    assert transport.successor is None


async def test_handshake_behind_an_unanswered_request_is_a_plain_request() -> None:
    offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\nHost: a\r\n"
    opening = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

    recorder, transport = await received(
        b"GET /before HTTP/1.1\r\n\r\nGET /stream HTTP/1.1\r\n" + offer + opening + PLAIN
    )

    paths = [path for _, path, _ in recorder.requests]
    assert paths == ["/before", "/stream", "/plain"]
    assert transport.successor is None


async def test_lines_behind_a_body_are_no_headers_of_any_request() -> None:
    chunked = b"POST /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"

    recorder, _ = await received(chunked + b"access-token: x\r\nx-state: new\r\n\r\n" + PLAIN)

    assert recorder.requests == [("POST", "/chunked", b"abc"), ("POST", "/plain", b"abc")]
    assert recorder.headers == [
        [(b"transfer-encoding", b"chunked")],
        [(b"content-length", b"3")],
    ]


async def test_thousands_of_offers_in_one_segment_are_answered() -> None:
    offer = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"

    recorder, _ = await received(offer * 3000)

    assert len(recorder.requests) == 3000


@pytest.mark.parametrize(
    "data",
    [
        b"CONNECT a:1 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nnonsense\r\n\r\n",
    ],
    ids=["CONNECT", "bare CR in a header", "nonsense after it"],
)
async def test_what_is_no_http_is_refused_with_an_offer_too(data: bytes) -> None:
    _, transport = await received(data)

    assert b"HTTP/1.1 400 Bad Request\r\n" in transport.written
    assert transport.is_gone


def test_response_of_uvicorn_is_one_write() -> None:
    written: list[bytes] = []

    class Recorded(HttpProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
            write = transport.write

            class Recording(Transport):
                def write(self, data: Any) -> None:  # noqa: ANN401 -- any buffer
                    written.append(bytes(data))
                    write(data)

                def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 -- the transport's own
                    if name == "write":
                        return super().__getattribute__(name)
                    return getattr(transport, name)

            super().connection_made(Recording())

    with (
        served_app(build(), ws="none", http=Recorded) as port,
        asking.client(base_url=f"http://127.0.0.1:{port}", headers={"access-token": KEY}) as client,
    ):
        answers = [client.post("/predict", json=OBSERVATION) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(written) == 2
    assert all(data.startswith(b"HTTP/1.1 200 OK") for data in written)
    assert all(data.endswith(b"}") for data in written)
