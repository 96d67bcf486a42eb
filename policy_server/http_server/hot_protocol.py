"""The protocol that answers hot requests by itself, and hands all others to uvicorn.

Requests of one connection are answered in their order, whoever answers them: bytes that are not a
hot request wait until the hot ones before them are answered, and what follows them is uvicorn's
until it has answered all that it was given.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.server import ServerState

from policy_server.client_limits import client_address
from policy_server.http_server.connection_limits import ConnectionWatch, Phase, RefusedRequest
from policy_server.http_server.hot_heads import HotHeads, KnownHead
from policy_server.http_server.hot_requests import HotRequest, HotRoutes, RequestHead
from policy_server.http_server.http_protocol import Reads
from policy_server.http_server.limited_protocol import LimitedHttpProtocol

__all__ = ["HotHttpProtocol", "protocol_for"]

_END_OF_HEAD = b"\r\n\r\n"
_BEHIND = len(_END_OF_HEAD)
_OK = 200
# Looked up here once, not for each request.
_NOTHING = Reads.NOTHING
_CLOSE = b"connection: close\r\n"


class HotHttpProtocol(LimitedHttpProtocol):
    """One connection, whose hot requests go to the policies without scope, task or coroutine."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        watch: ConnectionWatch,
        heads: HotHeads,
    ) -> None:
        """Own the connection's requests; see `LimitedHttpProtocol`.

        Args:
            config: uvicorn's.
            server_state: uvicorn's.
            app_state: the lifespan's.
            _loop: the event loop.
            watch: looks at the connection from time to time.
            heads: the heads of hot requests, which all connections share.
        """
        super().__init__(config, server_state, app_state, _loop, watch=watch)
        self._heads = heads
        self._pending: deque[HotRequest] = deque()
        # Those whose answers the client has yet to read.
        self._unsent: list[HotRequest] = []
        # The head whose body has not come whole, and what has come of it.
        self._awaited: KnownHead | None = None
        self._body = bytearray()
        self._is_over = False
        # Whether bytes of this segment are still to be read, while one of its requests is asked.
        self._has_rest = False

    def data_received(self, data: bytes) -> None:
        """Read a segment of the connection; see `LimitedHttpProtocol`."""
        if self._is_lingering:
            return
        if self._held:
            self._hold(data, 0)
        elif self._awaited is not None:
            self._read_body(data)
        else:
            self.read(data)

    def begin(self, request: HotRequest) -> None:
        """Add a request; see `Connection`."""
        if not request.head.is_kept_alive:
            # What follows it is not read.
            self._is_over = True
        self._pending.append(request)
        self.tasks.add(request)  # type: ignore[arg-type]  # it is counted, and can be cancelled

    def finish(self, request: HotRequest, status: int, lines: bytes, body: bytes) -> None:
        """Write an answer in its turn; see `Connection`."""
        self.tasks.discard(request)
        pending = self._pending
        if not pending:
            # Its client has gone.
            request.tell(status, lines)
            request.note_sent()
            return
        is_alone = len(pending) == 1 and not self._held and not self._is_draining
        if is_alone and request.head.is_kept_alive:
            pending.clear()
            lines = request.tell(status, lines)
            self._write(b"%b%b\r\n%b" % (self._opening(status), lines, body))
            self._let_go(request)
            return
        request.outcome = (status, lines, body)
        while pending and (outcome := pending[0].outcome) is not None:
            done, (status, lines, body) = pending[0], outcome
            is_last = not done.head.is_kept_alive or (self._is_draining and self._is_last(done))
            pending.popleft()
            lines = done.tell(status, lines)
            ending = _CLOSE if is_last else b""
            self._write(b"%b%b%b\r\n%b" % (self._opening(status), lines, ending, body))
            self._let_go(done)
            if is_last:
                self.drop()
                return
        if not pending:
            self._is_answered()

    def _let_go(self, request: HotRequest) -> None:
        """End a request whose answer is written, once its client has read enough of it."""
        if self.flow.write_paused:
            self._unsent.append(request)
        else:
            request.note_sent()

    def _let_unsent_go(self) -> None:
        unsent, self._unsent = self._unsent, []
        for request in unsent:
            request.note_sent()

    def _opening(self, status: int) -> bytes:
        """Return the start of the head of an answer, and count it."""
        state, heads = self.server_state, self._heads
        state.total_requests += 1
        self._moves += 1
        if status != _OK or state.default_headers is not heads.default_headers:
            return heads.opening(state.default_headers, status)
        return heads.ok_opening

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin; see `LimitedHttpProtocol`."""
        super().connection_made(transport)
        joined: Any = self.transport
        self._write = joined.write_whole

    def client_of(self, head: RequestHead) -> str | None:
        """Return the client's address; see `Connection`."""
        if head.is_forwarded and isinstance(self.app, ProxyHeadersMiddleware):
            return _client_behind(self.app, head, self.client)
        return client_address(self.client)

    def forget(self, request: HotRequest) -> None:
        """Count a request no more; see `Connection`."""
        self.tasks.discard(request)

    def drop(self) -> None:
        """Close the connection; see `Connection`."""
        self._is_over = True
        self._give_up()
        super().drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: nobody waits for the answers any more; see `LimitedHttpProtocol`."""
        try:
            self._give_up()
            self._let_unsent_go()
        finally:
            super().connection_lost(exc)

    def resume_writing(self) -> None:
        """Read on once the client has read its answers; see `LimitedHttpProtocol`."""
        super().resume_writing()
        self._let_unsent_go()
        self.do_or_abort(self._read_held)

    def end_in_order(self) -> None:
        """Shut down; see `LimitedHttpProtocol`."""
        if self._pending or self._awaited is not None or self._held:
            self.begin_to_end()
        else:
            super().end_in_order()

    def close_if_answered(self) -> bool:
        """Close the connection once nothing is left to answer; see `LimitedHttpProtocol`."""
        # What has come of a body is all that comes of it.
        self._awaited = None
        return super().close_if_answered()

    def asked_at(self) -> float:
        """Return when the last request had come whole; see `LimitedHttpProtocol`."""
        return self._pending[-1].started if self._pending else super().asked_at()

    def read(self, data: bytes) -> None:
        """Begin the hot requests at the start of some bytes, and hand the rest to uvicorn.

        Args:
            data: see `LimitedHttpProtocol`.
        """
        start, size = 0, len(data)
        most = self.limit_concurrency
        while start < size and not self._is_over:
            cycle = self.cycle
            if (
                self._reads is not _NOTHING
                or (cycle is not None and not cycle.response_complete)  # type: ignore[redundant-expr]  # None at first
                or (most is not None and self._is_beyond(most))
            ):
                self._hand_over(data, start)
                return
            if self.flow.write_paused or len(self._pending) >= self._limits.max_pipelined:
                self._hold(data, start)
                return
            end = data.find(_END_OF_HEAD, start) + _BEHIND
            is_head = end >= _BEHIND and end - start <= self._limits.max_header_bytes
            known = self._heads.find(data[start:end]) if is_head else None
            if known is None:
                self._hand_over(data, start)
                return
            start = end + known.length
            if start > size:
                # The client's own times count from the head.
                own = known.own.with_head_at(time.perf_counter())
                self._awaited = KnownHead(known.route, known.length, own)
                self._body = bytearray(data[end:])
                self._body_bytes = size - end
                self._moves += 1
                return
            self._has_rest = start < size
            known.route.ask(data[end:start], self, known.own)
            self._has_rest = False

    def _is_beyond(self, most: int) -> bool:
        """Return whether uvicorn refuses a request by its option `--limit-concurrency`."""
        return len(self.connections) >= most or len(self.tasks) >= most

    def _read_body(self, data: bytes) -> None:
        known = self._awaited
        assert known is not None, "a body is awaited"
        missing = known.length - len(self._body)
        self._body += data[:missing]
        self._body_bytes = len(self._body)
        if len(data) >= missing:
            body, self._body, self._awaited = bytes(self._body), bytearray(), None
            self._has_rest = len(data) > missing
            known.route.ask(body, self, known.own)
            self._has_rest = False
            if len(data) > missing:
                self.read(data[missing:])

    def note_refused(self, status: int) -> None:
        """Count and log a request that is refused; see `LimitedHttpProtocol`."""
        if self._awaited is None:
            super().note_refused(status)
            return
        head, client = self._awaited.route.head, client_address(self.client)
        self._watch.note_refused(RefusedRequest(status, client, "POST", head.path, head.root_path))

    def _hand_over(self, data: bytes, start: int) -> None:
        """Give the rest of some bytes to uvicorn, once the requests before it are answered."""
        if self._pending:
            self._hold(data, start)
        else:
            super().read(data[start:] if start else data)

    def _is_answered(self) -> None:
        """Go on: all hot requests that were begun are answered.

        Whoever has handed over the last answer has those of other connections yet to give: what
        this client has sent behind is read in a turn of its own.
        """
        if self._held:
            self.loop.call_soon(self.do_or_abort, self.go_on)
        else:
            self.go_on()

    def phase(self) -> Phase:
        """Return the phase of the connection."""
        if self._is_lingering:
            return Phase.LINGER
        if self._pending:
            return Phase.BUSY
        return super().phase() if self._awaited is None else Phase.BODY

    def _is_last(self, request: HotRequest) -> bool:
        is_alone = self._pending[-1] is request
        has_more = self._held or self._has_rest or self._awaited is not None
        return is_alone and not has_more

    def _give_up(self) -> None:
        pending, self._pending = self._pending, deque()
        for request in pending:
            if request.outcome is None:
                request.disconnect()
            else:
                status, lines, _ = request.outcome
                request.tell(status, lines)
                request.note_sent()
            if request.is_done:
                self.forget(request)
        self._held.clear()
        self._awaited = None


def protocol_for(
    config: uvicorn.Config, watch: ConnectionWatch, app: object, hot_routes: HotRoutes | None
) -> Callable[..., LimitedHttpProtocol]:
    """Return the maker of the protocol of each connection.

    Args:
        config: of a uvicorn that has loaded its application.
        watch: looks at the connections.
        app: the application that the routes are of. They are hot only where uvicorn asks it alone,
            and no middleware around it, and logs no requests itself.
        hot_routes: the routes whose requests may be hot; None for none.
    """
    asked = config.loaded_app
    if isinstance(asked, ProxyHeadersMiddleware):
        asked = asked.app
    is_logging = logging.getLogger("uvicorn.access").hasHandlers()
    if hot_routes is None or asked is not app or is_logging:
        return partial(LimitedHttpProtocol, watch=watch)
    heads = HotHeads(hot_routes, root_path=config.root_path)
    return partial(HotHttpProtocol, watch=watch, heads=heads)


def _client_behind(
    app: ProxyHeadersMiddleware, head: RequestHead, client: tuple[str, int] | None
) -> str | None:
    """Return the client for which a proxy sends a request, as uvicorn's middleware tells it."""
    scope: Any = {"type": "http", "scheme": "http", "client": client, "headers": head.headers}

    async def keep(*_: object) -> None:
        """Answer nothing: the middleware has changed the scope."""

    middleware = ProxyHeadersMiddleware(keep)
    middleware.trusted_hosts = app.trusted_hosts
    coroutine = middleware(scope, keep, keep)  # type: ignore[arg-type]  # none is called
    try:
        coroutine.send(None)
    except StopIteration:
        return client_address(scope["client"])
    raise AssertionError("it waits for nothing")
