"""Replicas, and other workers of the server's Ray, that a signal (SIGSTOP) has stopped for good.

Nothing else ends one for a minute and more. Ray Serve's controller asks a replica three times for
half a minute each; nobody asks a replica that still starts, nor the controller, without which no
replica is replaced. A process that goes on, however slowly, is never ended here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from policy_server.backends.ray.connected_replica import ConnectedReplica
from policy_server.backends.ray_processes import Process, parent_of, stop_of, worker_title

__all__ = ["ReplicaOwner", "Standstill", "StoppedProcesses"]

logger = logging.getLogger(__name__)

_AFTER_S = 3.0
_LOOK_EVERY_S = 0.5
# Where looks lie further apart, in periods, whoever looks may have been stopped as well.
_LONGEST_BETWEEN = 1.5
# In the titles of replicas' processes, of those that start too.
_REPLICA = "ServeReplica"


class ReplicaOwner(Protocol):
    """The owner of connections to replicas, such as a backend."""

    @property
    def replicas(self) -> Collection[ConnectedReplica]:
        """Return those that are connected."""


class Standstill:
    """For how long a signal has kept a process stopped, as far as looks at it tell.

    Attributes:
        seconds: the time between the first look and the last one; 0 after one.
        was_killed: whether SIGKILL was sent for that, which goes to no other user's process.
    """

    def __init__(self, *, longest_between_s: float) -> None:
        """Own what was seen of one process.

        Args:
            longest_between_s: the most that counts of the time between two looks, in seconds.
        """
        self.seconds = 0.0
        self.was_killed = False
        self._longest_between_s = longest_between_s
        self._stop = ""
        self._looked_at = 0.0

    def look(self, stop: str, now: float) -> None:
        """Take note of a stop, which begins anew where the process has gone on meanwhile.

        Args:
            stop: as `stop_of` returns it.
            now: the time in seconds.
        """
        if stop == self._stop:
            self.seconds += min(now - self._looked_at, self._longest_between_s)
        else:
            self.seconds = 0.0
        self._stop, self._looked_at = stop, now


class StoppedProcesses:
    """Looks for stopped processes twice a second, and kills those that stay so for three seconds.

    They are the replicas of this machine to which the server is connected, and all workers of a Ray
    that the server has started: replicas that start, Ray Serve's controller, and workers that wait
    to become either. A cluster that the server has joined has its own keepers. If whoever looks was
    stopped as well, that time counts little.
    """

    def __init__(
        self,
        owners: Collection[ReplicaOwner],
        parents: Callable[[], Collection[int]],
        *,
        after_s: float = _AFTER_S,
        every_s: float = _LOOK_EVERY_S,
    ) -> None:
        """Own nothing but what was seen.

        Args:
            owners: have the connected replicas, and come and go.
            parents: returns the ids of the processes whose children are workers of a Ray that the
                server has started.
            after_s: for how long a process has to be found stopped, in seconds.
            every_s: the time between two looks, in seconds.
        """
        self._owners = owners
        self._parents = parents
        self._after_s = after_s
        self._every_s = every_s
        self._standstills: Mapping[int, Standstill] = {}
        # The parent of each process of the machine, read once.
        self._known: Mapping[int, int] = {}

    async def run(self) -> None:
        """Look, and kill, again and again."""
        while True:
            await asyncio.sleep(self._every_s)
            replicas, parents = self._replicas(), self._parents()
            # A machine may have many processes.
            self._standstills = await asyncio.to_thread(self._look, set(replicas), parents)
            for pid, standstill in self._standstills.items():
                connected = replicas.get(pid, [])
                if standstill.seconds:
                    for replica in connected:
                        replica.stopped_at = time.monotonic()
                if standstill.seconds >= self._after_s and not standstill.was_killed:
                    standstill.was_killed = True
                    _kill(pid, connected)

    def _replicas(self) -> dict[int, list[ConnectedReplica]]:
        """Return the connected replicas of this machine, by the ids of their processes."""
        found: dict[int, list[ConnectedReplica]] = {}
        for owner in self._owners:
            for replica in owner.replicas:
                if replica.process is not None:
                    found.setdefault(replica.process, []).append(replica)
        return found

    def _look(self, replicas: set[int], parents: Collection[int]) -> dict[int, Standstill]:
        """Return the standstills of those of the replicas and of Ray's workers that are stopped."""
        found = {}
        for pid in replicas.union(self._children_of(parents)):
            if (stop := stop_of(pid)) and (pid in replicas or worker_title(pid)):
                standstill = self._standstills.get(pid) or Standstill(
                    longest_between_s=_LONGEST_BETWEEN * self._every_s
                )
                standstill.look(stop, time.monotonic())
                found[pid] = standstill
        return found

    def _children_of(self, parents: Collection[int]) -> Iterator[int]:
        if not parents:
            return
        with suppress(OSError):
            pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
            self._known = {pid: self._known.get(pid) or parent_of(pid) for pid in pids}
        yield from (pid for pid, parent in self._known.items() if parent in parents)


def _kill(pid: int, connected: Collection[ConnectedReplica]) -> None:
    """Kill a process, and log that.

    Args:
        pid: its id.
        connected: the connections to the replica that it is; none if it is another worker of Ray's.
    """
    title = worker_title(pid)
    names = [replica.address.replica for replica in connected]
    if names or _REPLICA in title:
        replica = names[0] if names else title
        logger.error("replica_stands_still", extra={"replica": replica, "replica_pid": pid})
    else:
        logger.warning("ray_stands_still", extra={"ended": pid, "title": title})
    Process.of(pid).kill()
