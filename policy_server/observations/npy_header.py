"""The header of an array in npy format: its type, its shape, and the order of its numbers.

Source: the format's description in `numpy.lib.format`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.lib import format as npy

from policy_server.errors import ObservationError
from policy_server.observations.models import problem

__all__ = ["NpyHeader", "read_header", "refuse_npy"]

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 10_000
# By the format's major version: the bytes of the header's length, and its reader.
_VERSIONS: Mapping[int, tuple[int, Callable[..., Any]]] = {
    1: (2, npy.read_array_header_1_0),
    2: (4, npy.read_array_header_2_0),
}
_NUMBERS = "fiub"


@dataclass(frozen=True)
class NpyHeader:
    """The header of an array of numbers.

    Attributes:
        shape: the array's dimensions.
        is_by_column: whether the first index changes fastest (Fortran's order).
        dtype: the numbers' type.
        size: how many bytes the header itself has.
    """

    shape: tuple[int, ...]
    is_by_column: bool
    dtype: np.dtype[Any]
    size: int


def read_header(body: bytes | bytearray) -> NpyHeader | None:
    """Return the header that a body starts with; None while it is not complete.

    Args:
        body: the beginning of an array in npy format.

    Raises:
        ObservationError: if it is no such header, or not one of an array of numbers.
    """
    start = bytes(body[: len(_MAGIC) + 6])
    if not start.startswith(_MAGIC[: len(start)]):
        refuse_npy("npy_header", "The body should start with the magic of the npy format")
    if len(start) < len(_MAGIC) + 6:
        return None
    if start[6] not in _VERSIONS:
        refuse_npy("npy_header", f"The npy format's version should be 1 or 2, not {start[6]}")
    size, read = _VERSIONS[start[6]]
    length = int.from_bytes(start[8 : 8 + size], "little")
    if length > _LONGEST_HEADER:
        refuse_npy("npy_header", f"The npy header should have at most {_LONGEST_HEADER} bytes")
    end = 8 + size + length
    if len(body) < end:
        return None
    try:
        shape, is_by_column, dtype = read(io.BytesIO(body[8:end]), max_header_size=_LONGEST_HEADER)
    except Exception:
        # Python's own tokenizer and parser stand behind it, with errors of many kinds.
        refuse_npy("npy_header", "The npy header should give descr, fortran_order and shape")
    _check_header(shape, dtype)
    return NpyHeader(shape, is_by_column, dtype, end)


def _check_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    # Truth values are integers to Python, and no dimensions to NumPy.
    if any(isinstance(size, bool) for size in shape):
        refuse_npy("npy_header", f"The array's shape should have whole numbers, not {shape}")
    if dtype.kind not in _NUMBERS:
        refuse_npy("npy_dtype", f"The array should hold numbers, such as float32, not {dtype}")


def refuse_npy(kind: str, message: str) -> NoReturn:
    """Raise an ObservationError about a whole array.

    Args:
        kind: a machine-readable name, such as `npy_shape`.
        message: the expected value, in words.
    """
    raise ObservationError([problem(kind, ["body"], message)])
