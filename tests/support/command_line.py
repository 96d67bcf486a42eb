"""`python generate.py`, as a user types it."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path

from tests.support.folders import ROOT
from tests.support.processes import Child, child

__all__ = ["started_command", "type_in"]


def started_command(*arguments: str) -> AbstractContextManager[Child]:
    """Start the program in the current folder; it is ended with the block."""
    return child(sys.executable, ROOT / "generate.py", *arguments, folder=Path.cwd())


def type_in(*arguments: str, piped: str = "") -> tuple[int, str, str]:
    """Run the program; return its exit code, standard output and standard error."""
    with started_command(*arguments) as program:
        return program.finish(piped)
