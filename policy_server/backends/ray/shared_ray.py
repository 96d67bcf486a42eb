"""One Ray for all of uvicorn's workers: the first starts it, the last one out ends it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import ray

from policy_server.backends.ray.connection import as_not_ready_error, connect
from policy_server.backends.ray.ledger import is_alive
from policy_server.backends.ray.membership import OnRaysThread
from policy_server.backends.ray.own_ray import OwnRay
from policy_server.errors import NotReadyError
from policy_server.files.locks import FileLock
from policy_server.files.shared_folders import share_folder
from policy_server.settings import Settings

__all__ = ["SharedRay"]

_LAST_WORKER_TIMEOUT_S = 30.0
_POLL_S = 0.1


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
        self._own = OwnRay(settings)
        self._folder = share_folder("workers", parent=os.getppid()).path
        self._entry = self._folder / f"member-{os.getpid()}"
        self._has_started = False
        self._lock: AsyncExitStack | None = None
        self._has_turn = asyncio.Event()
        self.addresses: dict[str, str] = {}
        self.ledger_folder = Path()

    async def join(self) -> None:
        """Join the Ray that another worker has started, or start it."""
        self._lock = await _locked(self._folder)
        self._has_turn.set()
        if not await self._call(self._join_others):
            self._has_started = True
            await self._call(self._start)

    async def turn(self) -> None:
        """Wait until this worker joins: it finds what the first one has compiled."""
        await self._has_turn.wait()

    async def has_served(self) -> None:
        """Let the next worker join, since this one's policy answers."""
        if self._lock is not None:
            self._entry.touch()
            await self._unlock()
            if self._has_started:
                self._call(self._own.start_dashboard)

    async def leave(self) -> None:
        """Leave Ray, or end it when all other workers have left."""
        self._entry.unlink(missing_ok=True)
        if not self._has_started:
            await self._unlock()
            await self._call(ray.shutdown)
            return
        if self._lock is None:
            await self._wait_for_others()
            await self._call(self._own.end)
            shutil.rmtree(self._folder, ignore_errors=True)
        else:
            # Before the lock is freed: another worker would join a Ray that is about to end, and
            # wait for it for a minute.
            shutil.rmtree(self._folder, ignore_errors=True)
            await self._unlock()
            await self._call(self._own.end)

    async def _unlock(self) -> None:
        if self._lock is not None:
            await self._lock.aclose()
            self._lock = None

    def _join_others(self) -> bool:
        state = self._folder / "ray.json"
        if not state.exists():
            return False
        known = json.loads(state.read_text())
        if not is_alive(known["pid"]):
            # Its Ray has ended with it, which could not remove its folder any more.
            shutil.rmtree(known["folder"], ignore_errors=True)
            return False
        if known["token"]:
            os.environ["RAY_AUTH_TOKEN"] = known["token"]
        with as_not_ready_error():
            connect(known["address"])
        self._take(known)
        return True

    def _start(self) -> None:
        self._own.start()
        known = {
            "pid": os.getpid(),
            "address": self._own.address,
            "token": os.environ.get("RAY_AUTH_TOKEN", ""),
            "addresses": self._own.addresses,
            "folder": str(self._own.folder),
        }
        (self._folder / "ray.json").write_text(json.dumps(known))
        self._take(known)

    def _take(self, known: dict[str, Any]) -> None:
        self.addresses = known["addresses"]
        self.ledger_folder = Path(known["folder"], "ledger")

    async def _wait_for_others(self) -> None:
        deadline = time.monotonic() + _LAST_WORKER_TIMEOUT_S
        while time.monotonic() < deadline:
            members = [int(path.name.split("-")[1]) for path in self._folder.glob("member-*")]
            if not any(map(is_alive, members)):
                return
            await asyncio.sleep(_POLL_S)


async def _locked(folder: Path) -> AsyncExitStack:
    """Return the lock that one worker holds at a time; closing the stack frees it."""
    held = AsyncExitStack()
    path = folder / "lock"
    await held.enter_async_context(FileLock(path))
    if not path.exists():
        await held.aclose()
        # It ends all of them when it has said why, and meanwhile ends its Ray.
        await asyncio.sleep(_LAST_WORKER_TIMEOUT_S)
        raise NotReadyError(
            "ray: the worker that started it could not serve; its own line says why"
        )
    return held
