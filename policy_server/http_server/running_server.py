"""The uvicorn of this process: its start, its addresses, and the options set in it."""

from __future__ import annotations

import getpass
import inspect
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from pathlib import Path

import uvicorn

from policy_server.errors import SettingsError
from policy_server.http_server.connection_limits import ConnectionWatch
from policy_server.http_server.hot_requests import HotRoutes
from policy_server.http_server.many_accepts import accept_many_a_turn
from policy_server.http_server.protocols import use_protocols
from policy_server.ports import check_unix_socket, free_port, open_listener, reason_of
from policy_server.tls_files import PASSWORD_VARIABLE, TlsFiles, has_terminal

__all__ = ["Address", "HttpServer", "find_http_server"]

_OPTION = "--timeout-keep-alive"
_VARIABLE = "UVICORN_TIMEOUT_KEEP_ALIVE"
_KEEP_ALIVE_S: int = inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default
# A program that calls `uvicorn.run` has work of its own to finish.
_COMMAND = "uvicorn"
# A server that listens on every address is reached by these.
_REACHED_BY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- a name, nothing listens


@dataclass(frozen=True)
class Address:
    """The address of the server, for people.

    Attributes:
        url: scheme, host and port.
        by: a UNIX socket, in words, where the server listens on one; else empty.
    """

    url: str
    by: str = ""

    def of(self, path: str) -> str:
        """Return a route's address, for people."""
        return f"{self.url}{path}{self.by}"


@dataclass(frozen=True)
class HttpServer:
    """The uvicorn of this process.

    Attributes:
        config: its configuration, which it reads anew for each connection.
        sockets: opened for it by its supervisor; none where it listens by itself.
    """

    config: uvicorn.Config
    sockets: Sequence[socket.socket] = ()

    @property
    def running(self) -> uvicorn.Server | None:
        """Return the server that runs, by the signals that it takes; None where it takes none.

        The command `uvicorn` loads an application before it makes its server.
        """
        owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        is_ours = isinstance(owner, uvicorn.Server) and owner.config is self.config
        return owner if is_ours else None

    @property
    def port(self) -> int | None:
        """Return the port that it will open by itself; None where it opens none."""
        is_own_port = self.has_own_sockets and self.config.uds is None
        return self.config.port if is_own_port else None

    @property
    def has_own_sockets(self) -> bool:
        """Return whether it opens its port or UNIX socket by itself."""
        return not self.sockets and self.config.fd is None

    @property
    def is_supervised(self) -> bool:
        """Return whether a `uvicorn --workers N` started this process, and does nothing else."""
        # multiprocessing hands the parent's arguments down; `python -m` makes a path of the first.
        command = Path(sys.argv[0])
        name = command.parent.name if command.name == "__main__.py" else command.name
        has_workers = self.config.workers > 1 and not self.config.reload
        is_child = bool(self.sockets) and parent_process() is not None
        return has_workers and is_child and name == _COMMAND

    def keep_alive(self, seconds: float) -> None:
        """Set how long idle connections stay open, unless uvicorn was told it already.

        Args:
            seconds: from an answer to the next request.
        """
        is_given = self.config.timeout_keep_alive != _KEEP_ALIVE_S or _is_option_given()
        if not is_given:
            # A timer takes fractions too.
            self.config.timeout_keep_alive = seconds  # type: ignore[assignment]  # see above

    def use_protocols(
        self, watch: ConnectionWatch, app: object = None, hot_routes: HotRoutes | None = None
    ) -> None:
        """Serve by this room's protocols; called from the lifespan, when uvicorn has its own.

        Several connections are taken in a turn of the event loop.

        Args:
            watch: see `protocols.use_protocols`.
            app: see `protocols.use_protocols`.
            hot_routes: see `protocols.use_protocols`.
        """
        use_protocols(self.config, watch, app=app, hot_routes=hot_routes)
        accept_many_a_turn()

    def claim(self) -> None:
        """Refuse TLS that can't be, or an address that is taken; choose a port that is left open.

        uvicorn itself loads certificates and opens the port only when all is loaded, and does not
        tell which port it chose.

        Raises:
            SettingsError: if a certificate, its key or another option of TLS can't be used, if
                another program has the address, or it is none of this machine's.
        """
        self._check_tls()
        if self.config.uds is not None and not self.sockets:
            check_unix_socket(self.config.uds)
        if self.port is None:
            return
        host = self.config.host
        try:
            open_listener(host, self.config.port)
            if not self.config.port:
                self.config.port = free_port(host)
        except socket.gaierror as error:
            raise SettingsError(f"--host: {host!r} is no address: {error.strerror}") from error
        except OSError as error:
            raise SettingsError(
                f"port {self.config.port} of {host or 'all addresses'} can't be used: "
                f"{reason_of(error)}; stop what has it, or choose another with --port"
            ) from error

    def _check_tls(self) -> None:
        """Refuse options of TLS that uvicorn could not use, and ask for the key's password."""
        config = self.config
        # A worker's uvicorn has loaded them before it imports the application.
        is_loaded = hasattr(config, "ssl")
        if is_loaded or not config.is_ssl or config.ssl_context_factory is not None:
            return
        files = TlsFiles(
            _path(config.ssl_certfile),
            key=_path(config.ssl_keyfile),
            authorities=_path(config.ssl_ca_certs),
            password=config.ssl_keyfile_password,
            ciphers=config.ssl_ciphers,
            version=config.ssl_version,
            client_certificates=config.ssl_cert_reqs,
        )
        if files.check():
            # OpenSSL would ask too, and a wrong answer would be a traceback.
            config.ssl_keyfile_password = _password_of(files)
            replace(files, password=config.ssl_keyfile_password).check()

    def address(self) -> Address:
        """Return the address by which people reach the server."""
        scheme = "https" if self.config.is_ssl else "http"
        host, port, path = self.config.host, self.config.port, self.config.uds
        if (given := self._given_name()) is not None:
            host, port, path = (*given[:2], None) if isinstance(given, tuple) else ("", 0, given)
        if path is not None:
            return Address(f"{scheme}://localhost", f" (UNIX socket {path})")
        host = _REACHED_BY.get(host, host)
        return Address(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")

    def _given_name(self) -> tuple[str, int] | str | None:
        """Return the name of the socket that it was given, if it was given one."""
        if self.sockets:
            return _name_of(self.sockets[0])
        if self.config.fd is None:
            return None
        with socket.socket(fileno=os.dup(self.config.fd)) as given:
            return _name_of(given)


def find_http_server() -> HttpServer | None:
    """Return the uvicorn that imports this application or runs its lifespan; None where none does.

    uvicorn tells an application nothing of itself, but its configuration is a local name of the
    functions that are running meanwhile.
    """
    frame = inspect.currentframe()
    config: uvicorn.Config | None = None
    while frame is not None:
        caller = frame.f_locals.get("self")
        found = caller if isinstance(caller, uvicorn.Config) else getattr(caller, "config", None)
        if isinstance(found, uvicorn.Config):
            config = config or found
            if isinstance(caller, uvicorn.Server):
                return HttpServer(config, tuple(frame.f_locals.get("sockets") or ()))
        frame = frame.f_back
    return None if config is None else HttpServer(config)


def _is_option_given() -> bool:
    is_on_command_line = any(
        text == _OPTION or text.startswith(f"{_OPTION}=") for text in sys.argv[1:]
    )
    return is_on_command_line or bool(os.environ.get(_VARIABLE))


def _path(given: str | os.PathLike[str] | None) -> str | None:
    return None if given is None else os.fspath(given)


def _password_of(files: TlsFiles) -> str:
    """Return the password of an encrypted key: a person's, or the first line of standard input."""
    path, password = files.key or files.certificate, ""
    with suppress(EOFError, KeyboardInterrupt, OSError):
        if has_terminal():
            password = getpass.getpass(f"Password of the key {path}: ")
        elif sys.stdin is not None:
            password = sys.stdin.readline().rstrip("\n")
    if not password:
        raise SettingsError(
            f"--ssl-keyfile: {path}: is encrypted, and no password was given; set it in "
            f"{PASSWORD_VARIABLE}"
        )
    return password


def _name_of(given: socket.socket) -> tuple[str, int] | str:
    name: tuple[str, int] | str = given.getsockname()
    return name
