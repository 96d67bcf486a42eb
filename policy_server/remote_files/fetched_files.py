"""The files that were fetched, and the record of the addresses that they came from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictInt, StrictStr, TypeAdapter

from policy_server.files.regular import read_json
from policy_server.formats.model_files import digest_of_file
from policy_server.remote_files.uris import RemoteUri
from policy_server.settings import Settings

__all__ = [
    "RECORD_FILE",
    "FetchedCopy",
    "FetchedFile",
    "etag_to_keep",
    "is_copy_of",
    "pinned_file",
    "read_record",
    "write_record",
]

# The name of the record in the server's folder.
RECORD_FILE = ".fetched.json"
# What a request's header can hold: text in Latin-1 without control characters, a tab excepted.
_HEADER_VALUE = re.compile(r"[!-~\xa1-\xff][\t -~\x80-\xff]*")


def etag_to_keep(etag: str | None) -> str | None:
    """Return a store's name of a version; None for one that can't be sent back in a request.

    Args:
        etag: the name, as the store gave it; None where it gave none.
    """
    return etag if etag is not None and _HEADER_VALUE.fullmatch(etag) else None


def _check_etag(etag: str | None) -> str | None:
    if etag != etag_to_keep(etag):
        raise ValueError("it can't be sent")
    return etag


_Sha256 = Annotated[StrictStr, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class FetchedFile:
    """A file or folder that was fetched, now or before.

    Attributes:
        path: the file on this machine, saved_model.zip for any policy.
        source: its address, in the form that may be shown.
        size: in bytes, as fetched; of a folder, that of its files.
        sha256: the digest of what was fetched, which a pin states; of a folder, `digest_of_files`.
        state: `fetched` now; `unchanged`, since it is what was there already; or `outdated` at
            worst, since the store could not be reached.
    """

    path: Path
    source: str
    size: int
    sha256: str
    state: Literal["fetched", "unchanged", "outdated"]


@dataclass(frozen=True)
class FetchedCopy:
    """A file fetched before: the record names it, and the file on disk still has its digest.

    Attributes:
        identity: of the address.
        sha256: the digest of what was fetched.
        file_sha256: the digest of the file on disk; another where a folder, or a policy that is
            one file, was zipped.
        size: of what was fetched, in bytes.
        etag: the store's name of the version; None where it gave none.
    """

    identity: StrictStr
    sha256: _Sha256
    file_sha256: _Sha256
    size: Annotated[StrictInt, Field(ge=0)]
    etag: Annotated[StrictStr | None, AfterValidator(_check_etag)]


_ADAPTER = TypeAdapter(dict[str, FetchedCopy])


def pinned_file(
    path: Path, uri: RemoteUri, copies: Mapping[str, FetchedCopy]
) -> FetchedFile | None:
    """Return the file that is there if it is what was pinned, or was made of that.

    Args:
        path: the file.
        uri: the address, with the pin.
        copies: the result of `read_record`.

    Returns:
        The file; None where nothing is pinned, or another content is there.

    Raises:
        ModelError: if the file can't be read.
    """
    if uri.sha256 is None or not path.is_file():
        return None
    copy = copies.get(path.name)
    is_copy = copy is not None and copy.sha256 == uri.sha256
    if not is_copy and (uri.is_folder or digest_of_file(path) != uri.sha256):
        return None
    size = copy.size if copy is not None and is_copy else path.stat().st_size
    return FetchedFile(path, uri.public, size, uri.sha256, "unchanged")


def is_copy_of(uri: RemoteUri, settings: Settings) -> bool:
    """Return whether a folder has the policy that was fetched from an address.

    Args:
        uri: the address.
        settings: the folder.

    Raises:
        ModelError: if a file can't be read.
    """
    copy = read_record(settings).get(settings.zip_path.name)
    return copy is not None and copy.identity == uri.identity


def read_record(settings: Settings) -> dict[str, FetchedCopy]:
    """Return the files of the record that are still there unchanged, byte for byte, by name.

    Args:
        settings: the folder of the files and of the record.

    Raises:
        ModelError: if a file can't be read.
    """
    try:
        copies = _ADAPTER.validate_python(read_json(settings.home / RECORD_FILE))
    except (OSError, ValueError):
        # Without the record, files are fetched again.
        return {}
    paths = {path.name: path for path in (settings.schema_path, settings.zip_path)}
    return {
        name: copy
        for name, copy in copies.items()
        if name in paths
        and paths[name].is_file()
        and digest_of_file(paths[name]) == copy.file_sha256
    }


def write_record(folder: Path, copies: Mapping[str, FetchedCopy]) -> None:
    """Write the record for the next start.

    Args:
        folder: the folder of the new files, which come to their place together with the record.
        copies: the files that are there then, by name.

    Raises:
        OSError: if it can't be written.
    """
    record = {name: asdict(copy) for name, copy in copies.items()}
    (folder / RECORD_FILE).write_text(json.dumps(record))
