"""What a piece of code does to the machine, by Python's own audit events.

Before Python 3.12 a thread can't be traced, as a debugger does, while a hook of these events runs
for another one: it ends with a RuntimeError. A hook can't be removed, so it is added by the first
test that needs it, and `tests/conftest.py` has those tests run behind all others.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from threading import get_ident

from tests.support.folders import ROOT

__all__ = ["audited"]

# Set for the thread that is watched; the hook does nothing without it.
_seen: dict[int, list[str]] = {}
# slipcover sets it for pytest.
_IS_COVERED = "SLIPCOVER_ENABLED" in os.environ
_HARMLESS = frozenset(("builtins.id", "object.__getattr__", "sys._getframe"))


def _is_coverage(event: str, arguments: tuple[object, ...]) -> bool:
    """Return whether slipcover gives a function its own code back, once all of it was run."""
    if not _IS_COVERED:
        return False
    if event == "object.__setattr__":
        is_own = str(getattr(arguments[0], "__module__", "")).startswith("policy_server")
        return is_own and arguments[1] == "__code__"
    if event == "sys._current_frames":
        return True
    return event == "code.__new__" and str(arguments[1]).startswith(f"{ROOT / 'policy_server'}/")


def _note(event: str, arguments: tuple[object, ...]) -> None:
    seen = _seen.get(get_ident())
    if seen is not None and event not in _HARMLESS and not _is_coverage(event, arguments):
        seen.append(" ".join([event, *(str(item)[:200] for item in arguments[:2])]))


@functools.cache
def _add_hook() -> None:
    sys.addaudithook(_note)


@contextlib.contextmanager
def audited() -> Iterator[list[str]]:
    """Give the events of this thread in the block: imports, files, processes, sockets, code."""
    _add_hook()
    events = _seen[get_ident()] = []
    try:
        yield events
    finally:
        del _seen[get_ident()]
