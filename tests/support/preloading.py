"""Libraries that stand in front of the C library in the processes of a test (LD_PRELOAD)."""

from __future__ import annotations

from pathlib import Path

from tests.support.processes import program, run

__all__ = ["built"]


def built(source: Path, folder: Path) -> Path:
    """Compile a library; fails with how to install the compiler where it is missing.

    Args:
        source: its text in C.
        folder: where the library is written.
    """
    library = folder / f"{source.stem}.so"
    compiler = program("gcc", package="gcc libc6-dev")
    run(compiler, "-Wall", "-Werror", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl")
    return library
