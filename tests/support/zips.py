"""Zip files for tests: a model's, and hostile ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["FILES", "members_of", "put", "zip_of"]

FILES = {
    "saved_model.pb": b"graph",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": b"weights" * 100,
}


def zip_of(
    path: Path, files: Mapping[str, bytes] = FILES, *, under: str = "", method: int = 8
) -> Path:
    """Write a zip; the names are taken as they are, however hostile."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(under + name)
            info.compress_type = method
            archive.writestr(info, content)
    return path


def members_of(content: bytes) -> dict[str, bytes]:
    """Return the files of an archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}


def put(members: Mapping[str, bytes], folder: Path) -> Path:
    """Write the files to a new folder."""
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
