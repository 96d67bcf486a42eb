"""The end of a web socket: its last answers and the close frame, to any client that still reads.

At a shutdown uvicorn closes the connection first and asks the application afterwards, so that
answers which are a millisecond away are lost. Here the application answers the frames that had come
by then, and closes; those that come later are passed over, or a client that sends a frame for each
answer would be served until the server is killed.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from policy_server.http_server.last_frames import LastFrames

__all__ = ["EndingWebSocket"]

# More than POLICY_SERVER_REQUEST_TIMEOUT_S has as its default. A client that has not had its
# answers by then reads none.
_LONGEST_DRAIN_S = 40.0
# How long bytes are read behind a close frame: a reset would take it, and the answers before it,
# from the client.
_LINGER_S = 2.0
# How long a connection says nothing once all is read that had come.
_QUIET_S = 0.05
# How much is read behind the last frames for a client's own close frame.
_MOST_LATE_BYTES = 64 * 1024
_SERVICE_RESTART = 1012


class EndingWebSocket(WebSocketsSansIOProtocol):
    """A web socket that ends in order; `WebSocketProtocol` reads and writes it.

    Attributes:
        is_ending: whether the server stops.
        is_lingering: whether all that comes is passed over, since the close frame is written.
        write: writes bytes to the client.
    """

    is_ending = False
    is_lingering = False
    write: Callable[[bytes], None]
    _last: LastFrames | None = None
    _takes_frames = True
    _late_bytes = 0
    _drain_timer: asyncio.TimerHandle | None = None

    def read(self, data: bytes) -> None:
        """Read some bytes, those before and behind the last ones apart.

        Args:
            data: any part of any number of frames.
        """
        super().data_received(data)

    @abstractmethod
    def resume_frames(self) -> None:
        """Read frames again."""

    def data_received(self, data: bytes) -> None:
        """Read some bytes, unless the close frame is written.

        Args:
            data: any part of any number of frames.
        """
        if self.is_lingering:
            return
        if self._last is None:
            self.read(data)
            return
        due = self._last.count_bytes(data)
        if due:
            self.read(data[:due])
        if self._last.is_over:
            self._take_no_more()
        if due < len(data):
            self._late_bytes += len(data) - due
            self.read(data[due:])
            self._stop_reading_flood()

    def shutdown(self) -> None:
        """Ask the application to come to an end, while its answers still go out.

        It is told `websocket.disconnect` with code 1012, may answer, and then closes.
        """
        self.is_ending = True
        if not self.handshake_initiated:
            # There is nobody to answer for, and websockets may have ended its side.
            self.transport.close()
            return
        if self.close_sent or not self.handshake_complete:
            super().shutdown()
            return
        self.stop_keepalive()
        self._drain_timer = self.loop.call_later(_LONGEST_DRAIN_S, self._cut_off)
        self._last = LastFrames(self.transport, is_held_back=self.read_paused)
        if self._last.is_over:
            self._take_no_more()
        else:
            self.loop.call_later(_QUIET_S, self._end_quiet, self._last)

    @property
    def is_flooded(self) -> bool:
        """Return whether nothing more is read before the close frame is written.

        To read what a client sends without pause would take the time of the last answers.
        """
        return self._late_bytes > _MOST_LATE_BYTES and not self.close_sent

    def _stop_reading_flood(self) -> None:
        if self.is_flooded and not self.read_paused and not self.disconnected:
            self.read_paused = True
            self.transport.pause_reading()

    def _end_quiet(self, last: LastFrames) -> None:
        """Take no more frames where fewer bytes come than had been counted."""
        if not self._takes_frames or self.disconnected:
            return
        if last.is_quiet(is_held_back=self.read_paused):
            self._take_no_more()
        else:
            self.loop.call_later(_QUIET_S, self._end_quiet, last)

    def _take_no_more(self) -> None:
        """Tell the application to end: it has all frames that had come."""
        if self._takes_frames:
            self._takes_frames = False
            self.queue.put_nowait({"type": "websocket.disconnect", "code": _SERVICE_RESTART})

    def is_taken(self) -> bool:
        """Return whether a message that was read is still the application's."""
        return self._last is None or (self._takes_frames and self._last.take_frame())

    def _cut_off(self) -> None:
        """Close a connection whose answers have not come in time."""
        if self.close_sent or self.transport.is_closing() or not self.writable.is_set():
            self.transport.abort()
            return
        self.conn.send_close(_SERVICE_RESTART)
        self.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._takes_frames = False
        self.queue.put_nowait({"type": "websocket.disconnect", "code": _SERVICE_RESTART})
        self.linger()

    async def send(self, message: Any) -> None:  # noqa: ANN401 -- as uvicorn's
        """Send for the application, and let its close frame reach a client that goes on sending.

        Args:
            message: as ASGI has it.
        """
        await super().send(message)
        if message["type"] == "websocket.close" and self.close_timer is not None:
            self.linger()

    def linger(self) -> None:
        """Close once the client may have read the close frame; pass over what it sends till then.

        TLS can't say that nothing more comes: there the client's own close frame is waited for.
        """
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.resume_frames()
        self.close_timer = self.loop.call_later(_LINGER_S, self.transport.close)
        if self.transport.can_write_eof():
            self.is_lingering = True
            with suppress(OSError):
                self.transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and wait for no answers any more.

        Args:
            exc: why the connection was lost; None where it was closed.
        """
        super().connection_lost(exc)
        if self._drain_timer is not None:
            self._drain_timer.cancel()
