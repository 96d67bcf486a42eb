"""Calls straight to a replica, without Ray Serve: a web process's side.

A call by Ray Serve takes milliseconds of both processors, however few rows it has. Ray Serve still
starts, watches and replaces the replicas; a call that finds no connection, such as after its
replica has ended, goes by Ray Serve.

A call that is late is asked again of another replica, and the first answer counts: a call has no
side effect, and its draws belong to its answer. So a replica that stands still delays nobody for
long, and gets no further calls until it answers a ping.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress

from policy_server.backends.ray.call_frames import call_frame
from policy_server.backends.ray.call_times import DuplicateBudget, UsualTimes
from policy_server.backends.ray.connected_replica import (
    AskedCall,
    ConnectedReplica,
    ConnectionLostError,
)
from policy_server.backends.ray.replica_connections import ReplicaConnections, ReplicaSource
from policy_server.errors import OverloadedError, PolicyHangsError, PolicyServerError
from policy_server.policy import PolicyInputs, PolicyOutputs, PolicySignature

__all__ = ["ConnectionLostError", "DirectCalls"]

# A timer may be run before answers that have come meanwhile: they are read within this.
_GRACE_S = 0.001
# How often a late call looks for another replica.
_LOOK_AGAIN_S = 0.02
# A replica that has been still for so long computes nothing: asking another one is no more work.
_STILL_S = 0.25
# The second one has to be still for so many times as long before a third is asked, and so on: an
# observation on which the policy hangs holds up few of many.
_PATIENCE = 4.0
# A replica that ends after it was still for so long has hung.
_HUNG_S = 1.0
# One that owes a call, and has been still for so long, may be stopped, and be so for good.
_STOPPED_S = 7.0

logger = logging.getLogger(__name__)

Answered = Callable[[PolicyOutputs | Exception], None]


class DirectCalls:
    """The calls of one web process to the replicas of one application.

    Attributes:
        on_lost: called with Ray's name of a replica when its connection has ended.
    """

    def __init__(
        self,
        source: ReplicaSource,
        *,
        replicas: int,
        timeout_s: float,
    ) -> None:
        """Own the connections, from `described` or `open` to `aclose`.

        Args:
            source: knows where the replicas are.
            replicas: the number of replicas to connect to.
            timeout_s: the longest that a call may take, in seconds.
        """
        self.on_lost: Callable[[str], None] = _ignore
        self._connections = ReplicaConnections(
            source, replicas=replicas, on_answer=self._take_answer, on_lost=self._lose
        )
        self._replicas = self._connections.replicas
        self._timeout_s = timeout_s
        self._numbers = itertools.count(1)
        self._calls: dict[int, AskedCall] = {}
        self._times = UsualTimes()
        self._budget = DuplicateBudget()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self._is_closing = False

    async def described(self) -> PolicySignature:
        """Connect to a first replica, and return the signature that it lists.

        Raises:
            PolicyServerError: as a replica that could not load the policy says.
        """
        return await self._connections.described()

    async def open(self) -> None:
        """Connect to the replicas that are there; the rest follows."""
        await self._connections.open()

    async def connect_missing(self) -> None:
        """Connect to the replicas that are listed and not connected yet."""
        await self._connections.connect_missing()

    async def aclose(self) -> None:
        """End every connection; calls in flight are lost."""
        self._is_closing = True
        await self._connections.aclose()
        if self._timer is not None:
            self._timer.cancel()

    @property
    def capacity(self) -> int:
        """Return how many replicas take calls: those that are connected and don't stand still."""
        return sum(not replica.is_still for replica in self._replicas.values())

    @property
    def is_connected(self) -> bool:
        """Return whether there is any connection."""
        return bool(self._replicas)

    async def has_pulse(self, *, timeout_s: float) -> bool:
        """Return whether a replica has answered of late, or answers a ping in time.

        Args:
            timeout_s: how long ago "of late" is, and the longest wait for a ping, in seconds.
        """
        replicas, since = list(self._replicas.values()), time.monotonic() - timeout_s
        if any(replica.heard_at > since for replica in replicas):
            return True
        pending = {replica.pulse() for replica in replicas}
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while pending:
                    first = asyncio.FIRST_COMPLETED
                    done, pending = await asyncio.wait(pending, return_when=first)
                    if not all(pulse.cancelled() for pulse in done):
                        return True
        return False

    async def infer(self, inputs: PolicyInputs, *, is_watched: bool = False) -> PolicyOutputs:
        """Answer observations; see `ask`.

        Args:
            inputs: the inputs of the call.
            is_watched: whether replicas tell when they begin with it.

        Raises:
            ConnectionLostError: if there is no connection, or it ends meanwhile.
            FrameError: if the call is longer than a frame may be.
            OverloadedError: if no answer comes in time.
            PolicyServerError: the error that the replica raised.
        """
        answer: asyncio.Future[PolicyOutputs] = asyncio.get_running_loop().create_future()

        def answered(outcome: PolicyOutputs | Exception) -> None:
            if answer.done():
                return
            if isinstance(outcome, PolicyOutputs):
                answer.set_result(outcome)
            else:
                answer.set_exception(outcome)

        call = self.ask(inputs, answered, is_watched=is_watched)
        try:
            return await answer
        except asyncio.CancelledError:
            self.give_up(call)
            raise

    def ask(
        self, inputs: PolicyInputs, answered: Answered, *, is_watched: bool = False
    ) -> AskedCall:
        """Send a call to the replica that has least to do.

        Args:
            inputs: the inputs of the call.
            answered: is called once with the outputs or the error, as `infer` raises it, unless
                the call is given up before.
            is_watched: whether replicas tell when they begin with it, so that a
                `ConnectionLostError` says whether it was computed.

        Returns:
            The call, for `give_up`.

        Raises:
            ConnectionLostError: if there is no connection.
            FrameError: if the call is longer than a frame may be.
        """
        if not self._replicas:
            raise ConnectionLostError
        number, rows, now = next(self._numbers), len(inputs), time.monotonic()
        call = AskedCall(
            number,
            call_frame(number, inputs),
            rows,
            answered,
            asked=now,
            look_at=now + self._times.late_after(rows),
            deadline=now + self._timeout_s,
            is_watched=is_watched,
        )
        self._calls[number] = call
        self._budget.count_call()
        min(self._replicas.values(), key=ConnectedReplica.load).send(call)
        self._wake_by(min(call.look_at, call.deadline))
        return call

    def give_up(self, call: AskedCall) -> None:
        """Wait no longer for a call, and spare the replicas the work.

        Args:
            call: as `ask` returned it.
        """
        if self._calls.pop(call.number, None) is not None:
            call.withdraw()

    def _take_answer(
        self, replica: ConnectedReplica, call: AskedCall, outcome: PolicyOutputs | PolicyServerError
    ) -> None:
        """Take the first answer to a call; the other replica need not compute it."""
        if self._calls.pop(call.number, None) is None:
            return
        if replica is call.first:
            self._times.observe(call.rows, replica.heard_at - call.asked)
        if call.replicas:
            call.withdraw()
        call.answered(outcome)

    def _lose(self, replica: ConnectedReplica) -> None:
        """Take note of the end of a connection: its calls are lost unless others have them too.

        Where the replica has hung, the call that came first is the one that it computed, unless it
        was another web process's. A call that is watched is known to have begun.
        """
        has_hung = replica.is_still_since(time.monotonic() - _HUNG_S) and not replica.was_stopped
        if not self._is_closing:
            if has_hung:
                logger.error("replica_hung", extra={"replica": replica.address.replica})
            self.on_lost(replica.address.replica)
        for place, call in enumerate(replica.calls):
            # It would hold up the next replica too, and those that compute it have hung as well.
            has_begun = replica in call.begun or not call.is_watched
            is_to_blame = has_hung and place == 0 and has_begun
            if call.replicas and not is_to_blame:
                continue
            self.give_up(call)
            lost = ConnectionLostError(was_computed=replica in call.begun)
            call.answered(_hung() if is_to_blame else lost)

    def _wake_by(self, moment: float) -> None:
        """Look after the calls at a time, or before."""
        if moment < self._wakes_at:
            if self._timer is not None:
                self._timer.cancel()
            self._wakes_at = moment
            delay_s = max(moment - time.monotonic(), 0.0)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay_s, self._wait_a_moment)

    def _wait_a_moment(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_GRACE_S, self._look_after)

    def _look_after(self) -> None:
        """Give up the calls whose time is over, and ask again those that are late."""
        self._timer, self._wakes_at = None, math.inf
        now = time.monotonic()
        for call in list(self._calls.values()):
            if call.deadline <= now:
                self.give_up(call)
                call.answered(self._late())
            elif call.look_at <= now:
                self._ask_again(call, now)
        if self._calls:
            self._wake_by(min(min(call.look_at, call.deadline) for call in self._calls.values()))

    def _ask_again(self, call: AskedCall, now: float) -> None:
        """Ask another replica for a late call, and ping those that it has been asked of."""
        call.look_at = now + _LOOK_AGAIN_S
        for replica in call.replicas:
            replica.ping(now)
            if replica.is_still_since(now - _STOPPED_S):
                replica.end_if_stopped()
        others = [
            replica
            for replica in self._replicas.values()
            if not replica.is_still and replica not in call.replicas
        ]
        count = len(call.replicas)
        since = now - _STILL_S * _PATIENCE ** (count - 1)
        is_free = all(replica.is_still_since(since) for replica in call.replicas)
        if others and (is_free or (count == 1 and self._budget.take())):
            min(others, key=ConnectedReplica.load).send(call)
            call.look_at = now + self._times.late_after(call.rows)

    def _late(self) -> OverloadedError:
        return OverloadedError(
            f"no replica answered within {self._timeout_s:g} s; try again in a second"
        )


def _ignore(_replica: str) -> None:
    """Do nothing about a replica that was lost."""


def _hung() -> PolicyHangsError:
    return PolicyHangsError("the policy took too long, and its replica was ended; try again")
