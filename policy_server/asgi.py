"""The application as uvicorn imports it: built from settings and schema.yaml when this is imported.

`policy-server serve` runs `uvicorn policy_server.asgi:app`; `app.py` of the repository gives the
same by the name `app:app`. A program that mounts a policy in an application of its own takes
`policy_server.create_app` instead.
"""

from __future__ import annotations

import gc
import os
import sys

# All that a start makes stays: collections would walk through it again and again. They begin when
# the policies answer.
gc.disable()
# pydantic looks through all installed packages for plugins of its own, in each process.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
# NumPy reads it at its import. Where the other core is busy, each product of two threads waits for
# the one that has none: a large policy took thirty times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

try:
    from policy_server.process_output import open_closed_streams

    # Before anything writes there: Python has None for a stream that was closed.
    open_closed_streams()
    from policy_server.launch import build_app, end_start
except MemoryError:
    # By a status that no supervisor tries again, as `end_start` does.
    sys.stderr.write("policy server: there is too little memory to start; raise its limits\n")
    sys.exit(3)

__all__ = ["app"]

try:
    app = build_app()
except Exception as error:
    end_start(error)
