"""The log of the process that starts the workers of `uvicorn --workers N`: it imports no app.

log_config.json names this; uvicorn reads that file with `--log-config`, or where UVICORN_LOG_CONFIG
says so.
"""

from __future__ import annotations

import logging

from policy_server.settings import find_log_format
from policy_server.telemetry import new_formatter

__all__ = ["supervisor_formatter"]


def supervisor_formatter() -> logging.Formatter:
    """Return the formatter of the supervisor's lines: the workers' own."""
    return new_formatter(find_log_format())
