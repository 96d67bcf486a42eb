"""Many observations as one NumPy array in npy format: a row each, in the order of training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.observations.batch_layout import BatchLayout, Matrix
from policy_server.observations.npy_header import NpyHeader, read_header, refuse_npy

__all__ = ["NpyBatchReader"]

_ROWS_AT_ONCE = 4096


class NpyBatchReader:
    """Reads an array of numbers of shape (N, width), or (N, ...) with an observation's own shape.

    The numbers of a named observation are those of its JSON: an integer that `one_hot` expands is
    one. They are held to the types and bounds of schema.yaml where its lists have fixed lengths:
    only then is it known to which field a column belongs.
    """

    def __init__(self, layout: BatchLayout) -> None:
        """Wait for the first bytes.

        Args:
            layout: the form that the rows must have.
        """
        self._layout = layout
        self._buffer = bytearray()
        self._header: NpyHeader | None = None
        self._count = 0
        beside = 0 if layout.space.mask is None else layout.space.mask.width
        self._width = None if layout.width is None else layout.width - beside
        self._sizes = layout.space.arrays.sizes(self._width, is_raw=layout.is_raw)

    def feed(self, data: bytes) -> Iterator[Matrix]:
        """Take the next bytes; see `BatchReader.feed`."""
        self._buffer += data
        if self._header is None:
            self._header = read_header(self._buffer)
            if self._header is None:
                return
            self._check_shape(self._header.shape)
            del self._buffer[: self._header.size]
        if self._header.is_by_column:
            # Its rows are complete at the end.
            return
        complete = len(self._buffer) // self._row_bytes(self._header)
        yield from self._take(self._header, min(complete, self._header.shape[0] - self._count))

    def close(self) -> Iterator[Matrix]:
        """Take the end of the body; see `BatchReader.close`."""
        header = self._header
        if header is None:
            refuse_npy("npy_header", "The body ends within the header of the npy format")
        rows = header.shape[0]
        left = (rows - self._count) * self._row_bytes(header)
        if len(self._buffer) != left:
            kind = "ends before" if len(self._buffer) < left else "goes on after"
            refuse_npy("npy_length", f"The body {kind} the array of shape {header.shape} does")
        if header.is_by_column:
            values: NDArray[Any] = np.frombuffer(self._buffer, header.dtype)
            # Of no rows NumPy can't tell how many numbers each would have.
            width = math.prod(header.shape[1:])
            values = values.reshape(header.shape, order="F").reshape(rows, width)
            for start in range(0, rows, _ROWS_AT_ONCE):
                yield self._checked(values[start : start + _ROWS_AT_ONCE])

    def _row_bytes(self, header: NpyHeader) -> int:
        return math.prod(header.shape[1:]) * header.dtype.itemsize

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if self._layout.encoder is not None and not self._sizes:
            refuse_npy(
                "npy_shape",
                "The observation has a list of open length; send JSON, or rows to the raw route",
            )
        own = self._layout.space.arrays.shape(is_raw=self._layout.is_raw)
        is_flat = len(shape) == 2 and shape[1] > 0 and shape[1] in (self._sizes or shape)
        is_own = own is not None and shape[1:] == own
        if not shape or shape[0] < 0 or not (is_flat or is_own):
            wanted = " or ".join(f"(N, {width})" for width in self._sizes) or "(N, width)"
            if own is not None:
                wanted += f" or {('N', *own)}".replace("'", "")
            refuse_npy("npy_shape", f"The array should have the shape {wanted}, not {shape}")
        self._layout.check_rows(shape[0])

    def _take(self, header: NpyHeader, rows: int) -> Iterator[Matrix]:
        while rows:
            part = min(rows, _ROWS_AT_ONCE)
            size = part * self._row_bytes(header)
            values: NDArray[Any] = np.frombuffer(bytes(self._buffer[:size]), header.dtype)
            del self._buffer[:size]
            yield self._checked(values.reshape(part, -1))
            rows -= part

    def _checked(self, values: NDArray[Any]) -> Matrix:
        arrays, is_raw = self._layout.space.arrays, self._layout.is_raw
        rows = arrays.rows(values, self._width, self._count, is_raw=is_raw)
        self._count += len(values)
        return np.ascontiguousarray(rows, self._layout.dtype)
