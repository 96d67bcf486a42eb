"""The network that is being built from a graph, as the translations of ONNX's operators use it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.building import NetworkBuilder, NotCompiledError
from policy_server.engine.row_dependence import FOLLOWED

__all__ = ["Registers", "TooLargeError"]

Array = NDArray[Any]


class TooLargeError(NotCompiledError):
    """A tensor has too many numbers for any engine."""


class Registers:
    """A growing network, whose values are known by their registers.

    Attributes:
        builder: the network.
        opset: the version of the standard operators.
    """

    def __init__(self, builder: NetworkBuilder, opset: int) -> None:
        """Own the network until it is finished.

        Args:
            builder: the network.
            opset: the version of the standard operators.
        """
        self.builder = builder
        self.opset = opset

    def add(self, operation: str, *inputs: int, **attributes: object) -> int:
        """Return the register of the result of one of the engine's operations."""
        assert operation not in FOLLOWED, "the engine serves what is translated"
        return self.builder.add(operation, inputs, tuple(attributes.items()))

    def keep(self, value: object, like: int | None = None) -> int:
        """Return the register of a constant.

        Args:
            value: an array, or a number.
            like: a register whose type a number takes.
        """
        dtype = None if like is None else self.builder.dtype(like)
        return self.builder.keep(np.asarray(value, dtype))

    def constant(self, register: int | None) -> Array | None:
        """Return a constant's value; None for a register that varies or is left out."""
        return None if register is None else self.builder.constant(register)

    def integers(self, register: int | None, subject: str) -> tuple[int, ...]:
        """Return a constant's numbers, such as sizes.

        Args:
            register: its register.
            subject: its name in messages.

        Raises:
            NotCompiledError: if it is no constant.
        """
        value = self.constant(register)
        if value is None:
            raise NotCompiledError(f"its {subject} depend on the observation or their number")
        return tuple(int(number) for number in np.ravel(value))

    def rank(self, register: int) -> int:
        """Return how many dimensions a value has."""
        return len(self.builder.shapes(register)[0])

    def sizes(self, register: int) -> tuple[int | None, ...]:
        """Return a value's dimensions; None for those that vary with the number of rows."""
        shapes = self.builder.shapes(register)
        return tuple(
            sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)
        )

    def reshape(self, register: int, shape: Sequence[int]) -> int:
        """Return a value in the shape that it has for one row, with its axis of rows kept open.

        Args:
            register: the value's register.
            shape: as ONNX's Reshape has it: 0 for the size before, -1 for the rest.

        Raises:
            NotCompiledError: if no axis of the result can be the one of the rows.
        """
        before = self.builder.shapes(register)
        open_axes = [axis for axis, size in enumerate(self.sizes(register)) if size is None]
        if not open_axes or self._keeps_rows(before, shape):
            return self.add("reshape_copying", register, shape=tuple(int(n) for n in shape))
        alone = np.empty(before[0], np.bool_).reshape(
            [size or before[0][axis] for axis, size in enumerate(shape)]
        )
        leading = math.prod(before[0][: open_axes[0]])
        able = [
            axis
            for axis, size in enumerate(alone.shape)
            if size == 1 and math.prod(alone.shape[:axis]) == leading
        ]
        if not able:
            raise NotCompiledError("a reshape joins the rows of a batch")
        # Of several axes of size 1 the same one as before.
        axis = open_axes[0] if open_axes[0] in able else able[0]
        target = (*alone.shape[:axis], -1, *alone.shape[axis + 1 :])
        return self.add("reshape_copying", register, shape=target)

    @staticmethod
    def _keeps_rows(before: Sequence[tuple[int, ...]], shape: Sequence[int]) -> bool:
        """Return whether a reshape, taken literally, has an axis as long as each batch."""
        results = []
        for sizes in before:
            target = [size or sizes[axis] for axis, size in enumerate(shape)]
            rest = math.prod(size for size in target if size != -1)
            if -1 not in target and rest != math.prod(sizes):
                return False
            if -1 in target and (not rest or math.prod(sizes) % rest):
                return False
            results.append([math.prod(sizes) // rest if size == -1 else size for size in target])
        varying = [sizes for sizes in zip(*results, strict=True) if len(set(sizes)) > 1]
        rows = next(sizes for sizes in zip(*before, strict=True) if len(set(sizes)) > 1)
        return varying == [rows]

    def split(self, register: int, sizes: Sequence[int], axis: int) -> list[int]:
        """Return the registers of a value's parts along an axis."""
        first, parts = 0, []
        for size in sizes:
            parts.append(self.part(register, axis, first, first + size))
            first += size
        return parts

    def part(self, register: int, axis: int, start: int, end: int) -> int:
        """Return the register of the part of a value between two positions of an axis."""
        return self.add(
            "slice_axes", register, axes=(axis,), starts=(start,), ends=(end,), steps=(1,)
        )

    def transpose(self, register: int, order: Sequence[int]) -> int:
        """Return the register of a value with its axes in another order."""
        return self.add("Transpose", register, self.keep(np.array(order, np.int64)))

    def squeeze(self, register: int, axes: Sequence[int]) -> int:
        """Return the register of a value without some axes of size 1."""
        rank = self.rank(register)
        return self.add("Squeeze", register, squeeze_dims=tuple(axis % rank for axis in axes))

    def unsqueeze(self, register: int, axes: Sequence[int]) -> int:
        """Return the register of a value with new axes, at places of the result."""
        rank = self.rank(register) + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            register = self.add("ExpandDims", register, self.keep(np.array(axis)))
        return register

    def matmul(self, first: int, second: int) -> int:
        """Return the register of a matrix product, of the last two axes."""
        is_plain = self.rank(first) == self.rank(second) == 2
        return self.add("MatMul" if is_plain else "matmul", first, second)

    def reduce(self, kind: str, register: int, axes: Sequence[int], *, keep_dims: bool) -> int:
        """Return the register of a Sum, Mean, Max, Min or Prod along axes."""
        rank = self.rank(register)
        kept = self.keep(np.array([axis % rank for axis in axes], np.int64))
        return self.add(kind, register, kept, keep_dims=keep_dims)

    def cast(self, register: int, dtype: str) -> int:
        """Return the register of a value in another type."""
        if dtype == "bool":
            return self.add("not_equal", register, self.keep(0, like=register))
        return self.add("Cast", register, dtype=dtype)
