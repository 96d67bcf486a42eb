"""An archive with a version of a policy, and maybe its schema.yaml, becomes a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from policy_server.errors import ModelError
from policy_server.files.archives import ArchiveLimits, is_zip, open_archive
from policy_server.formats.unpacking import choose_root, format_of_file
from policy_server.settings import ENV_PREFIX, Settings

__all__ = ["unpack_version"]


def unpack_version(archive: Path, own: Settings) -> None:
    """Put the contents of an archive in a folder that is laid out as a server's folder is.

    Args:
        archive: a policy's file or zip, with its schema.yaml or without; or the zip of a folder
            with such a file, and maybe its schema.yaml. It is moved where it is the policy.
        own: the settings of the folder, which is empty.

    Raises:
        ModelError: if the archive can't be used.
        OSError: if the folder can't be written.
    """
    if _is_policy(archive, own):
        _take_schema(archive, own)
        shutil.move(archive, own.zip_path)
        return
    # What a start makes itself, a compiled policy or the unzipped one, is nobody's to send.
    made = own.models_path.name
    with open_archive(archive, _limits(own)) as opened:
        opened.extract(
            PurePosixPath(),
            own.home,
            is_wanted=lambda path: (
                path.parts[0] != made and not any(part.startswith(".") for part in path.parts)
            ),
        )


def _is_policy(archive: Path, own: Settings) -> bool:
    try:
        return format_of_file(archive, max_bytes=own.max_unpacked_bytes) is not None
    except ModelError:
        return False


def _take_schema(archive: Path, own: Settings) -> None:
    """Put the schema.yaml that lies with the policy's files, or above them, in the folder.

    Without it a version would be asked with its observations in the order of another's.
    """
    if not is_zip(archive):
        return
    name = PurePosixPath(own.schema_path.name)
    with open_archive(archive, _limits(own)) as opened:
        root = choose_root(opened.paths, str(archive))
        folders = [] if root is None else [*reversed(root.parents), root]
        found = [folder for folder in folders if folder / name in opened.paths]
        for folder in found[:1]:
            opened.extract(folder, own.home, is_wanted=lambda path: path == name)


def _limits(own: Settings) -> ArchiveLimits:
    most = own.max_unpacked_bytes
    return ArchiveLimits(most, f"{ENV_PREFIX}MAX_UNPACKED_BYTES={most}")
