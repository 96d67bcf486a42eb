"""Versions of one policy that come and go under the traffic: deployed, promoted, rolled back."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

from benchmarks.soak.home import CHANGED
from benchmarks.soak.traffic import Trouble, Visitor

__all__ = ["ADMIN_KEY", "Reloads"]

ADMIN_KEY = "an-admin-key-of-this-run"
_HEADERS = {"access-token": ADMIN_KEY}
_ROUTE = f"/admin/policies/{CHANGED}"
_PAUSE_S = 1.0


class Reloads:
    """The versions of `CHANGED`, one cycle after the other; each ends as it began."""

    def __init__(self, archive: Path) -> None:
        """Own the names of versions that were deployed.

        Args:
            archive: the second version's zip.
        """
        self._archive = archive.read_bytes()
        self._numbers = itertools.count()
        self._turn = asyncio.Lock()

    async def cycle(self, visitor: Visitor) -> None:
        """Deploy a version for a share, a shadow, and what is no policy; then go back."""
        if self._turn.locked():
            return
        async with self._turn:
            name = f"other_{next(self._numbers)}"
            await self._change(visitor, f"versions?version={name}&traffic=30", self._archive, 201)
            await asyncio.sleep(_PAUSE_S)
            shadow = f"versions?version={name}s&shadow=true"
            await self._change(visitor, shadow, self._archive, 201)
            await self._change(visitor, "versions?version=bad", self._archive[:999], 409)
            await asyncio.sleep(_PAUSE_S)
            await self._change(visitor, f"promote?version={name}", b"", 200)
            await asyncio.sleep(_PAUSE_S)
            status = await self._change(visitor, "rollback", b"", 200)
            if status["live"] == name:
                raise Trouble(f"rollback: {name} is still live")
            for each in (name, f"{name}s"):
                await visitor.ask("DELETE", f"{_ROUTE}/versions/{each}", headers=_HEADERS)

    async def _change(self, visitor: Visitor, route: str, body: bytes, status: int) -> Any:  # noqa: ANN401 -- JSON
        headers = {**_HEADERS, "content-type": "application/zip"}
        outcome = await visitor.ask(
            "POST", f"{_ROUTE}/{route}", body, status=status, headers=headers
        )
        return outcome.json()
