"""The output that libraries and child processes print, as records of the log.

Ray prints to standard output, gRPC and TensorFlow write to the file descriptors from C++: no logger
of Python sees either. So the descriptors lead to a pipe, and each line that comes out of it is
logged.

Whoever prints may hold a lock that the log needs: a text that prints while it is made for a line of
the log does. So one thread empties the pipe and waits for nothing else, and another one logs.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import queue
import re
import sys
import threading
from contextlib import suppress
from io import TextIOWrapper
from typing import TextIO

__all__ = ["OUTPUT_LOGGER", "drain_output", "open_closed_streams", "take_output"]

OUTPUT_LOGGER = "policy_server_output"

_STREAMS = {"stdin": (0, "r"), "stdout": (1, "w"), "stderr": (2, "w")}
_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2
_MOST_LINE_BYTES = 65536
# So much waits for the log in this process, and in the pipe before it.
_MOST_WAITING_BYTES = 16 << 20
_PIPE_BYTES = 1 << 20
_DRAIN_TIMEOUT_S = 2.0
_END_OF_BATCH = b"\0drained"
# The first letter of a line of Google's C++ libraries is its level: `E0000 00:00:1764115200.`
_GOOGLE_LINE = re.compile(r"([IWEF])\d{4} ")
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}

logger = logging.getLogger(OUTPUT_LOGGER)


class _TakenOutput:
    """The pipe, the threads that empty and log it, and the descriptors as they were."""

    def __init__(self) -> None:
        outlet, self._inlet = os.pipe()
        if sys.platform == "linux":
            # What a C library prints while it holds Python's lock has to find room: no thread of
            # Python empties the pipe meanwhile. A megabyte is the most that Linux gives anybody.
            with suppress(OSError):
                fcntl.fcntl(self._inlet, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        # The number of a stream that was closed may be another file's.
        streams = {_STANDARD_OUTPUT: sys.__stdout__, _STANDARD_ERROR: sys.__stderr__}
        self._originals = {n: os.dup(n) for n, stream in streams.items() if stream is not None}
        self._drained = threading.Event()
        # Takes no lock of Python's. Each number is written by one of the two threads.
        self._contents: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._read_bytes = self._logged_bytes = 0
        self._lost = 0
        error = self._originals.get(_STANDARD_ERROR)
        log = os.open(os.devnull, os.O_WRONLY) if error is None else os.dup(error)
        self.stream: TextIO = TextIOWrapper(os.fdopen(log, "wb", buffering=0), write_through=True)
        for number in self._originals:
            os.dup2(self._inlet, number)
        # Threads that a process waits for at its end would wait for all that share the pipe.
        threading.Thread(
            target=self._read, args=(outlet,), name="process-output", daemon=True
        ).start()
        threading.Thread(target=self._log, name="process-output-log", daemon=True).start()

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
        while content := os.read(outlet, _MOST_LINE_BYTES):
            if self._read_bytes - self._logged_bytes < _MOST_WAITING_BYTES:
                self._read_bytes += len(content)
                self._contents.put(content)
            else:
                self._lost += content.count(b"\n")

    def _log(self) -> None:
        rest = b""
        told = 0
        while True:
            content = self._contents.get()
            *lines, rest = (rest + content).split(b"\n")
            if len(rest) >= _MOST_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                if line == _END_OF_BATCH:
                    self._drained.set()
                else:
                    _log_line(line.decode(errors="replace").rstrip())
            self._logged_bytes += len(content)
            if (lost := self._lost - told) > 0:
                told += lost
                with suppress(Exception):
                    logger.warning("output_lines_lost", extra={"lines": lost})


_taken: list[_TakenOutput] = []


def open_closed_streams() -> None:
    """Give each standard stream that was closed (`>&-`) the null device.

    Python has None in its place, and the next file that is opened gets its number. Where one has it
    already, as the event loop of uvicorn has, the number stays that file's.
    """
    for name, (number, mode) in _STREAMS.items():
        if getattr(sys, name) is None:
            is_free = not _is_open(number)
            null = os.open(os.devnull, os.O_RDWR)
            if is_free and null != number:
                os.dup2(null, number)
                os.close(null)
            if is_free:
                # A program that this process becomes has the stream too.
                os.set_inheritable(number, True)  # noqa: FBT003 -- it takes no names
            stream = os.fdopen(number if is_free else null, mode)
            setattr(sys, name, stream)
            if is_free:
                setattr(sys, f"__{name}__", stream)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def take_output() -> TextIO:
    """Log all output from now on, of this process and of those that it starts.

    Returns:
        A stream to the standard error that there was, for the log itself. The output is taken until
        the process ends; a second call returns the first one's stream.
    """
    if not _taken:
        # A handler that can't write, its disk being full, would print why: as lines that it is
        # given, and can't write either. `HoldingHandler` counts what it loses.
        logging.raiseExceptions = False
        _taken.append(_TakenOutput())
        atexit.register(_taken[0].give_back)
    return _taken[0].stream


def drain_output() -> None:
    """Wait until all output so far is logged; a process that a signal ends loses the rest."""
    for taken in _taken:
        taken.drain()


def _log_line(line: str) -> None:
    if not line.strip():
        return
    found = _GOOGLE_LINE.match(line)
    level = logging.WARNING if found is None else _LEVELS[found[1]]
    # A filter or handler that others have added may fail at one line, and log the next one.
    with suppress(Exception):
        logger.log(level, "%s", line)
