"""Standard output where it is closed, full, or nobody reads it, and what is logged to the other."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from policy_server.errors import PolicyServerError

__all__ = ["drop_output", "flush_output", "log_in_one_line", "write_output"]


class _OneLine(logging.Formatter):
    """Shows a record as one line, with its error in words in the place of a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line.

        Args:
            record: what was logged.
        """
        words = record.getMessage()
        if record.exc_info and (error := record.exc_info[1]) is not None:
            words = f"{words}: {type(error).__name__}: {error}"
        return " ".join(words.split())


def log_in_one_line() -> None:
    """Have warnings and errors that a command's libraries log come as one line each.

    asyncio logs one where a read of a pipe gets no memory, and reads again. In Python's development
    mode tracebacks are shown.
    """
    if logging.lastResort is not None and not sys.flags.dev_mode:
        logging.lastResort.setFormatter(_OneLine())


def write_output(text: str) -> None:
    """Write to standard output.

    Args:
        text: with its line ends.

    Raises:
        PolicyServerError: if it can't be written, as on a full disk.
        BrokenPipeError: if its reader has gone.
    """
    with _in_words():
        sys.stdout.write(text)


def flush_output() -> None:
    """Hand on all that was written to standard output; raises as `write_output` does."""
    with _in_words():
        sys.stdout.flush()


def drop_output() -> None:
    """Let what is left of standard output go nowhere: Python flushes it once more at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise PolicyServerError(f"standard output: can't be written: {error.strerror}") from error
