"""A warning where other machines reach a server by a key that is published."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Iterable, Mapping, Sequence

from policy_server.access_keys import AccessKey

__all__ = ["PUBLIC_KEY", "host_of", "is_loopback", "warn_of_public_key"]

logger = logging.getLogger(__name__)

# The key of every example's schema.yaml, and of the documentation.
PUBLIC_KEY = "1234567asdfgh"
_DEFAULT_HOST = "127.0.0.1"


def warn_of_public_key(keys: Iterable[AccessKey], *, host: str) -> None:
    """Log a warning if other machines reach the server and a key is the examples' public one.

    Args:
        keys: those that are valid; none for a server without access control.
        host: the address or name that uvicorn listens on.
    """
    digest = AccessKey.of("", PUBLIC_KEY).digest
    if any(key.digest == digest for key in keys) and not is_loopback(host):
        logger.warning(
            "public_api_key",
            extra={
                "host": host,
                "reason": "other machines reach this server, and an access key is the one of the "
                "examples, which everybody can read; set POLICY_SERVER_API_KEY, or "
                "parameters.api_key in schema.yaml, to a key of your own",
            },
        )


def host_of(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    """Return the address that uvicorn was told to listen on, by its options or variables.

    Args:
        arguments: the command line of this process.
        environment: its environment variables.
    """
    for index, argument in enumerate(arguments):
        if argument.startswith("--host="):
            return argument.removeprefix("--host=")
        if argument == "--host" and index + 1 < len(arguments):
            return arguments[index + 1]
    return environment.get("UVICORN_HOST", _DEFAULT_HOST)


def is_loopback(host: str) -> bool:
    """Return whether an address or name to listen on is reached from this machine alone.

    Args:
        host: an address, of IPv6 with or without brackets, or a name.
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
