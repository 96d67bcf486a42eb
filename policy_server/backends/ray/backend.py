"""The backend that calls the replicas of one Ray Serve application."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from ray.exceptions import ActorDiedError, RayError
from ray.serve.exceptions import RayServeException

from policy_server.backends.ray.call_frames import FrameError
from policy_server.backends.ray.connected_replica import ConnectedReplica
from policy_server.backends.ray.direct_calls import ConnectionLostError, DirectCalls
from policy_server.backends.ray.serve_handle import Handle
from policy_server.backends.suspects import Suspects, Suspicion
from policy_server.errors import (
    NotReadyError,
    OverloadedError,
    PolicyHangsError,
    PolicyServerError,
)
from policy_server.policy import PolicyBackend, PolicyInputs, PolicyOutputs, PolicySignature

__all__ = ["RayBackend"]

logger = logging.getLogger(__name__)

_READY_TIMEOUT_S = 2.0
_HEARING_S = 0.2
# How long a call that a replica had when it ended waits for a connection.
_CONNECTED_WITHIN_S, _CONNECTED_PERIOD_S = 5.0, 0.02
# How much later than others a call is asked of a new replica that may hold it up, or end it.
_BEHIND_OTHERS_S = 0.2
# How often a call is made that replicas lose: without connections, nobody knows whether it is to
# blame.
_MOST_TRIES, _MOST_TRIES_BY_SERVE = 10, 3
_MOST_KNOWN_LOSSES = 256
_ACTOR_ID = re.compile(r"actor_id: ([0-9a-f]+)")


class _RayHasDiedError(Exception):
    """A call's Ray has died before the answer."""


class RayBackend:
    """A `PolicyBackend` over the replicas of one Ray Serve application."""

    def __init__(
        self,
        handle: Handle,
        signature: PolicySignature,
        *,
        application: str,
        replicas: int,
        calls: DirectCalls | None,
        timeout_s: float,
        count_lost: Callable[[], None],
    ) -> None:
        """Own the connections to the replicas, from `connect` to `aclose`.

        Args:
            handle: the application's.
            signature: that of the policy.
            application: the application's name.
            replicas: the largest number of them.
            calls: those by connections to the replicas; None sends all of them by Ray Serve.
            timeout_s: the longest that a call may take, in seconds.
            count_lost: called once for each replica that dies.
        """
        self.application = application
        self._handle = handle
        self._has_ray = True
        self._stand_in: PolicyBackend | None = None
        # Whether Ray or the stand-in can be asked.
        self._can_ask = asyncio.Event()
        self._can_ask.set()
        self._asking: set[asyncio.Task[Any]] = set()
        self._signature = signature
        self._replicas = replicas
        self._timeout_s = timeout_s
        self._count_lost = count_lost
        self._lost: deque[str] = deque(maxlen=_MOST_KNOWN_LOSSES)
        self._suspects = Suspects()
        self._direct = calls
        if calls is not None:
            calls.on_lost = self._note_lost
            calls.on_hang = self._note_hang

    @property
    def signature(self) -> PolicySignature:
        """Return the signature of the policy that is served."""
        return self._signature

    @property
    def capacity(self) -> int:
        """Return how many calls are computed at the same time: one a replica that answers.

        Where Ray Serve scales them it is the most that there can be: it adds replicas only when
        more calls come than those that run can take.
        """
        if self._direct is not None and self._direct.is_connected:
            return max(self._direct.capacity, 1)
        return self._replicas

    @property
    def connected_replicas(self) -> int | None:
        """Return how many replicas are connected and don't stand still; None if none ever is."""
        return None if self._direct is None else self._direct.capacity

    @property
    def replicas(self) -> Collection[ConnectedReplica]:
        """Return the replicas that are connected; none where Ray Serve calls them."""
        return () if self._direct is None else self._direct.replicas

    async def connect(self) -> None:
        """Connect to the replicas, as far as that goes at once; the rest follows."""
        if self._direct is not None:
            await self._direct.open()

    def suspend(self) -> None:
        """Call no replica by Ray Serve, since its Ray has died: such calls wait for the next one.

        Replicas that outlive their Ray are still called straight.
        """
        self._has_ray = False
        if self._stand_in is None:
            self._can_ask.clear()
        for call in self._asking:
            call.cancel()

    def stand_in(self, policy: PolicyBackend) -> None:
        """Let a policy answer what no replica does, until `resume`; not where it came meanwhile.

        Args:
            policy: the same one, in this process.
        """
        if self._has_ray:
            return
        self._stand_in = policy
        self._can_ask.set()

    async def resume(self, handle: Handle) -> None:
        """Call the replicas of another Ray.

        Args:
            handle: the application's there.
        """
        self._handle = handle
        self._has_ray, self._stand_in = True, None
        self._can_ask.set()
        if self._direct is not None:
            await self._direct.connect_missing()

    async def aclose(self) -> None:
        """End the connections; calls in flight are lost."""
        if self._direct is not None:
            await self._direct.aclose()

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations with one call of one replica; see `PolicyBackend.infer`.

        A replica that dies meanwhile is no error: a prediction has no side effect, so another one
        is asked. Only an observation that has ended three replicas, the last two of them for
        certain, or at which two replicas have hung, is asked of no more.
        """
        until = asyncio.get_running_loop().time() + self._timeout_s
        if self._direct is not None and self._direct.is_connected and not self._suspects.of(inputs):
            # It keeps the deadline itself: a timeout here would cost each call a timer.
            try:
                return await self._direct.infer(inputs)
            except ConnectionLostError:
                self._suspects.suspect(inputs, was_computed=False)
            except PolicyHangsError:
                if len(inputs) == 1:
                    raise
                # Each row is asked again for itself: the policy may hang at one of them alone.
            except FrameError:
                pass
        return await self._infer_by(until, inputs)

    async def _infer_by(self, until: float, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer a call that has no connection, or has lost it, until a time of the event loop."""
        try:
            async with asyncio.timeout_at(until):
                while True:
                    handle = self._handle
                    try:
                        return await self._infer_again(inputs)
                    except (RayError, RayServeException):
                        # The Ray's own death may be heard of after that of its replicas.
                        await asyncio.sleep(_HEARING_S)
                        if self._has_ray and self._handle is handle:
                            raise
        except TimeoutError as error:
            raise OverloadedError(
                f"no replica answered within {self._timeout_s:g} s; try again in a second"
            ) from error
        except (RayError, RayServeException) as error:
            raise NotReadyError(
                "no replica of the policy is alive; try again in a few seconds"
            ) from error

    def send(
        self,
        inputs: PolicyInputs,
        answered: Callable[[PolicyOutputs | Exception | None], None],
        *,
        within_s: float,
    ) -> bool:
        """Send a call straight to a replica; see `SendingBackend.send`."""
        if self._direct is None or not self._direct.is_connected or self._suspects.of(inputs):
            return False

        def told(outcome: PolicyOutputs | Exception) -> None:
            if isinstance(outcome, ConnectionLostError):
                self._suspects.suspect(inputs, was_computed=False)
                answered(None)
            elif isinstance(outcome, PolicyHangsError) and len(inputs) > 1:
                answered(None)
            else:
                answered(outcome)

        with suppress(ConnectionLostError, FrameError):
            self._direct.ask(inputs, told, within_s=within_s)
            return True
        return False

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now.

        Where replicas are connected they tell: Ray Serve may be late on a busy machine, or dead.
        """
        timeout_s = min(_READY_TIMEOUT_S, self._timeout_s)
        if self._direct is not None and self._direct.is_connected:
            if await self._direct.has_pulse(timeout_s=timeout_s):
                return True
            if self._direct.is_connected:
                return False
        if not self._has_ray:
            return self._stand_in is not None
        try:
            async with asyncio.timeout(timeout_s):
                await self._ask_serve("describe")
        except (TimeoutError, RayError, RayServeException, PolicyServerError, _RayHasDiedError):
            return False
        return True

    async def _infer_again(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer a call that has no connection, or has lost it."""
        tries = _MOST_TRIES_BY_SERVE if self._direct is None else _MOST_TRIES
        for _ in range(tries - 1):
            try:
                return await self._call(inputs)
            except ConnectionLostError as error:
                self._suspects.suspect(inputs, was_computed=error.was_computed)
            except ActorDiedError as error:
                found = _ACTOR_ID.search(str(error))
                self._note_lost(found[1] if found else str(error))
                if self._direct is not None:
                    self._suspects.suspect(inputs, was_computed=False)
            except RayError as error:
                logger.warning("call_lost", extra={"reason": type(error).__name__})
        return await self._call_by_serve(inputs)

    async def _call(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer a call by a connection, or by Ray Serve; see `Suspects.check`."""
        suspicion = self._suspects.check(inputs)
        if self._direct is not None:
            if suspicion and not self._direct.is_connected:
                await self._wait_to_be_connected(self._direct, suspicion)
            if self._direct.is_connected:
                with suppress(FrameError):
                    is_alone = suspicion >= Suspicion.COMPUTED
                    outputs = await self._direct.infer(inputs, is_watched=True, is_alone=is_alone)
                    self._suspects.clear(inputs)
                    return outputs
        return await self._call_by_serve(inputs)

    async def _wait_to_be_connected(self, direct: DirectCalls, suspicion: Suspicion) -> None:
        """Wait for a connection.

        A call that was computed waits as long as it may: Ray Serve would not tell whether it was
        this one that ended the replica, and a stand-in would end this process. One that was not
        waits for some seconds, or until a stand-in may answer it.
        """
        was_computed = suspicion >= Suspicion.COMPUTED
        until = time.monotonic() + _CONNECTED_WITHIN_S
        while not await _is_connected(direct, behind_others=was_computed):
            is_over = self._stand_in is not None or time.monotonic() > until
            if is_over and not was_computed:
                return
            await asyncio.sleep(_CONNECTED_PERIOD_S)

    async def _call_by_serve(self, inputs: PolicyInputs) -> PolicyOutputs:
        while True:
            await self._can_ask.wait()
            if self._stand_in is not None:
                return await self._stand_in.infer(inputs)
            with suppress(_RayHasDiedError):
                outputs: PolicyOutputs = await self._ask_serve("answer", inputs)
                return outputs

    async def _ask_serve(self, method: str, *arguments: Any) -> Any:  # noqa: ANN401 -- what the method returns
        """Call a method of any replica.

        Raises:
            _RayHasDiedError: if its Ray dies meanwhile.
        """
        call = asyncio.create_task(self._handle.call(method, *arguments))
        self._asking.add(call)
        try:
            await asyncio.wait([call])
        finally:
            self._asking.discard(call)
            call.cancel()
        if call.cancelled() and not self._has_ray:
            raise _RayHasDiedError
        return call.result()

    def _note_lost(self, replica: str) -> None:
        """Count a replica's death, however many calls and connections tell of it."""
        if replica not in self._lost:
            self._lost.append(replica)
            logger.warning("replica_lost", extra={"replica": replica})
            self._count_lost()

    def _note_hang(self, inputs: PolicyInputs) -> None:
        """Suspect the rows of a call at which a replica has hung: each is asked alone then."""
        self._suspects.suspect(inputs, was_computed=True, hangs=True)


async def _is_connected(direct: DirectCalls, *, behind_others: bool) -> bool:
    """Return whether there is a connection, once those that waited for one have been sent."""
    if behind_others and direct.is_connected:
        await asyncio.sleep(_BEHIND_OTHERS_S)
    return direct.is_connected
