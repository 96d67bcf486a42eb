"""The application that `uvicorn app:app` serves."""

from __future__ import annotations

import sys

from policy_server.errors import PolicyServerError
from policy_server.launch import build_app, end_supervisor

try:
    app = build_app()
except PolicyServerError as error:
    end_supervisor()
    sys.exit(f"policy server: {error.message}")
