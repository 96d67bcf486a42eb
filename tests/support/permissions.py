"""Folders that nobody may write to, root neither."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["read_only"]

# linux/capability.h: version 3, a header and two words for each of effective, permitted, inherited.
_VERSION = 0x20080522
# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root pass over permissions.
_OVER_PERMISSIONS = 1 << 1 | 1 << 2

_Words = ctypes.c_uint32 * 2
_Sets = ctypes.c_uint32 * 6


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let this thread write nothing to a folder while the block runs.

    Args:
        folder: one of this user's own.
    """
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    try:
        with _as_any_user():
            yield
    finally:
        folder.chmod(mode)


@contextmanager
def _as_any_user() -> Iterator[None]:
    """Hold root to permissions, as the system holds others to them."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Words(_VERSION, 0), _Sets()

    def call(name: str) -> None:
        if getattr(libc, name)(header, sets) != 0:
            raise OSError(ctypes.get_errno(), name)

    call("capget")
    effective = sets[0]
    sets[0] = effective & ~_OVER_PERMISSIONS
    call("capset")
    try:
        yield
    finally:
        sets[0] = effective
        call("capset")
