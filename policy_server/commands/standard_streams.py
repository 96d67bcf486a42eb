"""Standard output where it is closed, full, or nobody reads it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from policy_server.errors import PolicyServerError

__all__ = ["drop_output", "flush_output", "write_output"]


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
