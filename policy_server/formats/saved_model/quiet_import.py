"""Importing TensorFlow: set as the server needs it, and without its notes on standard error."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_import"]

# TensorFlow reads these when it is imported, and at no other time. Its own log is for its
# developers; small batches are faster without oneDNN (DESIGN.md section 6), whose sums also differ
# in the last bits.
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
_NOISE = re.compile(rb"^(WARNING: All log messages before absl::InitializeLog|[IW]\d{4} \d\d:)")


@contextmanager
def quiet_import() -> Iterator[None]:
    """Hold standard error back while TensorFlow is imported, and pass on all but its own notes.

    Its libraries write some before they read any setting, on the file descriptor itself. A variable
    that the operator has set stays as it is.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if sys.__stderr__ is None:
        # It was closed, and its number may be another file's: the event loop's.
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            kept = [line for line in held if not _NOISE.match(line)]
            if kept:
                os.write(2, b"".join(kept))
