"""Copies of a version's files that are here already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from policy_server.files.regular import is_there
from policy_server.formats.finding import format_of_folder
from policy_server.formats.model_files import digest_of_file, whole_model
from policy_server.remote_files import RemoteUri, is_copy_of
from policy_server.settings import Settings

__all__ = ["deployed_copy", "take_over"]


def deployed_copy(
    models: Path, archive: Path, digest: str, unpack: Callable[[], Path]
) -> Path | None:
    """Return the folder of the policy that was deployed, whatever its store has by now.

    Args:
        models: the folder that it was unpacked to.
        archive: the zip or file that it was unpacked from; by now there may be another, or none.
        digest: the start of the policy's digest; empty before it was deployed.
        unpack: unpacks the archive to the folder, unless it lies there as it was unpacked.

    Returns:
        The folder; None where the policy is not here, or not as it was unpacked.

    Raises:
        PolicyServerError: if a file can't be read, or as `unpack` raises it.
    """
    if not digest:
        return None
    model = None if format_of_folder(models) is None else whole_model(models)
    if model is not None and model.version == digest:
        return models
    if is_there(archive) and archive.is_file() and digest_of_file(archive).startswith(digest):
        return unpack()
    return None


def take_over(uri: RemoteUri, own: Settings, names: Sequence[str]) -> None:
    """Give a version the files that an earlier server fetched to a folder without an id.

    Args:
        uri: the version's address.
        own: the settings of its folder.
        names: those that the earlier folder may have.
    """
    for name in [name for name in names if name and not own.home.exists()]:
        earlier = own.home.with_name(name)
        if is_copy_of(uri, own.model_copy(update={"home": earlier})):
            # Another process may be first.
            with suppress(OSError):
                earlier.rename(own.home)
