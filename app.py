"""The application that `uvicorn app:app` serves."""

from __future__ import annotations

import os

# NumPy reads it at its import. Where the other core is busy, each product of two threads waits for
# the one that has none: a large policy took thirty times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from policy_server.launch import build_app, end_start

try:
    app = build_app()
except Exception as error:
    end_start(error)
