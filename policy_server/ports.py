"""Ports and UNIX sockets: whether one can be listened on, asked before anything is loaded."""

from __future__ import annotations

import errno
import glob
import os
import socket
import stat
from contextlib import ExitStack, closing
from pathlib import Path

from policy_server.errors import SettingsError

__all__ = [
    "bound_sockets",
    "check_port",
    "check_unix_socket",
    "free_port",
    "is_dead_unix_socket",
    "open_listener",
    "reason_of",
    "remove_dead_unix_socket",
    "unusable_port",
]


def check_port(port: int, *, host: str, setting: str) -> None:
    """Refuse a port that can't be listened on.

    Args:
        port: 0 is always free.
        host: the address; empty for all of this machine's.
        setting: the variable that names the port, `..._PORT`; `..._HOST` names the host.

    Raises:
        SettingsError: naming the setting that is to blame.
    """
    if not port:
        return
    try:
        open_listener(host, port)
    except OSError as error:
        raise unusable_port(error, port=port, host=host, setting=setting) from error


def unusable_port(error: OSError, *, port: int, host: str, setting: str) -> SettingsError:
    """Return the error of a port that can't be listened on, for raising.

    Args:
        error: the system's.
        port: the port.
        host: the address.
        setting: see `check_port`.
    """
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        host_setting = f"{setting.removesuffix('_PORT')}_HOST"
        return SettingsError(
            f"{host_setting}: can't listen on {host!r}: {reason_of(error)}; expected an address of "
            "this machine"
        )
    return SettingsError(
        f"{setting}: port {port} can't be used: {reason_of(error)}; set another one, or 0"
    )


def open_listener(host: str, port: int) -> None:
    """Take a port as a server does, on all addresses of the host, and give it back.

    Raises:
        OSError: if that can't be.
    """
    for probe in bound_sockets(host, port):
        probe.close()


def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of a host, bound and not listening yet.

    Args:
        host: a name or an address; empty for all of this machine's.
        port: the port; 0 picks one that is free on the first address.

    Raises:
        OSError: if one can't be bound; then none is left open.
    """
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except UnicodeError as error:
        raise OSError(f"{host!r} is no host name") from error
    bound: list[socket.socket] = []
    with ExitStack() as stack:
        for family, kind, protocol, _, address in found:
            try:
                opened = stack.enter_context(socket.socket(family, kind, protocol))
            except OSError:
                # This machine has no IPv6; servers pass over it too.
                continue
            # As servers do: without it, connections that ended a minute ago are in the way.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            chosen = port or (bound[0].getsockname()[1] if bound else 0)
            opened.bind((address[0], chosen, *address[2:]))
            bound.append(opened)
        stack.pop_all()
    return bound


def check_unix_socket(path: str) -> None:
    """Refuse the path of a UNIX socket that uvicorn can't open, or would take from another server.

    Args:
        path: of the socket, as `--uds` has it; one that no process has any more may be there.

    Raises:
        SettingsError: with the reason.
    """
    if _error_of_asking(path) == errno.EPROTOTYPE:
        raise SettingsError(
            f"--uds: {path} can't be used: another server has it; stop that, or choose another path"
        )
    try:
        if Path(path).is_socket():
            if _error_of_asking(path) == errno.EACCES:
                # It may be another user's, and uvicorn would put its own in its place.
                raise PermissionError(errno.EACCES, path)
        else:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(path)
            Path(path).unlink()
    except OSError as error:
        raise SettingsError(
            f"--uds: {path} can't be used: {reason_of(error)}; expected the path of a new socket, "
            "in a folder that is there and may be written to"
        ) from error


def remove_dead_unix_socket(path: str) -> None:
    """Remove what a server that was killed has left of its UNIX socket.

    uvicorn with several workers, or with `--reload`, does not, and can't start there. With it go
    those that its workers have put aside (`http_server.socket_file`).

    Args:
        path: of the socket. Where no socket is, or one that a process has, nothing is removed.

    Raises:
        SettingsError: if it can't be removed.
    """
    place = Path(path)
    for known in (place, *place.parent.glob(f"{glob.escape(place.name)}.[0-9]*")):
        try:
            if is_dead_unix_socket(str(known)):
                known.unlink(missing_ok=True)
        except OSError as error:
            raise SettingsError(
                f"--uds: {known} can't be used: a server that was killed has left it, and it can't "
                f"be removed: {reason_of(error)}"
            ) from error


def is_dead_unix_socket(path: str) -> bool:
    """Return whether a UNIX socket is at a path that no process has.

    Args:
        path: of the socket. One that this user may not ask is another's.
    """
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False
    return is_socket and _error_of_asking(path) == errno.ECONNREFUSED


def _error_of_asking(path: str) -> int | None:
    """Return the number of the error by which a UNIX socket tells whether a process has it.

    A server of several workers listens seconds after it has taken the path, and not at all while it
    ends. So a socket of another kind asks, which no server takes: it hears that the kind is wrong
    (EPROTOTYPE), or that nobody is there (ECONNREFUSED).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno
    return errno.EPROTOTYPE


def free_port(host: str) -> int:
    """Return a free port.

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
    """Return the system's own words about a port that can't be used."""
    if isinstance(error, socket.gaierror):
        # Its numbers are those of the resolver.
        return error.strerror or str(error)
    return os.strerror(error.errno) if error.errno else str(error)
