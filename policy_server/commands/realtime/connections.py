"""Connections of a closed loop: one question, one answer, on a connection that stays open.

They block, and hold neither thread nor event loop, so that little but the server is measured.
"""

from __future__ import annotations

import socket
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import httptools
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from policy_server.commands.server_addresses import ServerAddress, read_address
from policy_server.commands.server_answers import MOST_MEGABYTES
from policy_server.commands.trusted_certificates import secure_context
from policy_server.errors import ServerAnswerError

__all__ = ["Connection", "HttpConnection", "Place", "StreamConnection"]

_MOST_BYTES = 1 << 16
_MOST_ANSWER_BYTES = MOST_MEGABYTES << 20
_OK = 200
_SWITCHING = 101


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place where a server listens, and the way to talk to it.

    Attributes:
        url: the server's address, with a proxy's prefix if there is one.
        uds: its UNIX socket, in place of the host and port in `url`; None for TCP.
        key: the access key; None to send none.
        timeout_s: the longest wait for a connection or an answer, in seconds.
    """

    url: str
    uds: str | None = None
    key: str | None = None
    timeout_s: float = 10.0

    @property
    def address(self) -> ServerAddress:
        """Return the address, read.

        Raises:
            UsageError: if it is none.
        """
        return read_address(self.url)

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers that every request has."""
        key = {} if self.key is None else {"access-token": self.key}
        return {**self.address.headers, **key}

    @property
    def where(self) -> str:
        """Return the name of the place in messages."""
        return self.address.shown if self.uds is None else self.uds

    def connect(self) -> socket.socket:
        """Return an open socket.

        Raises:
            ServerAnswerError: if no server listens there.
            UsageError: if the address is none.
        """
        try:
            return self._connect()
        except ssl.SSLError as error:
            raise ServerAnswerError(f"{self.where}: no secure connection: {error}") from error
        except OSError as error:
            raise ServerAnswerError(
                f"{self.where}: no server answers there; start one with `uvicorn app:app`, or name "
                "another with --url or --uds"
            ) from error

    def _connect(self) -> socket.socket:
        if self.uds is not None:
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(self.timeout_s)
            link.connect(self.uds)
            return link
        address = self.address
        link = socket.create_connection((address.hostname, address.port), self.timeout_s)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.is_secure:
            return secure_context().wrap_socket(link, server_hostname=address.hostname)
        return link


class Connection(ABC):
    """One connection, which asks one route."""

    def __init__(self, place: Place) -> None:
        """Open it.

        Args:
            place: where the server is.

        Raises:
            ServerAnswerError: if it can't be opened.
        """
        self._place = place
        self._link = place.connect()
        self._expect_answer()

    def close(self) -> None:
        """Close it."""
        self._link.close()

    @abstractmethod
    def encode(self, body: bytes) -> bytes:
        """Return the bytes that ask about an observation, before the clock runs.

        Args:
            body: JSON.
        """

    @abstractmethod
    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a question, and wait for its answer.

        Args:
            request: as `encode` made it.

        Returns:
            The status and the JSON of the answer.

        Raises:
            ServerAnswerError: if the connection breaks, or no answer comes in time.
        """

    def _expect_answer(self) -> None:
        """Begin the time and the bytes that one answer may take, the sending of a question too."""
        self._until = time.monotonic() + self._place.timeout_s
        self._received = 0

    def _receive(self) -> bytes:
        try:
            # A socket's own timeout starts anew with each byte that comes.
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimeoutError  # noqa: TRY301 -- is the socket's own a moment later
            self._link.settimeout(left)
            data = self._link.recv(_MOST_BYTES)
        except TimeoutError as error:
            raise ServerAnswerError(
                f"{self._place.where}: no answer within {self._place.timeout_s:g} s; look into the "
                "server's log"
            ) from error
        except OSError as error:
            raise self._lost() from error
        if not data:
            raise self._lost()
        self._received += len(data)
        if self._received > _MOST_ANSWER_BYTES:
            raise ServerAnswerError(
                f"{self._place.where}: the answer is larger than {MOST_MEGABYTES} MB; is it a "
                "Policy Server?"
            )
        return data

    def _send(self, data: bytes) -> None:
        try:
            self._link.settimeout(self._place.timeout_s)
            self._link.sendall(data)
        except OSError as error:
            raise self._lost() from error

    def _lost(self) -> ServerAnswerError:
        return ServerAnswerError(f"{self._place.where}: the server has closed the connection")


class HttpConnection(Connection):
    """HTTP/1.1, kept alive."""

    def __init__(self, place: Place, route: str) -> None:
        """Open it; see `Connection`.

        Args:
            place: where the server is.
            route: such as `/predict`, below the proxy's prefix.
        """
        super().__init__(place)
        address = place.address
        lines = [
            f"POST {address.path}{route} HTTP/1.1",
            f"host: {address.host}",
            "content-type: application/json",
            *(f"{name}: {value}" for name, value in place.headers.items()),
        ]
        self._head = "\r\n".join(lines).encode()
        self._parts: list[bytes] = []
        self._is_whole = False
        self._parser = httptools.HttpResponseParser(self)

    def encode(self, body: bytes) -> bytes:
        """Return a request; see `Connection.encode`."""
        return b"%b\r\ncontent-length: %d\r\n\r\n%b" % (self._head, len(body), body)

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request, and wait for its answer; see `Connection.ask`."""
        self._expect_answer()
        self._parts.clear()
        self._is_whole = False
        self._send(request)
        while not self._is_whole:
            data = self._receive()
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                raise ServerAnswerError(
                    f"{self._place.where}: the answer is no HTTP; is it a Policy Server?"
                ) from error
        return self._parser.get_status_code(), b"".join(self._parts)

    def on_body(self, data: bytes) -> None:
        """Take a part of a body; called by the parser."""
        self._parts.append(data)

    def on_message_complete(self) -> None:
        """Note that the answer is whole; called by the parser."""
        self._is_whole = True


class StreamConnection(Connection):
    """A web socket, one frame in flight."""

    def __init__(self, place: Place, route: str) -> None:
        """Open it, and shake hands; see `Connection`.

        Args:
            place: where the server is.
            route: such as `/predict/stream`, below the proxy's prefix.
        """
        super().__init__(place)
        address = place.address
        scheme = "wss" if address.is_secure else "ws"
        # A frame is a few hundred bytes: packing it costs more than it saves.
        uri = parse_uri(f"{scheme}://{address.host}{address.path}{route}")
        self._protocol = ClientProtocol(uri)
        request = self._protocol.connect()
        for name, value in place.headers.items():
            request.headers[name] = value
        try:
            self._protocol.send_request(request)
            self._shake_hands()
        except BaseException:
            self.close()
            raise

    def encode(self, body: bytes) -> bytes:
        """Return a body, which is masked when it is sent; see `Connection.encode`."""
        return body

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a frame, and wait for its answer; see `Connection.ask`."""
        self._expect_answer()
        try:
            self._protocol.send_text(request)
        except WebSocketException as error:
            raise self._lost() from error
        self._flush()
        while True:
            for event in self._next_events():
                if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                    return _status_of(bytes(event.data)), bytes(event.data)
                if isinstance(event, Frame) and event.opcode is Opcode.CLOSE:
                    raise self._lost()

    def _next_events(self) -> list[object]:
        self._protocol.receive_data(self._receive())
        self._flush()
        return [*self._protocol.events_received()]

    def _flush(self) -> None:
        """Send what the protocol has to: a question, or the answer to a ping."""
        for data in self._protocol.data_to_send():
            if data:
                self._send(data)

    def _shake_hands(self) -> None:
        self._flush()
        while True:
            for event in self._next_events():
                if isinstance(event, Response):
                    self._check(event)
                    return
            if self._protocol.handshake_exc is not None:
                break
        raise self._lost()

    def _check(self, response: Response) -> None:
        if response.status_code == _SWITCHING and self._protocol.handshake_exc is None:
            return
        error = self._protocol.handshake_exc
        text = bytes(response.body or b"").decode(errors="replace")
        said = text if isinstance(error, InvalidStatus) and text else str(error)
        raise ServerAnswerError(
            f"{self._place.where}: refused the stream with {response.status_code}: {said}"
        )


def _status_of(answer: bytes) -> int:
    """Return the status of a frame: an error's own, else 200."""
    if not answer.startswith(b'{"status":'):
        return _OK
    return int(answer[len(b'{"status":') : answer.index(b",")])
