"""The errors of the stores' libraries, in our words: whether to try again, and the remedy.

Their own texts are not shown: they hold whole addresses, and with them the signatures of presigned
ones.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import sys
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from policy_server.errors import ModelError
from policy_server.remote_files.uris import RemoteUri, Scheme

__all__ = ["CHECK_ADDRESS", "PassingError", "RedirectError", "as_store_errors"]

_FOLDER_HINT = "check the address; that of a folder ends in /"
# The remedy where a store has no such file.
CHECK_ADDRESS: Mapping[Scheme, str] = {"s3": _FOLDER_HINT, "gs": _FOLDER_HINT}

_PASSING_STATUSES = (408, 412, 425, 429)
_MISSING = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
_SERVER_ERRORS = 500
_WHERE_CREDENTIALS_COME_FROM: dict[Scheme, str] = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or the "
    "machine's service account",
    "https": "~/.netrc, or a presigned address",
}
# Names another server than the store's own.
_ENDPOINT_SETTINGS: dict[Scheme, str] = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}
_AWS = "botocore.exceptions"
_GOOGLE, _GOOGLE_AUTH = "google.api_core.exceptions", "google.auth.exceptions"
# Of Python's HTTP client.
_MOST_HEADERS, _MOST_LINE_BYTES = 100, 65_536
_BROKEN = "the connection broke"
_UNREACHED = "can't be reached"


class PassingError(Exception):
    """A store fails but may answer later; the text gives the reason."""


class RedirectError(ValueError):
    """An answer names another address that is not asked; the text gives the reason."""


@contextlib.contextmanager
def as_store_errors(uri: RemoteUri, *, silence_s: float, is_found: bool = False) -> Iterator[None]:
    """Raise the errors of a store's library as errors of this package.

    Args:
        uri: the address of the file.
        silence_s: how long the store may be silent, in seconds, for messages.
        is_found: the store has said that the file is there; if it is not now, it was replaced, and
            the next attempt tells whether by another.

    Raises:
        PassingError: if a later attempt may succeed.
        ModelError: if none will.
    """
    try:
        yield
    except _library_errors() as error:
        if (status := _status_of(error)) is not None:
            raise _explain_status(status, uri, is_found=is_found) from error
        if _lacks_credentials(error):
            where = _WHERE_CREDENTIALS_COME_FROM[uri.scheme]
            raise ModelError(
                f"{uri.public}: no credentials, or they can't be used; they come from {where}"
            ) from error
        if (reason := _lasting_reason(error, uri)) is not None:
            raise ModelError(f"{uri.public}: {reason}") from error
        raise PassingError(_passing_reason(error, silence_s)) from error


def _library_errors() -> tuple[type[BaseException], ...]:
    import urllib3.exceptions as http

    return (
        OSError,
        # botocore's for an endpoint, and Python's for a header that it can't read.
        ValueError,
        http.HTTPError,
        *_errors(_AWS, "BotoCoreError", "ClientError"),
        *_errors(_GOOGLE_AUTH, "GoogleAuthError"),
        *_errors(_GOOGLE, "GoogleAPIError"),
    )


def _errors(module: str, *names: str) -> tuple[type[BaseException], ...]:
    """Return errors of a store's library; none where it was never imported: it raised nothing."""
    library = sys.modules.get(module)
    return () if library is None else tuple(getattr(library, name) for name in names)


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, if there is one."""
    from requests.exceptions import HTTPError

    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code
    code: int | None = getattr(error, "code", None)
    if isinstance(error, _errors(_GOOGLE, "GoogleAPICallError")) and code is not None:
        return int(code)
    # smart_open wraps S3's answers in an OSError.
    client_error = _errors(_AWS, "ClientError")
    cause = error if isinstance(error, client_error) else error.__cause__
    if isinstance(cause, client_error):
        answer: Mapping[str, Any] = getattr(cause, "response", {})
        status: int = answer["ResponseMetadata"]["HTTPStatusCode"]
        return status
    return None


def _explain_status(status: int, uri: RemoteUri, *, is_found: bool) -> Exception:
    try:
        words = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        words = str(status)
    if status in _PASSING_STATUSES or status >= _SERVER_ERRORS:
        return PassingError(f"answered {words}")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        where = _WHERE_CREDENTIALS_COME_FROM.get(uri.scheme, "nowhere for http://")
        return ModelError(
            f"{uri.public}: access denied ({words}), or there is no such file; credentials come "
            f"from {where}"
        )
    if status in _MISSING and is_found:
        return PassingError(f"was replaced or removed while it was read ({words})")
    if status in _MISSING:
        remedy = CHECK_ADDRESS.get(uri.scheme, "check the address")
        return ModelError(f"{uri.public}: not found ({words}); {remedy}")
    return ModelError(f"{uri.public}: answered {words}; check the address and the credentials")


def _lacks_credentials(error: BaseException) -> bool:
    return isinstance(
        error,
        (
            *_errors(
                _AWS,
                "NoCredentialsError",
                "PartialCredentialsError",
                "CredentialRetrievalError",
                "ProfileNotFound",
                "SSOError",
                "TokenRetrievalError",
            ),
            *_errors(_GOOGLE_AUTH, "DefaultCredentialsError", "RefreshError"),
        ),
    )


def _lasting_reason(error: BaseException, uri: RemoteUri) -> str | None:
    import requests.exceptions as requested

    if isinstance(error, (requested.SSLError, *_errors(_AWS, "SSLError"))):
        return _reason_of_tls(_behind(error, ssl.SSLError))
    if isinstance(error, requested.TooManyRedirects):
        return "redirects without end"
    if isinstance(error, ValueError):
        return _reason_of_value(error, uri)
    about_connection = _errors(
        _AWS, "ConnectionError", "HTTPClientError", "IncompleteReadError", "ResponseStreamingError"
    )
    is_boto = isinstance(error, _errors(_AWS, "BotoCoreError"))
    if is_boto and not isinstance(error, about_connection):
        return f"can't be asked for: {' '.join(str(error).split())}"
    return None


def _reason_of_tls(error: BaseException | None) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate can't be verified; REQUESTS_CA_BUNDLE and AWS_CA_BUNDLE name others"
    if isinstance(error, ssl.SSLError) and error.library not in (None, "SSL"):
        # The part of OpenSSL that reads files; the server has not been asked.
        return (
            "can't be asked: expected certificates in PEM in the file that REQUESTS_CA_BUNDLE or "
            "AWS_CA_BUNDLE names; mend it, or leave them out for the usual authorities"
        )
    return "no encrypted connection can be made; does it serve https://?"


def _reason_of_value(error: ValueError, uri: RemoteUri) -> str:
    import requests.exceptions as requested
    import urllib3.exceptions as raw

    if (setting := _ENDPOINT_SETTINGS.get(uri.scheme)) is not None:
        return (
            f"can't be asked, or the answer can't be read; {setting}, if it is set, has to be an "
            "address with https:// or http://"
        )
    if isinstance(error, RedirectError):
        return f"redirects to {error}; refused"
    if isinstance(error, (requested.InvalidHeader, raw.InvalidHeader)):
        return "answered with headers that contradict each other; is it a web server?"
    # requests' InvalidURL and its like.
    if isinstance(error, (requested.RequestException, raw.HTTPError)):
        return "is no address that can be asked, or redirects to such a one"
    return "the answer can't be read; is it a web server?"


def _passing_reason(error: BaseException, silence_s: float) -> str:
    import requests.exceptions as requested
    import urllib3.exceptions as raw

    late = (requested.Timeout, raw.TimeoutError)
    if isinstance(error, (*late, *_errors(_AWS, "ConnectTimeoutError", "ReadTimeoutError"))):
        return f"no answer in {silence_s:g} s"
    if (answer := _behind(error, http.client.HTTPException)) is not None:
        return _reason_of_answer(answer)
    if _behind(error, raw.ProtocolError) is not None:
        return _BROKEN
    if isinstance(error, (requested.ConnectionError, *_errors(_AWS, "EndpointConnectionError"))):
        return _UNREACHED
    return _BROKEN


def _reason_of_answer(error: BaseException) -> str:
    """Return the fault of an answer that Python's HTTP client can't read, without its text."""
    if isinstance(error, http.client.RemoteDisconnected):
        return "ended the connection without an answer"
    if isinstance(error, http.client.IncompleteRead):
        return _BROKEN
    if isinstance(error, http.client.LineTooLong):
        return f"answered with a line of more than {_MOST_LINE_BYTES} bytes among its headers"
    # That one has no type of its own.
    if type(error) is http.client.HTTPException:
        return f"answered with more than {_MOST_HEADERS} headers"
    return "answered, but not in HTTP; is it a web server?"


def _behind(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """Return the error of a kind that an error was raised over, or that error; None for none."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, kind):
        at = at.__cause__ or at.__context__
    return at
