"""Zip files for tests: a model's, and hostile ones."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["FILES", "zip_of"]

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
