"""The output that libraries and child processes print, as records of the log.

Ray prints to standard output, gRPC and TensorFlow write to the file descriptors from C++: no logger
of Python sees either. So the descriptors lead to a pipe, and each line that comes out of it is
logged.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
from io import TextIOWrapper
from typing import TextIO

__all__ = ["OUTPUT_LOGGER", "drain_output", "take_output"]

OUTPUT_LOGGER = "policy_server_output"

_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2
_MOST_LINE_BYTES = 65536
_DRAIN_TIMEOUT_S = 2.0
_END_OF_BATCH = b"\0drained"
# The first letter of a line of Google's C++ libraries is its level: `E0000 00:00:1764115200.`
_GOOGLE_LINE = re.compile(r"([IWEF])\d{4} ")
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}

logger = logging.getLogger(OUTPUT_LOGGER)


class _TakenOutput:
    """The pipe, the thread that empties it, and the descriptors as they were."""

    def __init__(self) -> None:
        outlet, self._inlet = os.pipe()
        self._originals = {n: os.dup(n) for n in (_STANDARD_OUTPUT, _STANDARD_ERROR)}
        self._drained = threading.Event()
        self.stream: TextIO = TextIOWrapper(
            os.fdopen(os.dup(_STANDARD_ERROR), "wb", buffering=0), write_through=True
        )
        for number in self._originals:
            os.dup2(self._inlet, number)
        # A thread that a process waits for at its end would wait for all that share the pipe.
        threading.Thread(
            target=self._read, args=(outlet,), name="process-output", daemon=True
        ).start()

    def drain(self) -> None:
        """Wait until all output so far is logged."""
        self._drained.clear()
        os.write(self._inlet, b"\n" + _END_OF_BATCH + b"\n")
        self._drained.wait(_DRAIN_TIMEOUT_S)

    def give_back(self) -> None:
        """Give the descriptors their old targets back, and log the rest of the pipe."""
        for number, original in self._originals.items():
            os.dup2(original, number)
        self.drain()

    def _read(self, outlet: int) -> None:
        rest = b""
        while chunk := os.read(outlet, _MOST_LINE_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) >= _MOST_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                if line == _END_OF_BATCH:
                    self._drained.set()
                else:
                    _log(line.decode(errors="replace").rstrip())


_taken: list[_TakenOutput] = []


def take_output() -> TextIO:
    """Log all output from now on, of this process and of those that it starts.

    Returns:
        A stream to the standard error that there was, for the log itself. The output is taken until
        the process ends; a second call returns the first one's stream.
    """
    if not _taken:
        _taken.append(_TakenOutput())
        atexit.register(_taken[0].give_back)
    return _taken[0].stream


def drain_output() -> None:
    """Wait until all output so far is logged; a process that a signal ends loses the rest."""
    for taken in _taken:
        taken.drain()


def _log(line: str) -> None:
    if not line.strip():
        return
    found = _GOOGLE_LINE.match(line)
    logger.log(logging.WARNING if found is None else _LEVELS[found[1]], "%s", line)
