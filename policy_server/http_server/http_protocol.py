"""uvicorn's HTTP protocol over httptools, with three changes.

A response leaves by one write. A web socket's connection lets go of the parser of HTTP. And a
request that offers another protocol, as Java's HttpClient and `curl --http2` offer HTTP/2 with
their first (`Connection: Upgrade`, `Upgrade: h2c`), is answered by HTTP/1.1 with its body read: a
server may ignore an offer (RFC 9110, section 7.8), but the parser stops at the end of the head and
uvicorn takes the body for the next request (Kludex/uvicorn#2722).
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from policy_server.http_server.joined_writes import JoinedWrites

__all__ = ["HttpProtocol"]


class HttpProtocol(HttpToolsProtocol):
    """One connection; uvicorn makes it, and it lives until the connection is lost or upgraded.

    `uvicorn --http policy_server.http_server.http_protocol:HttpProtocol` takes it too.
    """

    _segment = b""
    _unread = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin: head and body of a response are to be one write.

        Args:
            transport: the connection.
        """
        super().connection_made(JoinedWrites(transport))  # type: ignore[arg-type]  # it answers for one

    def data_received(self, data: bytes) -> None:
        """Read a segment of the connection.

        Args:
            data: any part of any number of requests.
        """
        self._unread = data
        while segment := self._unread:
            self._segment, self._unread = segment, b""
            super().data_received(segment)
        self._segment = b""

    def _should_upgrade(self) -> bool:
        """Return whether the parser stops behind this head: for a web socket, or for an offer.

        The request is not begun then; uvicorn calls `handle_websocket_upgrade` instead.
        """
        return self._is_passed_over() or super()._should_upgrade()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection on to the web socket, or pass over an offer of anything else."""
        if self._is_passed_over():
            stopped = sys.exception()
            assert isinstance(stopped, httptools.HttpParserUpgrade), "uvicorn handles it"
            (end_of_head,) = stopped.args
            self._unread = self._head_without_offer() + self._segment[end_of_head:]
            # The old one reads nothing behind a head with `Connection: close`.
            self.parser = _parser_for(self)
            return
        super().handle_websocket_upgrade()
        # As uvicorn does itself where an HTTP connection ends: the two hold each other.
        self.parser = None  # type: ignore[assignment]  # see above

    def _is_passed_over(self) -> bool:
        # A CONNECT stops the parser too, without this header.
        return dict(self.headers).get(b"upgrade", b"websocket").lower() != b"websocket"

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % (name, text) for name, text in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])


def _parser_for(protocol: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """Return a new parser, set as uvicorn sets it."""
    parser = httptools.HttpRequestParser(protocol)
    with suppress(AttributeError):  # before httptools 0.6.3
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
