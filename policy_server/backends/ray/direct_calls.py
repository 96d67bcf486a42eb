"""Calls straight to a replica, without Ray Serve: a web process's side.

A call by Ray Serve takes milliseconds of both processors, however few rows it has. Ray Serve still
starts, watches and replaces the replicas; a call that finds no connection, such as after its
replica has ended, goes by Ray Serve.

A call that is late is asked again of another replica, and the first answer counts: a call has no
side effect, and its draws belong to its answer. So a replica that stands still delays nobody for
long, and gets no further calls until it answers a ping. Only the one call that a replica of this
machine gets on computing waits for it: another one would take as long.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable, Collection

from policy_server.backends.ray.alarm import Alarm
from policy_server.backends.ray.asked_call import AskedCall, ConnectionLostError
from policy_server.backends.ray.call_frames import call_frame
from policy_server.backends.ray.call_times import DuplicateBudget, UsualTimes
from policy_server.backends.ray.connected_replica import ConnectedReplica
from policy_server.backends.ray.replica_connections import ReplicaConnections, ReplicaSource
from policy_server.backends.ray_processes import UseOf, use_of
from policy_server.errors import OverloadedError, PolicyHangsError, PolicyServerError
from policy_server.policy import PolicyInputs, PolicyOutputs, PolicySignature

__all__ = ["ConnectionLostError", "DirectCalls"]

# Leaves as many numbers again to count.
_NUMBER_BITS = 63
# How often a late call looks for another replica.
_LOOK_AGAIN_S = 0.02
# A replica that has been still for so long computes nothing: asking another one is no more work.
_STILL_S = 0.25
# The second one has to be still for so many times as long before a third is asked, and so on: an
# observation on which the policy hangs holds up few of many.
_PATIENCE = 4.0
# A replica that ends after it was still for so long has hung.
_HUNG_S = 1.0
# How long another machine may take to say that a replica has ended, on a network that is slow.
_ENDED_TIMEOUT_S = 2.0

logger = logging.getLogger(__name__)

Answered = Callable[[PolicyOutputs | Exception], None]


class DirectCalls:
    """The calls of one web process to the replicas of one application.

    Attributes:
        on_lost: called with Ray's name of a replica when its connection has ended.
        on_hang: called with the inputs of a call at which a replica has hung, whether or not
            anybody waits for its answer any more.
    """

    def __init__(
        self,
        source: ReplicaSource,
        *,
        replicas: int,
        timeout_s: float,
        use_of: UseOf = use_of,
    ) -> None:
        """Own the connections, from `described` or `open` to `aclose`.

        Args:
            source: knows where the replicas are.
            replicas: the number of replicas to connect to.
            timeout_s: the longest that a call may take, in seconds.
            use_of: tells what a replica's process has used so far.
        """
        self.on_lost: Callable[[str], None] = _ignore
        self.on_hang: Callable[[PolicyInputs], None] = _ignore
        self._connections = ReplicaConnections(
            source,
            replicas=replicas,
            on_answer=self._take_answer,
            on_lost=self._lose,
            use_of=use_of,
        )
        self._replicas = self._connections.replicas
        self._timeout_s = timeout_s
        # Replicas note the number of the call that they compute, of whichever web process.
        self._numbers = itertools.count(1 + secrets.randbits(_NUMBER_BITS))
        self._calls: dict[int, AskedCall] = {}
        self._times = UsualTimes()
        self._budget = DuplicateBudget()
        self._alarm = Alarm(self._look_after)
        self._blaming: set[asyncio.Task[None]] = set()
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
        await asyncio.gather(*self._blaming)
        self._alarm.cancel()

    @property
    def replicas(self) -> Collection[ConnectedReplica]:
        """Return the replicas that are connected."""
        return self._replicas.values()

    @property
    def capacity(self) -> int:
        """Return how many replicas take calls: those that are connected and don't stand still."""
        return sum(not replica.is_still for replica in self._replicas.values())

    @property
    def is_connected(self) -> bool:
        """Return whether there is any connection."""
        return bool(self._replicas)

    async def has_pulse(self, *, timeout_s: float) -> bool:
        """Return whether a replica answers; see `ReplicaConnections.has_pulse`."""
        return await self._connections.has_pulse(timeout_s=timeout_s)

    async def infer(
        self, inputs: PolicyInputs, *, is_watched: bool = False, is_alone: bool = False
    ) -> PolicyOutputs:
        """Answer observations; see `ask`.

        Args:
            inputs: the inputs of the call.
            is_watched: whether replicas tell when they begin with it.
            is_alone: whether it is asked of one replica only, however late it is.

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

        call = self.ask(inputs, answered, is_watched=is_watched, is_alone=is_alone)
        try:
            return await answer
        except asyncio.CancelledError:
            self.give_up(call)
            raise

    def ask(
        self,
        inputs: PolicyInputs,
        answered: Answered,
        *,
        within_s: float = math.inf,
        is_watched: bool = False,
        is_alone: bool = False,
    ) -> AskedCall:
        """Send a call to the replica that has least to do.

        Args:
            inputs: the inputs of the call.
            answered: is called once with the outputs or the error, as `infer` raises it, unless
                the call is given up before.
            within_s: the call is given up after so many seconds, or after the longest that one may
                take, whichever is earlier.
            is_watched: whether replicas tell when they begin with it, so that a
                `ConnectionLostError` says whether it was computed.
            is_alone: whether it is asked of one replica only, however late it is.

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
            inputs,
            call_frame(number, inputs),
            rows,
            answered,
            asked=now,
            look_at=now + self._times.late_after(rows),
            deadline=now + min(within_s, self._timeout_s),
            is_watched=is_watched,
            is_alone=is_alone,
        )
        self._calls[number] = call
        self._budget.count_call()
        min(self._replicas.values(), key=ConnectedReplica.load).send(call)
        self._alarm.ring_by(min(call.look_at, call.deadline))
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
        call.is_answered = isinstance(outcome, PolicyOutputs)
        if call.replicas:
            call.withdraw()
        call.answered(outcome)

    def _lose(self, replica: ConnectedReplica) -> None:
        """Take note of the end of a connection: its calls are lost unless others have them too.

        Where the replica has hung, the call that it computed is to blame.
        """
        has_hung = replica.has_hung_since(time.monotonic() - _HUNG_S)
        may_have_hung = has_hung and not self._is_closing
        suspect = replica.computed() if may_have_hung else None
        if may_have_hung and replica.address.path:
            self._blame(replica, suspect)
        elif may_have_hung:
            task = asyncio.create_task(self._blame_if_ended(replica, suspect))
            self._blaming.add(task)
            task.add_done_callback(self._blaming.discard)
        if not self._is_closing:
            self.on_lost(replica.address.replica)
        for call in replica.calls:
            if call is not suspect:
                self._tell_lost(replica, call)

    def _tell_lost(self, replica: ConnectedReplica, call: AskedCall) -> None:
        """Tell that a replica with a call was lost, unless others have the call too."""
        if not call.replicas:
            self.give_up(call)
            call.answered(ConnectionLostError(was_computed=replica.has_begun(call)))

    async def _blame_if_ended(self, replica: ConnectedReplica, call: AskedCall | None) -> None:
        """Blame a call at which a replica of another machine may have hung.

        It may go on there, and the network between them have been broken.
        """
        if await replica.has_ended(timeout_s=_ENDED_TIMEOUT_S):
            self._blame(replica, call)
        elif call is not None and call.number in self._calls:
            self._tell_lost(replica, call)

    def _blame(self, replica: ConnectedReplica, call: AskedCall | None) -> None:
        """Take note that a replica has hung, at a call if that is known."""
        logger.error("replica_hung", extra={"replica": replica.address.replica})
        if call is None or call.is_answered:
            return
        self.on_hang(call.inputs)
        # Others that have it would be held up too, or are.
        if call.number in self._calls:
            self.give_up(call)
            call.answered(_hung())

    def _look_after(self) -> None:
        """Give up the calls whose time is over, and ask again those that are late."""
        now = time.monotonic()
        for call in list(self._calls.values()):
            if call.deadline <= now:
                for replica in call.replicas:
                    replica.ping(now)
                self.give_up(call)
                call.answered(self._late())
            elif call.look_at <= now:
                self._ask_again(call, now)
        if self._calls:
            self._alarm.ring_by(
                min(min(call.look_at, call.deadline) for call in self._calls.values())
            )

    def _ask_again(self, call: AskedCall, now: float) -> None:
        """Ask another replica for a late call, and ping those that it has been asked of."""
        call.look_at = now + _LOOK_AGAIN_S
        for replica in call.replicas:
            replica.ping(now)
        # The next replica would hang too at an observation at which the policy hangs.
        if call.is_alone or any(replica.computes(call) for replica in call.replicas):
            return
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


def _ignore(_: object) -> None:
    """Do nothing about a replica that was lost, or a call at which one has hung."""


def _hung() -> PolicyHangsError:
    return PolicyHangsError("the policy took too long, and its replica was ended; try again")
