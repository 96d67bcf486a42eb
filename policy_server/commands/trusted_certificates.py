"""The certificates that a server's own is checked against, for every command alike."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from policy_server.errors import SettingsError

__all__ = ["certificate_bundle", "secure_context"]

# requests reads the first two, OpenSSL the third; on loopback requests is to read nothing.
_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def certificate_bundle() -> str:
    """Return the file, or the folder, of the certificates that are trusted.

    Raises:
        SettingsError: if a variable names one that is not there.
    """
    for name in _VARIABLES:
        path = os.environ.get(name)
        if path and not Path(path).exists():
            raise SettingsError(f"{name}: {path}: not found")
        if path:
            return path
    return DEFAULT_CA_BUNDLE_PATH


def secure_context() -> ssl.SSLContext:
    """Return a TLS context that trusts these certificates.

    Raises:
        SettingsError: as `certificate_bundle`, or if the file holds none.
    """
    path = certificate_bundle()
    try:
        if Path(path).is_dir():
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise SettingsError(f"{path}: expected certificates, in PEM: {error}") from error
