"""The files and the socket that a server is started with, looked at before uvicorn starts.

uvicorn itself ends with a traceback where one of them is wrong, the socket only after the policy is
loaded.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from policy_server.errors import SettingsError, UsageError
from policy_server.ports import check_unix_socket, remove_dead_unix_socket

__all__ = ["check_serving_files"]

_CERTIFICATE, _KEY, _AUTHORITIES = "ssl_certfile", "ssl_keyfile", "ssl_ca_certs"
_PASSWORD = "UVICORN_SSL_KEYFILE_PASSWORD"  # noqa: S105 -- a variable's name


def check_serving_files(
    options: Mapping[str, str | int | None], environment: Mapping[str, str]
) -> None:
    """Refuse a certificate, a key or a UNIX socket that uvicorn could not use.

    A UNIX socket that a killed server has left is removed.

    Args:
        options: uvicorn's, by their names; None for those that are left out.
        environment: has those in `UVICORN_` variables that are left out.

    Raises:
        UsageError: if a UNIX socket is given with a port or a host, or a key without certificate.
        SettingsError: naming the file that can't be used, and why.
    """
    _check_socket(options, environment)
    given = {}
    for option in (_CERTIFICATE, _KEY, _AUTHORITIES):
        file = options.get(option) or environment.get(f"UVICORN_{option.upper()}")
        if file:
            given[option] = str(file)
            _check_readable(_named(option), str(file))
    if _CERTIFICATE in given:
        _check_certificate(given, environment.get(_PASSWORD))
    elif _KEY in given:
        raise UsageError(f"{_named(_KEY)}: is of no use alone; give {_named(_CERTIFICATE)} too")


def _check_socket(options: Mapping[str, str | int | None], environment: Mapping[str, str]) -> None:
    for other in ("host", "port"):
        if options.get("uds") is not None and options.get(other) is not None:
            raise UsageError(f"--uds: stands in place of a host and a port; leave --{other} out")
    if options.get("uds") == "":
        raise UsageError("--uds: expected the path of a UNIX socket, got none")
    path = options.get("uds") or environment.get("UVICORN_UDS")
    if path:
        check_unix_socket(str(path))
        remove_dead_unix_socket(str(path))


def _check_readable(option: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            """uvicorn reads it."""
    except OSError as error:
        raise SettingsError(
            f"{option}: {path}: expected a file that can be read: {os.strerror(error.errno or 0)}"
        ) from error


def _check_certificate(given: Mapping[str, str], password: str | None) -> None:
    """Refuse files that are no certificate, no key of it, or no certificates of authorities."""
    asked: list[bool] = []

    def answer() -> str:
        asked.append(True)
        return password or ""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = given[_CERTIFICATE], given.get(_KEY)
    try:
        context.load_cert_chain(certificate, key, answer)
    except (OSError, ValueError) as error:
        if asked and password is None:
            # A person types the password when uvicorn asks for it.
            return
        files = f"{certificate} and {key}" if key else certificate
        raise SettingsError(
            f"{_named(_CERTIFICATE)}: {files}: expected a certificate and its key, in PEM: {error}"
        ) from error
    if _AUTHORITIES in given:
        try:
            context.load_verify_locations(given[_AUTHORITIES])
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{_named(_AUTHORITIES)}: {given[_AUTHORITIES]}: expected certificates, in PEM: "
                f"{error}"
            ) from error


def _named(option: str) -> str:
    # `serve` has no option for it.
    return (
        f"UVICORN_{option.upper()}" if option == _AUTHORITIES else f"--{option.replace('_', '-')}"
    )
