"""One file, downloaded and verified: tried again where that helps, within a time and a size."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from policy_server.errors import ModelError
from policy_server.remote_files.failures import PassingError
from policy_server.remote_files.pump import DeadlineError, opened_until
from policy_server.remote_files.stores import RemoteContent
from policy_server.remote_files.uris import RemoteUri

__all__ = ["Download", "Limits", "OnProgress", "UnreachableError", "check_size", "download"]

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]

_ATTEMPTS = 4
_FIRST_WAIT_S = 0.5
_LONGEST_SILENCE_S = 20.0
_LOG_EVERY_S = 5.0
_SLOW = "raise POLICY_SERVER_DOWNLOAD_TIMEOUT_S if the connection is that slow"


class UnreachableError(ModelError):
    """A store did not give the file, but it may later."""


@dataclass(frozen=True)
class Limits:
    """The limits of a download.

    Attributes:
        max_bytes: the largest size.
        size_setting: the name and value of the setting that says so, for messages.
        timeout_s: the longest time of all attempts together, in seconds.
    """

    max_bytes: int
    size_setting: str
    timeout_s: float


@dataclass(frozen=True)
class Download:
    """A file or folder that was downloaded.

    Attributes:
        size: in bytes.
        sha256: the content's digest, which a pin states.
        etag: the store's name for this version, if it has one.
    """

    size: int
    sha256: str
    etag: str | None


def download(
    uri: RemoteUri,
    target: Path,
    limits: Limits,
    *,
    known_etag: str | None,
    on_progress: OnProgress,
    deadline: float | None = None,
) -> Download | None:
    """Download a file; of a folder's address, its listing.

    Args:
        uri: the address of the file.
        target: the file to write; after an error its content is of no use.
        limits: the largest size and the longest time.
        known_etag: the ETag of the version that is here already, if there is one.
        on_progress: is called with the bytes done and, where the store says so, all bytes.
        deadline: by the clock of `time.monotonic`, for a file that is one of several which share
            the longest time; None for one that begins now.

    Returns:
        The file; None if the version is the known one, and nothing was written.

    Raises:
        UnreachableError: if the store fails but may answer later, or takes too long.
        ModelError: if the file can't be fetched, or is too large.
    """
    if deadline is None:
        deadline = time.monotonic() + limits.timeout_s
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _attempt(uri, target, limits, deadline, known_etag, on_progress)
        except DeadlineError as error:
            raise UnreachableError(
                f"{uri.public}: no answer in {limits.timeout_s:g} s; {_SLOW}"
            ) from error
        except PassingError as error:
            # Jitter keeps servers that start together from asking together.
            wait_s = _FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(1, 1.5)  # noqa: S311 -- no secret
            if attempt == _ATTEMPTS or time.monotonic() + wait_s > deadline:
                raise UnreachableError(f"{uri.public}: {error}; tried {attempt} times") from error
            logger.warning(
                "fetch_retried",
                extra={"source": uri.public, "reason": str(error), "wait_s": round(wait_s, 3)},
            )
            time.sleep(wait_s)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _attempt(
    uri: RemoteUri,
    target: Path,
    limits: Limits,
    deadline: float,
    known_etag: str | None,
    on_progress: OnProgress,
) -> Download | None:
    silence_s = min(_LONGEST_SILENCE_S, limits.timeout_s)
    with opened_until(deadline, uri, known_etag=known_etag, silence_s=silence_s) as content:
        if content is None:
            return None
        digest, done = hashlib.sha256(), 0
        try:
            with target.open("wb") as file:
                for chunk in _watched(uri, content, limits, on_progress):
                    digest.update(chunk)
                    done += len(chunk)
                    file.write(chunk)
        except OSError as error:
            raise ModelError(f"{target}: can't be written: {error.strerror or error}") from error
        return Download(done, digest.hexdigest(), content.etag)


def _watched(
    uri: RemoteUri,
    content: RemoteContent,
    limits: Limits,
    on_progress: OnProgress,
) -> Iterator[bytes]:
    """Yield the chunks, as long as they are within the limits."""
    check_size(uri, content.size or 0, limits)
    done, next_log = 0, time.monotonic() + _LOG_EVERY_S
    try:
        for chunk in content.chunks:
            done += len(chunk)
            check_size(uri, done, limits)
            if time.monotonic() > next_log:
                next_log = time.monotonic() + _LOG_EVERY_S
                logger.info(
                    "fetch_progress",
                    extra={"source": uri.public, "bytes": done, "of": content.size},
                )
            if content.size:
                on_progress(done, content.size)
            yield chunk
    except DeadlineError as error:
        of = "" if content.size is None else f" of {content.size}"
        raise UnreachableError(
            f"{uri.public}: {done}{of} bytes came in {limits.timeout_s:g} s; {_SLOW}"
        ) from error
    finally:
        # A bar that has not come to its end is taken away too.
        if content.size:
            on_progress(content.size, content.size)


def check_size(uri: RemoteUri, size: int, limits: Limits) -> None:
    """Refuse what is too large.

    Args:
        uri: the address, for messages.
        size: in bytes, known so far.
        limits: the largest size.

    Raises:
        ModelError: if it is larger.
    """
    if size > limits.max_bytes:
        raise ModelError(
            f"{uri.public}: has {size} bytes or more, and {limits.size_setting} is the most"
        )
