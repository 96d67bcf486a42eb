"""One Ray for all of uvicorn's workers: the first starts it, the last one out ends it.

The worker that has started it may be killed: Ray goes on. Where Ray itself dies, one worker starts
the next one, and the others join it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Collection
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import ray

from policy_server.backends.ray.connection import as_not_ready_error, connect
from policy_server.backends.ray.membership import OnRaysThread, finish
from policy_server.backends.ray.own_ray import OwnRay
from policy_server.backends.ray_processes import Process, end_ray_in, rays_of
from policy_server.backends.ray_pulse import (
    WatchedProcess,
    are_running,
    end_standstills,
    first_lost,
)
from policy_server.errors import NotReadyError
from policy_server.files.atomic import write_whole
from policy_server.files.locks import FileLock
from policy_server.files.shared_folders import share_folder
from policy_server.settings import Settings

__all__ = ["SharedRay"]

_LAST_WORKER_TIMEOUT_S = 30.0
_POLL_S = 0.1
# A lock that can't be had for so long is another worker's.
_TAKEN_AFTER_S = 0.5
# One that leaves, and takes longer, may stand still.
_LEFT_AFTER_S = 5.0
_LOCK = "lock"
_LEDGER = "ledger"
_MEMBER = "member-"


class SharedRay:
    """A worker's membership in the Ray that all workers of one uvicorn share.

    One worker at a time joins, and holds the lock until its first policy answers: if the first
    worker's policy can't be served, its Ray ends before another worker has joined it.
    """

    is_crowded = False

    def __init__(self, settings: Settings, call: OnRaysThread) -> None:
        """Own nothing yet; from `join` to `leave`, this worker's entry, and Ray if it is the first.

        Args:
            settings: ports, and how many replicas there are.
            call: runs a function on Ray's thread.
        """
        self._call = call
        self._settings = settings
        # Where it is killed, this process has another parent.
        self._server = os.getppid()
        self._own = OwnRay(settings, server=self._server)
        self._dead: list[OwnRay] = []
        self._dead_folders: list[Path] = []
        self._watched: list[WatchedProcess] = []
        self._settling: asyncio.Task[None] | None = None
        self._folder = share_folder("workers", parent=self._server).path
        self._entry = self._folder / f"{_MEMBER}{Process.of(os.getpid())}"
        self._has_started = False
        self._lock: AsyncExitStack | None = None
        self._has_turn = asyncio.Event()
        self.addresses: dict[str, str] = {}
        self.ledger_folder = Path()

    @property
    def needed_pids(self) -> Collection[int]:
        """See `Membership.needed_pids`."""
        return [watched.process.pid for watched in self._watched]

    async def join(self) -> None:
        """Join the Ray that another worker has started, or start it."""
        self._lock = await self._locked()
        self._has_turn.set()
        if not await self._call(self._join_others):
            self._has_started = True
            await self._call(self._start)

    def is_alive(self) -> bool:
        """See `Membership.is_alive`."""
        return are_running(self._watched)

    async def lost(self) -> None:
        """See `Membership.lost`."""
        await first_lost(self._watched)

    async def rejoin(self) -> None:
        """See `Membership.rejoin`."""
        if self.is_alive():
            # The applications could not be had on it; another try may have them.
            return
        if os.getppid() != self._server:
            # The server was killed, and this worker ends: the guard of another Ray would end it.
            await asyncio.Event().wait()
        if self._has_started:
            self._dead.append(self._own)
            self._own = OwnRay(self._settings, server=self._server)
            self._has_started = False
        await self._unlock()
        await self._disconnect()
        # It may have been removed, such as with Ray's folder, by what clears temporary files.
        share_folder("workers", parent=self._server)
        await self.join()

    async def turn(self) -> None:
        """Wait until this worker joins: it finds what the first one has compiled."""
        await self._has_turn.wait()

    async def has_served(self) -> None:
        """Let the next worker join, since this one's policy answers."""
        if self._lock is not None:
            try:
                self._entry.write_text(str(self.ledger_folder))
            finally:
                await self._unlock()
            self._settling = asyncio.create_task(self._settle())

    async def leave(self) -> None:
        """Leave Ray, or end it when all other workers have left."""
        self._entry.unlink(missing_ok=True)
        self._own.break_off()
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)
        await self._call(finish)
        async with AsyncExitStack() as leaving:
            is_last = await self._is_last(leaving)
            await self._disconnect()
            if self._has_started and (is_last or self._lock is not None):
                # Another worker would join a Ray that has ended, and wait for it for a minute.
                (self._folder / "ray.json").unlink(missing_ok=True)
                await self._call(self._own.end_processes)
            if is_last:
                for folder in rays_of(self._server):
                    await self._call(end_ray_in, folder)
                shutil.rmtree(self._folder, ignore_errors=True)
            await self._unlock()
        await self._end_dead()

    async def _disconnect(self) -> None:
        async with end_standstills(self._watched):
            await self._call(ray.shutdown)

    async def _is_last(self, leaving: AsyncExitStack) -> bool:
        """Return whether no other worker uses Ray or joins it; until the stack closes, none does.

        Where the folder was removed, or another worker takes too long to leave, nobody can tell:
        the guard ends Ray with the server.
        """
        if not self._has_turn.is_set():
            # The worker that has the lock ends the Ray that it may be starting now.
            return False
        try:
            async with asyncio.timeout(_LEFT_AFTER_S):
                await leaving.enter_async_context(FileLock(self._folder, is_folder=True))
            if self._lock is None:
                async with asyncio.timeout(_TAKEN_AFTER_S):
                    await leaving.enter_async_context(FileLock(self._folder / _LOCK))
        except (FileNotFoundError, TimeoutError):
            return False
        return not self._others()

    async def _settle(self) -> None:
        """End what is left of a Ray that has died, and start the rest of the new one."""
        if self._dead or self._dead_folders:
            # Until they have joined the new one, the dead one's replicas answer the others.
            await self._wait_for_others(self.ledger_folder)
            await self._end_dead()
        if self._has_started:
            await self._call(self._own.start_rest)

    async def _end_dead(self) -> None:
        while self._dead:
            await self._call(self._dead.pop().end_processes)
        while self._dead_folders:
            await self._call(end_ray_in, self._dead_folders.pop())

    async def _locked(self) -> AsyncExitStack:
        """Return the lock that one worker holds at a time; closing the stack frees it."""
        held = AsyncExitStack()
        path = self._folder / _LOCK
        await held.enter_async_context(FileLock(path))
        if path.exists():
            return held
        await held.aclose()
        if self._has_turn.is_set():
            # The last worker that served has left meanwhile, or what clears temporary files came.
            raise NotReadyError("ray: the folder that the workers share was removed")
        # It ends all of them when it has said why, and meanwhile ends its Ray.
        await asyncio.sleep(_LAST_WORKER_TIMEOUT_S)
        raise NotReadyError(
            "ray: the worker that started it could not serve; its own line says why"
        )

    async def _unlock(self) -> None:
        if self._lock is not None:
            await self._lock.aclose()
            self._lock = None

    def _join_others(self) -> bool:
        state = self._folder / "ray.json"
        if not state.exists():
            return False
        known = json.loads(state.read_text())
        watched = [WatchedProcess.read(text) for text in known["watched"]]
        if not are_running(watched):
            # A worker that was killed could not remove the folder any more.
            if (folder := Path(known["folder"])) not in (dead.folder for dead in self._dead):
                self._dead_folders.append(folder)
            return False
        if known["token"]:
            os.environ["RAY_AUTH_TOKEN"] = known["token"]
        with as_not_ready_error():
            connect(known["address"])
        self._take(known)
        return True

    def _start(self) -> None:
        for folder in rays_of(self._server):
            if not (folder / _LEDGER).exists():
                # The worker that began to start it was killed.
                end_ray_in(folder)
        self._own.start()
        known = {
            "watched": [str(watched) for watched in self._own.watched],
            "address": self._own.address,
            "token": os.environ.get("RAY_AUTH_TOKEN", ""),
            "addresses": self._own.addresses,
            "folder": str(self._own.folder),
        }
        write_whole(self._folder / "ray.json", json.dumps(known))
        self._take(known)

    def _take(self, known: dict[str, Any]) -> None:
        self.addresses = known["addresses"]
        self.ledger_folder = Path(known["folder"], _LEDGER)
        self._watched = [WatchedProcess.read(text) for text in known["watched"]]

    async def _wait_for_others(self, ledger_folder: Path) -> None:
        """Wait until the other workers have left, or have joined the Ray of a ledger."""
        deadline = time.monotonic() + _LAST_WORKER_TIMEOUT_S
        while time.monotonic() < deadline:
            if all(_joined_by(entry) == ledger_folder for entry in self._others()):
                return
            await asyncio.sleep(_POLL_S)

    def _others(self) -> list[Path]:
        """Return the entries of the other workers that serve."""
        return [
            path
            for path in self._folder.glob(f"{_MEMBER}*")
            if path != self._entry and Process.read(path.name.removeprefix(_MEMBER)).is_running()
        ]


def _joined_by(entry: Path) -> Path | None:
    """Return the folder of the ledger of the Ray that a worker has joined."""
    try:
        return Path(entry.read_text())
    except OSError:
        return None
