"""What a piece of code does to the machine, by Python's own audit events."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from threading import get_ident

__all__ = ["audited"]

# Set for the thread that is watched; a hook can't be removed, and does nothing without it.
_seen: dict[int, list[str]] = {}
_HARMLESS = frozenset(("builtins.id", "object.__getattr__", "sys._getframe"))


def _note(event: str, arguments: tuple[object, ...]) -> None:
    seen = _seen.get(get_ident())
    if seen is not None and event not in _HARMLESS:
        seen.append(" ".join([event, *(str(item)[:200] for item in arguments[:2])]))


sys.addaudithook(_note)


@contextlib.contextmanager
def audited() -> Iterator[list[str]]:
    """Give the events of this thread in the block: imports, files, processes, sockets, code."""
    events = _seen[get_ident()] = []
    try:
        yield events
    finally:
        del _seen[get_ident()]
