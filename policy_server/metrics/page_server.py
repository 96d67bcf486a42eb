"""A small HTTP server for pages that a program fetches now and then: one thread, one event loop.

A library's server would answer each connection with a thread, or bring a framework. Prometheus
sends GET requests without a body and reads one answer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from http import HTTPStatus

from policy_server.access_keys import KeyRing
from policy_server.client_limits import ClientLimit, ClientLimits, network_of
from policy_server.errors import PolicyServerError, TooManyRequestsError, UnauthorizedError
from policy_server.ports import bound_sockets

__all__ = ["PageServer"]

logger = logging.getLogger(__name__)

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MOST_CONNECTIONS = 256
# So many more wait in the kernel; one that finds no place there comes a second later.
_MOST_UNACCEPTED = 1024
_ACCEPTS_A_TURN = 16
# The pause after a turn in which a connection had to go for another: clients that come again at
# once shall not take the processor from requests. A client has 0.3 s at least to send its own.
_CROWDED_PAUSE_S = 0.02
_MOST_HEAD_BYTES = 16_384
# "On, zero seconds": bytes that are not sent yet are thrown away (socket(7), SO_LINGER).
_RESET = struct.pack("ii", 1, 0)
_ACCEPT_AGAIN_S = 1.0
# The seconds for sending a request, and again for reading its answer.
_CLIENT_TIMEOUT_S = 5.0


class PageServer:
    """Serves pages over HTTP/1.1, one request a connection.

    Pages are rendered on the event loop's pool of threads, whose number is bounded. A client that
    sends nothing, or does not read, delays no other client: it is cut off after a while, and before
    that where a newcomer needs its place. The first to go is then, of the connections whose
    clients keep the server waiting, the oldest one of the address that has the most of these.

    Attributes:
        port: where it listens.
    """

    def __init__(
        self,
        pages: Mapping[str, Callable[[], bytes]],
        *,
        host: str,
        port: int,
        client_timeout_s: float = _CLIENT_TIMEOUT_S,
        keys: KeyRing | None = None,
        of_address: ClientLimit | None = None,
        max_address_connections: int = 0,
    ) -> None:
        """Own the port and a thread that serves it, until `stop`.

        Args:
            pages: renders the page of each path, such as `/metrics`, with no slash at its end.
            host: the address to listen on.
            port: the port there; 0 picks a free one.
            client_timeout_s: how long a client may take to send its request, and to read the
                answer, in seconds.
            keys: those that are valid; None shows the pages to everybody.
            of_address: how many wrong keys an address may send; beyond, it is refused with a right
                one too. None for any number.
            max_address_connections: the most connections of an address; one more takes the place of
                its oldest. 0 for any number.

        Raises:
            OSError: if the port is taken, or the host is not this machine's.
        """
        self._pages = pages
        self._keys = keys or KeyRing()
        # Those of the web process are used from its own event loop alone.
        self._limits = ClientLimits(KeyRing(), of_address=of_address or ClientLimit())
        self._client_timeout_s = client_timeout_s
        self._max_address_connections = max_address_connections
        # Each with the network of its client; in the second those that wait for the client to send
        # or to read, the oldest first.
        self._connections: dict[asyncio.Task[None], str] = {}
        self._waiting: dict[asyncio.Task[None], str] = {}
        self._stopping = asyncio.Event()
        sockets = bound_sockets(host, port)
        with ExitStack() as stack:
            for opened in sockets:
                stack.enter_context(opened)
            for opened in sockets:
                opened.listen(_MOST_UNACCEPTED)
            stack.pop_all()
        # Whatever loop the application runs on.
        self._loop = asyncio.SelectorEventLoop()
        self.port: int = sockets[0].getsockname()[1]
        self._thread = threading.Thread(
            target=self._run, args=(sockets,), name="metrics", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, and cut the connections off."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self, sockets: list[socket.socket]) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(sockets))

    async def _serve(self, sockets: list[socket.socket]) -> None:
        # asyncio's own server loses a connection that it is accepting while it is closed.
        for listening in sockets:
            listening.settimeout(0)
            self._loop.add_reader(listening, self._accept, listening)
        await self._stopping.wait()
        for listening in sockets:
            self._loop.remove_reader(listening)
            listening.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, listening: socket.socket) -> None:
        is_crowded = False
        for _ in range(_ACCEPTS_A_TURN):
            try:
                connection, address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                break
            except OSError:
                # The process has no file left; the connection waits.
                self._pause(listening, _ACCEPT_AGAIN_S)
                return
            network = network_of(address[0])
            if self._is_full(network):
                is_crowded = True
                if not self._make_room(network):
                    connection.close()
                    continue
            self._begin(connection, address[0], network)
        if is_crowded:
            self._pause(listening, _CROWDED_PAUSE_S)

    def _begin(self, connection: socket.socket, address: str, network: str) -> None:
        connection.settimeout(0)
        task = self._loop.create_task(self._answer(connection, address))
        self._connections[task] = self._waiting[task] = network
        task.add_done_callback(partial(self._forget, connection))

    def _pause(self, listening: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(listening)
        self._loop.call_later(seconds, self._accept_again, listening)

    def _forget(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        connection.close()
        del self._connections[task]
        self._waiting.pop(task, None)

    def _is_full(self, network: str) -> bool:
        return len(self._connections) >= _MOST_CONNECTIONS or self._has_its_most(network)

    def _has_its_most(self, network: str) -> bool:
        most = self._max_address_connections
        return most > 0 and Counter(self._connections.values())[network] >= most

    def _make_room(self, network: str) -> bool:
        """Cut off the oldest connection whose client keeps the server waiting.

        It is one of the newcomer's network where that has its most, else of the most crowded one.

        Returns:
            Whether there was one: those whose page is being rendered stay.
        """
        crowded = network
        if not self._has_its_most(network) and self._waiting:
            ((crowded, _),) = Counter(self._waiting.values()).most_common(1)
        oldest = next((task for task, of in self._waiting.items() if of == crowded), None)
        if oldest is None:
            return False
        del self._waiting[oldest]
        oldest.cancel()
        return True

    def _accept_again(self, listening: socket.socket) -> None:
        if not self._stopping.is_set():
            self._loop.add_reader(listening, self._accept, listening)

    async def _answer(self, connection: socket.socket, address: str) -> None:
        task = asyncio.current_task()
        assert task is not None, "each connection has one"
        reader, writer = await asyncio.open_connection(sock=connection, limit=_MOST_HEAD_BYTES)
        try:
            async with asyncio.timeout(self._client_timeout_s):
                head = await reader.readuntil(b"\r\n\r\n")
            network = self._waiting.pop(task)
            writer.write(await self._response(head, address))
            self._waiting[task] = network
            async with asyncio.timeout(self._client_timeout_s):
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            # A client that left, or took too long.
            _throw_away(connection)
        except asyncio.CancelledError:
            _throw_away(connection)
            raise
        except Exception:
            logger.exception("metrics_page_failed")
        finally:
            # Of a connection that is closed already this does nothing.
            writer.transport.abort()

    async def _response(self, head: bytes, address: str) -> bytes:
        method, _, rest = head.decode("latin-1").partition(" ")
        page = self._pages.get(rest.split(" ")[0].split("?")[0].rstrip("/"))
        status, body = HTTPStatus.OK, b""
        refusal = self._refusal(head, address)
        if refusal is not None:
            status, body = HTTPStatus(refusal.status), f"{refusal.message}\n".encode()
        elif method not in ("GET", "HEAD"):
            status, body = HTTPStatus.METHOD_NOT_ALLOWED, b"GET or HEAD\n"
        elif page is None:
            status, body = HTTPStatus.NOT_FOUND, b"see /metrics or /metrics/ray\n"
        else:
            body = await asyncio.to_thread(page)
        fields = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"content-type: {_CONTENT_TYPE}",
            f"content-length: {len(body)}",
            "connection: close",
            *(f"{name}: {value}" for name, value in (refusal.headers if refusal else {}).items()),
        ]
        sent = b"" if method == "HEAD" else body
        return "\r\n".join(fields).encode() + b"\r\n\r\n" + sent

    def _refusal(self, head: bytes, address: str) -> PolicyServerError | None:
        """Return why a client may not see the pages; None where it may.

        An address that has sent too many wrong keys is refused whatever it sends: a guess that is
        right must not be told from the others.
        """
        headers: dict[bytes, str] = {}
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            headers.setdefault(name.strip().lower(), value.strip().decode("latin-1"))
        try:
            share = self._limits.begin(None, address)
        except TooManyRequestsError as error:
            return error
        try:
            self._keys.admit("metrics", headers)
        except UnauthorizedError as error:
            return error
        else:
            # Whoever has the key may scrape at any rate.
            share.refund()
        finally:
            share.end()
        return None


def _throw_away(connection: socket.socket) -> None:
    """Let the kernel keep nothing of what the client has not read, once the connection closes."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
