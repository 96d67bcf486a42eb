"""What a server holds, moment by moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import ProcessFigures, RunningServer

__all__ = ["Figures", "Meter", "Sample", "stored_bytes"]

_EVERY_S = 5.0
_MEGABYTE = 1e6
_SETTLE_S = 30.0
_POLL_S = 0.5
# Of stat(2), whatever the file system.
_BLOCK_BYTES = 512


@dataclass(frozen=True)
class Figures:
    """What the processes of one role hold.

    Attributes:
        memory_mb: memory of their own, pages of files left out, in MB.
        files: open file descriptors.
        threads: how many.
        processes: how many.
        pids: their ids, ascending; none in records of before.
        pool_threads: threads in the pools of gRPC, which Ray uses; 0 in records of before.
        largest_pool: as many of these threads as the process with the most has.
    """

    memory_mb: float
    files: int
    threads: int
    processes: int
    pids: tuple[int, ...] = ()
    pool_threads: int = 0
    largest_pool: int = 0


@dataclass(frozen=True)
class Sample:
    """What a server holds at one moment.

    Attributes:
        seconds: since the traffic began.
        requests: how many there were by then.
        roles: by `web`, `replica` and `Ray`.
        folder_mb: the size of Ray's temporary folder, and of what else lies beside it.
        store_mb: what Ray's object store holds, or has held at once; None without Ray.
        is_quiet: whether no client was there.
    """

    seconds: float
    requests: int
    roles: dict[str, Figures]
    folder_mb: float
    store_mb: float | None
    is_quiet: bool

    @property
    def handles(self) -> dict[str, tuple[int, int, int]]:
        """By role: open files, threads outside of gRPC's pools, processes."""
        return {
            role: (each.files, each.threads - each.pool_threads, each.processes)
            for role, each in self.roles.items()
        }


@dataclass
class Meter:
    """Takes samples of a server.

    Attributes:
        server: the server.
        folder: where its temporary files lie.
        has_store: whether there is a Ray, with an object store.
        count: returns the number of requests so far.
        samples: those that were taken.
    """

    server: RunningServer
    folder: Path
    has_store: bool
    count: Callable[[], int]
    samples: list[Sample] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take a sample every five seconds while the block runs."""

        async def go_on() -> None:
            while True:
                await self._take(is_quiet=False)
                await asyncio.sleep(_EVERY_S)

        task = asyncio.create_task(go_on())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def take_quiet(self) -> Sample:
        """Take a sample without clients.

        What clients leave behind goes a moment later: the files, threads and processes are waited
        for that the quiet sample before had, for half a minute at most.

        Returns:
            The sample.
        """
        before = next((each for each in reversed(self.samples) if each.is_quiet), None)
        deadline = time.monotonic() + _SETTLE_S
        while True:
            await asyncio.sleep(_POLL_S)
            sample = await self._take(is_quiet=True)
            if before is None or sample.handles == before.handles or time.monotonic() > deadline:
                return sample
            self.samples.pop()

    async def _take(self, *, is_quiet: bool) -> Sample:
        self.server.check_alive()
        processes, store, folder = await asyncio.to_thread(self._look)
        roles = {each.role for each in processes}
        sample = Sample(
            round(time.monotonic() - self._began, 1),
            self.count(),
            {role: _figures([each for each in processes if each.role == role]) for role in roles},
            folder / _MEGABYTE,
            store,
            is_quiet,
        )
        self.samples.append(sample)
        return sample

    def _look(self) -> tuple[list[ProcessFigures], float | None, int]:
        sizes = []
        for path in self.folder.rglob("*"):
            with suppress(OSError):
                sizes.append(path.lstat().st_size if path.is_file() else 0)
        return self.server.processes(), self._stored(), sum(sizes)

    def _stored(self) -> float | None:
        if not self.has_store:
            return None
        return sum(map(stored_bytes, self.server.pids())) / _MEGABYTE


def stored_bytes(pid: int) -> int:
    """Return the size of Ray's object store as far as it is filled, or was at once.

    Its file has no name any more, and a process counts among its memory only those of the file's
    pages that it has touched itself: the size is read by the raylet's open file.

    Args:
        pid: a process; 0 is returned for all but the raylet.
    """
    found = 0
    with suppress(OSError):
        if _is_raylet(pid):
            for number in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if number.readlink().name.startswith("plasma"):
                        found += number.stat().st_blocks * _BLOCK_BYTES
    return found


def _is_raylet(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet")


def _figures(processes: list[ProcessFigures]) -> Figures:
    return Figures(
        sum(each.own_bytes for each in processes) / _MEGABYTE,
        sum(each.files for each in processes),
        sum(each.threads for each in processes),
        len(processes),
        tuple(sorted(each.pid for each in processes)),
        sum(each.pool_threads for each in processes),
        max(each.pool_threads for each in processes),
    )
