"""A drain for uvicorn's web sockets.

At a shutdown uvicorn closes web sockets first and asks the application afterwards, so that answers
which are a millisecond away are lost.
"""

from __future__ import annotations

__all__ = ["tune_web_sockets"]

# More than POLICY_SERVER_REQUEST_TIMEOUT_S has as its default. What is left then reads no answers.
_LONGEST_DRAIN_S = 40.0
_SERVICE_RESTART = 1012


def tune_web_sockets() -> None:
    """Teach uvicorn to let its web sockets finish; once is enough.

    At a shutdown the application is told `websocket.disconnect` with code 1012 while the connection
    is still open: it may answer, and then closes it.
    """
    try:
        from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    except ImportError:
        # Without the package websockets uvicorn takes another implementation, as it is.
        return
    close = WebSocketsSansIOProtocol.shutdown
    if getattr(close, "drains", False):
        return

    def shutdown(self: WebSocketsSansIOProtocol) -> None:
        if self.close_sent or not self.handshake_complete:
            close(self)
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": _SERVICE_RESTART})
        self.loop.call_later(_LONGEST_DRAIN_S, self.transport.abort)

    shutdown.drains = True  # type: ignore[attr-defined]  # a mark on a function
    WebSocketsSansIOProtocol.shutdown = shutdown  # type: ignore[method-assign]  # see above
