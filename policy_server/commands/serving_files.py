"""The files and the socket that a server is started with, looked at before uvicorn starts.

uvicorn itself ends with a traceback where one of them is wrong, the socket only after the policy is
loaded; with several workers it starts them again and again.
"""

from __future__ import annotations

from collections.abc import Mapping

from policy_server.errors import SettingsError, UsageError
from policy_server.ports import check_unix_socket, remove_dead_unix_socket
from policy_server.tls_files import PASSWORD_VARIABLE, TlsFiles, has_terminal

__all__ = ["check_serving_files"]

_OF_TLS = (
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_keyfile_password",
    "ssl_ca_certs",
    "ssl_ciphers",
    "ssl_version",
    "ssl_cert_reqs",
)
# One process asks for a password itself.
_ALONE = (None, 1, "1", "")


def check_serving_files(
    options: Mapping[str, str | int | None],
    environment: Mapping[str, str],
    *,
    reload: bool = False,
) -> None:
    """Refuse a certificate, a key or a UNIX socket that uvicorn could not use.

    A UNIX socket that a killed server has left is removed.

    Args:
        options: uvicorn's, by their names; None for those that are left out.
        environment: has those in `UVICORN_` variables that are left out.
        reload: whether the server is started again when files change.

    Raises:
        UsageError: if a UNIX socket is given with a port or a host, or a key without certificate.
        SettingsError: naming the file that can't be used, and why.
    """
    _check_socket(options, environment)
    given = {
        name: str(value)
        for name in _OF_TLS
        if (value := options.get(name) or environment.get(f"UVICORN_{name.upper()}"))
    }
    if not given.keys() & {"ssl_certfile", "ssl_keyfile"}:
        return
    files = TlsFiles(
        given.get("ssl_certfile"),
        key=given.get("ssl_keyfile"),
        authorities=given.get("ssl_ca_certs"),
        password=given.get("ssl_keyfile_password"),
        ciphers=given.get("ssl_ciphers"),
        version=_number(given.get("ssl_version"), TlsFiles.version),
        client_certificates=_number(given.get("ssl_cert_reqs"), TlsFiles.client_certificates),
    )
    workers = options.get("workers") or environment.get("WEB_CONCURRENCY")
    has_workers = workers not in _ALONE
    lacks_password = files.check(is_read_again=has_workers or reload)
    if lacks_password and has_workers and not has_terminal():
        raise SettingsError(
            f"--ssl-keyfile: {files.key or files.certificate}: is encrypted, and there is no "
            f"terminal to ask for its password; set it in {PASSWORD_VARIABLE}"
        )


def _check_socket(options: Mapping[str, str | int | None], environment: Mapping[str, str]) -> None:
    for other in ("host", "port"):
        if options.get("uds") is not None and options.get(other) is not None:
            raise UsageError(f"--uds: stands in place of a host and a port; leave --{other} out")
    path = options.get("uds") or environment.get("UVICORN_UDS")
    if path:
        check_unix_socket(str(path))
        remove_dead_unix_socket(str(path))


def _number(text: str | None, default: int) -> int:
    # uvicorn refuses a text that is no number itself.
    return int(text) if text is not None and text.isdecimal() else default
