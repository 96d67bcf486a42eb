"""uvicorn's web socket protocol over websockets, with a few changes.

An application may listen to frames without ASGI in between (`stream_frames`), and then whole
messages are read and written in one step (`plain_frames`).

A frame that is built wrongly closes its connection with the code of RFC 6455, which reaches a
client that goes on sending too, and a message in fragments takes no more memory than its bytes.

At a shutdown the application may finish its answers (`web_socket_ending`).

And a connection that has gone is freed at once. It is held by a cycle of references: the parser of
websockets is a generator that holds the connection it belongs to, and with the compressor of its
frames that is some 45 kB. The server collects garbage rarely, so that connections waited for it by
the thousand, and one that was open during a collection for much longer.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.http11 import Request

from policy_server.http_server.connection_limits import UNREAD_S, Unread, WatchedConnection
from policy_server.http_server.http_protocol import plain_client
from policy_server.http_server.plain_frames import PlainFrames
from policy_server.http_server.stream_frames import FRAMES, FrameListener
from policy_server.http_server.web_socket_ending import EndingWebSocket

__all__ = ["WebSocketProtocol"]

_SWITCHING_PROTOCOLS = 101
_NO_TEXT = 1007
# Before the path of a target in its absolute form, which proxies are asked in (RFC 9112, 3.2.2).
_AUTHORITY = re.compile(r"[a-z][a-z0-9+.-]*://[^/?]*", re.ASCII | re.IGNORECASE)
# The place of the status in an answer.
_STATUS = slice(len(b"HTTP/1.1 "), len(b"HTTP/1.1 400"))
_BAD_HANDSHAKE = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class WebSocketProtocol(EndingWebSocket, WatchedConnection):
    """One web socket; uvicorn makes it, and it lives until the connection is lost.

    `uvicorn --ws policy_server.http_server.web_socket_protocol:WebSocketProtocol` takes it too.

    Attributes:
        when_lost: called once when the connection is lost; None for nothing.
        refused_with: the status of the answer to a handshake that the application has not seen;
            None where it was not refused.
        handshake_timeout_s: how long the connection stays without a handshake, in seconds.
    """

    _listener: FrameListener | None = None
    _plain: PlainFrames | None = None
    _fragments: bytearray | None = None
    _has_failed = False
    when_lost: Callable[[], None] | None = None
    refused_with: int | None = None
    handshake_timeout_s = math.inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin.

        Args:
            transport: the connection.
        """
        super().connection_made(transport)
        self.client = plain_client(self.client)
        self._unread = Unread()
        self._begun = self.loop.time()
        joined: Any = self.transport
        self.write = getattr(joined, "write_whole", joined.write)

    def read(self, data: bytes) -> None:
        """Read some bytes; see `EndingWebSocket`."""
        if self._plain is not None:
            data = self._take_plain(self._plain, data)
            if not data:
                return
        super().read(data)
        if self._has_failed:
            self.handle_parser_exception()
        elif not self.handshake_initiated and self.conn.handshake_exc is not None:
            self._refuse_handshake()

    def _refuse_handshake(self) -> None:
        """Answer a handshake that websockets does not read, of which uvicorn says nothing.

        Its limits are narrower than this server's: 128 headers, and 8,192 bytes for each of them.
        """
        self.handshake_complete = self.close_sent = True
        # websockets has an answer of its own where a limit is exceeded.
        answer = b"".join(self.conn.data_to_send()) or _BAD_HANDSHAKE
        self.refused_with = int(answer[_STATUS])
        self.write(answer)
        self.transport.close()

    def handle_parser_exception(self) -> None:
        """Tell the client the code of its mistake, and close once it may have read that."""
        close = self.conn.close_sent
        assert close is not None, "the connection has failed"
        self.stop_keepalive()
        self.queue.put_nowait(
            {"type": "websocket.disconnect", "code": close.code, "reason": close.reason}
        )
        self.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.transport.can_write_eof():
            self.linger()
        else:
            self.is_lingering = True
            self.transport.close()

    def shutdown(self) -> None:
        """End in order; see `EndingWebSocket`. Nothing is raised: others are to end too."""
        self.do_or_abort(super().shutdown)

    def handle_connect(self, event: Request) -> None:
        """Ask the application about a handshake, and let it listen to the frames.

        Args:
            event: the handshake.
        """
        if (authority := _AUTHORITY.match(event.path)) is not None:
            behind = event.path[authority.end() :]
            event.path = behind if behind.startswith("/") else f"/{behind}"
        super().handle_connect(event)
        if self.response.status_code == _SWITCHING_PROTOCOLS:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[FRAMES] = self
        else:
            self.refused_with = self.response.status_code

    def _take_plain(self, plain: PlainFrames, data: bytes) -> bytes:
        """Hand over the plain frames at the start of some bytes, and return the rest."""
        start, last = 0, len(data) - 1
        while start < last and self._listener is not None:
            if not plain.is_between_messages or self.close_sent:
                break
            found = plain.read(data, start)
            if found is None:
                break
            message, start = found
            if self.is_taken():
                self._listener.take(message)
        return data[start:] if start else data

    def listen(self, listener: FrameListener) -> None:
        """Hand over each frame from now on; see `FrameConnection`."""
        if self.disconnected:
            return
        self._listener = listener
        self._plain = PlainFrames.of(self.conn, most_bytes=self.config.ws_max_size)
        self.resume_frames()
        for _ in range(self.queue.qsize()):
            message: Any = self.queue.get_nowait()
            if message["type"] == "websocket.receive":
                listener.take(message)
            else:
                self.queue.put_nowait(message)

    @property
    def is_writable(self) -> bool:
        """Return whether the client reads; see `FrameConnection`."""
        return self.writable.is_set()

    def write_frames(self, frames: Sequence[tuple[bytes, bool]]) -> None:
        """Write frames; see `FrameConnection`."""
        if self._plain is not None and (whole := self._plain.written(frames)) is not None:
            if not self.disconnected:
                self.write(whole)
            return
        connection = self.conn
        try:
            for payload, is_text in frames:
                if is_text:
                    connection.send_text(payload)
                else:
                    connection.send_binary(payload)
        except InvalidState:
            # Closed by either side: nobody reads them.
            return
        if not self.disconnected:
            self.write(b"".join(connection.data_to_send()))

    def pause_frames(self) -> None:
        """Read no more frames; see `FrameConnection`."""
        if not self.read_paused and not self.disconnected:
            self.read_paused = True
            self.transport.pause_reading()

    def resume_frames(self) -> None:
        """Read frames again; see `FrameConnection`.

        The answer to a ping may lie behind frames that were held back: its time begins anew.
        """
        if self.read_paused and not self.disconnected and not self.is_flooded:
            self.read_paused = False
            self.transport.resume_reading()
            if self.pong_timer is not None:
                self.pong_timer.cancel()
                self._await_pong()

    def resume_writing(self) -> None:
        """Go on: the client has read what was written."""
        super().resume_writing()
        self._unread.is_read()
        if self._listener is not None:
            self._listener.go_on()

    def look(self, now: float) -> None:
        """Cut off a client that reads nothing, where the connection ends; see `WatchedConnection`.

        Before that its answers wait for it, and its pings tell whether it is there. One whose
        handshake never came to the application has no pings.
        """
        if not self.handshake_initiated and now - self._begun >= self.handshake_timeout_s:
            self.transport.abort()
            return
        unread_s = self._unread.seconds(self.transport, now)
        if (self.is_ending or self.transport.is_closing()) and unread_s >= UNREAD_S:
            self.transport.abort()

    def handle_ping(self) -> None:
        """Answer a ping, unless the client does not read what it has been sent."""
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)

    def keepalive_timeout(self) -> None:
        """End a connection whose client does not answer a ping; see uvicorn's own.

        Where its frames are held back, its answer may lie behind them, and it is waited for.
        """
        if self.read_paused and self.writable.is_set():
            self._await_pong()
        else:
            super().keepalive_timeout()

    def _await_pong(self) -> None:
        assert self.ping_timeout is not None, "only a ping's answer that is awaited has a timer"
        self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)

    def handle_cont(self, event: Frame) -> None:
        """Add a fragment to its message: a list of them would take many times their bytes.

        Args:
            event: the fragment.
        """
        if self._fragments is None:
            self._fragments = bytearray(self.frames[0])
        self._fragments += event.data
        if event.fin:
            self.frames, self._fragments = [bytes(self._fragments)], None
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        """Hand over a whole message; close the connection where text is no UTF-8."""
        is_text = self.curr_msg_data_type == "text"
        data = bytes(self.frames[0])
        try:
            text = data.decode() if is_text else None
        except UnicodeDecodeError:
            self.frames = []
            if not self.close_sent:
                self.conn.fail(_NO_TEXT, "text that is no UTF-8")
                # Frames behind it in the same segment are still to be passed over.
                self.close_sent = self._has_failed = True
            return
        if not self.is_taken():
            self.frames = []
            return
        if self._listener is None:
            super().send_receive_event_to_app()
            return
        self.frames = []
        if not self.close_sent:
            self._listener.take({"text": text} if is_text else {"bytes": data})

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and let go of the parser.

        Args:
            exc: why the connection was lost; None where it was closed.
        """
        super().connection_lost(exc)
        if self.when_lost is not None:
            self.when_lost()
            self.when_lost = None
        # The scope and the listener hold this protocol.
        scope: Any = getattr(self, "scope", {})
        scope.get("extensions", {}).pop(FRAMES, None)
        self._listener = None
        # An inner name of websockets: where it is another, the collector frees the connection.
        parser = getattr(self.conn, "parser", None)
        if parser is not None:
            parser.close()
        _forget_traceback(self.conn.handshake_exc)
        _forget_traceback(getattr(self.conn, "parser_exc", None))


def _forget_traceback(error: BaseException | None) -> None:
    """Let go of the frames in an error's traceback: the error has been answered."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
