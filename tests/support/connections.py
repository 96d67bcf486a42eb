"""Connections without a network: bytes are handed to uvicorn's protocol, which writes to a list."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from policy_server.http_server.connection_limits import (
    ConnectionLimits,
    ConnectionWatch,
    Phase,
)
from policy_server.http_server.hot_heads import HotHeads
from policy_server.http_server.hot_protocol import HotHttpProtocol
from policy_server.http_server.limited_protocol import LimitedHttpProtocol
from policy_server.metrics import Metrics
from policy_server.settings import Settings
from policy_server.web import Application
from tests.support.waiting import turns, until

__all__ = ["LIMITS", "Answer", "Server", "Transport", "answers_in"]

LIMITS = ConnectionLimits.of(Settings())
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")


class Transport(asyncio.Transport):
    """A connection of which nothing is read: the test hands its bytes to the protocol."""

    def __init__(self, peer: tuple[str, int] | None = ("127.0.0.1", 1)) -> None:
        super().__init__({"peername": peer, "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.writes = 0
        self.is_gone = False
        self.is_paused = False
        self.is_ended = False
        self.is_aborted = False
        self.unsent = 0
        self.successor: asyncio.BaseProtocol | None = None
        # The protocol of a client that reads nothing: the connection is full at each write.
        self.unread_by: asyncio.Protocol | None = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Keep the protocol that gets what follows: that of a web socket."""
        self.successor = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol of a web socket, once there is one."""
        assert self.successor is not None, "the HTTP connection has been handed on"
        return self.successor

    def is_closing(self) -> bool:
        return self.is_gone

    def write(self, data: Any) -> None:  # noqa: ANN401 -- any buffer
        self.written += bytes(data)
        self.writes += 1
        if self.unread_by is not None:
            self.unread_by.pause_writing()

    def close(self) -> None:
        self.is_gone = True

    def abort(self) -> None:
        self.is_gone = self.is_aborted = True

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the client has not read, as the test says."""
        return self.unsent

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_ended = True

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


@dataclass(frozen=True)
class Answer:
    """One answer of a connection.

    Attributes:
        status: its status.
        headers: names and values in their order.
        body: its body.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def answers_in(written: bytes) -> list[Answer]:
    """Return the answers in what was written, each of which states its length.

    Frames follow the answer that opens a web socket: they are its body.
    """
    answers: list[Answer] = []
    while written:
        head = _HEAD.match(written)
        assert head is not None, written
        lines = head[2].split(b"\r\n")[:-1]
        headers = tuple(
            (name, value) for name, _, value in (line.partition(b": ") for line in lines)
        )
        if head[1] == b"101":
            return [*answers, Answer(101, headers, written[head.end() :])]
        # The web socket's library writes names in capitals.
        sizes = [int(value) for name, value in headers if name.lower() == b"content-length"]
        end = head.end() + sum(sizes)
        assert len(written) >= end, written
        answers.append(Answer(int(head[1]), headers, written[head.end() : end]))
        written = written[end:]
    return answers


class Server:
    """A uvicorn that listens nowhere, whose connections a test opens.

    Attributes:
        state: uvicorn's counts.
        heads: the heads of hot requests; None where no request is hot.
    """

    def __init__(
        self,
        app: Any,  # noqa: ANN401 -- any application
        *,
        is_hot: bool = False,
        limits: ConnectionLimits = LIMITS,
        metrics: Metrics | None = None,
        **options: Any,  # noqa: ANN401 -- uvicorn's own
    ) -> None:
        self.config = uvicorn.Config(app, log_config=None, lifespan="off", **options)
        self.config.load()
        self.state = ServerState()
        self.state.default_headers = [(b"server", b"uvicorn")]
        log_refused = app.log_refused if isinstance(app, Application) else None
        self.watch = ConnectionWatch(limits, metrics, log_refused=log_refused)
        self.heads: HotHeads | None = None
        if is_hot:
            assert isinstance(app, Application)
            assert app.hot_routes is not None
            self.heads = HotHeads(app.hot_routes, root_path=self.config.root_path)

    def connect(self) -> tuple[LimitedHttpProtocol, Transport]:
        """Open a connection."""
        transport = Transport()
        protocol = (
            LimitedHttpProtocol(self.config, self.state, {}, watch=self.watch)
            if self.heads is None
            else HotHttpProtocol(self.config, self.state, {}, watch=self.watch, heads=self.heads)
        )
        protocol.connection_made(transport)
        return protocol, transport

    async def exchange(self, segments: Sequence[bytes], *, turns_between: int = 1) -> Transport:
        """Send a connection's segments, wait for all answers, and end it."""
        protocol, transport = self.connect()
        for segment in segments:
            if transport.is_gone:
                break
            receiver = protocol if transport.successor is None else transport.successor
            assert isinstance(receiver, asyncio.Protocol), "of uvicorn's"
            receiver.data_received(segment)
            await turns(turns_between)
        if transport.successor is None:
            await until(lambda: self._is_settled(protocol), pause_s=0)
        else:
            await until(lambda: bool(transport.written), pause_s=0)
        await turns(3)
        (transport.successor or protocol).connection_lost(None)
        await until(lambda: not self.state.tasks, pause_s=0)
        return transport

    def _is_settled(self, protocol: LimitedHttpProtocol) -> bool:
        """Return whether all is answered but a request that waits for more of its body."""
        if not self.state.tasks:
            # What was held is read a turn later.
            return protocol.phase() is not Phase.BUSY or protocol.transport.is_closing()
        if len(self.state.tasks) != 1:
            return False
        # There is no cycle before the first request.
        is_waiting = getattr(protocol.cycle, "more_body", False) and not protocol.pipeline
        return is_waiting and not protocol.cycle.body
