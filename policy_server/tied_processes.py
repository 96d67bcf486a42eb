"""Child processes of Python that end with the process that started them, however that one ends.

A process that is killed ends none of its own: one that compiles or reads a damaged file for minutes
would go on for nobody.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["end_with", "tied_command"]

# Of prctl(2).
_SET_PARENT_DEATH_SIGNAL = 1


def tied_command(command: Sequence[str], *, niceness: int = 0) -> list[str]:
    """Return the command line of a program that ends with this process; see `end_with`.

    Args:
        command: the program and its arguments.
        niceness: how much lower its priority is than this process's, up to 19.
    """
    # This file needs no package, so that none has to be found there. -I: none is looked for.
    return [sys.executable, "-I", __file__, str(os.getpid()), str(niceness), *command]


def end_with(parent: int) -> None:
    """Have Linux kill this process when its parent ends, and a program that takes its place too.

    Other systems have nothing like it. Linux takes the end of the thread that started this process
    for the parent's; that thread has to wait for it, or be one that lasts as long as the parent.

    Args:
        parent: the id of the process that started this one, by its own `os.getpid()`.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        # It had ended before.
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    os.nice(int(sys.argv[2]))
    os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606 -- the command of this package, no shell
