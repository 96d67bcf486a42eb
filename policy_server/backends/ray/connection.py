"""This process's connection to a Ray: with which token, past which proxies, in which words."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from policy_server.errors import NotReadyError, SettingsError
from policy_server.telemetry import adopt_loggers

__all__ = ["connect", "restore_signal_handlers", "translated", "use_token", "without_proxies"]

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


@contextmanager
def without_proxies() -> Iterator[None]:
    """Keep the environment's proxies from Ray while the block runs.

    Ray's processes call each other by the machine's own address, which nobody lists in NO_PROXY;
    gRPC would ask the proxy for it. What is downloaded is here before Ray is.
    """
    proxies = {name: text for name, text in os.environ.items() if name.lower() in _PROXIES}
    for name in proxies:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(proxies)


def use_token() -> None:
    """Let only those who know a secret use the Ray that this process starts.

    Whoever reaches a Ray can run code. The package chooses a token when it is imported, unless a
    person has chosen one or none; here it does for a program that has imported Ray before.

    Raises:
        SettingsError: if Ray can't be told any more that there is a token.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        # Ray has read its environment; this is its own way to have it read again.
        from ray._raylet import Config  # type: ignore[attr-defined]  # a compiled module

        Config.initialize("")
    except (ImportError, AttributeError, TypeError) as error:
        raise SettingsError(
            "ray: was imported before policy_server, and would run without a token; set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in the environment"
        ) from error


def connect(
    address: str | None,
    runtime_env: Mapping[str, object] | None = None,
    **options: Any,  # noqa: ANN401 -- those of `ray.init`
) -> None:
    """Connect to a Ray that runs, or start one.

    Args:
        address: where it is; None starts one.
        runtime_env: what its workers need beyond what is installed.
        options: of a Ray that is started.
    """
    # It says that it can't replace the handlers of signals from this thread, which are uvicorn's.
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    adopt_loggers()
    ray.init(
        address=address,
        log_to_driver=False,
        configure_logging=False,
        runtime_env=dict(runtime_env or {}),
        **options,
    )


@contextmanager
def translated(hint: str = "") -> Iterator[None]:
    """Turn what Ray raises into one line.

    Args:
        hint: what a person may try, appended to Ray's own words.

    Raises:
        NotReadyError: for whatever Ray raises.
    """
    try:
        yield
    except Exception as error:
        # Ray raises plain exceptions too.
        reason = " ".join(str(error).split())[:300]
        raise NotReadyError(f"ray: could not start or join: {reason}{hint}") from error


def restore_signal_handlers() -> None:
    """Put uvicorn's handlers back: Ray replaces them below Python, and prints where it was hit."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))
