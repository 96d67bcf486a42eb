"""The address of a remote file: its digest if one is pinned, and the form that may be shown."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, cast
from urllib.parse import SplitResult, unquote, urlsplit

from policy_server.errors import SettingsError

__all__ = ["RemoteUri", "Scheme", "is_loopback", "parse_uri"]

Scheme = Literal["s3", "gs", "https", "http", "file"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PIN = re.compile(r"sha256=([0-9a-fA-F]{64})")
_NOT_SHOWN = frozenset("@?&")
_PATH_OF_SCHEME = {"s3": "s3://bucket/key", "gs": "gs://bucket/key", "file": "file:///path"}
_MOST_NAME_BYTES = 200
_KNOWN = ("s3", "gs", "https", "http", "file")
_CREDENTIALS = {
    "s3": "AWS's variables, profiles and roles",
    "gs": "Google's application default credentials",
}


@dataclass(frozen=True)
class RemoteUri:
    """The address of a file or folder.

    Attributes:
        scheme: the kind of store; `file` for paths too.
        address: the address without the digest, as the store takes it; a path where the scheme
            is `file`. May hold a signature, so it is never shown.
        public: the address without its query, for logs and messages.
        sha256: the content's digest in lower case, if it is pinned.
    """

    scheme: Scheme
    address: str = field(repr=False)
    public: str
    sha256: str | None

    @property
    def is_folder(self) -> bool:
        """Return whether it is a folder: of a store, by the `/` at its end; or one of this machine.

        A web server gives no list of a folder's files.
        """
        if self.scheme == "file":
            return Path(self.address).is_dir()
        return self.scheme in ("s3", "gs") and self.address.endswith("/")

    @property
    def bucket_and_key(self) -> tuple[str, str]:
        """Return the bucket, and the key in it, of an address of S3 or Google Cloud."""
        bucket, _, key = self.address.partition("://")[2].partition("/")
        return bucket, key

    @property
    def file_name(self) -> str:
        """Return the last part of the path, a name for a copy of the file."""
        path = self.address if self.scheme == "file" else urlsplit(self.address).path
        name = PurePosixPath(path).name
        is_usable = name.isprintable() and len(name.encode(errors="replace")) <= _MOST_NAME_BYTES
        return name if is_usable and not name.startswith(".") and name else "policy"

    def member(self, name: str) -> RemoteUri:
        """Return the address of a file in the folder.

        Args:
            name: its path below the folder.
        """
        middle = "" if self.address.endswith("/") else "/"
        public = "" if self.public.endswith("/") else "/"
        return RemoteUri(
            self.scheme, f"{self.address}{middle}{name}", f"{self.public}{public}{name}", None
        )

    @property
    def identity(self) -> str:
        """Return a digest that tells addresses apart and does not give them away."""
        return hashlib.sha256(f"{self.scheme} {self.address}".encode()).hexdigest()


def parse_uri(text: str, *, name: str) -> RemoteUri:
    """Parse `s3://`, `gs://`, `https://`, `http://` and `file://` addresses and plain paths.

    Args:
        text: the address, with `#sha256=` and the content's digest behind it if it is pinned.
        name: the setting or argument that holds it, for messages.

    Returns:
        The address.

    Raises:
        SettingsError: if it can't be used, or holds a user or a password.
    """
    address, mark, fragment = text.strip().partition("#")
    pin = _PIN.fullmatch(fragment)
    if mark and pin is None:
        # It may be the rest of a password, as of `https://user:pass#word@host`, or the signature of
        # a presigned address whose pin was written before its query.
        got = "other text" if _NOT_SHOWN & set(fragment) else repr(mark + fragment)
        raise SettingsError(
            f"{name}: expected #sha256= and 64 hexadecimal digits behind the address, got {got}"
        )
    sha256 = None if pin is None else pin[1].lower()
    found = _SCHEME.match(address)
    if found is None:
        if not address:
            raise SettingsError(f"{name}: expected an address, got none")
        return RemoteUri("file", address, address, sha256)
    scheme = found[1].lower()
    if scheme not in _KNOWN:
        raise SettingsError(
            f"{name}: expected s3://, gs://, https://, file:// or a path, got {scheme}://"
        )
    address = f"{scheme}{address[len(scheme) :]}"
    return _parse_known(cast("Scheme", scheme), address, sha256, name)


def is_loopback(host: str | None) -> bool:
    """Return whether a host's name or address is that of this machine itself.

    Args:
        host: a URL's host, without brackets.
    """
    if host is None:
        return False
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse_known(scheme: Scheme, address: str, sha256: str | None, name: str) -> RemoteUri:
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        # Its text would show the address.
        raise SettingsError(f"{name}: expected an address, and it can't be read as one") from None
    _check_no_credentials(scheme, parts, name)
    public = f"{scheme}://{parts.netloc}{parts.path}" + ("?..." if parts.query else "")
    if scheme == "file":
        if host not in (None, "localhost") or not parts.path.strip("/"):
            raise SettingsError(f"{name}: expected {_PATH_OF_SCHEME[scheme]}, got {public}")
        return RemoteUri(scheme, unquote(parts.path), public, sha256)
    if host is None or (scheme in _PATH_OF_SCHEME and not parts.path.strip("/")):
        wanted = _PATH_OF_SCHEME.get(scheme, f"{scheme}://host/path")
        raise SettingsError(f"{name}: expected {wanted}, got {public}")
    if scheme == "http" and sha256 is None and not is_loopback(host):
        raise SettingsError(
            f"{name}: {public} is not encrypted, so anybody on the way may change it; use "
            "https://, or pin the content with #sha256="
        )
    return RemoteUri(scheme, address, public, sha256)


def _check_no_credentials(scheme: str, parts: SplitResult, name: str) -> None:
    # A password may hold a slash or a question mark: `https://user:pass/word@host/key` has its @ in
    # a seeming path.
    behind = f"{parts.path}?{parts.query}"
    is_hidden_behind = scheme != "file" and ":" in parts.netloc and "@" in behind
    if "@" in parts.netloc or is_hidden_behind:
        places = _CREDENTIALS.get(scheme, "~/.netrc")
        also = "; an @ behind the port is written as %40" if is_hidden_behind else ""
        raise SettingsError(
            f"{name}: holds a user or a password; take it out, credentials come from {places} only"
            f"{also}"
        )
    try:
        _ = parts.port
    except ValueError:
        # It may be a password whose @ was left out.
        raise SettingsError(
            f"{name}: expected a number from 0 to 65535 as the port behind the host"
        ) from None
