"""uvicorn's HTTP protocol over httptools, with a few changes.

A response leaves by one write. What is no HTTP is refused behind the answers to the requests before
it, which uvicorn would cut off. A web socket's connection lets go of the parser of HTTP. And a
request that offers another protocol, as Java's HttpClient and `curl --http2` offer HTTP/2 with
their first (`Connection: Upgrade`, `Upgrade: h2c`), is answered by HTTP/1.1 with its body read: a
server may ignore an offer (RFC 9110, section 7.8), but the parser stops at the end of the head and
uvicorn takes the body for the next request (Kludex/uvicorn#2722). An offer of a web socket that can
open none, by another method than GET, with a body or by HTTP/1.0, is such an offer too: uvicorn
hands it to the web socket without its body, which then waits for that, and no limit ends the
connection.

Lines behind a body (trailers) are dropped: uvicorn takes them for headers of the request, past
every proxy that looks at its head (RFC 9110, section 6.5.1, forbids it).
"""

from __future__ import annotations

import asyncio
import enum
import re
import sys
from contextlib import suppress
from ipaddress import IPv6Address

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from policy_server.http_server.joined_writes import JoinedWrites

__all__ = ["HttpProtocol", "Reads", "is_sound", "plain_client", "value_of"]

# A name or an address, and a port.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")

# An IPv4 address at a socket for both families.
_MAPPED = "::ffff:"


class Reads(enum.Enum):
    """The part of a request that uvicorn's parser has begun to read, and has not whole."""

    NOTHING = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class HttpProtocol(HttpToolsProtocol):
    """One connection; uvicorn makes it, and it lives until the connection is lost or upgraded.

    `uvicorn --http policy_server.http_server.http_protocol:HttpProtocol` takes it too.
    """

    _segment = b""
    _unread = b""
    _reads = Reads.NOTHING
    _refusal: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin: head and body of a response are to be one write.

        Args:
            transport: the connection.
        """
        super().connection_made(JoinedWrites(transport))  # type: ignore[arg-type]  # it answers for one
        self.client = plain_client(self.client)

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

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first

    def on_message_begin(self) -> None:
        """Begin to read a request."""
        self._reads = Reads.HEAD
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a line of a head, or drop one behind a body.

        Args:
            name: before the colon.
            value: behind it.
        """
        if self._reads is Reads.HEAD:
            super().on_header(name, value_of(value))

    def on_headers_complete(self) -> None:
        """Begin to answer a request, or put it behind those that are not answered.

        Raises:
            ValueError: if it is of no one host or of another framing, which ends the parser.
            AttributeError: uvicorn's, if its address has no path, which ends the parser too.
        """
        if not is_sound(self.headers):
            raise ValueError(self.headers)
        if self.parser.get_http_version() == "1.0":
            # Its clients know no 100 (RFC 9110, section 10.1.1).
            self.expect_100_continue = False
        cycle_before = self.cycle
        # It raises for an address without a path: the request is still in its head then.
        super().on_headers_complete()
        self._reads, self._cycle_before = Reads.BODY, cycle_before

    def on_message_complete(self) -> None:
        """End reading a request."""
        self._reads = Reads.NOTHING
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, once the requests before it are answered.

        Args:
            msg: the answer.
        """
        if self._reads is Reads.BODY and self.pipeline and self.pipeline[0][0] is self.cycle:
            # Its body is none, and it waits behind others, so that nobody has begun with it.
            self.pipeline.popleft()
            self.cycle, self._reads = self._cycle_before, Reads.NOTHING
        if self._is_answering and self._reads is not Reads.BODY:
            self._refusal = msg
        else:
            self.refuse_bytes(msg)

    def refuse_bytes(self, message: str) -> None:
        """Refuse what is no HTTP, and close the connection.

        Args:
            message: the answer.
        """
        super().send_400_response(message)

    def on_response_complete(self) -> None:
        """Go on with the connection's next request, or refuse what follows and is none."""
        super().on_response_complete()
        if self._refusal is not None and not self._is_answering:
            self.refuse_bytes(self._refusal)

    def _should_upgrade(self) -> bool:
        """Return whether the parser stops behind this head: for a web socket, or for an offer.

        The request is not begun then; uvicorn calls `handle_websocket_upgrade` instead.
        """
        return self._is_passed_over() or super()._should_upgrade()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection on to the web socket, or pass over any other offer."""
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
        if self._is_answering:
            # The answers to the requests before it would come inside the web socket.
            return b"upgrade" in dict(self.headers)
        headers = dict(self.headers)
        upgrade = headers.get(b"upgrade")
        if upgrade is None:  # a CONNECT stops the parser too
            return False
        # Java's web sockets say that their body has no bytes.
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        # A server ignores what an older client offers (RFC 9110, section 7.8).
        is_new_enough = self.parser.get_http_version() != "1.0"
        is_opening = self.parser.get_method() == b"GET" and not has_body and is_new_enough
        return upgrade.lower() != b"websocket" or not is_opening

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % (name, text) for name, text in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])


def plain_client(client: tuple[str, int] | None) -> tuple[str, int] | None:
    """Return a client by its IPv4 address where it has one.

    A socket for both families, such as that of `uvicorn --workers 2 --host ::`, tells
    `::ffff:127.0.0.1`, which is in no list of trusted proxies.

    Args:
        client: address and port; None at a UNIX socket.
    """
    if client is None or not client[0].startswith(_MAPPED):
        return client
    mapped = IPv6Address(client[0]).ipv4_mapped
    return client if mapped is None else (str(mapped), client[1])


def value_of(value: bytes) -> bytes:
    """Return a header's value without the white space behind it, which is no part of it.

    The parser takes off what is before the value only (RFC 9110, section 5.5, takes off both).

    Args:
        value: as the parser gives it.
    """
    return value.rstrip(b" \t")


def is_sound(headers: list[tuple[bytes, bytes]]) -> bool:
    """Return whether a request is for one host at most, and of a framing that is understood.

    Proxies may take another of two hosts, or another framing, than this server does (RFC 9112,
    sections 3.2 and 6.1).

    Args:
        headers: names in lower case, and values.
    """
    hosts = [value for name, value in headers if name == b"host"]
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    is_one_host = not hosts or (len(hosts) == 1 and _HOST.fullmatch(hosts[0]) is not None)
    return is_one_host and codings in ([], [b"chunked"])


def _parser_for(protocol: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """Return a new parser, set as uvicorn sets it."""
    parser = httptools.HttpRequestParser(protocol)
    with suppress(AttributeError):  # before httptools 0.6.3
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
