"""Opening a remote file through smart_open: one function for S3, Google Cloud, HTTP and files.

smart_open brings the libraries of every store, which take a second to import; so they are imported
where they are used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import urljoin, urlsplit

from policy_server.errors import ModelError
from policy_server.files.regular import open_file
from policy_server.remote_files.failures import (
    CHECK_ADDRESS,
    PassingError,
    RedirectError,
    as_store_errors,
)
from policy_server.remote_files.listing import list_folder
from policy_server.remote_files.store_clients import google_client, s3_client
from policy_server.remote_files.uris import RemoteUri, is_loopback

if TYPE_CHECKING:
    import requests

__all__ = ["RemoteContent", "http_session", "opened"]

_CHUNK_BYTES = 64 * 1024
# Google's library asks for this much at a time.
_GOOGLE_CHUNK_BYTES = 8 * 1024 * 1024
_MOST_REDIRECTS = 5


@dataclass(frozen=True)
class RemoteContent:
    """A file that is being read.

    Attributes:
        size: in bytes; None where the store doesn't say.
        etag: the store's name of this version; None where the store gives none.
        chunks: the bytes, read as they are asked for.
    """

    size: int | None
    etag: str | None
    chunks: Iterator[bytes]


@contextlib.contextmanager
def opened(
    uri: RemoteUri, *, known_etag: str | None, silence_s: float
) -> Iterator[RemoteContent | None]:
    """Open a file; of a folder, the listing of its files.

    Args:
        uri: the address of the file.
        known_etag: the ETag of the version that is here already, if there is one.
        silence_s: how long the store may be silent, in seconds.

    Yields:
        The file; None if its version is the known one.

    Raises:
        PassingError: if the store fails but may answer later.
        ModelError: if it fails otherwise.
        MissingPackageError: if the library of the store is not installed.
    """
    if uri.is_folder:
        with as_store_errors(uri, silence_s=silence_s):
            listing, etag = list_folder(uri, silence_s=silence_s)
        is_known = etag is not None and etag == known_etag
        yield None if is_known else RemoteContent(len(listing), etag, iter([listing]))
        return
    if uri.scheme == "file":
        with _open_file(uri) as content:
            yield content
        return
    open_remote = {"s3": _open_s3, "gs": _open_google}.get(uri.scheme, _open_http)
    with contextlib.ExitStack() as stack:
        with as_store_errors(uri, silence_s=silence_s):
            file, size, etag = open_remote(uri, known_etag, silence_s)
        if file is None:
            yield None
            return
        stack.enter_context(contextlib.closing(file))
        yield RemoteContent(size, etag, _read(uri, file, size, silence_s))


@contextlib.contextmanager
def _open_file(uri: RemoteUri) -> Iterator[RemoteContent]:
    path = Path(uri.address)
    try:
        file = open_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: not found") from error
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error
    with file:
        yield RemoteContent(path.stat().st_size, None, iter(lambda: file.read(_CHUNK_BYTES), b""))


_Opened = tuple[IO[bytes] | None, int | None, str | None]


def _open_s3(uri: RemoteUri, known_etag: str | None, silence_s: float) -> _Opened:
    client = s3_client(uri, silence_s=silence_s)
    import smart_open.s3

    parts = smart_open.s3.parse_uri(uri.address)
    version = {} if parts["version_id"] is None else {"VersionId": parts["version_id"]}
    head = client.head_object(Bucket=parts["bucket_id"], Key=parts["key_id"], **version)
    etag: str | None = head.get("ETag")
    if etag is not None and etag == known_etag:
        return None, None, None
    # smart_open continues a broken read, which must not be that of another version.
    same = {} if etag is None else {"S3.Client.get_object": {"IfMatch": etag}}
    parameters = {"client": client, "client_kwargs": same, "buffer_size": _CHUNK_BYTES}
    with as_store_errors(uri, silence_s=silence_s, is_found=True):
        file = _smart_open(uri, parameters)
    return file, head["ContentLength"], etag


def _open_google(uri: RemoteUri, known_etag: str | None, silence_s: float) -> _Opened:
    client = google_client(uri)
    request = {"timeout": silence_s, "retry": None}
    bucket, key = uri.bucket_and_key
    blob = client.bucket(bucket).get_blob(key, **request)
    if blob is None:
        raise ModelError(f"{uri.public}: not found; {CHECK_ADDRESS['gs']}")
    if blob.etag is not None and blob.etag == known_etag:
        return None, None, None
    parameters = {
        "client": client,
        "get_blob_kwargs": {**request, "generation": blob.generation},
        "blob_open_kwargs": {**request, "chunk_size": _GOOGLE_CHUNK_BYTES},
    }
    with as_store_errors(uri, silence_s=silence_s, is_found=True):
        file = _smart_open(uri, parameters)
    return file, blob.size, blob.etag


def _open_http(uri: RemoteUri, known_etag: str | None, silence_s: float) -> _Opened:
    headers = {"Accept-Encoding": "identity"}
    if known_etag is not None:
        headers["If-None-Match"] = known_etag
    file: Any = _smart_open(
        uri,
        {
            # As for the address itself: without a pin, anybody on the way may change the content.
            "session": http_session(
                is_open_allowed=uri.scheme == "http" and uri.sha256 is not None
            ),
            "timeout": silence_s,
            "headers": headers,
            "buffer_size": _CHUNK_BYTES,
        },
    )
    with contextlib.ExitStack() as unless_opened:
        unless_opened.callback(file.close)
        response: requests.Response = file.response
        if response.status_code == HTTPStatus.NOT_MODIFIED:
            if known_etag is None:
                raise ModelError(
                    f"{uri.public}: answered 304 Not Modified, and no version was named"
                )
            return None, None, None
        size = response.headers.get("Content-Length", "")
        size_bytes = int(size) if size.isdecimal() else None
        unless_opened.pop_all()
    return cast("IO[bytes]", _RawBody(file)), size_bytes, response.headers.get("ETag")


class _RawBody:
    """The body of an answer, read in the pieces that arrive; smart_open waits for whole blocks."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401 -- smart_open's reader has no public type
        self._file = file

    def read(self, size: int) -> bytes:
        """Return the bytes that have arrived, at least one; none at the end."""
        piece: bytes = self._file.response.raw.read1(size)
        return piece

    def close(self) -> None:
        """Close the connection."""
        self._file.close()


def http_session(*, is_open_allowed: bool) -> requests.Session:
    """Return a session that follows redirects to encrypted addresses, or to this machine.

    Args:
        is_open_allowed: let others be asked without encryption too, but without credentials.
    """
    import requests
    from requests.adapters import HTTPAdapter

    class OpenHttp(HTTPAdapter):
        def send(
            self,
            request: requests.PreparedRequest,
            *args: Any,  # noqa: ANN401 -- handed on
            **kwargs: Any,  # noqa: ANN401 -- handed on
        ) -> requests.Response:
            if not is_loopback(urlsplit(request.url or "").hostname):
                if not is_open_allowed:
                    raise RedirectError("an address that is not encrypted")
                request.headers.pop("Authorization", None)
            return super().send(request, *args, **kwargs)

    class Following(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> str | None:
            try:
                target = super().get_redirect_target(resp)
                if target is not None:
                    _check_redirect(urljoin(resp.url, target))
            except ValueError:
                # Nobody else would close its connection.
                resp.close()
                raise
            return target

    session = Following()
    session.max_redirects = _MOST_REDIRECTS
    session.mount("http://", OpenHttp())
    return session


def _check_redirect(target: str) -> None:
    if urlsplit(target).scheme not in ("https", "http"):
        raise RedirectError("an address without https://")


def _smart_open(uri: RemoteUri, parameters: Mapping[str, Any]) -> IO[bytes]:
    import smart_open

    file: IO[bytes] = smart_open.open(
        uri.address, "rb", compression="disable", transport_params=dict(parameters)
    )
    return file


def _read(uri: RemoteUri, file: IO[bytes], size: int | None, silence_s: float) -> Iterator[bytes]:
    done = 0
    while True:
        with as_store_errors(uri, silence_s=silence_s, is_found=True):
            chunk = file.read(_CHUNK_BYTES)
        if not chunk:
            break
        done += len(chunk)
        yield chunk
    if size is not None and done != size:
        raise PassingError(f"ended after {done} of {size} bytes")
