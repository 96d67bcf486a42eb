"""A replica that a web process is connected to, and the calls that it has."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from policy_server.backends.ray.call_connection import CallConnection
from policy_server.backends.ray.call_frames import (
    Body,
    Frame,
    FrameError,
    FrameKind,
    bare_frame,
    error_of,
    outputs_of,
)
from policy_server.backends.ray.call_proofs import client_handshake
from policy_server.backends.ray.replica_list import ReplicaAddress
from policy_server.backends.ray_processes import Process
from policy_server.errors import PolicyServerError
from policy_server.policy import PolicyOutputs

__all__ = ["AskedCall", "ConnectedReplica", "ConnectionLostError", "OnAnswer"]

logger = logging.getLogger(__name__)

# How long the end of one connection waits for the last frames of the other.
_LAST_WORDS_S = 0.05


class ConnectionLostError(Exception):
    """A replica's connection ended before the answer: the call is made again by another one.

    Attributes:
        was_computed: whether the replica had said that it computes this call.
    """

    def __init__(self, *, was_computed: bool = False) -> None:
        super().__init__()
        self.was_computed = was_computed


@dataclass(eq=False, slots=True)
class AskedCall:
    """A call that has been sent and not been answered.

    Attributes:
        number: its number, which no other call of this process and application has.
        frame: its frame.
        rows: how many rows it has.
        answered: takes the outputs, or the error.
        asked: when it was asked, by `time.monotonic`.
        look_at: when it is late, by the same clock.
        deadline: when it is given up.
        replicas: those that compute it.
        first: the one that was asked first.
        is_watched: whether the replicas tell when they begin with it.
        begun: those that have.
    """

    number: int
    frame: Frame
    rows: int
    answered: Callable[[PolicyOutputs | Exception], None]
    asked: float
    look_at: float
    deadline: float
    replicas: list[ConnectedReplica] = field(default_factory=list)
    first: ConnectedReplica | None = None
    is_watched: bool = False
    begun: list[ConnectedReplica] = field(default_factory=list)

    def withdraw(self) -> None:
        """Tell the replicas that compute it that it is not needed."""
        for replica in self.replicas:
            replica.withdraw(self)
        self.replicas.clear()


OnAnswer = Callable[["ConnectedReplica", AskedCall, PolicyOutputs | PolicyServerError], None]


class ConnectedReplica:
    """A replica with the calls that it has, over a connection for short frames and one for long.

    Attributes:
        address: the replica's.
        is_proved: whether both connections are open.
        heard_at: when its last frame came, by `time.monotonic`.
        was_stopped: whether a signal had stopped its process, which was killed for that.
    """

    def __init__(
        self,
        address: ReplicaAddress,
        on_answer: OnAnswer,
        on_end: Callable[[ConnectedReplica], None],
    ) -> None:
        """Own the connections, from `open` until one of them ends.

        Args:
            address: the replica's.
            on_answer: called with each answer.
            on_end: called once when the replica can't be asked any more.
        """
        self.address = address
        self.is_proved = False
        self.was_stopped = False
        self._on_answer = on_answer
        self._on_end = on_end
        self._calls: dict[int, AskedCall] = {}
        self._pinged_at = math.inf
        self._pulse: asyncio.Future[None] | None = None
        self.heard_at = -math.inf
        # Closes the connection that is left when the other one has ended.
        self._ending: asyncio.TimerHandle | None = None
        self._short = _Line(self)
        self._long = _Line(self)

    @property
    def calls(self) -> list[AskedCall]:
        """Return the calls that it has not answered."""
        return list(self._calls.values())

    @property
    def is_still(self) -> bool:
        """Return whether it was late, and has not answered a ping since."""
        return self._pinged_at < math.inf

    def is_still_since(self, moment: float) -> bool:
        """Return whether it has not answered a ping that was sent before a time."""
        return self._pinged_at <= moment

    def load(self) -> tuple[bool, int]:
        """Return the key by which replicas are ordered: still ones last, then by their calls."""
        return self._pinged_at < math.inf or self._ending is not None, len(self._calls)

    async def open(self) -> None:
        """Connect, and prove the key.

        Raises:
            OSError: if it can't be reached, or does not know the key.
        """
        try:
            await self._short.open(self.address)
            await self._long.open(self.address)
        except BaseException:
            self.close("not connected")
            raise
        self.is_proved = True

    def send(self, call: AskedCall) -> None:
        """Have it compute a call."""
        self._calls[call.number] = call
        call.replicas.append(self)
        if call.first is None:
            call.first = self
        line = self._line_of(call)
        if call.is_watched:
            line.send(bare_frame(FrameKind.WATCH, call.number))
        line.send(call.frame)

    def withdraw(self, call: AskedCall) -> None:
        """Tell it that a call is not needed, if it has not answered the call."""
        if self._calls.pop(call.number, None) is not None:
            self._line_of(call).send(bare_frame(FrameKind.CANCEL, call.number))

    def ping(self, now: float) -> None:
        """Send it a ping, unless it owes the answer to another one."""
        if not self.is_still:
            self._pinged_at = now
            self._short.send(bare_frame(FrameKind.PING, 0))

    def end_if_stopped(self) -> None:
        """Kill its process if it is one of this machine that a signal has stopped (SIGSTOP).

        Nothing else would end it for a minute and more: Ray Serve asks three times for half a
        minute each, and the replica's own watch is stopped too.
        """
        pid = self._short.process
        if pid is None or self.was_stopped or not (process := Process.of(pid)).is_stopped():
            return
        self.was_stopped = True
        logger.error(
            "replica_stands_still", extra={"replica": self.address.replica, "replica_pid": pid}
        )
        process.kill()

    def pulse(self) -> asyncio.Future[None]:
        """Ping it though it is not late, and return a future that ends with its answer.

        The future is cancelled where the connection ends.
        """
        if self._pulse is None or self._pulse.done():
            self._pulse = asyncio.get_running_loop().create_future()
            self._short.send(bare_frame(FrameKind.PING, 0))
        return self._pulse

    def received(self, kind: int, number: int, body: Body) -> None:
        """Take a frame; see `FrameReceiver`."""
        self.heard_at = time.monotonic()
        if kind == FrameKind.PONG:
            self._pinged_at = math.inf
            if self._pulse is not None and not self._pulse.done():
                self._pulse.set_result(None)
            return
        if kind not in (FrameKind.ANSWER, FrameKind.ERROR, FrameKind.BEGUN):
            raise FrameError(f"a frame of kind {kind}")
        # A call that was withdrawn meanwhile may be answered all the same.
        if (call := self._calls.get(number)) is None:
            return
        if kind == FrameKind.BEGUN:
            call.begun.append(self)
            return
        outcome = outputs_of(body) if kind == FrameKind.ANSWER else error_of(body)
        if isinstance(outcome, PolicyOutputs) and len(outcome) != call.rows:
            raise FrameError(f"{len(outcome)} answers to {call.rows} rows")
        del self._calls[number]
        call.replicas.remove(self)
        self._on_answer(self, call, outcome)

    def close(self, reason: str) -> None:
        """End the connections."""
        for line in (self._short, self._long):
            line.close(reason)

    def ended(self) -> None:
        """Take note that one of the connections has ended; the other one ends with what it has."""
        if self._short.is_open or self._long.is_open:
            if self._ending is None:
                loop = asyncio.get_running_loop()
                reason = "its other connection has ended"
                self._ending = loop.call_later(_LAST_WORDS_S, self.close, reason)
            return
        if self._ending is not None:
            self._ending.cancel()
        if self._pulse is not None:
            self._pulse.cancel()
        if self.is_proved:
            self.is_proved = False
            for call in self._calls.values():
                call.replicas.remove(self)
            self._on_end(self)

    def _line_of(self, call: AskedCall) -> _Line:
        """Return the connection of a call: one that takes long to send delays no short one."""
        return self._long if len(call.frame) > 1 else self._short


class _Line:
    """One of the connections to a replica; see `FrameReceiver`."""

    def __init__(self, replica: ConnectedReplica) -> None:
        self._replica = replica
        self._connection: CallConnection | None = None
        self._is_proved: asyncio.Future[None] | None = None
        self._has_ended = False

    async def open(self, address: ReplicaAddress) -> None:
        loop = asyncio.get_running_loop()
        self._is_proved = loop.create_future()
        handshake = client_handshake(address.key, address.application, address.replica)
        connection = self._connection = CallConnection(handshake, self)
        if address.path:
            await loop.create_unix_connection(lambda: connection, address.path)
        else:
            await loop.create_connection(lambda: connection, address.host, address.port)
        await self._is_proved

    @property
    def is_open(self) -> bool:
        return self._connection is not None and not self._has_ended

    @property
    def process(self) -> int | None:
        return self._connection.peer if self._connection is not None and self.is_open else None

    def send(self, frame: Frame) -> None:
        assert self._connection is not None, "it is open"
        self._connection.send(frame)

    def close(self, reason: str) -> None:
        if self._connection is not None:
            self._connection.close(reason)

    def proved(self) -> None:
        assert self._is_proved is not None
        if not self._is_proved.done():
            self._is_proved.set_result(None)

    def received(self, kind: int, number: int, body: Body) -> None:
        self._replica.received(kind, number, body)

    def read(self) -> None:
        """Do nothing: each answer has been taken."""

    def choked(self, *, is_choked: bool) -> None:
        """Do nothing: the scheduler bounds how many calls there are."""

    def ended(self) -> None:
        self._has_ended = True
        assert self._is_proved is not None
        if not self._is_proved.done():
            self._is_proved.set_exception(ConnectionRefusedError("no proof of the key"))
        self._replica.ended()
