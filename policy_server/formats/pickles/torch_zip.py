"""Read the tensors of a file that PyTorch's `torch.save` wrote, without PyTorch.

The file is a zip: `data.pkl` describes tensors by name, place, shape and strides, and each member
of `data/` holds the raw numbers of one storage.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.pickles.unpickling import Stub, unpickle

__all__ = ["read_tensors"]

_REBUILD = "torch._utils._rebuild_tensor_v2"
_LIBRARY = re.compile(r"torch\._utils\._rebuild_tensor_v2|torch\.\w+Storage")
_DTYPES: Mapping[str, str] = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ByteStorage": "|u1",
    "torch.BoolStorage": "|b1",
}


# zipfile's own errors for a damaged file, and ours.
_READING_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, OverflowError),
    *(zipfile.BadZipFile, struct.error),
)
# Parts that share their weights are written as tensors of one storage.
_MOST_COPIES = 8
_MOST_DIMENSIONS = 32
_LARGEST_NUMBER = 2**40
# Storages are numbered; the longest name of a member would take its time at each tensor.
_STORAGE = re.compile(r"\d{1,20}")


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a state dict by their names.

    Example: `read_tensors(Path("policy.pth"))["action_net.weight"].shape` is `(2, 64)`.

    Args:
        path: a file that `torch.save(module.state_dict(), path)` wrote.

    Raises:
        ModelError: if it is no such file, is damaged, or holds anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reading(archive, path.name, path.stat().st_size).tensors()
    except _READING_ERRORS as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            f"{path.name}: can't be read as what torch.save writes: {words}"
        ) from error


class _Reading:
    """One reading of an open file."""

    def __init__(self, archive: zipfile.ZipFile, subject: str, size: int) -> None:
        """Own the place of the members, as long as the archive is open.

        Args:
            archive: the open file.
            subject: its name, for messages.
            size: in bytes.

        Raises:
            ValueError: if a member is packed: PyTorch's never are, so sizes are as stated; or is
                there twice, so that it depends on the reader which one counts.
        """
        self._archive = archive
        self._subject = subject
        self._storages: dict[str, bytes] = {}
        # Members may lie over each other, and tensors share a storage: a few bytes for each.
        self._unread, self._uncopied = size, _MOST_COPIES * size
        if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
            raise ValueError("has packed members; expected them as they are")
        for name, count in Counter(archive.namelist()).items():
            if count > 1:
                raise ValueError(f"has the member {name[:60]!r} {count} times")
        roots = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"has {len(roots)} files data.pkl")
        self._root = roots[0].removesuffix("data.pkl")
        byte_order = f"{self._root}byteorder"
        if byte_order in archive.namelist() and archive.read(byte_order) != b"little":
            raise ValueError("has its numbers in big-endian order")

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the tensors by name."""
        found = unpickle(
            self._archive.read(f"{self._root}data.pkl"),
            f"{self._subject}: data.pkl",
            library=_LIBRARY,
            tensors=self._storage,
        )
        if not isinstance(found, dict):
            raise ValueError(f"holds a {type(found).__name__}, not tensors by name")  # noqa: TRY004 -- the file's fault
        return {str(name): self._tensor(str(name), part) for name, part in found.items()}

    def _storage(self, identity: Any) -> NDArray[Any]:  # noqa: ANN401 -- as the file has it
        kind, storage, key, _, size = identity
        dtype = _DTYPES.get(getattr(storage, "path", ""))
        if kind != "storage" or dtype is None or not _STORAGE.fullmatch(key):
            what = getattr(storage, "path", type(storage).__name__)
            raise ValueError(f"has a storage of the kind {what}")
        if key not in self._storages:
            self._storages[key] = self._read(key)
        return np.frombuffer(self._storages[key], dtype, int(size))

    def _read(self, key: str) -> bytes:
        try:
            member = self._archive.getinfo(f"{self._root}data/{key}")
        except KeyError as error:
            raise ValueError(f"lacks the storage {key}") from error
        self._unread -= member.file_size
        if self._unread < 0:
            raise ValueError("has members that lie over each other")
        return self._archive.read(member)

    def _tensor(self, name: str, part: object) -> NDArray[Any]:
        if not isinstance(part, Stub) or part.path != _REBUILD:
            raise ValueError(f"{name} is no tensor")
        storage, offset, shape, strides = part.arguments[:4]
        if not isinstance(storage, np.ndarray) or not _fits(storage.size, offset, shape, strides):
            raise ValueError(f"{name} lies outside of its storage")
        self._uncopied -= math.prod(shape) * storage.itemsize
        if self._uncopied < 0:
            raise ValueError(f"has more than {_MOST_COPIES} tensors of the same numbers")
        steps = [stride * storage.itemsize for stride in strides]
        return as_strided(storage[offset:], shape, steps, writeable=False).copy()


def _fits(size: int, offset: object, shape: object, strides: object) -> bool:
    """Return whether a tensor lies within its storage; the pickle may state anything."""
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or type(offset) is not int:
        return False
    if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
        return False
    if not all(type(n) is int and 0 <= n < _LARGEST_NUMBER for n in (offset, *shape, *strides)):
        return False
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    return last < size and math.prod(shape) <= size
