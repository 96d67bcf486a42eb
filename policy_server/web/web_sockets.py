"""Two things that uvicorn's web sockets lack: one write for many answers, and a drain.

uvicorn writes each frame by itself; with many in flight these system calls are most of what a frame
costs. At a shutdown it closes web sockets first and asks the application afterwards, so that
answers which are a millisecond away are lost.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["tune_web_sockets"]

_WRITE_AT_ONCE = 65_536
# More than POLICY_SERVER_REQUEST_TIMEOUT_S has as its default. What is left then reads no answers.
_LONGEST_DRAIN_S = 40.0
_SERVICE_RESTART = 1012


def tune_web_sockets() -> None:
    """Teach uvicorn both; once is enough.

    At a shutdown the application is told `websocket.disconnect` with code 1012 while the connection
    is still open: it may answer, and then closes it.
    """
    try:
        from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    except ImportError:
        # Without the package websockets uvicorn takes another implementation, as it is.
        return
    connect = WebSocketsSansIOProtocol.connection_made
    close = WebSocketsSansIOProtocol.shutdown
    if getattr(close, "drains", False):
        return

    def connection_made(self: WebSocketsSansIOProtocol, transport: asyncio.BaseTransport) -> None:
        connect(self, transport)
        self.transport = _GatheredWrites(self.transport, self.loop)  # type: ignore[assignment]  # has what uvicorn calls

    def shutdown(self: WebSocketsSansIOProtocol) -> None:
        if self.close_sent or not self.handshake_complete:
            close(self)
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": _SERVICE_RESTART})
        self.loop.call_later(_LONGEST_DRAIN_S, self.transport.abort)

    shutdown.drains = True  # type: ignore[attr-defined]  # a mark on a function
    WebSocketsSansIOProtocol.connection_made = connection_made  # type: ignore[method-assign]  # see above
    WebSocketsSansIOProtocol.shutdown = shutdown  # type: ignore[method-assign]  # see above


class _GatheredWrites:
    """A transport that writes at once what is written in one turn of the event loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- the transport's own
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _WRITE_AT_ONCE:
            # Beyond, the transport has to say when it is full.
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            self._transport.write(b"".join(parts))
