"""A replica that a web process is connected to, and the calls that it has."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from policy_server.backends.ray.asked_call import AskedCall
from policy_server.backends.ray.call_frames import (
    Body,
    FrameError,
    FrameKind,
    bare_frame,
    error_of,
    outputs_of,
)
from policy_server.backends.ray.call_notes import NotedCall
from policy_server.backends.ray.call_progress import CallProgress
from policy_server.backends.ray.replica_line import ReplicaLine
from policy_server.backends.ray.replica_list import ReplicaAddress
from policy_server.backends.ray_processes import UseOf, use_of
from policy_server.errors import PolicyServerError
from policy_server.policy import PolicyOutputs

__all__ = ["ConnectedReplica", "OnAnswer"]

logger = logging.getLogger(__name__)

# How long the end of one connection waits for the last frames of the other.
_LAST_WORDS_S = 0.05
# The number of a ping that belongs to no call.
_NO_CALL = 0


OnAnswer = Callable[["ConnectedReplica", AskedCall, PolicyOutputs | PolicyServerError], None]


class ConnectedReplica:
    """A replica with the calls that it has, over a connection for short frames and one for long.

    Attributes:
        address: the replica's.
        is_proved: whether both connections are open.
        heard_at: when its last frame came, by `time.monotonic`.
        stopped_at: when its process was last found to be stopped by a signal, by the same clock.
    """

    def __init__(
        self,
        address: ReplicaAddress,
        on_answer: OnAnswer,
        on_end: Callable[[ConnectedReplica], None],
        *,
        use_of: UseOf = use_of,
    ) -> None:
        """Own the connections, from `open` until one of them ends.

        Args:
            address: the replica's.
            on_answer: called with each answer.
            on_end: called once when the replica can't be asked any more.
            use_of: tells what its process has used so far.
        """
        self.address = address
        self.is_proved = False
        self.stopped_at = -math.inf
        self._on_answer = on_answer
        self._on_end = on_end
        # All that it may compute still, in the order in which they were sent. Those of them that
        # were withdrawn stay until it has told that it is past them, and since when it has not.
        self._calls: dict[int, AskedCall] = {}
        self._withdrawn: dict[int, float] = {}
        self._note: NotedCall | None = None
        self._use_of = use_of
        self._progress = CallProgress(use_of)
        self._pinged_at = math.inf
        self._pulse: asyncio.Future[None] | None = None
        self.heard_at = -math.inf
        # Closes the connection that is left when the other one has ended.
        self._ending: asyncio.TimerHandle | None = None
        self._short = ReplicaLine(self)
        self._long = ReplicaLine(self)

    @property
    def calls(self) -> list[AskedCall]:
        """Return the calls that it has not answered, but for those that were withdrawn."""
        return [call for number, call in self._calls.items() if number not in self._withdrawn]

    @property
    def is_still(self) -> bool:
        """Return whether it was late, and has not answered a ping since."""
        return self._pinged_at < math.inf

    def is_still_since(self, moment: float) -> bool:
        """Return whether it has not answered a ping that was sent before a time."""
        return self._pinged_at <= moment

    def has_hung_since(self, moment: float) -> bool:
        """Return whether it owes the answer to a ping since a time, or to a withdrawn call's.

        One that a signal has stopped meanwhile has not hung.
        """
        owes_since = min(self._pinged_at, *self._withdrawn.values(), math.inf)
        return self.stopped_at < owes_since <= moment

    @property
    def process(self) -> int | None:
        """Return the id of its process, where that is of this machine."""
        return self._short.process

    def load(self) -> tuple[bool, int]:
        """Return the key by which replicas are ordered: still ones last, then by their calls."""
        is_last = self._pinged_at < math.inf or self._ending is not None
        return is_last, len(self._calls) - len(self._withdrawn)

    def computes(self, call: AskedCall) -> bool:
        """Return whether it gets on with a call; False where nobody can tell.

        Reads what the system says of its process, so it is for calls that are late.
        """
        if self._note is None or self._note.number() != call.number:
            return False
        process = self.process
        return process is not None and self._progress.is_made(process, call.number)

    def has_begun(self, call: AskedCall) -> bool:
        """Return whether it is known to have begun with a call that is watched.

        Its word may be lost with the connection, its note is not.
        """
        is_noted = self._note is not None and self._note.number() == call.number
        return self in call.begun or (call.is_watched and is_noted)

    def computed(self) -> AskedCall | None:
        """Return the call that it computes, or that it had begun when it ended; None for none.

        Where it leaves no note it is taken to be the one that came first, which is wrong where that
        was another web process's. A call that is watched is known to have begun.
        """
        if self._note is not None:
            return self._calls.get(self._note.number())
        first = next(iter(self._calls.values()), None)
        return None if first is None or (first.is_watched and self not in first.begun) else first

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
        self._note = NotedCall.of(self.process, self.address.path)
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
        """Tell it that a call is not needed, if it has not answered the call.

        It may have begun with it, and hang at it. Its answer to the ping says that it has not, or
        that it is done with it.
        """
        if call.number in self._calls and call.number not in self._withdrawn:
            self._withdrawn[call.number] = time.monotonic()
            line = self._line_of(call)
            line.send(bare_frame(FrameKind.CANCEL, call.number))
            line.send(bare_frame(FrameKind.PING, call.number))

    def ping(self, now: float) -> None:
        """Send it a ping, unless it owes the answer to another one."""
        if not self.is_still:
            self._pinged_at = now
            self._short.send(bare_frame(FrameKind.PING, _NO_CALL))

    def pulse(self) -> asyncio.Future[None]:
        """Ping it though it is not late, and return a future that ends with its answer.

        The future is cancelled where the connection ends.
        """
        if self._pulse is None or self._pulse.done():
            self._pulse = asyncio.get_running_loop().create_future()
            self._short.send(bare_frame(FrameKind.PING, _NO_CALL))
        return self._pulse

    def received(self, kind: int, number: int, body: Body) -> None:
        """Take a frame; see `FrameReceiver`."""
        self.heard_at = time.monotonic()
        if kind == FrameKind.PONG:
            self._take_pong(number)
            return
        if kind not in (FrameKind.ANSWER, FrameKind.ERROR, FrameKind.BEGUN):
            raise FrameError(f"a frame of kind {kind}")
        if (call := self._calls.get(number)) is None:
            return
        if kind == FrameKind.BEGUN:
            call.begun.append(self)
            return
        if number in self._withdrawn:
            # It may be answered all the same.
            self._forget(number)
            return
        outcome = outputs_of(body) if kind == FrameKind.ANSWER else error_of(body)
        if isinstance(outcome, PolicyOutputs) and len(outcome) != call.rows:
            raise FrameError(f"{len(outcome)} answers to {call.rows} rows")
        del self._calls[number]
        call.replicas.remove(self)
        self._on_answer(self, call, outcome)

    def _take_pong(self, number: int) -> None:
        if number != _NO_CALL:
            self._forget(number)
            return
        self._pinged_at = math.inf
        if self._pulse is not None and not self._pulse.done():
            self._pulse.set_result(None)

    def _forget(self, number: int) -> None:
        """Take note that it is past a call that was withdrawn."""
        if self._withdrawn.pop(number, None) is not None:
            del self._calls[number]

    async def has_ended(self, *, timeout_s: float) -> bool:
        """Return whether its machine says that nobody takes connections there any more.

        Args:
            timeout_s: how long that may take, in seconds. A machine that says nothing is one that
                the network does not reach.
        """
        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await asyncio.open_connection(self.address.host, self.address.port)
                writer.transport.abort()
                await writer.wait_closed()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False

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
            for call in self.calls:
                call.replicas.remove(self)
            self._on_end(self)
        if self._note is not None:
            self._note.close()
            self._note = None

    def _line_of(self, call: AskedCall) -> ReplicaLine:
        """Return the connection of a call: one that takes long to send delays no short one."""
        return self._long if len(call.frame) > 1 else self._short
