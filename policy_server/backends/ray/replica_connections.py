"""The connections to all replicas of an application, kept up while replicas come and go."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from policy_server.backends.ray.connected_replica import ConnectedReplica, OnAnswer
from policy_server.backends.ray.replica_list import ReplicaAddress
from policy_server.backends.ray_processes import UseOf, use_of
from policy_server.errors import PolicyServerError
from policy_server.policy import PolicySignature

__all__ = ["ReplicaConnections", "ReplicaSource"]

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0
# How often the list is read while no replica has come up yet.
_DESCRIBED_PERIOD_S = 0.02
# How often the list of replicas is read while some are missing: first, and at the longest.
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_PAUSE_GROWTH = 1.1
# How long a replica that could not be reached is left alone.
_UNREACHED_PAUSE_S = 5.0


class ReplicaSource(Protocol):
    """The list of an application's replicas."""

    async def addresses(self) -> Sequence[ReplicaAddress]:
        """Return the addresses of all replicas; some may have ended."""

    async def remove_dead(self, address: ReplicaAddress) -> None:
        """Remove a replica that could not be reached, if it has ended."""


class ReplicaConnections:
    """Connections to as many replicas as there shall be, kept up while replicas come and go.

    Attributes:
        replicas: those that are connected, by Ray's names of them.
    """

    def __init__(
        self,
        source: ReplicaSource,
        *,
        replicas: int,
        on_answer: OnAnswer,
        on_lost: Callable[[ConnectedReplica], None],
        use_of: UseOf = use_of,
    ) -> None:
        """Own the connections, from `open` to `aclose`.

        Args:
            source: knows where the replicas are.
            replicas: how many there shall be.
            on_answer: called with each answer.
            on_lost: called with each replica whose connection has ended.
            use_of: tells what a replica's process has used so far.
        """
        self.replicas: dict[str, ConnectedReplica] = {}
        self._source = source
        self._count = replicas
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._use_of = use_of
        self._unreached: dict[str, float] = {}
        self._is_listed = True
        self._is_lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect to the replicas that are there; the rest follows."""
        await self.connect_missing()
        self._keeper = asyncio.create_task(self._keep())

    async def aclose(self) -> None:
        """End every connection."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for replica in list(self.replicas.values()):
            replica.close("the policy is not used any more")
        # The transports tell of their end in the next turn.
        while self.replicas:
            await asyncio.sleep(0)

    async def described(self) -> PolicySignature:
        """Connect to a first replica, and return the signature that it lists.

        Raises:
            PolicyServerError: as a replica that could not load the policy says.
        """
        while True:
            await self.connect_missing()
            for replica in self.replicas.values():
                description = replica.address.description
                if isinstance(description, PolicyServerError):
                    raise description
                if description is not None:
                    return description
            await asyncio.sleep(_DESCRIBED_PERIOD_S)

    async def has_pulse(self, *, timeout_s: float) -> bool:
        """Return whether a replica has answered of late, or answers a ping in time.

        Args:
            timeout_s: how long ago "of late" is, and the longest wait for a ping, in seconds.
        """
        replicas, since = list(self.replicas.values()), time.monotonic() - timeout_s
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

    async def _keep(self) -> None:
        """Connect to missing replicas, reading the list often at first and then seldom."""
        pause_s = _FIRST_PAUSE_S
        while True:
            if len(self.replicas) >= self._count:
                self._is_lost.clear()
                await self._is_lost.wait()
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            is_found = await self.connect_missing()
            pause_s = _FIRST_PAUSE_S if is_found else min(pause_s * _PAUSE_GROWTH, _LONGEST_PAUSE_S)

    async def connect_missing(self) -> bool:
        """Connect to the replicas of the list that are not connected; return whether any was."""
        try:
            addresses = await self._source.addresses()
        except Exception as error:
            # Only time is lost: calls go by Ray Serve.
            if self._is_listed:
                logger.info("replicas_not_listed", extra={"reason": repr(error)[:300]})
            self._is_listed = False
            return False
        self._is_listed = True
        now = time.monotonic()
        listed = {address.replica for address in addresses}
        self._unreached = {name: at for name, at in self._unreached.items() if name in listed}
        missing = [
            address
            for address in addresses
            if address.replica not in self.replicas
            and self._unreached.get(address.replica, 0.0) <= now
        ]
        # Web processes that all began with the same one would share their work badly.
        random.shuffle(missing)
        found = await asyncio.gather(*map(self._connect, missing))
        return any(found)

    async def _connect(self, address: ReplicaAddress) -> bool:
        replica = ConnectedReplica(address, self._on_answer, self._drop, use_of=self._use_of)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await replica.open()
        except (OSError, TimeoutError) as error:
            self._unreached[address.replica] = time.monotonic() + _UNREACHED_PAUSE_S
            logger.info(
                "replica_not_connected",
                extra={"replica": address.replica, "reason": repr(error)[:300]},
            )
            with suppress(Exception):
                await self._source.remove_dead(address)
            return False
        self._unreached.pop(address.replica, None)
        if address.replica in self.replicas:
            # Another look at the list has connected it meanwhile.
            replica.close("the replica is connected already")
            return True
        self.replicas[address.replica] = replica
        logger.info(
            "replica_connected",
            extra={
                "replica": address.replica,
                "at": address.path or f"{address.host}:{address.port}",
            },
        )
        return True

    def _drop(self, replica: ConnectedReplica) -> None:
        if self.replicas.get(replica.address.replica) is not replica:
            return
        del self.replicas[replica.address.replica]
        self._is_lost.set()
        self._on_lost(replica)
