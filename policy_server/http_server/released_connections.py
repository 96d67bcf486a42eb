"""Connections that go are freed at once, and not when the garbage collector comes by.

A web socket's connection is held by two cycles of references: uvicorn's HTTP parser, which is of no
use any more, and the parser of websockets, a generator that holds what it belongs to. With the
compressor of its frames that is some 45 kB. The server collects rarely (`_settle_garbage_collector`
in app.py): connections waited by the thousand, and one that was open during a collection for much
longer.
"""

from __future__ import annotations

__all__ = ["release_connections"]

_MARK = "releases"


def release_connections() -> None:
    """Teach uvicorn to let go of a web socket's parsers; a second time changes nothing."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
        from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    except ImportError:
        # Without the packages uvicorn takes other implementations, which hold other things.
        return
    upgrade = HttpToolsProtocol.handle_websocket_upgrade
    lose = WebSocketsSansIOProtocol.connection_lost
    if getattr(upgrade, _MARK, False):
        return

    def handle_websocket_upgrade(self: HttpToolsProtocol) -> None:
        upgrade(self)
        # As uvicorn does itself where an HTTP connection ends.
        self.parser = None  # type: ignore[assignment]  # likewise

    def connection_lost(self: WebSocketsSansIOProtocol, exc: Exception | None) -> None:
        lose(self, exc)
        # An inner name of websockets: where it is another, the collector frees the connection.
        parser = getattr(self.conn, "parser", None)
        if parser is not None:
            parser.close()
        _forget_traceback(self.conn.handshake_exc)
        _forget_traceback(getattr(self.conn, "parser_exc", None))

    setattr(handle_websocket_upgrade, _MARK, True)
    HttpToolsProtocol.handle_websocket_upgrade = handle_websocket_upgrade  # type: ignore[method-assign]  # see above
    WebSocketsSansIOProtocol.connection_lost = connection_lost  # type: ignore[method-assign]  # see above


def _forget_traceback(error: BaseException | None) -> None:
    """Let go of what an error went through: it has been answered."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
