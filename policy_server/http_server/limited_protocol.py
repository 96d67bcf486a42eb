"""The protocol that keeps a connection to its limits, tells its client in one line, and ends it."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import httptools
import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from policy_server.client_limits import client_address
from policy_server.http_server.connection_limits import (
    MOST_REFUSED,
    UNREAD_S,
    ConnectionWatch,
    Phase,
    RefusedRequest,
    Unread,
    WatchedConnection,
)
from policy_server.http_server.end_of_side import ended_behind_s
from policy_server.http_server.http_protocol import HttpProtocol, Reads
from policy_server.http_server.web_socket_protocol import WebSocketProtocol
from policy_server.settings import ENV_PREFIX

__all__ = ["LimitedHttpProtocol"]

# After so many bytes, and up to the next end of a head, it is looked whether enough requests wait:
# they are some sixty of the shortest. A body is rarely cut.
_PIECE_BYTES, _BLANK_LINE = 1024, b"\r\n\r\n"
# A body may take one second more for each of these bytes that have come.
_BYTES_A_SECOND = 4096
# How long what a refused client still sends is read: a reset would take the answer from it.
_LINGER_S = 2.0
# A client that ends its side so soon behind a request waits for the answer; later, it has gone.
_HALF_CLOSED_S = 1.0
# How long an idle connection stays when the server ends, and how long it waits for the rest of a
# request of which a part has come.
_DRAIN_S = 0.25
_REST_S = 5.0
_NO_HTTP, _TIMEOUT, _TOO_MANY, _TOO_LARGE, _UNAVAILABLE = 400, 408, 429, 431, 503
_PASSING = frozenset({_TOO_MANY, _UNAVAILABLE})


class LimitedHttpProtocol(HttpProtocol, WatchedConnection):
    """One connection that keeps to the limits, or is told so in one line and closed."""

    # uvicorn's, before the first request.
    url = b""
    # What of a request is too large.
    _too_large: str | None = None
    # Its connections are counted; empty where they are not.
    _address = ""
    _is_lingering = False
    _is_draining = False
    _is_half_closed = False
    _is_reading_held = False
    # When the server began to end, by the event loop's clock.
    _ends_since = math.inf
    # When the last request had come whole, by `time.perf_counter`.
    _whole_at = 0.0
    _head_bytes = 0
    _body_bytes = 0
    # Chunk extensions and trailers: what has come of a body since its last byte.
    _framing_bytes = 0
    # Counts what the connection does, so that the watch sees that it has done something.
    _moves = 0
    _body_parts = 0
    _seen: tuple[Phase, int] | None = None
    _since = 0.0

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        watch: ConnectionWatch,
    ) -> None:
        """Own a connection; see `HttpProtocol`.

        Args:
            config: uvicorn's.
            server_state: uvicorn's.
            app_state: the lifespan's.
            _loop: the event loop.
            watch: looks at the connection from time to time.
        """
        super().__init__(config, server_state, app_state, _loop)
        self._watch = watch
        self._unread_answers = Unread()
        # Bytes that wait for the answers to those before them.
        self._held = bytearray()
        self._limits = watch.limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin, unless there are too many connections; see `HttpProtocol`."""
        super().connection_made(transport)
        self._watch.begin(self.connections, self.timeout_keep_alive)
        most = self._limits.max_connections
        # Handshakes hold no place: clients that never end theirs would keep the others out.
        served = len(self.connections) - len(self._watch.handshakes)
        if served > most:
            self.refuse(
                _UNAVAILABLE,
                f"{most} connections are open already; try again in a second "
                f"({ENV_PREFIX}MAX_CONNECTIONS)",
            )
            if served > most + MOST_REFUSED:
                self.drop()
            return
        self._address = self._watch.addresses.enter(self.client)
        if self._watch.addresses.is_beyond(self._address):
            most = self._limits.max_address_connections
            self.refuse(
                _TOO_MANY,
                f"this address has {most} connections open already; close one, or try again in a "
                f"second ({ENV_PREFIX}MAX_ADDRESS_CONNECTIONS)",
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """End; see `HttpProtocol`."""
        self._leave()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection on, which its address still has; see `HttpProtocol`."""
        is_passed_over = self._is_passed_over()
        super().handle_websocket_upgrade()
        if is_passed_over:
            return
        web_socket = self.transport.get_protocol()
        if isinstance(web_socket, WebSocketProtocol):
            web_socket.when_lost = self._leave
            if web_socket.refused_with is not None:
                self._watch.note_refused(self._refused(web_socket.refused_with, "GET"))
            web_socket.handshake_timeout_s = self._limits.header_timeout_s
        else:
            # uvicorn's own says nothing of its end.
            self._leave()

    def _leave(self) -> None:
        address, self._address = self._address, ""
        self._watch.addresses.leave(address)

    def data_received(self, data: bytes) -> None:
        """Read a segment of the connection; see `HttpProtocol`."""
        if self._is_lingering:
            return
        if self._held:
            self._hold(data, 0)
        else:
            self.read(data)

    def read(self, data: bytes) -> None:
        """Read some bytes, or hold them while as many requests wait as may.

        Args:
            data: any part of any number of requests, of which none before is held.
        """
        start = 0
        while start < len(data):
            if len(self.pipeline) >= self._limits.max_pipelined:
                self._hold(data, start)
                return
            blank = data.find(_BLANK_LINE, start + _PIECE_BYTES)
            end = len(data) if blank < 0 else blank + len(_BLANK_LINE)
            self._parse(data if end - start == len(data) else data[start:end])
            start = end
            if self._reads_no_more:
                return

    @property
    def _reads_no_more(self) -> bool:
        """Return whether what follows is no request of this connection any more."""
        is_handed_on = self.parser is None
        is_refused = self._refusal is not None or self._is_lingering
        return is_handed_on or is_refused or self.transport.is_closing()

    def _hold(self, data: bytes, start: int) -> None:
        self._held += data[start:]
        self.flow.pause_reading()

    def _read_held(self) -> None:
        if self._held and not self._is_lingering and not self.transport.is_closing():
            data, self._held = bytes(self._held), bytearray()
            self.flow.resume_reading()
            self._is_reading_held = True
            try:
                self.read(data)
            finally:
                self._is_reading_held = False

    def go_on(self) -> None:
        """Read what was held, and end if the connection is to end with what has come."""
        self._read_held()
        if self._is_half_closed:
            self.close_if_answered()
        elif self._is_draining and not self._held:
            self.end_in_order()

    def _parse(self, data: bytes) -> None:
        moves, body_parts = self._moves, self._body_parts
        super().data_received(data)
        if self._reads is Reads.HEAD:
            # A head that began in this segment is not longer than that.
            self._head_bytes = self._head_bytes + len(data) if moves == self._moves else 0
            if self._head_bytes > self._limits.max_header_bytes:
                self._too_large = "head is"
                self.send_400_response("")
        elif self._reads is Reads.BODY:
            self._body_bytes += len(data)
            is_framing = moves == self._moves and body_parts == self._body_parts
            self._framing_bytes = self._framing_bytes + len(data) if is_framing else 0
            if self._framing_bytes > self._limits.max_header_bytes:
                self._refuse_framing()

    def on_message_begin(self) -> None:
        """Begin to read a request; see `HttpProtocol`."""
        self._moves += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """End reading a head; see `HttpProtocol`.

        Raises:
            ValueError: if it is too large, which ends the parser.
        """
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.max_header_bytes:
            self._too_large = "head is"
            raise ValueError(size)
        self._moves += 1
        self._body_bytes = 0
        super().on_headers_complete()
        # Of requests that had come before the end, only the last one is told.
        if self._is_draining and self._is_answering and not self._is_reading_held:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Read a part of a body; see `HttpProtocol`."""
        self._body_parts += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End reading a request; see `HttpProtocol`."""
        self._whole_at = time.perf_counter()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on, without uvicorn's timer of idle connections; see `HttpProtocol`."""
        self._moves += 1
        super().on_response_complete()
        self._unset_keepalive_if_required()
        if self._held and not self._is_lingering:
            self.flow.pause_reading()
            self.loop.call_soon(self.do_or_abort, self.go_on)
        elif self._is_half_closed:
            self.close_if_answered()

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio's
        """Answer the requests that have come before the client ended its side, and close.

        Whether it has closed the other side too can't be seen. A client that ends its side in the
        moment in which it has sent its request waits for the answer; one that does so later has
        waited for too long, and its requests are given up.

        Returns:
            Whether the connection stays open for the answers.
        """
        if not self.transport.can_write_eof() or self._is_lingering:
            return False
        if time.perf_counter() - self.asked_at() > _HALF_CLOSED_S:
            behind_s = ended_behind_s(self.transport)
            if behind_s is None or behind_s > _HALF_CLOSED_S:
                return False
        self._is_half_closed = self._is_draining = True
        return not self.close_if_answered()

    def asked_at(self) -> float:
        """Return when the last request had come whole, by `time.perf_counter`."""
        return self._whole_at

    def close_if_answered(self) -> bool:
        """Close the connection of a client that sends no more, once nothing is left to answer."""
        # Where a body has come in part, its request may wait behind others, which are answered.
        is_behind = self._reads is Reads.BODY and bool(self.pipeline)
        if self.phase() is Phase.BUSY or is_behind:
            return False
        self.drop()
        return True

    def shutdown(self) -> None:
        """Answer the requests that have come, and close the connection.

        An idle one stays for a moment, since the client may be sending a request: it is answered,
        and the client told that the connection ends. What is left of a request has seconds to come.
        """
        self.do_or_abort(self.end_in_order)

    def end_in_order(self) -> None:
        """Shut down, and raise what there is to raise; see `shutdown`."""
        self.begin_to_end()
        if self._held:
            # They have come: the last of them ends the connection.
            return
        phase = self.phase()
        if phase is Phase.IDLE:
            self.loop.call_later(_DRAIN_S, self.do_or_abort, self._close_idle)
        elif phase is not Phase.HEAD:
            # For the rest of a head the watch waits, which uvicorn does not.
            super().shutdown()

    def begin_to_end(self) -> None:
        """Take note that the server ends."""
        self._is_draining = True
        self._ends_since = min(self._ends_since, self.loop.time())

    def _close_idle(self) -> None:
        if self.phase() is Phase.IDLE:
            self.drop()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; see `HttpProtocol`."""
        if self._reads is Reads.BODY and self.cycle.response_started:
            # A second answer would stand inside the first one, or behind it.
            self.drop()
        else:
            super().send_400_response(msg)

    def resume_writing(self) -> None:
        """Take note that the client reads; see `HttpProtocol`."""
        self._unread_answers.is_read()
        super().resume_writing()

    def refuse_bytes(self, message: str) -> None:
        """Refuse a head that is too large, or no HTTP; see `HttpProtocol`."""
        if self._too_large is not None:
            most = self._limits.max_header_bytes
            self.refuse(
                _TOO_LARGE,
                f"the request's {self._too_large} larger than {most} bytes "
                f"({ENV_PREFIX}MAX_HEADER_BYTES)",
            )
        else:
            self.note_refused(_NO_HTTP)
            super().refuse_bytes(message)

    def _refuse_framing(self) -> None:
        self._too_large = "chunk extensions or trailers are"
        self.send_400_response("")

    def refuse(self, status: int, detail: str) -> None:
        """Answer with an error, and close the connection once the client may have read it.

        Args:
            status: of the answer.
            detail: the reason, in one line.
        """
        self.note_refused(status)
        body = orjson.dumps({"detail": detail})
        lines = [
            *self.server_state.default_headers,
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            (b"connection", b"close"),
        ]
        if status in _PASSING:
            lines.append((b"retry-after", b"1"))
        head = b"".join(name + b": " + value + b"\r\n" for name, value in lines)
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)
        if self.transport.can_write_eof():
            self._is_lingering = True
            self.flow.resume_reading()
            with suppress(OSError):
                self.transport.write_eof()
        else:
            self.transport.close()

    def note_refused(self, status: int) -> None:
        """Count and log the request that is refused, as far as it has come.

        Args:
            status: of the answer.
        """
        # Before its address has come, the parser has the method of another request, or none.
        method = self.parser.get_method().decode() if self.url else ""
        self._watch.note_refused(self._refused(status, method))

    def _refused(self, status: int, method: str) -> RefusedRequest:
        """Return the request whose head was read last, as far as it has come."""
        path = ""
        with suppress(httptools.HttpParserInvalidURLError):
            found = httptools.parse_url(self.url).path or b""
            path = self.root_path + unquote(found.decode("ascii", "replace")) if found else ""
        client = client_address(self.client)
        return RefusedRequest(status, client, method, path, self.root_path)

    def look(self, now: float) -> None:
        """Close the connection if it does the same for too long; see `WatchedConnection`."""
        if self._reads_nothing(now):
            self.transport.abort()
        if self.transport.is_closing():
            return
        phase = self.phase()
        if phase in (Phase.HEAD, Phase.BODY) and now - self._ends_since >= _REST_S:
            self._end(phase, is_shutdown=True)
            return
        seen = (phase, self._moves)
        if phase is Phase.BUSY or seen != self._seen:
            self._seen, self._since = seen, now
            return
        limit = self._limit_of(phase)
        if now - self._since >= limit:
            self._end(phase)

    def _reads_nothing(self, now: float) -> bool:
        """Return whether the client has for too long read nothing of what is left to send."""
        is_draining = self._is_draining and not self._is_half_closed
        is_ending = is_draining or self.transport.is_closing()
        limit_s = min(UNREAD_S, self.timeout_keep_alive) if is_ending else self.timeout_keep_alive
        return self._unread_answers.seconds(self.transport, now) >= limit_s

    def _limit_of(self, phase: Phase) -> float:
        match phase:
            case Phase.HEAD:
                return self._limits.header_timeout_s
            case Phase.BODY:
                return self._limits.body_timeout_s + self._body_bytes / _BYTES_A_SECOND
            case Phase.LINGER:
                return _LINGER_S
        return self.timeout_keep_alive

    def _end(self, phase: Phase, *, is_shutdown: bool = False) -> None:
        limits = self._limits
        is_answered = self._reads is Reads.BODY and self.cycle.response_started
        if is_answered:
            self.drop()
        elif is_shutdown:
            self.refuse(
                _UNAVAILABLE,
                f"the server is shutting down, and the rest of the request did not arrive within "
                f"{_REST_S:g} s; try another one",
            )
            self.drop()
        elif phase is Phase.HEAD:
            self.refuse(
                _TIMEOUT,
                f"the request's head did not arrive within {limits.header_timeout_s:g} s",
            )
        elif phase is Phase.BODY:
            self.refuse(
                _TIMEOUT,
                f"the request's body did not arrive within {limits.body_timeout_s:g} s, and one "
                f"second for each {_BYTES_A_SECOND} bytes",
            )
            self.drop()
        else:
            self.drop()

    def drop(self) -> None:
        """Close the connection; requests that are not answered are given up."""
        self.transport.close()

    def phase(self) -> Phase:
        """Return the phase of the connection, as far as uvicorn's part goes."""
        if self._is_lingering:
            return Phase.LINGER
        if self._held:
            return Phase.BUSY
        if self._reads is Reads.BODY:
            # Whoever answers may read later: the client waits then.
            return Phase.BUSY if self.flow.read_paused else Phase.BODY
        if self._is_answering:
            return Phase.BUSY
        return Phase.HEAD if self._reads is Reads.HEAD else Phase.IDLE
