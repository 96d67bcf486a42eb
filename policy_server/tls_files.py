"""The files and options of TLS: whether a server can start with them, asked before it loads them.

OpenSSL's own errors name neither the file nor what is wrong with it. A pipe, such as a shell's
`<(...)`, can be read once: its content is left to uvicorn, and looked at by nobody before.
"""

from __future__ import annotations

import errno
import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from policy_server.errors import SettingsError, UsageError

__all__ = ["PASSWORD_VARIABLE", "TlsFiles", "has_terminal"]

PASSWORD_VARIABLE = "UVICORN_SSL_KEYFILE_PASSWORD"  # noqa: S105 -- a variable's name
"""The variable that uvicorn takes the password of an encrypted key from."""

_CERTIFICATE, _KEY = "--ssl-certfile", "--ssl-keyfile"
# `policy-server serve` has the variable only.
_AUTHORITIES = "--ssl-ca-certs (UVICORN_SSL_CA_CERTS)"
# OpenSSL's reasons: of one kind of key, and of two.
_OF_ANOTHER = {"KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}


@dataclass(frozen=True)
class TlsFiles:
    """The files and options that uvicorn makes its TLS of.

    Attributes:
        certificate: the path of the server's certificate; None where only a key was given.
        key: the path of its key; None where the certificate's file has it.
        authorities: the path of the certificates that those of clients are checked by; None for
            none.
        password: that of the key; empty or None for none.
        ciphers: OpenSSL's names of ciphers; None for its defaults.
        version: a protocol of Python's ssl module.
        client_certificates: whether clients need one, as a `ssl.VerifyMode`.
    """

    certificate: str | None
    key: str | None = None
    authorities: str | None = None
    password: str | None = None
    ciphers: str | None = None
    version: int = ssl.PROTOCOL_TLS_SERVER
    client_certificates: int = ssl.CERT_NONE

    def check(self, *, is_read_again: bool = False) -> bool:
        """Refuse what uvicorn could not use.

        Args:
            is_read_again: whether several processes read the files, each for itself.

        Returns:
            Whether the key is encrypted, and its password is not given; False where one of a
            certificate and its key is a pipe.

        Raises:
            UsageError: if there is a key without a certificate.
            SettingsError: naming the option, its file, and what is wrong with it.
        """
        if self.certificate is None:
            raise UsageError(f"{_KEY}: is of no use alone; give {_CERTIFICATE} too")
        pipes = self._pipes(self.certificate, is_read_again=is_read_again)
        context = self._context()
        lacks_password = False
        if not pipes & {self.certificate, self.key}:
            lacks_password = self._load_pair(context, self.certificate)
        elif self.certificate not in pipes and not _has_certificates(self.certificate):
            raise _no_certificate(self.certificate)
        self._check_further(context, None if self.authorities in pipes else self.authorities)
        return lacks_password

    def _pipes(self, certificate: str, *, is_read_again: bool) -> set[str]:
        """Return the paths that are pipes, each of which is read once."""
        # Where no key is given, uvicorn reads the certificate's file for it.
        read = [(_CERTIFICATE, certificate), (_KEY, self.key or certificate)]
        if self.authorities is not None:
            read.append((_AUTHORITIES, self.authorities))
        found: dict[tuple[int, int], str] = {}
        for option, path in read:
            state = _state_of(option, path)
            if not stat.S_ISFIFO(state.st_mode):
                continue
            if is_read_again:
                raise _no_pipe(option, path, "each process of the server reads it", "give a file")
            other = found.setdefault((state.st_dev, state.st_ino), option)
            if other != option:
                raise _no_pipe(option, path, f"it is read for {other} too", "give each its own")
        return {path for option, path in read if option in found.values()}

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.SSLContext(self.version)
            # A client's protocol does not let that be.
            context.verify_mode = ssl.CERT_NONE
        except ValueError as error:
            raise SettingsError(
                f"--ssl-version: expected a protocol of servers by its number in Python's ssl "
                f"module, such as {int(ssl.PROTOCOL_TLS_SERVER)}, got {self.version}; leave it out"
            ) from error
        return context

    def _load_pair(self, context: ssl.SSLContext, certificate: str) -> bool:
        """Load the certificate and its key; return whether the key's password is missing."""
        asked: list[bool] = []

        def answer() -> str:
            asked.append(True)
            return self.password or ""

        try:
            context.load_cert_chain(certificate, self.key, answer)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None)
            if asked and reason not in _OF_ANOTHER:
                if not self.password:
                    return True
                raise SettingsError(
                    f"{_KEY}: {self.key or certificate}: is not opened by the password that was "
                    f"given; set the one that it was encrypted with in {PASSWORD_VARIABLE}"
                ) from error
            raise self._unusable(certificate, reason) from error
        return False

    def _unusable(self, certificate: str, reason: str | None) -> SettingsError:
        """Return the error of a certificate and a key that OpenSSL does not take, for raising."""
        if reason in _OF_ANOTHER:
            return SettingsError(
                f"{_KEY}: {self.key or certificate}: expected the key of the certificate "
                f"{certificate}, got that of another; give the two that were made together"
            )
        if not _has_certificates(certificate):
            return _no_certificate(certificate)
        if reason is not None:
            words = reason.lower().replace("_", " ")
            return SettingsError(
                f"{_CERTIFICATE}: {certificate}: OpenSSL does not take it: {words}; make another"
            )
        if self.key is None:
            return SettingsError(
                f"{_CERTIFICATE}: {certificate}: holds no key that is whole; give the key's file "
                f"by {_KEY}"
            )
        return SettingsError(
            f"{_KEY}: {self.key}: expected a private key in PEM, got {_content(self.key)}; give "
            "the whole file, whose first line ends with PRIVATE KEY-----"
        )

    def _check_further(self, context: ssl.SSLContext, authorities: str | None) -> None:
        try:
            context.verify_mode = ssl.VerifyMode(self.client_certificates)
        except ValueError as error:
            raise SettingsError(
                f"--ssl-cert-reqs: expected 0, 1 or 2, got {self.client_certificates}; 2 asks "
                "clients for a certificate"
            ) from error
        if authorities is not None and not _has_certificates(authorities):
            raise SettingsError(
                f"{_AUTHORITIES}: {authorities}: expected certificates in PEM, got "
                f"{_content(authorities)}; give the whole file"
            )
        try:
            if self.ciphers:
                context.set_ciphers(self.ciphers)
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"--ssl-ciphers: OpenSSL has none of {self.ciphers!r}; `openssl ciphers` lists "
                "what it has"
            ) from error


def has_terminal() -> bool:
    """Return whether there is a terminal to ask for a password on, as OpenSSL and getpass do."""
    try:
        with Path("/dev/tty").open("rb"):
            return True
    except OSError:
        return False


def _state_of(option: str, path: str) -> os.stat_result:
    """Return the state of a file or a pipe, which is one that can be read."""
    try:
        state = Path(path).stat()
        if stat.S_ISCHR(state.st_mode) or stat.S_ISBLK(state.st_mode):
            # Such as /dev/zero, which never ends.
            raise _unreadable(option, path, "it is a device")
        if not stat.S_ISFIFO(state.st_mode):
            with Path(path).open("rb"):
                """uvicorn reads it."""
        # To open a pipe would wait for its writer, and may take what it writes.
        elif not os.access(path, os.R_OK, effective_ids=True):
            raise _unreadable(option, path, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number else str(error)
        raise _unreadable(option, path, reason) from error
    return state


def _unreadable(option: str, path: str, reason: str) -> SettingsError:
    """Return the error of a path that gives no content, for raising."""
    return SettingsError(
        f"{option}: {path}: expected a file that can be read: {reason}; mend the path, or let this "
        "user read it"
    )


def _no_pipe(option: str, path: str, reason: str, remedy: str) -> SettingsError:
    """Return the error of a pipe where a file is needed, for raising."""
    return SettingsError(
        f"{option}: {path}: expected a file, since {reason}, got a pipe, which can be read once; "
        f"{remedy}"
    )


def _no_certificate(path: str) -> SettingsError:
    """Return the error of a file without a certificate, for raising."""
    return SettingsError(
        f"{_CERTIFICATE}: {path}: expected a certificate in PEM, got {_content(path)}; give the "
        "whole file, which begins with -----BEGIN CERTIFICATE-----"
    )


def _has_certificates(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (OSError, ValueError):
        return False
    return True


def _content(path: str) -> str:
    """Return the content of a file that OpenSSL takes for nothing, in words."""
    content = Path(path).read_bytes()
    if not content.strip():
        return "an empty file"
    return "a damaged one" if b"-----BEGIN " in content else "none"
