"""Servers in a thread, and in the event loop, of a test."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from policy_server.http_server import HttpServer, find_http_server
from policy_server.schema import parse_schema
from policy_server.settings import Settings
from policy_server.web import create_app
from tests.support import asking
from tests.support.fakes import FakeBackend, integer_backend, registry_of
from tests.support.waiting import until, wait_until

__all__ = [
    "CHUNKED",
    "KEY",
    "SCHEMA",
    "Handler",
    "answer_lifespan",
    "answered_by",
    "app_in_loop",
    "free_port",
    "in_thread",
    "live_server",
    "served_app",
    "silent",
    "status_of",
]

KEY = "secret"
SCHEMA = f"""
observations:
  links: {{type: "List[float]", min_items: 2, max_items: 2}}
  is_open: {{type: bool, example: true}}
parameters: {{api_key: {KEY}}}
"""
_PROBABILITIES = (0.2, 0.8)
# Two runs beside each other draw apart, though `tests.conftest` has their tests draw the same.
_CHANCE = random.SystemRandom()
# The ports that tests of this process were given: nobody may listen on one of them yet.
_given: set[int] = set()
# A request that offers HTTP/2, whose chunked body looks like another request.
CHUNKED = (
    b"POST /chunked?a=%20b HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upgrade\r\nX:  a\tb\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n14\r\nPOST / HTTP/1.1\r\nUp:\r\n0\r\n\r\n"
)


async def silent(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Answer nobody: an application for servers that are only configured."""


def free_port() -> int:
    """Return a port that nobody listens on, and that the system gives to no other program.

    It is below those that Linux gives by itself, which Ray's processes take too, and above those of
    Ray's workers: a server that binds it seconds later finds it free.
    """
    while True:
        port = _CHANCE.randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


def status_of(url: str, *, key: str | None = None) -> int | None:
    """Return how an address answers, or None while nobody answers there."""
    try:
        return asking.get(
            url, headers={} if key is None else {"access-token": key}, timeout=5
        ).status_code
    except httpx.TransportError:
        return None


@contextmanager
def in_thread(
    serve: Callable[[], object], stop: Callable[[], object]
) -> Iterator[threading.Thread]:
    """Run a server in a thread until the block ends.

    Args:
        serve: serves until `stop` is called.
        stop: tells it to end.

    Yields:
        The thread.
    """
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield thread
    finally:
        stop()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Handles requests of a server that `answered_by` starts, without a log."""

    def answer(self) -> None:
        """Answer a request, whatever its method."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer a GET."""
        self.answer()

    do_HEAD = do_POST = do_GET  # noqa: N815 -- http.server's own names

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer; `_` in a header's name stands for `-`."""
        self.send_response(status)
        for name, value in {**headers, "content_length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@contextmanager
def answered_by(handler: type[Handler]) -> Iterator[str]:
    """Serve HTTP by a handler, one thread for each connection, until the block ends.

    Yields:
        The server's address, `http://127.0.0.1:...`.
    """
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        in_thread(partial(server.serve_forever, 0.01), server.shutdown),
    ):
        yield f"http://127.0.0.1:{server.server_port}"


@contextmanager
def live_server(schema: str = SCHEMA, backend: FakeBackend | None = None) -> Iterator[str]:
    """Serve a policy that takes action 1 four times out of five, whatever it sees.

    Args:
        schema: the text of schema.yaml; its rows have three numbers where it leaves that open.
        backend: computes another policy.

    Yields:
        The server's address.
    """
    parsed = parse_schema(schema)
    width = parsed.width or 3
    used = backend or integer_backend(np.log(_PROBABILITIES).tolist(), width=width, weight=0.0)
    app = create_app(
        registry_of(used, parsed),
        Settings(home=Path("nowhere")),
        api_key=parsed.api_key,
        root_path=parsed.root_path,
    )
    with served_app(app, ws="none") as port:
        yield f"http://127.0.0.1:{port}"


async def answer_lifespan(
    receive: Receive, send: Send, begin: Callable[[HttpServer], None]
) -> None:
    """Answer the lifespan of an application, whose startup has come.

    Args:
        receive: gives its next message.
        send: takes the answers.
        begin: is given the uvicorn that runs it, before its first connection.
    """
    server = find_http_server()
    assert server is not None, "uvicorn runs it"
    begin(server)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


@contextmanager
def served_app(
    app: ASGIApp,
    *,
    port: int = 0,
    uds: Path | None = None,
    **options: Any,  # noqa: ANN401 -- uvicorn's own
) -> Iterator[int]:
    """Serve an application by uvicorn, in a thread, until the block ends.

    Args:
        app: the application.
        port: of 127.0.0.1; 0 for a free one.
        uds: a UNIX socket on which it listens too.
        **options: uvicorn's.

    Yields:
        The port of 127.0.0.1 that it listens on.
    """
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, **options))

    def is_started() -> bool:
        assert thread.is_alive(), "the server did not start"
        return server.started

    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", port)))
        sockets = [listening]
        if uds is not None:
            sockets.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            sockets[-1].bind(str(uds))
        run = in_thread(partial(server.run, sockets), partial(_exit, server))
        thread = stack.enter_context(run)
        # A policy is loaded, which takes long where many tests run.
        wait_until(is_started, timeout_s=120)
        yield listening.getsockname()[1]


@asynccontextmanager
async def app_in_loop(
    app: ASGIApp,
    **options: Any,  # noqa: ANN401 -- uvicorn's own
) -> AsyncIterator[tuple[str, uvicorn.Server]]:
    """Serve an application by uvicorn in this event loop, so that tests can hold its policy up.

    Args:
        app: the application.
        **options: uvicorn's.

    Yields:
        The server's address, `http://127.0.0.1:...`, and uvicorn; its `should_exit` ends it.
    """
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, **options))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve([listening]))
        try:
            await until(lambda: server.started or serving.done())
            assert server.started, "the server did not start"
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", server
        finally:
            _exit(server)
            await serving


def _exit(server: uvicorn.Server) -> None:
    server.should_exit = True
