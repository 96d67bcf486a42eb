"""How this process belongs to a Ray: as its sole owner, or as one member of a cluster."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import ray

import policy_server
from policy_server.backends.ray.connection import as_not_ready_error, connect
from policy_server.backends.ray.own_ray import OwnRay
from policy_server.backends.ray_pulse import are_running, end_standstills, first_lost
from policy_server.errors import NotReadyError
from policy_server.settings import Settings

__all__ = ["ClusterMember", "Membership", "OnRaysThread", "SoleOwner", "finish"]

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_LEAVE_TIMEOUT_S = 3.0
_JOIN_HINT = "; a cluster with tokens wants RAY_AUTH_MODE and RAY_AUTH_TOKEN here too"

OnRaysThread = Callable[..., Awaitable[Any]]


def finish() -> None:
    """Let whoever waits for this on Ray's thread know that all before it is done.

    A task that was cancelled leaves Ray's thread at what it has begun there.
    """


class Membership(Protocol):
    """A process's membership in a Ray."""

    @property
    def is_crowded(self) -> bool:
        """Return whether other programs use this Ray too, so that replicas have to ask for CPUs."""

    @property
    def addresses(self) -> Mapping[str, str]:
        """Return the addresses of Ray's pages, by name; empty before `join`."""

    @property
    def ledger_folder(self) -> Path | None:
        """Return the folder of this machine's ledger; None where the cluster keeps the ledger."""

    @property
    def needed_pids(self) -> Collection[int]:
        """Return the ids of the processes without which a Ray of the server's own does not go on.

        Its workers are children of one of them, the raylet. None where others keep the Ray.
        """

    async def join(self) -> None:
        """Connect to Ray, or start it.

        Raises:
            SettingsError: if it can't start with these settings.
            NotReadyError: if it does not start, or the cluster does not answer.
        """

    def is_alive(self) -> bool:
        """Return whether Ray runs, as far as this machine can tell."""

    async def lost(self) -> None:
        """Wait until Ray has died on this machine; for ever where others look after it."""

    async def rejoin(self) -> None:
        """Join another Ray, or start it, since this one has died; its replicas may still answer.

        Raises:
            NotReadyError: if it does not start.
        """

    async def turn(self) -> None:
        """Wait until this process may compile a policy: workers do so one after another."""

    async def has_served(self) -> None:
        """Take note that a first policy answers, and end what is left of a Ray that died."""

    async def leave(self) -> None:
        """Disconnect from Ray, and end it if it is this process's.

        Also where `join` or `rejoin` failed or was cancelled: a start that goes on is broken off.
        """


class SoleOwner:
    """The membership of a process that starts a Ray for itself."""

    is_crowded = False

    def __init__(self, settings: Settings, call: OnRaysThread) -> None:
        """Own the Ray from `join` to `leave`, and nothing before.

        Args:
            settings: ports, and how many replicas there are.
            call: runs a function on Ray's thread.
        """
        self._settings = settings
        self._own = OwnRay(settings, server=os.getpid())
        self._dead: list[OwnRay] = []
        self._call = call
        self._has_joined = False
        self._has_served = False

    @property
    def addresses(self) -> Mapping[str, str]:
        """See `Membership.addresses`."""
        return self._own.addresses

    @property
    def ledger_folder(self) -> Path:
        """See `Membership.ledger_folder`."""
        return self._own.folder / "ledger"

    @property
    def needed_pids(self) -> Collection[int]:
        """See `Membership.needed_pids`."""
        return [watched.process.pid for watched in self._own.watched]

    async def join(self) -> None:
        """See `Membership.join`."""
        await self._call(self._own.start)
        self._has_joined = True

    def is_alive(self) -> bool:
        """See `Membership.is_alive`."""
        # One that could not be started watches nothing, and nothing of it has ended.
        return self._has_joined and are_running(self._own.watched)

    async def lost(self) -> None:
        """See `Membership.lost`."""
        await first_lost(self._own.watched)

    async def rejoin(self) -> None:
        """See `Membership.rejoin`."""
        if self.is_alive():
            # The applications could not be had on it; another try may have them.
            return
        self._dead.append(self._own)
        async with end_standstills(self._own.watched):
            await self._call(ray.shutdown)
        self._own = OwnRay(self._settings, server=os.getpid())
        self._has_joined = self._has_served = False
        await self.join()

    async def turn(self) -> None:
        """Return at once: the policy is compiled while Ray starts."""

    async def has_served(self) -> None:
        """Start the rest of Ray, and end what is left of one that has died."""
        if not self._has_served:
            self._has_served = True
            while self._dead:
                await self._call(self._dead.pop().end_processes)
            self._call(self._own.start_rest)

    async def leave(self) -> None:
        """See `Membership.leave`; waits for the calls on Ray's thread."""
        self._own.break_off()
        await self._call(finish)
        async with end_standstills(self._own.watched):
            await self._call(self._own.end)
        for dead in self._dead:
            await self._call(dead.end_processes)


class ClusterMember:
    """The membership of a process that joins a cluster, `RAY_ADDRESS`."""

    is_crowded = True
    ledger_folder = None
    needed_pids: Collection[int] = ()

    def __init__(self, address: str, call: OnRaysThread, *, timeout_s: float) -> None:
        """Own the connection, from `join` to `leave`.

        Args:
            address: the cluster's address.
            call: runs a function in a thread that no end of the process awaits.
            timeout_s: the longest wait for the cluster to be there, in seconds.
        """
        self.addresses: dict[str, str] = {}
        self._address = address
        self._timeout_s = timeout_s
        self._call = call

    async def join(self) -> None:
        """See `Membership.join`."""
        await self._wait_for_cluster()
        package = str(Path(policy_server.__file__).parent)
        with as_not_ready_error(_JOIN_HINT):
            await self._call(connect, self._address, {"py_modules": [package]})

    def is_alive(self) -> bool:
        """Return True: the cluster has its own keepers."""
        return True

    async def lost(self) -> None:
        """Wait for ever: the cluster's nodes come and go."""
        await asyncio.Event().wait()

    async def rejoin(self) -> None:
        """Join again."""
        await self._call(ray.shutdown)
        await self.join()

    async def turn(self) -> None:
        """Return at once: other machines do not see what this one compiles."""

    async def has_served(self) -> None:
        """Do nothing: the cluster has its own dashboard."""

    async def leave(self) -> None:
        """Disconnect, but wait not for long: others keep the cluster, and may let it stand still.

        Ray's library waits for a raylet and a head process that do so for ever, here and again as
        the interpreter ends.
        """
        try:
            async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                await self._call(ray.shutdown)
        except TimeoutError:
            logger.warning("cluster_not_left", extra={"seconds": _LEAVE_TIMEOUT_S})
            atexit.unregister(ray.shutdown)

    async def _wait_for_cluster(self) -> None:
        """Wait until the address takes a connection, where it has a host and a port.

        Ray itself waits for a quarter of an hour, in a thread that nothing ends.

        Raises:
            NotReadyError: if it takes none in time.
        """
        host, _, port = self._address.rpartition(":")
        if "://" in host or not port.isdecimal():
            return
        reason: OSError | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                while fault := await _fault_of_connection(host.strip("[]"), int(port)):
                    if str(fault) != str(reason):
                        logger.warning("cluster_not_reached", extra={"reason": str(fault)})
                    reason = fault
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise NotReadyError(
                f"RAY_ADDRESS: expected a cluster at {self._address}, got no connection within "
                f"{self._timeout_s:g} s; start Ray there, or correct the address"
            ) from (reason or error)


async def _fault_of_connection(host: str, port: int) -> OSError | None:
    """Connect and disconnect; return why that did not work, or None."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return error
    writer.close()
    return None
