"""The address of a running server, as `--url` gives it: checked once, shown without a password."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from policy_server.errors import UsageError

__all__ = ["ServerAddress", "read_address"]

_EXPECTED = "--url: expected an address such as http://127.0.0.1:8000"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class ServerAddress:
    """The address of a server.

    Attributes:
        url: as requests are sent to it: with user and password, without a `/` at its end.
        shown: the same without user and password, for messages and files.
        is_secure: whether it is of HTTPS.
        hostname: the host without brackets.
        port: the port, that of the scheme where the address has none.
        host: host and port as the header `host` has them.
        path: a proxy's prefix; empty without one.
        headers: `authorization`, if the address has a user.
    """

    url: str = field(repr=False)
    shown: str
    is_secure: bool
    hostname: str
    port: int
    host: str
    path: str
    headers: Mapping[str, str] = field(repr=False)


def read_address(url: str) -> ServerAddress:
    """Read and check the address of a server.

    Args:
        url: such as `http://127.0.0.1:8000`, with a proxy's prefix if there is one.

    Raises:
        UsageError: if no request can be sent to it.
    """
    try:
        parts = urlsplit(url)
        hostname, port = _check(url, parts)
        headers = _authorization(parts)
    except ValueError as error:
        # What can't be read may hold a password anywhere.
        got = "one that can't be read" if "@" in url else repr(url)
        raise UsageError(f"{_EXPECTED}, got {got}") from error
    host, path = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
    return ServerAddress(
        url=f"{parts.scheme}://{parts.netloc}{path}",
        shown=f"{parts.scheme}://{host}{path}",
        is_secure=parts.scheme == "https",
        hostname=hostname,
        port=port or _PORTS[parts.scheme],
        host=host,
        path=path,
        headers=headers,
    )


def _check(url: str, parts: SplitResult) -> tuple[str, int | None]:
    """Return host and port.

    Raises:
        ValueError: if an address has others, or parts that a server's has not.
    """
    hostname, port = parts.hostname, parts.port
    if parts.scheme not in _PORTS or not hostname:
        raise ValueError("expected a scheme and a host")
    if any(not character.isprintable() or character in " \\" for character in url):
        raise ValueError("expected an address without spaces")
    # An @ in the path is one of a password that holds a slash.
    if any(mark in url for mark in "?#") or "@" in parts.path:
        raise ValueError("expected neither a query nor a fragment")
    # Refuses labels that are empty, or longer than 63 bytes.
    hostname.encode("idna")
    return hostname, port


def _authorization(parts: SplitResult) -> Mapping[str, str]:
    """Return the header that says who asks (RFC 7617), as requests makes it of an address."""
    if parts.username is None:
        return {}
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode("latin-1")
    return {"authorization": f"Basic {base64.b64encode(credentials).decode()}"}
