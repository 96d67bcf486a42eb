"""The files of a remote folder, downloaded as one version: within a time and a size together."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from policy_server.formats.model_files import digest_of_files
from policy_server.remote_files.download import (
    Download,
    Limits,
    OnProgress,
    UnreachableError,
    check_size,
    download,
)
from policy_server.remote_files.listing import RemoteMember, read_listing
from policy_server.remote_files.uris import RemoteUri

__all__ = ["download_folder"]

_LISTING = ".listing"
_MOST_LISTING_BYTES = 16 * 1024 * 1024


def download_folder(
    uri: RemoteUri,
    target: Path,
    limits: Limits,
    *,
    known_etag: str | None,
    on_progress: OnProgress,
) -> Download | None:
    """Download the files of a folder.

    Args:
        uri: the address of the folder.
        target: an empty folder for the files; after an error they are of no use.
        limits: the largest size and the longest time of all files together.
        known_etag: the ETag of the version that is here already, if there is one.
        on_progress: is called with the bytes done and all bytes.

    Returns:
        The folder: its size is that of all files, its digest that of `digest_of_files`; None if
        the version is the known one, and nothing was written.

    Raises:
        UnreachableError: if the store fails but may answer later, takes too long, or got other
            files meanwhile.
        ModelError: if a file can't be fetched, the files are too large, or a name is refused.
    """
    return _FolderDownload(uri, target, limits, on_progress).run(known_etag)


class _FolderDownload:
    """One folder on its way here, with one deadline for all of its files."""

    def __init__(
        self, uri: RemoteUri, target: Path, limits: Limits, on_progress: OnProgress
    ) -> None:
        self._uri = uri
        self._target = target
        self._limits = limits
        self._on_progress = on_progress
        self._deadline = time.monotonic() + limits.timeout_s

    def run(self, known_etag: str | None) -> Download | None:
        listing = self._target / _LISTING
        got = self._list(known_etag)
        if got is None:
            return None
        members = read_listing(listing.read_bytes())
        listing.unlink()
        size = sum(member.size for member in members)
        check_size(self._uri, size, self._limits)
        done = 0
        for member in members:
            done += self._download(member, done, size)
        # Files of two versions may not fit.
        if got.etag is not None and self._list(got.etag) is not None:
            raise UnreachableError(f"{self._uri.public}: changed while it was fetched")
        files = {member.name: self._target / member.name for member in members}
        return Download(done, digest_of_files(files), got.etag)

    def _list(self, known_etag: str | None) -> Download | None:
        limits = replace(
            self._limits,
            max_bytes=_MOST_LISTING_BYTES,
            size_setting=f"{_MOST_LISTING_BYTES} of a folder's listing",
        )
        return download(
            self._uri,
            self._target / _LISTING,
            limits,
            deadline=self._deadline,
            known_etag=known_etag,
            on_progress=lambda _done, _total: None,
        )

    def _download(self, member: RemoteMember, done: int, size: int) -> int:
        """Download a file, and return its size in bytes."""
        path = self._target / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        got = download(
            self._uri.member(member.name),
            path,
            replace(self._limits, max_bytes=self._limits.max_bytes - done),
            deadline=self._deadline,
            known_etag=None,
            on_progress=lambda now, _size: self._on_progress(min(done + now, size), size),
        )
        assert got is not None, "no version of it was known"
        return got.size
