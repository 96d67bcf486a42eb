"""Serving a policy: this process becomes uvicorn with our application."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import policy_server
from policy_server.commands.serving_files import check_serving_files
from policy_server.errors import SettingsError, UsageError
from policy_server.formats.finding import served_names
from policy_server.settings import Settings

__all__ = ["serve", "uvicorn_arguments"]

_APPLICATION = "policy_server.asgi:app"
_MOST_PORTS = 65535
_LOG_CONFIG = Path(policy_server.__file__).with_name("log_config.json")
# The supervisor of several processes logs by it as they do; one process sets its log itself.
_LOG_CONFIG_VARIABLE = "UVICORN_LOG_CONFIG"


def serve(settings: Settings, options: Mapping[str, str | int | None], *, reload: bool) -> NoReturn:
    """Replace this process by uvicorn; signals and exit code are uvicorn's from here on.

    Args:
        settings: the paths of the policy's files, for `reload`.
        options: uvicorn's, such as `{"port": 8000}`; None leaves one to uvicorn, which reads
            UVICORN_PORT before it takes its default.
        reload: start again when schema.yaml or a zip beside it changes.

    Raises:
        UsageError: if options contradict each other, or a number is out of its range.
        SettingsError: if a certificate, its key or the UNIX socket can't be used.
    """
    _check(options.get("port"), options.get("workers"), reload=reload)
    check_serving_files(options, os.environ, reload=reload)
    if reload and not settings.home.is_dir():
        raise SettingsError(f"{settings.home}: expected the folder of the server's files")
    given = [
        word
        for name, value in options.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    os.environ.setdefault(_LOG_CONFIG_VARIABLE, str(_LOG_CONFIG))
    sys.stdout.flush()
    arguments = uvicorn_arguments([*given, *(_watching(settings) if reload else ())])
    os.execv(arguments[0], arguments)  # noqa: S606 -- our own interpreter and arguments, no shell


def uvicorn_arguments(options: Sequence[str]) -> list[str]:
    """Return the command line of uvicorn with our application.

    Args:
        options: uvicorn's own.
    """
    # By -P a module in the policy's folder can't stand in for one of uvicorn's or ours.
    return [
        *(sys.executable, "-P", "-m", "uvicorn", _APPLICATION),
        *("--app-dir", str(Path(policy_server.__file__).parents[1])),
        *options,
    ]


def _check(port: str | int | None, workers: str | int | None, *, reload: bool) -> None:
    if port is not None and not 0 <= int(port) <= _MOST_PORTS:
        raise UsageError(f"--port: expected a number from 0 to {_MOST_PORTS}, got {port}")
    if workers is not None and int(workers) < 1:
        raise UsageError(f"--workers: expected a number from 1, got {workers}")
    if reload and workers is not None and int(workers) > 1:
        raise UsageError("--reload: starts one process again; leave --workers out")


def _watching(settings: Settings) -> list[str]:
    # Not a pattern: client libraries are written below the folder as zips.
    policies = {settings.zip_path.name, *served_names(settings)}
    names = (settings.schema_path.name, *sorted(policies))
    watched = [word for name in names for word in ("--reload-include", name)]
    return ["--reload", "--reload-dir", str(settings.home), "--reload-exclude", "*.py", *watched]
