"""The application that `uvicorn app:app` serves."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import parent_process

from policy_server.errors import PolicyServerError
from policy_server.launch import build_app

try:
    app = build_app()
except PolicyServerError as error:
    if parent_process() is not None:
        # A worker of `uvicorn --workers N`, which would start it again for ever.
        os.kill(os.getppid(), signal.SIGTERM)
    sys.exit(f"policy server: {error.message}")
