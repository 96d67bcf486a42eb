"""This process's connection to a Ray: its token, the proxies that it avoids, its errors."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import ray
from ray.exceptions import RayTaskError

from policy_server.backends.ray.ray_calls import ENDED
from policy_server.backends.ray.slim_serve import without_data_frames
from policy_server.errors import NotReadyError, SettingsError
from policy_server.public_key import is_loopback
from policy_server.settings import without_variables
from policy_server.telemetry import adopt_loggers

__all__ = [
    "RayletEndedError",
    "as_not_ready_error",
    "check_open_files",
    "connect",
    "kept_signal_handlers",
    "no_other_ray",
    "reason_of",
    "sockets_hint",
    "use_token",
    "warn_of_open_dashboard",
    "without_proxies",
]

logger = logging.getLogger(__name__)

# Ray sends its last metrics to an agent that may have died, and waits for it: 10 s unless told.
_EXPORT_TIMEOUT, _EXPORT_TIMEOUT_S = "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "1s"
_REASON_LENGTH = 300
_RESTORE_EVERY_S = 0.01
# With 64 Ray ends the process that calls it without a word; a server of one policy takes some 80.
_FEWEST_FILES = 128
# Of the 107 bytes of a socket's path, Ray's part and that of the folder around it take the rest.
_LONGEST_FOLDER = 25
_init = ray.init
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


class RayletEndedError(Exception):
    """The raylet has ended while it started."""


@contextmanager
def without_proxies() -> Iterator[None]:
    """Hide the environment's proxies from Ray while the block runs.

    Ray's processes call each other by the machine's own address, which NO_PROXY rarely lists; gRPC
    would ask the proxy for it. Remote files are fetched before Ray starts.
    """
    with without_variables(lambda name, _: name.lower() in _PROXIES):
        yield


@contextmanager
def no_other_ray() -> Iterator[None]:
    """Have `ray.init` start no Ray but by `connect` while the block runs.

    Each function of Ray Serve's calls it where this process is connected to no Ray: a thread that
    comes back to Ray Serve while one Ray follows another would start a whole Ray that nobody ends.
    """
    ray.init = _refuse_another
    try:
        yield
    finally:
        ray.init = _init


def _refuse_another(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 -- those of `ray.init`
    if not ray.is_initialized():
        raise NotReadyError(ENDED)
    return _init(*arguments, **options)


def use_token() -> None:
    """Guard the Ray that this process starts by a token.

    Any program that reaches an unguarded Ray can run code. The package chooses a token when it is
    imported, unless the operator has chosen one or none; this function does so for a program that
    has imported Ray before. An empty `RAY_AUTH_MODE` is no choice.

    Raises:
        SettingsError: if Ray can't be told any more that there is a token.
    """
    if os.environ.get("RAY_AUTH_MODE"):
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
    try:
        # Ray has read its environment; this is its own way to have it read again.
        from ray._raylet import Config  # type: ignore[attr-defined]  # a compiled module

        Config.initialize("")
    except (ImportError, AttributeError, TypeError) as error:
        raise SettingsError(
            "ray: was imported before policy_server, and would run without a token; set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in the environment"
        ) from error


def warn_of_open_dashboard(*, host: str) -> None:
    """Log a warning if other machines reach a dashboard that asks for no token.

    Args:
        host: the address that the dashboard listens on.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "")
    # Ray takes every other mode, a misspelt one too, for none.
    if mode.lower() != "token" and not is_loopback(host):
        logger.warning(
            "open_dashboard",
            extra={
                "host": host,
                "reason": f"RAY_AUTH_MODE is {mode!r}, so that whoever reaches Ray's dashboard "
                "runs code on this machine; set it to token, or POLICY_SERVER_DASHBOARD_HOST to "
                "127.0.0.1",
            },
        )


def connect(
    address: str | None,
    runtime_env: Mapping[str, object] | None = None,
    **options: Any,  # noqa: ANN401 -- those of `ray.init`
) -> None:
    """Connect to a Ray that runs, or start one.

    Args:
        address: the Ray's address; None starts one.
        runtime_env: the environment of its workers.
        options: of a Ray that is started.
    """
    # It says that it can't replace the handlers of signals from this thread, which are uvicorn's.
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    adopt_loggers()
    with _short_export(), without_data_frames():
        _init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            runtime_env=dict(runtime_env or {}),
            **options,
        )
        # It looks for pyarrow when it first serializes.
        ray.put(None)


@contextmanager
def _short_export() -> Iterator[None]:
    """Have Ray's sender of metrics, which reads the environment as it starts, wait for a second."""
    if _EXPORT_TIMEOUT in os.environ:
        yield
        return
    os.environ[_EXPORT_TIMEOUT] = _EXPORT_TIMEOUT_S
    try:
        yield
    finally:
        del os.environ[_EXPORT_TIMEOUT]


@contextmanager
def as_not_ready_error(hint: str = "") -> Iterator[None]:
    """Raise an error of Ray's as a NotReadyError of one line.

    Args:
        hint: a remedy, appended to Ray's own words.

    Raises:
        NotReadyError: for every error of Ray's.
    """
    try:
        yield
    except Exception as error:
        # Ray raises plain exceptions too.
        raise NotReadyError(f"ray: could not start or join: {reason_of(error)}{hint}") from error


def check_open_files() -> None:
    """Refuse a limit of open files with which Ray ends this process, which tells nobody why.

    Raises:
        NotReadyError: naming the limit.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < _FEWEST_FILES:
        raise NotReadyError(
            f"ray: needs {_FEWEST_FILES} open files or more, the system allows {most}; raise the "
            "limit (ulimit -n), or set POLICY_SERVER_BACKEND=local"
        )


def sockets_hint(folder: str) -> str:
    """Return a remedy for errors of a start in a temporary folder where Ray can't make sockets.

    Args:
        folder: the temporary folder.

    Returns:
        The remedy, for `as_not_ready_error`; empty where the folder is not to blame.
    """
    if folder.isascii() and len(folder) <= _LONGEST_FOLDER:
        return ""
    return (
        f"; Ray's sockets lie in TMPDIR, now {folder[:_REASON_LENGTH]}: set it to a folder whose "
        f"path has {_LONGEST_FOLDER} ASCII letters or fewer, such as /tmp"
    )


def reason_of(error: Exception) -> str:
    """Return the start of an error's text as one line.

    Args:
        error: any; of one that a task of Ray's raised, whose text is a traceback, its cause counts.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    return " ".join(str(cause).split())[:_REASON_LENGTH]


@asynccontextmanager
async def kept_signal_handlers() -> AsyncIterator[None]:
    """Put uvicorn's handlers of signals back, again and again, while the block runs.

    Ray replaces them below Python as it connects, and takes its own away, and not uvicorn's back,
    as it disconnects: until then SIGTERM would end this process, and lose its requests.
    """

    async def keep() -> None:
        while True:
            _restore_signal_handlers()
            await asyncio.sleep(_RESTORE_EVERY_S)

    keeping = asyncio.create_task(keep())
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        _restore_signal_handlers()


def _restore_signal_handlers() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))
