"""uvicorn's web socket protocol over websockets, with two changes.

At a shutdown the application may finish its answers: uvicorn closes the connection first and asks
the application afterwards, so that answers which are a millisecond away are lost.

And a connection that has gone is freed at once. It is held by a cycle of references: the parser of
websockets is a generator that holds the connection it belongs to, and with the compressor of its
frames that is some 45 kB. The server collects garbage rarely, so that connections waited for it by
the thousand, and one that was open during a collection for much longer.
"""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

__all__ = ["WebSocketProtocol"]

# More than POLICY_SERVER_REQUEST_TIMEOUT_S has as its default. A client that has not had its
# answers by then reads none.
_LONGEST_DRAIN_S = 40.0
_SERVICE_RESTART = 1012


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One web socket; uvicorn makes it, and it lives until the connection is lost.

    `uvicorn --ws policy_server.http_server.web_socket_protocol:WebSocketProtocol` takes it too.
    """

    def shutdown(self) -> None:
        """Ask the application to come to an end, while its answers still go out.

        It is told `websocket.disconnect` with code 1012, may answer, and then closes.
        """
        if self.close_sent or not self.handshake_complete:
            super().shutdown()
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": _SERVICE_RESTART})
        self.loop.call_later(_LONGEST_DRAIN_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and let go of the parser.

        Args:
            exc: why the connection was lost; None where it was closed.
        """
        super().connection_lost(exc)
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
