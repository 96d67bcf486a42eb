"""A network that grows by the steps of Keras's layers, with all that its end may tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policy_server.engine.building import NetworkBuilder
from policy_server.engine.network import FAILURES
from policy_server.engine.operations import OPERATIONS
from policy_server.errors import ModelError
from policy_server.formats.keras.model_config import SUBJECT, Part
from policy_server.formats.keras.result_sizes import (
    MOST_IN_ALL,
    MOST_IN_WINDOWS,
    MOST_MULTIPLICATIONS,
    MOST_NUMBERS,
    MOST_STEPS,
    multiplications,
    numbers_in_windows,
    result_size,
)
from policy_server.formats.output_meaning import Ending
from policy_server.formats.scaled_actions import TENSORFLOW_CHANGES, Bounds

__all__ = ["Steps"]

# They choose, join or reorder the numbers of their inputs, and compute none.
_MOVES = ("ConcatV2", "GatherV2", "Pack", "Reshape", "StridedSlice", "Transpose")


class Steps:
    """The steps so far.

    Attributes:
        builder: holds them.
        dtype: the type of the model's numbers, float32 or float64.
        endings: for the result of a softmax, a tanh and the like, its name and its input.
        bounds: the least and the most that a tanh, a softmax or a clipping leaves, after a
            scaling too.
        layer: the layer whose steps are added now, for messages; None for none.
    """

    def __init__(self, width: int, dtype: str) -> None:
        """Own a network, which begins with the observations.

        Args:
            width: how many numbers an observation has, with the state of a recurrent policy.
            dtype: the type of the model's numbers.
        """
        self.builder = NetworkBuilder(width)
        self.dtype = np.dtype(dtype)
        self.endings: dict[int, tuple[Ending, int]] = {}
        self.bounds: dict[int, Bounds] = {}
        self.layer: Part | None = None
        self._numbers = 0
        self._multiplications = 0
        self._count = 0

    def add(self, operation: str, *inputs: int, **attributes: Any) -> int:  # noqa: ANN401 -- by operation
        """Return the register of a step's result.

        Args:
            operation: its name in the engine.
            inputs: the registers that it reads.
            attributes: its constant attributes.

        Raises:
            ModelError: if the inputs don't fit each other, or the result is too large.
        """
        shapes = [self.builder.shapes(x)[0] for x in inputs]
        self._check_cost(operation, shapes, self.builder.constant(inputs[-1]), attributes)
        try:
            result = self.builder.add(operation, inputs, tuple(attributes.items()))
        except FAILURES as error:
            words = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{SUBJECT}: a layer does not fit its inputs or weights ({operation}: {words})"
            ) from error
        except MemoryError:
            self._refuse("its result takes more memory than there is; make its inputs smaller")
        if result > max(inputs):
            # It is no register that holds the same already.
            self._numbers += self.size(result)
        if operation in _MOVES and not self.bounds.keys().isdisjoint(inputs):
            self.bounds[result] = self._moved(operation, inputs, attributes)
        return result

    def _check_cost(
        self,
        operation: str,
        shapes: Sequence[tuple[int, ...]],
        last: NDArray[Any] | None,
        attributes: Mapping[str, Any],
    ) -> None:
        """Refuse a step that takes too much memory or time, before it is tried."""
        size = result_size(operation, shapes, last, attributes) or 0
        windows = numbers_in_windows(operation, shapes, attributes)
        self._count += 1
        self._multiplications += multiplications(operation, shapes, attributes)
        for found, most, what in (
            (size, MOST_NUMBERS, "its result has {:,} numbers"),
            (windows, MOST_IN_WINDOWS, "its windows have {:,} numbers"),
            (self._count, MOST_STEPS, "up to it {:,} steps are computed"),
            (self._numbers + size, MOST_IN_ALL, "all results up to its own have {:,} numbers"),
            (self._multiplications, MOST_MULTIPLICATIONS, "up to it {:,} numbers are multiplied"),
        ):
            if found > most:
                self._refuse(
                    f"{what.format(found)} for one observation, expected at most {most:,}; make "
                    "the model smaller"
                )

    def _moved(
        self, operation: str, inputs: Sequence[int], attributes: Mapping[str, Any]
    ) -> Bounds:
        """Return the bounds of numbers that a step chooses, joins or gives another shape."""
        known = [self.bounds.get(x, Bounds.of_none()) for x in inputs]
        sides = []
        for name in ("low", "high"):
            arguments = [
                np.broadcast_to(getattr(bounds, name), (1, *self.shape(x)))
                if (constant := self.builder.constant(x)) is None
                else constant
                for x, bounds in zip(inputs, known, strict=True)
            ]
            sides.append(OPERATIONS[operation](*arguments, **attributes)[0])
        low, high = sides
        return Bounds(low, high, is_squashed=any(bounds.is_squashed for bounds in known))

    def _refuse(self, words: str) -> NoReturn:
        if self.layer is not None:
            self.layer.refuse(words)
        raise ModelError(f"{SUBJECT}: {words}")

    def keep(self, value: ArrayLike) -> int:
        """Return the register of a constant; floats take the model's type.

        Args:
            value: the constant.
        """
        array = np.asarray(value)
        return self.builder.keep(array.astype(self.dtype) if array.dtype.kind == "f" else array)

    def numbers(self, value: ArrayLike) -> int:
        """Return the register of a constant in the model's type.

        Args:
            value: the constant.

        Raises:
            ModelError: if it holds NaN, or a number with too many digits.
        """
        try:
            # A number beyond the type's is infinity in Keras too.
            with np.errstate(over="ignore"):
                found = np.asarray(value, self.dtype)
        except OverflowError:
            self._refuse("a number of its settings has too many digits; save the model again")
        if np.isnan(found).any():
            self._refuse(
                "its settings or weights hold NaN, or give it; save an earlier state of the policy"
            )
        return self.builder.keep(found)

    def with_constant(self, operation: str, x: int, value: ArrayLike) -> int:
        """Return the register of a step of a register and a constant number.

        Args:
            operation: its name in the engine.
            x: the register.
            value: the constant.
        """
        result = self.add(operation, x, self.numbers(value))
        function = TENSORFLOW_CHANGES.get(operation)
        if function is not None and (x in self.bounds or operation in ("Maximum", "Minimum")):
            before = self.bounds.get(x, Bounds.of_none())
            stated = np.asarray(value, np.float64)
            self.bounds[result] = before.changed(lambda side: function(side, stated))
            if x in self.endings and self.endings[x][0] == "tanh":
                # Numbers behind a softmax that constants change are no probabilities any more.
                self.endings[result] = self.endings[x]
        return result

    def shape(self, x: int) -> tuple[int, ...]:
        """Return the shape of a register's row.

        Args:
            x: the register.
        """
        return self.builder.shapes(x)[-1][1:]

    def size(self, x: int) -> int:
        """Return how many numbers a register has in one row.

        Args:
            x: the register.
        """
        return math.prod(self.shape(x))

    def number(self, x: int) -> int:
        """Return the register in the model's type, as Keras's layers convert their inputs.

        Args:
            x: the register.
        """
        if self.builder.dtype(x) == self.dtype:
            return x
        return self.add("Cast", x, dtype=self.dtype.name)

    def reshape(self, x: int, shape: tuple[int, ...]) -> int:
        """Return the register with another shape of each row.

        Args:
            x: the register.
            shape: of a row.
        """
        if self.shape(x) == shape:
            return x
        result = self.add("Reshape", x, self.keep(np.array([-1, *shape])))
        if x in self.endings and shape[-1:] == self.shape(x)[-1:]:
            self.endings[result] = self.endings[x]
        return result

    def part(self, x: int, axis: int, first: int, size: int, step: int = 1) -> int:
        """Return the register of a range of each row.

        Args:
            x: the register.
            axis: the axis of a row, from 0.
            first: the index that the range begins with.
            size: how many it has, a step apart.
            step: the distance between two.
        """
        rank = len(self.shape(x)) + 1
        begin, end, strides = [0] * rank, [0] * rank, [1] * rank
        begin[axis + 1], end[axis + 1], strides[axis + 1] = (
            first,
            first + (size - 1) * step + 1,
            step,
        )
        whole = (1 << rank) - 1 - (1 << (axis + 1))
        masks = {"begin_mask": whole, "end_mask": whole, "ellipsis_mask": 0}
        masks |= {"new_axis_mask": 0, "shrink_axis_mask": 0}
        registers = [self.keep(np.array(values)) for values in (begin, end, strides)]
        return self.add("StridedSlice", x, *registers, **masks)

    def joined(self, *parts: int, axis: int = -1) -> int:
        """Return the register of several parts behind one another.

        Args:
            parts: their registers.
            axis: the axis, -1 for the last.
        """
        if len(parts) == 1:
            return parts[0]
        return self.add("ConcatV2", *parts, self.keep(np.array(axis)))

    def reduced(self, operation: str, x: int, axes: tuple[int, ...], *, keeps: bool) -> int:
        """Return the register of a sum, a mean and the like over axes of a row.

        Args:
            operation: its name in the engine.
            x: the register.
            axes: of a row, from 0.
            keeps: whether the axes stay, with the size 1.
        """
        positions = self.keep(np.array([axis + 1 for axis in axes]))
        return self.add(operation, x, positions, keep_dims=keeps)

    def axis(self, x: int, axis: int) -> int:
        """Return an axis of a row, from 0, that the file counts with the batch's axis.

        Args:
            x: the register.
            axis: as the file has it, below 0 from the end.

        Raises:
            ModelError: if it is the axis of the batch, or none.
        """
        rank = len(self.shape(x)) + 1
        found = axis + rank if axis < 0 else axis
        if not 1 <= found < rank:
            raise ModelError(f"{SUBJECT}: the axis {axis} of {rank} is none of one observation")
        return found - 1
