"""TensorFlow's C++ writes to standard error when it is imported, whatever its log level is."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from policy_server.errors import PolicyServerError

__all__ = ["hidden_native_logs"]

_STANDARD_ERROR = 2


@contextlib.contextmanager
def hidden_native_logs() -> Iterator[None]:
    """Keep what a library writes to standard error to ourselves, unless the block fails unforeseen.

    An error of this package says in its own words what is wrong; for any other the library's may be
    the only ones.
    """
    sys.stderr.flush()
    shown = os.dup(_STANDARD_ERROR)
    try:
        with tempfile.TemporaryFile() as hidden:
            os.dup2(hidden.fileno(), _STANDARD_ERROR)
            try:
                yield
            except (PolicyServerError, KeyboardInterrupt):
                raise
            except BaseException:
                hidden.seek(0)
                os.write(shown, hidden.read())
                raise
            finally:
                sys.stderr.flush()
                os.dup2(shown, _STANDARD_ERROR)
    finally:
        os.close(shown)
