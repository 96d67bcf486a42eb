"""Ports: whether one is free, asked before anything is loaded."""

from __future__ import annotations

import os
import socket
from contextlib import closing

from policy_server.errors import SettingsError

__all__ = ["check_port", "free_port", "open_listener", "reason_of"]


def check_port(port: int, *, host: str, setting: str) -> None:
    """Hold that a port can be listened on.

    Args:
        port: 0 is always free.
        host: the address; empty for all of this machine's.
        setting: the variable that names the port.

    Raises:
        SettingsError: if it can't, naming the setting.
    """
    if not port:
        return
    try:
        open_listener(host, port)
    except OSError as error:
        raise SettingsError(
            f"{setting}: port {port} can't be used: {reason_of(error)}; set another one, or 0"
        ) from error


def open_listener(host: str, port: int) -> None:
    """Take a port as a server does, on all addresses of the host, and give it back.

    Raises:
        OSError: if that can't be.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in found:
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:
            # This machine has no IPv6; servers pass over it too.
            continue
        with closing(probe):
            # As servers do: without it, connections that ended a minute ago are in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)


def free_port(host: str) -> int:
    """Return a port that nobody listens on.

    Args:
        host: the address that it is meant for.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with closing(socket.socket(family, kind, protocol)) as probe:
        probe.bind(address)
        port: int = probe.getsockname()[1]
        return port


def reason_of(error: OSError) -> str:
    """Return the system's own words for what is wrong with a port."""
    return os.strerror(error.errno) if error.errno else str(error)
