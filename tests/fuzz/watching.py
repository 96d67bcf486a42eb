"""Complaints of the server, and its memory, while it is given inputs that nobody means."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["resident_bytes", "without_complaints"]

_PAGE = 4096


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        error = record.exc_info[1] if record.exc_info else None
        self.lines.append(f"{record.name}: {record.getMessage()[:500]} {error!r}")


@contextmanager
def without_complaints() -> Iterator[None]:
    """Hold that the block logs no error: no failing callback, no task that nobody asked."""
    complaints = _Complaints()
    root = logging.getLogger()
    root.addHandler(complaints)
    try:
        yield
        # A task or a future that failed and that nobody asks complains once it is freed.
        gc.collect()
    finally:
        root.removeHandler(complaints)
    assert complaints.lines == []


def resident_bytes() -> int:
    """Return the memory of this process that lies in RAM."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
