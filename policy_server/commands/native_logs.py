"""The notes that TensorFlow's C++ writes to standard error at its import, at any log level."""

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
    """Hold standard error back in the block; write it only if an unforeseen error ends the block.

    An error of this package explains itself; for any other error, the library's own lines may be
    the only explanation.
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
