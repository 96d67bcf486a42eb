"""The files of a remote folder: a prefix of S3 or Google Cloud that ends in `/`, or a local one.

A listing travels as a file does, with a size and an ETag, so that it is tried again, ends at the
deadline and is known again by the same rules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from policy_server.errors import ModelError
from policy_server.files.archives import fault_of_name
from policy_server.formats.model_files import (
    bounded,
    check_count,
    files_of_model,
    is_part_of_model,
)
from policy_server.remote_files.store_clients import google_client, s3_client
from policy_server.remote_files.uris import RemoteUri

__all__ = ["RemoteMember", "list_folder", "read_listing"]

# Characters that an address can't have in the name of a file.
_NO_ADDRESS = frozenset("?@\\")


@dataclass(frozen=True)
class RemoteMember:
    """A file of a remote folder.

    Attributes:
        name: its path below the folder, such as `variables/variables.index`.
        size: in bytes.
        etag: the store's name of this version; None where the store gives none.
    """

    name: str
    size: int
    etag: str | None


def list_folder(uri: RemoteUri, *, silence_s: float) -> tuple[bytes, str | None]:
    """List the files of a folder that are part of a model.

    Args:
        uri: the address of the folder.
        silence_s: how long the store may be silent, in seconds.

    Returns:
        The listing, and an ETag that changes with each file; None where the store gives none.

    Raises:
        ModelError: if it has no files, too many, or one whose name can't be a file's.
        MissingPackageError: if the library of the store is not installed.
    """
    lister = {"s3": _list_s3, "gs": _list_google}.get(uri.scheme)
    found = _list_local(uri) if lister is None else lister(uri, silence_s)
    members = sorted(_checked(uri, found), key=lambda member: member.name)
    _check_places(uri, members)
    listing = "".join(f"{json.dumps(asdict(member))}\n" for member in members).encode()
    has_versions = all(member.etag is not None for member in members)
    return listing, hashlib.sha256(listing).hexdigest() if has_versions else None


def read_listing(listing: bytes) -> list[RemoteMember]:
    """Return the files that a listing names, in the order of their names.

    Args:
        listing: the first result of `list_folder`.
    """
    return [RemoteMember(**json.loads(line)) for line in listing.splitlines()]


def _list_s3(uri: RemoteUri, silence_s: float) -> Iterator[RemoteMember]:
    client = s3_client(uri, silence_s=silence_s)
    bucket, prefix = uri.bucket_and_key
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    for page in pages:
        for item in page.get("Contents", ()):
            yield RemoteMember(item["Key"].removeprefix(prefix), item["Size"], item.get("ETag"))


def _list_google(uri: RemoteUri, silence_s: float) -> Iterator[RemoteMember]:
    bucket, prefix = uri.bucket_and_key
    blobs = google_client(uri).list_blobs(bucket, prefix=prefix, timeout=silence_s, retry=None)
    for blob in blobs:
        yield RemoteMember(blob.name.removeprefix(prefix), blob.size, blob.etag)


def _list_local(uri: RemoteUri) -> Iterator[RemoteMember]:
    for name, path in files_of_model(Path(uri.address)).items():
        yield RemoteMember(name, path.stat().st_size, None)


def _checked(uri: RemoteUri, found: Iterable[RemoteMember]) -> Iterator[RemoteMember]:
    """Yield the files that are part of a model; their names are the store's, and so anybody's."""
    has_files = False
    for member in bounded(found, uri.public):
        # Stores show an empty object in place of a folder.
        if member.name.endswith("/") or not member.name:
            continue
        if not is_part_of_model(PurePosixPath(member.name)):
            continue
        fault = None if uri.scheme == "file" else _fault_of(member.name)
        if fault is not None:
            raise ModelError(f"{uri.public}: the file {member.name[:60]!r} {fault}")
        has_files = True
        yield member
    if not has_files:
        raise ModelError(f"{uri.public}: holds no files; check the address")


def _fault_of(name: str) -> str | None:
    if str(PurePosixPath(name)) != name or not name.isprintable() or _NO_ADDRESS & set(name):
        return "has a name that can't be asked for; rename it"
    return fault_of_name(name)


def _check_places(uri: RemoteUri, members: Iterable[RemoteMember]) -> None:
    """Refuse a file that is a folder too, which stores allow, and too many folders."""
    names = {PurePosixPath(member.name) for member in members}
    folders = {folder for name in names for folder in name.parents}
    check_count(len(names) + len(folders) - 1, uri.public)
    if both := sorted(folders & names):
        raise ModelError(f"{uri.public}: the file '{both[0]}' is a folder too; rename it")
