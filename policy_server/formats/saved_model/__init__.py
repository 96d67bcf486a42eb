"""TensorFlow SavedModels as RLlib exports them: load, inspect, prove and export.

The only place that imports TensorFlow.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["LoadedPolicy", "load_policy"]

# TensorFlow reads these when it is imported, and at no other time. Its own log is for its
# developers; small batches are faster without oneDNN (DESIGN.md section 6), whose sums also differ
# in the last bits.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

_NOISE = re.compile(rb"^(WARNING: All log messages before absl::InitializeLog|[IW]\d{4} \d\d:)")


@contextmanager
def _without_noise() -> Iterator[None]:
    """Hold standard error back while TensorFlow is imported, and pass on all but its own notes.

    Its libraries write some before they read any setting, on the file descriptor itself.
    """
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


with _without_noise():
    from policy_server.formats.saved_model.loading import LoadedPolicy, load_policy
