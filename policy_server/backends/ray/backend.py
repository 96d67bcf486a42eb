"""The backend that calls the replicas of one Ray Serve application."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from policy_server.backends.ray.call_frames import FrameError
from policy_server.backends.ray.direct_calls import ConnectionLostError, DirectCalls
from policy_server.backends.ray.replica_connections import ReplicaSource
from policy_server.errors import (
    NotReadyError,
    OverloadedError,
    PolicyFailedError,
    PolicyServerError,
)
from policy_server.policy import PolicyBackend, PolicyInputs, PolicyOutputs, PolicySignature

__all__ = ["Handle", "RayBackend"]

logger = logging.getLogger(__name__)

_READY_TIMEOUT_S = 2.0
_HEARING_S = 0.2
_MOST_TRIES = 3
_MOST_KNOWN_LOSSES = 256
_ACTOR_ID = re.compile(r"actor_id: ([0-9a-f]+)")


class _RayHasDiedError(Exception):
    """A call's Ray has died before the answer."""


class Handle:
    """Ray Serve's handle of an application, whose answers are values or errors of ours."""

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 -- Ray's handle is generic
        """Own the handle; its router, in this loop, from the first call to `aclose`.

        Args:
            handle: Ray Serve's own, which nothing else uses.
        """
        self._handle = handle
        self._options: Mapping[str, Any] | None = None
        self._methods: dict[str, Any] = {}

    async def call(self, method: str, *arguments: Any) -> Any:  # noqa: ANN401 -- what the method returns
        """Call a method of any replica.

        Args:
            method: one of `PolicyReplica`.
            arguments: the method's.

        Raises:
            PolicyServerError: the error that the replica raised or returned.
            RayError, RayServeException: if no replica answers.
        """
        bound = self._methods.get(method)
        if bound is None:
            bound = self._handle.options(method_name=method, **self._routed())
            self._methods[method] = bound
        try:
            answer = await bound.remote(*arguments)
        except RayTaskError as error:
            raise _cause_of(error) from error
        if isinstance(answer, PolicyServerError):
            raise answer
        return answer

    def _routed(self) -> Mapping[str, Any]:
        """Return the options of all calls, once there is a router."""
        if self._options is None:
            try:
                # In this loop: another thread would cost each call two changes of thread.
                self._handle._init(_run_router_in_separate_loop=False)  # noqa: SLF001 -- Ray's own way to say so
                self._options = {"_by_reference": False}
                self._handle.options(**self._options)
            except (AttributeError, TypeError, ValueError) as error:
                logger.warning("ray_handle_plain", extra={"reason": str(error)})
                self._options = {}
        return self._options

    async def aclose(self) -> None:
        """End the router; nothing is called any more."""
        self._methods.clear()
        try:
            await self._handle.shutdown_async()
        except Exception as error:
            # Its application is removed all the same.
            logger.info("ray_handle_not_ended", extra={"reason": repr(error)[:300]})


class RayBackend:
    """A `PolicyBackend` over the replicas of one Ray Serve application."""

    def __init__(
        self,
        handle: Handle,
        signature: PolicySignature,
        *,
        application: str,
        replicas: int,
        source: ReplicaSource | None,
        timeout_s: float,
        count_lost: Callable[[], None],
    ) -> None:
        """Own the connections to the replicas, from `connect` to `aclose`.

        Args:
            handle: the application's.
            signature: that of the policy.
            application: the application's name.
            replicas: the largest number of them.
            source: knows where the replicas take calls; None sends all of them by Ray Serve.
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
        self._direct: DirectCalls | None = None
        if source is not None:
            self._direct = DirectCalls(
                source, replicas=replicas, timeout_s=timeout_s, on_lost=self._note_lost
            )

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

    async def connect(self) -> None:
        """Connect to the replicas, as far as that goes at once; the rest follows."""
        if self._direct is not None:
            await self._direct.open()

    def suspend(self) -> None:
        """Call no replica by Ray Serve, since its Ray has died: such calls wait for the next one.

        Replicas that outlive their Ray are still called straight.
        """
        self._has_ray = False
        self._can_ask.clear()
        for call in self._asking:
            call.cancel()

    def stand_in(self, policy: PolicyBackend) -> None:
        """Let a policy answer what no replica does, until `resume`.

        Args:
            policy: the same one, in this process.
        """
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
        is asked.
        """
        until = asyncio.get_running_loop().time() + self._timeout_s
        if self._direct is not None and self._direct.is_connected:
            # It keeps the deadline itself: a timeout here would cost each call a timer.
            with suppress(ConnectionLostError, FrameError):
                return await self._direct.infer(inputs)
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
        self, inputs: PolicyInputs, answered: Callable[[PolicyOutputs | Exception | None], None]
    ) -> bool:
        """Send a call straight to a replica; see `SendingBackend.send`."""
        if self._direct is None or not self._direct.is_connected:
            return False

        def told(outcome: PolicyOutputs | Exception) -> None:
            answered(None if isinstance(outcome, ConnectionLostError) else outcome)

        with suppress(ConnectionLostError, FrameError):
            self._direct.ask(inputs, told)
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
        for _ in range(_MOST_TRIES - 1):
            try:
                return await self._call(inputs)
            except ConnectionLostError:
                continue
            except ActorDiedError as error:
                found = _ACTOR_ID.search(str(error))
                self._note_lost(found[1] if found else str(error))
            except RayError as error:
                logger.warning("call_lost", extra={"reason": type(error).__name__})
        return await self._call_by_serve(inputs)

    async def _call(self, inputs: PolicyInputs) -> PolicyOutputs:
        if self._direct is not None and self._direct.is_connected:
            with suppress(FrameError):
                return await self._direct.infer(inputs)
        return await self._call_by_serve(inputs)

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


def _cause_of(error: RayTaskError) -> PolicyServerError:
    """Return the error that a replica raised, with the text of Ray's or Python's own as a note."""
    if isinstance(error.cause, PolicyServerError):
        return error.cause
    failed = PolicyFailedError("the policy failed; the server's log has the reason")
    failed.add_note(f"In the replica:\n{error}")
    return failed
