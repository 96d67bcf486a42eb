"""Calls straight to a replica: one socket from each web process to each replica.

A call by Ray Serve takes milliseconds of both processors, however few rows it has. Ray Serve still
starts, watches and replaces the replicas, and gives their addresses; a call that finds no
connection, such as after its replica has ended, goes by Ray Serve.

A frame is its length, then a pickle. A connection starts with a secret, and nothing else of it is
read without. Only programs that may use Ray get the secret, and those may run code anyway.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import secrets
import socket
import struct
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from policy_server.errors import PolicyFailedError, PolicyServerError
from policy_server.policy import PolicyOutputs

__all__ = ["CallServer", "ConnectionLostError", "DirectCalls", "ReplicaAddress", "answer_or_error"]

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_LENGTH = struct.Struct("<Q")
_SECRET_BYTES = 32
_BUFFER_BYTES = 1 << 20
_CONNECT_TIMEOUT_S = 5.0
# After this a machine that has gone without a word counts as gone.
_SILENCE_S = 5
_PROBES = 3
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0
_PAUSE_GROWTH = 1.3


@dataclass(frozen=True)
class ReplicaAddress:
    """The address at which a replica takes calls.

    Attributes:
        host: its machine's address.
        port: its port there.
        secret: the bytes that a connection starts with.
        replica: Ray's name of the replica, its actor's id.
    """

    host: str
    port: int
    secret: bytes
    replica: str


class ConnectionLostError(Exception):
    """A replica's connection ended before the answer: the call is made again by another one."""


class CallServer:
    """A replica's side: answers calls one after another."""

    def __init__(
        self, infer: Callable[..., Awaitable[PolicyOutputs]], host: str, *, replica: str
    ) -> None:
        """Own a port, from the first `address` to `aclose`, and the connections to it.

        Args:
            infer: answers observations, as `PolicyReplica.infer`.
            host: the address to listen on.
            replica: Ray's name of the replica.
        """
        self._replica = replica
        self._infer = infer
        self._host = host
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._starting = asyncio.Lock()

    async def address(self) -> ReplicaAddress:
        """Return the address for calls; listening begins with the first call of this."""
        async with self._starting:
            if self._server is None:
                self._server = await asyncio.start_server(
                    self._serve, self._host, 0, limit=_BUFFER_BYTES
                )
        port: int = self._server.sockets[0].getsockname()[1]
        return ReplicaAddress(self._host, port, self._secret, self._replica)

    async def aclose(self) -> None:
        """Take no more calls, and end the connections."""
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _watch_silence(writer)
        self._writers.add(writer)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                given = await reader.readexactly(_SECRET_BYTES)
            if not secrets.compare_digest(given, self._secret):
                return
            writer.write(_framed(True))  # noqa: FBT003 -- a value
            while True:
                arguments = await _read(reader)
                writer.write(_framed(await answer_or_error(self._infer, *arguments)))
                await writer.drain()
        except (OSError, EOFError, TimeoutError):
            logger.info("direct_calls_ended")
        finally:
            self._writers.discard(writer)
            writer.close()


async def answer_or_error(
    method: Callable[..., Awaitable[_Answer]], *arguments: object
) -> _Answer | PolicyServerError:
    """Answer a call, or return the error to raise in the process that asked.

    Args:
        method: answers it, as `PolicyReplica.infer` does.
        arguments: the method's.

    Returns:
        The answer; or an error with its type. Its cause doesn't cross to another process, so that
        the traceback goes along as a note: the web process logs it, once for each observation to
        blame and not for each call that was made to find that.
    """
    try:
        return await method(*arguments)
    except Exception as error:
        failed = PolicyFailedError.of(error)
        # A replica that could not load its policy raises the same error for every call.
        if failed.__cause__ is not None and not hasattr(failed, "__notes__"):
            reason = "".join(traceback.format_exception(failed.__cause__))
            failed.add_note(f"In the replica:\n{reason}")
        return failed


class DirectCalls:
    """A web process's side: connections to as many replicas as are found, kept up meanwhile."""

    def __init__(
        self,
        find: Callable[[], Awaitable[ReplicaAddress]],
        *,
        replicas: int,
        on_lost: Callable[[str], None],
    ) -> None:
        """Own the connections, from `open` to `aclose`.

        Args:
            find: returns the address of any replica.
            replicas: the number of replicas to connect to.
            on_lost: called with Ray's name of a replica when its connection has ended.
        """
        self._find = find
        self._replicas = replicas
        self._on_lost = on_lost
        self._is_closing = False
        self._connections: dict[ReplicaAddress, _Connection] = {}
        self._is_lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, as far as that goes at once; the rest follows."""
        await self._connect_one()
        self._keeper = asyncio.create_task(self._keep())

    async def aclose(self) -> None:
        """End every connection."""
        self._is_closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for connection in list(self._connections.values()):
            await connection.aclose()

    def __len__(self) -> int:
        """Return how many replicas are connected."""
        return len(self._connections)

    @property
    def is_connected(self) -> bool:
        """Return whether there is any connection."""
        return bool(self._connections)

    async def infer(self, *arguments: object) -> PolicyOutputs:
        """Answer observations by the replica that has least to do.

        Args:
            arguments: those of `PolicyReplica.infer`.

        Raises:
            ConnectionLostError: if the connection ends meanwhile.
            PolicyServerError: the error that the replica raised.
        """
        connection = min(self._connections.values(), key=len)
        return await connection.call(arguments)

    async def _keep(self) -> None:
        """Connect to missing replicas, trying often at first and then seldom."""
        pause_s = _FIRST_PAUSE_S
        while True:
            if len(self._connections) >= self._replicas:
                self._is_lost.clear()
                await self._is_lost.wait()
                pause_s = _FIRST_PAUSE_S
            await self._connect_one()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * _PAUSE_GROWTH, _LONGEST_PAUSE_S)

    async def _connect_one(self) -> None:
        """Connect to the replica that Ray Serve names, unless it is connected already."""
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                address = await self._find()
                if address not in self._connections:
                    connection = await _Connection.open(address, self._drop)
                    self._connections[address] = connection
                    logger.info(
                        "replica_connected", extra={"host": address.host, "port": address.port}
                    )
        except Exception as error:
            # Only time is lost: calls go by Ray Serve.
            logger.info("replica_not_connected", extra={"reason": repr(error)})

    def _drop(self, address: ReplicaAddress) -> None:
        self._connections.pop(address, None)
        self._is_lost.set()
        if not self._is_closing:
            self._on_lost(address.replica)


class _Connection:
    """One connection; its answers come in the order of its calls."""

    def __init__(
        self,
        address: ReplicaAddress,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        drop: Callable[[ReplicaAddress], None],
    ) -> None:
        self._address = address
        self._reader = reader
        self._writer = writer
        self._drop = drop
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._receiver = asyncio.create_task(self._receive())

    @classmethod
    async def open(
        cls, address: ReplicaAddress, drop: Callable[[ReplicaAddress], None]
    ) -> _Connection:
        """Connect, and send the secret.

        Args:
            address: the replica's address.
            drop: called when the connection has ended.
        """
        reader, writer = await asyncio.open_connection(
            address.host, address.port, limit=_BUFFER_BYTES
        )
        try:
            _watch_silence(writer)
            writer.write(address.secret)
            await _read(reader)
        except BaseException:
            writer.close()
            raise
        return cls(address, reader, writer, drop)

    def __len__(self) -> int:
        """Return how many calls wait."""
        return len(self._waiting)

    async def call(self, arguments: tuple[object, ...]) -> PolicyOutputs:
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._writer.write(_framed(arguments))
        found = await answer
        if isinstance(found, PolicyServerError):
            raise found
        assert isinstance(found, PolicyOutputs), "a replica gives answers or errors"
        return found

    async def aclose(self) -> None:
        self._receiver.cancel()
        await asyncio.gather(self._receiver, return_exceptions=True)

    async def _receive(self) -> None:
        try:
            while True:
                found = await _read(self._reader)
                answer = self._waiting.popleft()
                if not answer.done():
                    answer.set_result(found)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            logger.info("replica_disconnected", extra={"reason": repr(error)})
        finally:
            # No call is added from here on.
            self._drop(self._address)
            self._writer.close()
            for answer in self._waiting:
                if not answer.done():
                    answer.set_exception(ConnectionLostError())


def _framed(value: object) -> bytes:
    content = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(content)) + content


async def _read(reader: asyncio.StreamReader) -> Any:  # noqa: ANN401 -- what was pickled
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))  # noqa: S301 -- behind the secret


def _watch_silence(writer: asyncio.StreamWriter) -> None:
    """End the connection when the other machine has gone without a word."""
    connection: socket.socket = writer.get_extra_info("socket")
    options = [
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", _PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", _SILENCE_S * 1000),
    ]
    for level, name, value in options:
        # Not every system has each.
        with suppress(OSError):
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(level, option, value)
