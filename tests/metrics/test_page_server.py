"""The small HTTP server of the metrics page."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager

import pytest

from policy_server.metrics.page_server import PageServer

# More than what both ends of a connection hold for a client that doesn't read.
LARGE = b"x" * 50_000_000


@contextmanager
def serving(
    pages: Mapping[str, Callable[[], bytes]] | None = None,
    *,
    client_timeout_s: float = 5.0,
    max_address_connections: int = 0,
) -> Iterator[PageServer]:
    """Serve pages on a free port of this machine."""
    server = PageServer(
        pages or {"/page": lambda: b"found\n"},
        host="127.0.0.1",
        port=0,
        client_timeout_s=client_timeout_s,
        max_address_connections=max_address_connections,
    )
    try:
        yield server
    finally:
        server.stop()


def ask(server: PageServer, path: str, *, method: str = "GET") -> tuple[int, bytes, int]:
    """Return status, body, and the length that the head states."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        stated = int(answer.headers["content-length"])
        return answer.status, answer.read(), stated


def connect(server: PageServer, *, source: str = "127.0.0.1") -> socket.socket:
    """Connect from an address of this machine."""
    return socket.create_connection(
        ("127.0.0.1", server.port), timeout=10, source_address=(source, 0)
    )


@pytest.mark.parametrize("path", ["/page", "/page/", "/page?name=x"])
def test_page_is_rendered_anew_for_each_request(path: str) -> None:
    numbers = iter(range(10))
    with serving({"/page": lambda: b"%d" % next(numbers)}) as server:
        answers = [ask(server, path) for _ in range(2)]

    assert answers == [(200, b"0", 1), (200, b"1", 1)]


def test_head_has_the_length_and_no_body() -> None:
    with serving() as server:
        assert ask(server, "/page", method="HEAD") == (200, b"", 6)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/other", 404), ("POST", "/page", 405)]
)
def test_other_requests_are_refused(method: str, path: str, status: int) -> None:
    with serving() as server:
        answer, body, stated = ask(server, path, method=method)

    assert answer == status
    assert len(body) == stated > 0


@pytest.mark.parametrize(
    "sent", [b"", b"GET /page", b"\x16\x03\x01"], ids=["nothing", "half a request", "TLS"]
)
def test_client_that_sends_no_request_is_cut_off(sent: bytes) -> None:
    with serving(client_timeout_s=0.1) as server, connect(server) as idle:
        idle.sendall(sent)

        assert ended(idle)


def test_request_with_an_endless_head_is_cut_off() -> None:
    with serving() as server, connect(server) as idle:
        idle.sendall(b"GET /page HTTP/1.1\r\nx: " + b"y" * 40_000)

        assert ended(idle)


def test_client_that_does_not_read_is_cut_off_and_holds_nobody_up() -> None:
    pages = {"/page": lambda: b"found\n", "/large": lambda: LARGE}
    with serving(pages, client_timeout_s=0.5) as server, connect(server) as slow:
        slow.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        answers = [ask(server, "/page") for _ in range(3)]
        reset = select.poll()
        reset.register(slow, select.POLLHUP)

        assert answers == [(200, b"found\n", 6)] * 3
        assert reset.poll(10_000)


def test_page_that_takes_long_holds_no_other_up() -> None:
    asked, is_over = threading.Event(), threading.Event()

    def slow() -> bytes:
        asked.set()
        assert is_over.wait(10)
        return b"slow\n"

    with serving({"/page": lambda: b"found\n", "/slow": slow}) as server, connect(server) as waits:
        waits.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        assert asked.wait(10)
        answer = ask(server, "/page")
        is_over.set()

        assert answer == (200, b"found\n", 6)
        assert waits.makefile("rb").read().endswith(b"slow\n")


def test_silent_connections_make_room_for_newcomers_the_oldest_first() -> None:
    with serving(client_timeout_s=30) as server, ExitStack() as silent:
        first = [silent.enter_context(connect(server)) for _ in range(256)]
        last = [silent.enter_context(connect(server)) for _ in range(3)]
        for connection in first[:3]:
            assert ended(connection)
        answer = ask(server, "/page")

        assert answer == (200, b"found\n", 6)
        assert ended(first[3])
        assert not any(is_ended_by_now(connection) for connection in first[4:] + last)


def test_client_that_does_not_read_makes_room_too() -> None:
    pages = {"/page": lambda: b"found\n", "/large": lambda: LARGE}
    with serving(pages, client_timeout_s=30) as server, ExitStack() as opened:
        slow = opened.enter_context(connect(server))
        slow.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        assert slow.recv(1) == b"H"
        for _ in range(255):
            opened.enter_context(connect(server))
        answer = ask(server, "/page")
        reset = select.poll()
        reset.register(slow, select.POLLHUP)

        assert answer == (200, b"found\n", 6)
        assert reset.poll(10_000)


def test_scrape_waits_behind_no_address_that_has_more_connections() -> None:
    with serving(client_timeout_s=30) as server, ExitStack() as silent:
        lone = silent.enter_context(connect(server, source="127.0.0.2"))
        others = [silent.enter_context(connect(server)) for _ in range(300)]
        lone.sendall(b"GET /page HTTP/1.1\r\n\r\n")

        assert lone.makefile("rb").read().endswith(b"found\n")
        assert all(ended(connection) for connection in others[:40])


def test_page_that_is_being_rendered_makes_no_room() -> None:
    asked, is_over = threading.Event(), threading.Event()

    def slow() -> bytes:
        asked.set()
        assert is_over.wait(10)
        return b"slow\n"

    with serving({"/slow": slow}, max_address_connections=1) as server, connect(server) as waits:
        waits.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        assert asked.wait(10)
        with connect(server, source="127.0.0.2") as other, connect(server) as beyond:
            assert ended(beyond)
            assert not is_ended_by_now(other)
        is_over.set()

        assert waits.makefile("rb").read().endswith(b"slow\n")


def test_address_that_has_its_most_connections_loses_its_own_oldest() -> None:
    with serving(client_timeout_s=30, max_address_connections=2) as server, ExitStack() as silent:
        other = silent.enter_context(connect(server, source="127.0.0.2"))
        own = [silent.enter_context(connect(server)) for _ in range(2)]
        answer = ask(server, "/page")

        assert answer == (200, b"found\n", 6)
        assert ended(own[0])
        assert not is_ended_by_now(own[1])
        assert not is_ended_by_now(other)


def test_page_that_fails_ends_its_connection_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> bytes:
        raise ValueError("broken")

    with serving({"/page": lambda: b"found\n", "/fails": fail}) as server:
        with connect(server) as failing:
            failing.sendall(b"GET /fails HTTP/1.1\r\n\r\n")
            assert ended(failing)

        assert ask(server, "/page")[0] == 200
    assert [record.message for record in caplog.records] == ["metrics_page_failed"]


def test_stop_cuts_idle_connections_off_and_frees_the_port() -> None:
    with serving() as server:
        idle = connect(server)
        port = server.port
    with closing(idle):
        assert ended(idle)

    again = PageServer({}, host="127.0.0.1", port=port)
    again.stop()
    assert again.port == port


def test_host_that_is_not_this_machines_is_an_error() -> None:
    with pytest.raises(OSError, match="Cannot assign"):
        PageServer({}, host="192.0.2.7", port=0)


def ended(connection: socket.socket) -> bool:
    """Return whether the server ends a connection, in one way or the other, without an answer."""
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True


def is_ended_by_now(connection: socket.socket) -> bool:
    """Return whether the server has ended a silent connection already."""
    ready = select.poll()
    ready.register(connection, select.POLLIN)
    return bool(ready.poll(0))
