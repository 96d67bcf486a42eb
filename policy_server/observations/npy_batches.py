"""Many observations as one NumPy array in npy format: a row each, in the order of training.

Source: the format's description in `numpy.lib.format`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from policy_server.errors import ObservationError
from policy_server.observations.action_mask import ActionMask
from policy_server.observations.batch_layout import BatchLayout, Matrix
from policy_server.observations.models import TOO_LARGE, problem
from policy_server.schema import FLOAT32_MAX, ObservationField

__all__ = ["NpyBatchReader"]

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 10_000
_ROWS_AT_ONCE = 4096
# By the format's major version: the bytes of the header's length, and its reader.
_VERSIONS: Mapping[int, tuple[int, Callable[..., Any]]] = {
    1: (2, npy.read_array_header_1_0),
    2: (4, npy.read_array_header_2_0),
}
_NUMBERS = "fiub"
_MOST_PROBLEMS = 100


class NpyBatchReader:
    """Reads an array of numbers of shape (N, width).

    Named observations are held to the types and bounds of schema.yaml where its lists have fixed
    lengths: only then is it known to which field a column belongs.
    """

    def __init__(self, layout: BatchLayout) -> None:
        """Wait for the first bytes.

        Args:
            layout: the form that the rows must have.
        """
        self._layout = layout
        self._buffer = bytearray()
        self._shape: tuple[int, int] | None = None
        self._dtype: np.dtype[Any] = np.dtype(layout.dtype)
        self._is_by_column = False
        self._count = 0
        self._rules = _Rules(layout)

    def feed(self, data: bytes) -> Iterator[Matrix]:
        """Take the next bytes; see `BatchReader.feed`."""
        self._buffer += data
        if self._shape is None:
            header = self._header()
            if header is None:
                return
            shape, self._is_by_column, self._dtype = header
            self._shape = self._checked_shape(shape)
        if self._is_by_column:
            # Its rows are complete at the end.
            return
        rows, width = self._shape
        complete = len(self._buffer) // (width * self._dtype.itemsize)
        yield from self._take(min(complete, rows - self._count))

    def close(self) -> Iterator[Matrix]:
        """Take the end of the body; see `BatchReader.close`."""
        if self._shape is None:
            _refuse("npy_header", "The body ends within the header of the npy format")
        rows, width = self._shape
        left = (rows - self._count) * width * self._dtype.itemsize
        if len(self._buffer) != left:
            kind = "ends before" if len(self._buffer) < left else "goes on after"
            _refuse("npy_length", f"The body {kind} the array of shape {self._shape} does")
        if self._is_by_column:
            values: NDArray[Any] = np.frombuffer(self._buffer, self._dtype).reshape(width, rows).T
            for start in range(0, rows, _ROWS_AT_ONCE):
                yield self._checked(values[start : start + _ROWS_AT_ONCE])

    def _header(self) -> tuple[tuple[int, ...], bool, np.dtype[Any]] | None:
        """Return the header once it is complete, and take it off."""
        start = bytes(self._buffer[: len(_MAGIC) + 6])
        if not start.startswith(_MAGIC[: len(start)]):
            _refuse("npy_header", "The body should start with the magic of the npy format")
        if len(start) < len(_MAGIC) + 6:
            return None
        if start[6] not in _VERSIONS:
            _refuse("npy_header", f"The npy format's version should be 1 or 2, not {start[6]}")
        size, read = _VERSIONS[start[6]]
        length = int.from_bytes(start[8 : 8 + size], "little")
        if length > _LONGEST_HEADER:
            _refuse("npy_header", f"The npy header should have at most {_LONGEST_HEADER} bytes")
        end = 8 + size + length
        if len(self._buffer) < end:
            return None
        try:
            header: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(
                io.BytesIO(self._buffer[8:end]), max_header_size=_LONGEST_HEADER
            )
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            _refuse("npy_header", "The npy header should give descr, fortran_order and shape")
        del self._buffer[:end]
        return header

    def _checked_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        widths = self._layout.npy_widths
        wanted = " or ".join(f"(N, {width})" for width in widths) or "(N, width)"
        if self._dtype.kind not in _NUMBERS:
            _refuse(
                "npy_dtype", f"The array should hold numbers, such as float32, not {self._dtype}"
            )
        if len(shape) != 2 or min(shape) < 0 or shape[1] == 0 or shape[1] not in (widths or shape):
            _refuse("npy_shape", f"The array should have the shape {wanted}, not {shape}")
        self._layout.check_rows(shape[0])
        return shape[0], shape[1]

    def _take(self, rows: int) -> Iterator[Matrix]:
        assert self._shape is not None, "the header was read"
        width = self._shape[1]
        while rows:
            part = min(rows, _ROWS_AT_ONCE)
            size = part * width * self._dtype.itemsize
            values: NDArray[Any] = np.frombuffer(bytes(self._buffer[:size]), self._dtype)
            del self._buffer[:size]
            yield self._checked(values.reshape(part, width))
            rows -= part

    def _checked(self, values: NDArray[Any]) -> Matrix:
        mask = self._layout.space.mask
        if mask is not None:
            values = self._with_mask(values, mask)
        else:
            self._rules.check(values, self._count)
        self._count += len(values)
        return np.ascontiguousarray(values, self._layout.dtype)

    def _with_mask(self, values: NDArray[Any], mask: ActionMask) -> NDArray[Any]:
        """Return rows that end with an action mask, checked."""
        numbers, masks = values[:, : mask.first], values[:, mask.first :]
        self._rules.check(numbers, self._count)
        if not masks.shape[1]:
            return mask.allowing_all(numbers)
        first, name = (mask.first, "obs") if self._layout.is_raw else (0, mask.name)
        mask.check(masks, lambda row, column: ["body", self._count + row, name, first + column])
        return values


class _Rules:
    """The types and bounds of the numbers, by column."""

    def __init__(self, layout: BatchLayout) -> None:
        fields = () if layout.is_raw else layout.space.fields or ()
        self._unnamed = ["obs"] if layout.is_raw else []
        self._paths: list[list[str | int]] = []
        self._columns: list[ObservationField] = []
        if all(not field.is_list or field.min_items == field.max_items for field in fields):
            for field in fields:
                paths: list[list[str | int]] = (
                    [[field.name, index] for index in range(field.min_items)]
                    if field.is_list
                    else [[field.name]]
                )
                self._paths += paths
                self._columns += [field] * len(paths)
        numbers = layout.space.numbers
        bounds = [numbers.within(field) for field in self._columns]
        # One for every column where fields are not told apart.
        self._low, self._high = np.array(bounds or [(numbers.low, numbers.high)], np.float64).T
        self._is_integer = np.array(
            [numbers.is_integer or field.kind != "float" for field in self._columns]
            or [numbers.is_integer]
        )
        self._has_bounds = bool((np.abs([self._low, self._high]) < FLOAT32_MAX).any())

    def check(self, values: NDArray[Any], first: int) -> None:
        """Refuse rows with a number that its column does not allow.

        Args:
            values: number[B, width].
            first: the index of the first row in the batch.

        Raises:
            ObservationError: naming row and field of the first 100 mistakes of one kind.
        """
        if values.dtype.kind == "f":
            is_bad = ~np.isfinite(values)
            self._refuse(is_bad, first, lambda _: ("finite_number", "be a finite number"))
            if values.dtype.itemsize > np.dtype(np.float32).itemsize:
                is_over = np.abs(values) > FLOAT32_MAX
                self._refuse(is_over, first, lambda _: ("number_too_large", TOO_LARGE[FLOAT32_MAX]))
            if self._is_integer.any():
                is_broken = (values != np.rint(values)) & self._is_integer
                self._refuse(is_broken, first, lambda _: ("int_type", "be a whole number"))
        if self._has_bounds:
            self._refuse(values < self._low, first, self._below)
            self._refuse(values > self._high, first, self._above)

    def _below(self, column: int) -> tuple[str, str]:
        bound = self._low[column % len(self._low)]
        return _beyond(bound, "greater_than_equal", "be greater than or equal to")

    def _above(self, column: int) -> tuple[str, str]:
        bound = self._high[column % len(self._high)]
        return _beyond(bound, "less_than_equal", "be less than or equal to")

    def _refuse(
        self,
        wrong: NDArray[np.bool_],
        first: int,
        mistake: Callable[[int], tuple[str, str]],
    ) -> None:
        if not wrong.any():
            return
        problems = []
        for row, column in np.argwhere(wrong)[:_MOST_PROBLEMS].tolist():
            path = self._paths[column] if self._paths else [*self._unnamed, column]
            kind, wanted = mistake(column)
            problems.append(problem(kind, ["body", first + row, *path], f"Input should {wanted}"))
        raise ObservationError(problems)


def _beyond(bound: float, kind: str, wanted: str) -> tuple[str, str]:
    """Return type and message of the mistake of a number beyond a bound, the same as for JSON."""
    if abs(bound) in TOO_LARGE:
        return "number_too_large", TOO_LARGE[abs(bound)]
    return kind, f"{wanted} {int(bound) if bound.is_integer() else bound}"


def _refuse(kind: str, message: str) -> NoReturn:
    raise ObservationError([problem(kind, ["body"], message)])
