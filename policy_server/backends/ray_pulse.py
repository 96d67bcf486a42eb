"""The pulse of Ray's raylet and GCS: an end is heard of, and one that stands still is ended.

So is a raylet whose sockets have been removed, such as with Ray's whole folder: it goes on, but no
process that it starts can reach it, and a replica that dies would never be replaced.

Both are gRPC servers, and an HTTP/2 server sends its settings to whoever connects (RFC 9113,
section 3.4): a process that does so still turns its loop.

The guard of a Ray looks for its processes without these parts, which would double its memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

from policy_server.backends.ray_processes import Process

__all__ = [
    "PULSE_LIMIT_S",
    "WatchedProcess",
    "are_running",
    "end_standstills",
    "first_end",
    "first_lost",
]

logger = logging.getLogger(__name__)

PULSE_LIMIT_S = 10.0
# After a pause of the whole machine one look may fail.
_LOOKS = 5
_LOOK_TIMEOUT_S = 1.0
# How often ends are looked for where the kernel does not tell of them.
_LOOK_EVERY_S = 0.1
_LOOK_AT_SOCKETS_EVERY_S = 1.0


async def first_end(processes: Sequence[Process]) -> None:
    """Wait until the first of some processes has ended.

    Args:
        processes: any processes of this machine, not only children of this one.
    """
    with _Ends(processes) as ends:
        while all(process.is_running() for process in processes):
            await ends.wait()


class _Ends:
    """A wait for the end of processes: at once where the kernel tells of it, as Linux does."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes
        self._descriptors: list[int] = []
        self._has_ended = asyncio.Event()

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if hasattr(os, "pidfd_open"):
            for process in self._processes:
                with suppress(OSError):
                    descriptor = os.pidfd_open(process.pid)
                    self._descriptors.append(descriptor)
                    loop.add_reader(descriptor, self._has_ended.set)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for descriptor in self._descriptors:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    async def wait(self) -> None:
        """Wait for an end, or for the time to look whether there was one."""
        # One that can't be watched has ended already, or the kernel does not tell.
        is_told = len(self._descriptors) == len(self._processes)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if is_told else _LOOK_EVERY_S):
                await self._has_ended.wait()


@dataclass(frozen=True)
class WatchedProcess:
    """A process without which no Ray goes on.

    Attributes:
        process: the process.
        host: the address of its gRPC server.
        port: the port there; 0 where it is not known, and its pulse does not count.
        sockets: the paths at which processes of this machine reach it.
    """

    process: Process
    host: str = ""
    port: int = 0
    sockets: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the process that `str` has written."""
        first, *sockets = text.split("\n")
        place, _, process = first.partition(" ")
        host, _, port = place.rpartition(":")
        return cls(Process.read(process), host, int(port), tuple(sockets))

    def __str__(self) -> str:
        """Return its address and the process, and its sockets on lines of their own."""
        return "\n".join([f"{self.host}:{self.port} {self.process}", *self.sockets])

    def missing_sockets(self) -> list[str]:
        """Return the sockets that are not there any more, or that this user can't reach."""
        return [path for path in self.sockets if not os.path.exists(path)]  # noqa: PTH110 -- `Path.exists` raises where a folder may not be entered

    async def has_pulse(self, *, timeout_s: float = _LOOK_TIMEOUT_S) -> bool:
        """Return whether it sends its settings in time.

        Args:
            timeout_s: the longest wait for them, in seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    return bool(await reader.read(1))
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False


@asynccontextmanager
async def end_standstills(
    watched: Sequence[WatchedProcess], *, limit_s: float = PULSE_LIMIT_S
) -> AsyncIterator[None]:
    """Kill each process that stands still for too long while the block runs.

    Ray's library would wait for it for ever; for one that has ended it does not.

    Args:
        watched: the raylet and the GCS of a Ray.
        limit_s: the longest time without a pulse, in seconds.
    """
    async with _looking([_end_standstill(one, limit_s) for one in watched if one.port]):
        yield


@asynccontextmanager
async def _looking(looks: Iterable[Coroutine[None, None, None]]) -> AsyncIterator[None]:
    looking = [asyncio.create_task(look) for look in looks]
    try:
        yield
    finally:
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)


async def first_lost(watched: Sequence[WatchedProcess], *, limit_s: float = PULSE_LIMIT_S) -> None:
    """Wait until the first has ended, or was killed: it stood still, or its sockets had gone.

    Args:
        watched: the raylet and the GCS of a Ray.
        limit_s: the longest time without a pulse, in seconds.
    """
    # While Ray is ended, its sockets go by themselves: nobody waits here any more.
    cut_off = [_end_cut_off(one) for one in watched if one.sockets]
    async with end_standstills(watched, limit_s=limit_s), _looking(cut_off):
        await first_end([one.process for one in watched])


def are_running(watched: Sequence[WatchedProcess]) -> bool:
    """Return whether none has ended.

    Args:
        watched: the raylet and the GCS of a Ray.
    """
    return all(one.process.is_running() for one in watched)


async def _end_standstill(watched: WatchedProcess, limit_s: float) -> None:
    missed, pause_s = 0, limit_s / _LOOKS / 2
    while missed < _LOOKS:
        await asyncio.sleep(pause_s)
        missed = 0 if await watched.has_pulse(timeout_s=pause_s) else missed + 1
    if watched.process.is_running():
        logger.warning("ray_stands_still", extra={"ended": watched.process.pid})
        watched.process.kill()


async def _end_cut_off(watched: WatchedProcess) -> None:
    while not (missing := watched.missing_sockets()):
        await asyncio.sleep(_LOOK_AT_SOCKETS_EVERY_S)
    if watched.process.is_running():
        extra = {"ended": watched.process.pid, "missing": missing}
        logger.warning("ray_sockets_removed", extra=extra)
        watched.process.kill()
