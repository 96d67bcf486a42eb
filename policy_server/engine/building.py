"""Building a `NumpyNetwork` step by step, without the steps whose results are constant.

Every step is tried at once on observations of several batch sizes. This shows which values depend
on the batch size alone, as the shapes, masks and zero states of recurrent policies do; most of them
become constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.network import NumpyNetwork, Step
from policy_server.engine.operations import OPERATIONS, PLAIN_OPERATIONS
from policy_server.engine.row_dependence import (
    FOLLOWED,
    ROWS,
    dependence,
    is_row_wise,
    of_observations,
)

__all__ = ["NetworkBuilder", "NotCompiledError"]

Array = NDArray[Any]
Attributes = tuple[tuple[str, Any], ...]

_BATCH_SIZES = (1, 2, 3, 5, 7, 64)
_FOLLOWED = _BATCH_SIZES.index(ROWS)
# Random observations may be indices that no observation has: these stand in for the operations that
# refuse them.
_TRIED: Mapping[str, Callable[..., Array]] = {
    "FloorDiv": lambda a, b: np.asarray(np.floor_divide(a, np.where(b == 0, 1, b)), a.dtype),
    "GatherV2": lambda x, indices, axis: np.take(x, indices, axis=int(axis), mode="clip"),
    "divide": lambda a, b: OPERATIONS["divide"](
        a, np.where((b == 0) & (b.dtype.kind != "f"), 1, b)
    ),
    "take": lambda x, indices, axis: np.take(x, indices, axis=axis, mode="wrap"),
}
# A cast of a number outside an integer's range is defined for the common types alone.
_CAST_TO = ("bool", "float16", "float32", "float64", "int32", "int64")
_OF_THE_SHAPE = ("Shape", "ZerosLike", "OnesLike")
# These give their first input's values in another order, and compute none.
_MOVES = (
    *("ExpandDims", "Pack", "Reshape", "Squeeze", "StridedSlice", "Transpose"),
    *("flatten", "reshape_copying", "slice_axes"),
)
_BROADCASTS = ("Add", "AddV2", "Maximum", "Minimum", "Mul", "RealDiv", "Sub")
_SUMS = ("Add", "AddV2", "BiasAdd")
_SELECTIONS = ("Select", "SelectV2")
_COMBINED = (
    *(*_BROADCASTS, *_SELECTIONS, "MatMul", "Pow"),
    *("divide", "matmul", "modulo", "power", "where"),
)
# These give whole numbers from whole numbers.
_WHOLE_OPERATIONS = frozenset(
    {
        "Abs",
        "Add",
        "AddN",
        "AddV2",
        "Cast",
        "ConcatV2",
        "ExpandDims",
        "Max",
        "Maximum",
        "Min",
        "Minimum",
        "Mul",
        "Neg",
        "OneHot",
        "OnesLike",
        "Pack",
        "Prod",
        "Reshape",
        "Select",
        "SelectV2",
        "Split",
        "SplitV",
        "Square",
        "Squeeze",
        "StridedSlice",
        "Sub",
        "Sum",
        "Tile",
        "Transpose",
        "ZerosLike",
    }
)


@dataclass(frozen=True)
class _Trial:
    """The values that a register held at each of the batch sizes.

    Attributes:
        values: one array a batch size.
        is_fixed: it depends on the batch size alone, not on the observations.
        origin: the register whose values these are in another order; None where they are new.
        order: the positions in it, at each batch size.
        is_whole: it holds whole numbers, or infinity, whatever the observations: never a denormal.
        depends_on: uint8 of the shape at the batch size of `row_dependence.ROWS`: the observations
            that each number depends on.
    """

    values: tuple[Array, ...]
    depends_on: Array
    is_whole: bool = False
    is_fixed: bool = False
    origin: int | None = None
    order: tuple[Array, ...] = ()


class NotCompiledError(Exception):
    """A policy can't be computed by NumPy; the message names the missing step."""


class NetworkBuilder:
    """A network that grows. Register 0 holds the observations, each followed by its state.

    Attributes:
        in_convolutions: how many multiplications its convolutions take for one observation.
        unserved: an operation that NumPy is not trusted with; None for none.
        depends_on_size: whether the number of observations goes into the values of one.
    """

    def __init__(self, width: int, *, is_row_by_row: bool = False) -> None:
        """Begin with the observations.

        Args:
            width: how many numbers one observation has, with the state of a recurrent policy.
            is_row_by_row: the network takes one observation at a time, and is tried on one.
        """
        generator = np.random.default_rng(0)
        self._is_row_by_row = is_row_by_row
        self._sizes = (1,) if is_row_by_row else _BATCH_SIZES
        self._followed = 0 if is_row_by_row else _FOLLOWED
        rows = tuple(generator.normal(size=(size, width)) for size in self._sizes)
        self._trials = [_Trial(rows, of_observations(width)[: len(rows[self._followed])])]
        self._constants: dict[int, Array] = {}
        self._positions: dict[int, tuple[Array, ...]] = {}
        self._steps: list[Step] = []
        self.in_convolutions = 0
        self.unserved: str | None = None
        self.depends_on_size = False

    def keep(self, value: Array) -> int:
        """Return the register of a constant.

        Args:
            value: the constant.
        """
        nothing = np.zeros(np.shape(value), np.uint8)
        trial = _Trial((value,) * len(self._sizes), nothing, _are_whole(value), is_fixed=True)
        register = self._hold(trial)
        self._constants[register] = value
        return register

    def constant(self, register: int) -> Array | None:
        """Return the value of a register that always holds the same value; None where it varies.

        Args:
            register: its number.
        """
        return self._constants.get(register)

    def add(self, operation: str, inputs: Sequence[int], attributes: Attributes = ()) -> int:
        """Return the register of an operation's result; add a step where no register holds it yet.

        Args:
            operation: its name in `OPERATIONS`.
            inputs: the registers that it reads.
            attributes: its constant attributes.

        Raises:
            ValueError, TypeError, IndexError: in NumPy's words, if it fails on these inputs.
        """
        trial = self._try(operation, inputs, attributes)
        self._note(operation, inputs, attributes, trial)
        if trial.is_fixed and all(_is_same(trial.values[0], other) for other in trial.values):
            return self.keep(trial.values[0])
        known = self._known(operation, inputs, trial)
        if known is not None:
            return known
        if operation == "Reshape":
            inputs = (inputs[0], self._open_shape(inputs[1]))
        elif operation in _BROADCASTS:
            first, second = inputs
            inputs = (
                self._one_row(first, beside=second, result=trial),
                self._one_row(second, beside=first, result=trial),
            )
        if operation in PLAIN_OPERATIONS and self._is_never_denormal(operation, inputs):
            operation = PLAIN_OPERATIONS[operation]
        register = self._hold(trial)
        self._steps.append(Step(operation, tuple(inputs), register, attributes))
        return register

    def finish(self, result: int) -> NumpyNetwork:
        """Return the network without the steps that its result does not need.

        Args:
            result: the register of the result.
        """
        needed = {result}
        steps: list[Step] = []
        for step in reversed(self._steps):
            if step.output in needed:
                steps.append(step)
                needed.update(step.inputs)
        constants = {
            register: self._constants[register] for register in needed & {*self._constants}
        }
        return NumpyNetwork(
            constants, tuple(reversed(steps)), result, len(self._trials), self._is_row_by_row
        )

    def shapes(self, register: int) -> list[tuple[int, ...]]:
        """Return the shapes of a register's value for batches of several sizes, the first of 1.

        Args:
            register: its number.
        """
        return [value.shape for value in self._trials[register].values]

    def tried(self, register: int) -> Array:
        """Return a register's value for the largest batch of random observations it was tried on.

        Args:
            register: its number.

        Returns:
            One row an observation; a constant may have fewer.
        """
        return self._trials[register].values[-1]

    def dtype(self, register: int) -> np.dtype[Any]:
        """Return the type of a register's numbers.

        Args:
            register: its number.
        """
        return self._trials[register].values[0].dtype

    def is_row_wise(self, register: int) -> bool:
        """Return whether each row of a register depends on its own observation alone.

        Args:
            register: its number.
        """
        return is_row_wise(self._trials[register].depends_on)

    def _reckons_with_size(self, operation: str, inputs: Sequence[int], trial: _Trial) -> bool:
        """Return whether an observation's values are combined with a number such as the size."""
        if trial.is_fixed or operation not in _COMBINED:
            return False
        return any(
            item.is_fixed and not _are_repeated(item.values)
            for item in (self._trials[register] for register in inputs)
        )

    def _note(
        self, operation: str, inputs: Sequence[int], attributes: Attributes, trial: _Trial
    ) -> None:
        """Record the consequences of an operation for the whole network, such as its convolutions.

        Raises:
            TypeError: if NumPy may compute it differently from TensorFlow.
        """
        if operation in FOLLOWED:
            self.unserved = self.unserved or operation
        self.depends_on_size |= self._reckons_with_size(operation, inputs, trial)
        if operation == "Cast" and inputs[0] != 0 and not trial.is_fixed:
            self._check_cast(self._trials[inputs[0]].values[0], dict(attributes)["dtype"])
        if operation == "Conv2D":
            height, width, channels, _ = self._trials[inputs[1]].values[0].shape
            self.in_convolutions += trial.values[0].size * height * width * channels

    def _is_never_denormal(self, operation: str, inputs: Sequence[int]) -> bool:
        """Return whether an operation gives the same where denormals count as zero."""
        first, second = (self._trials[register] for register in inputs)
        if operation == "RealDiv":
            return second.is_whole
        # Beside a number that is far from zero, a denormal compares as zero does.
        return (first.is_whole and second.is_whole) or any(
            register in self._constants and _are_far_from_zero(self._constants[register])
            for register in inputs
        )

    @staticmethod
    def _is_whole(operation: str, trials: Sequence[_Trial], value: Array) -> bool:
        if value.dtype.kind in "iub":
            return True
        if operation in _SELECTIONS:
            trials = trials[1:]
        return operation in _WHOLE_OPERATIONS and all(trial.is_whole for trial in trials)

    def _check_cast(self, value: Array, dtype: str) -> None:
        if value.dtype.kind == "f" and dtype not in _CAST_TO:
            raise TypeError(f"a number of any size becomes {dtype}")

    def _hold(self, trial: _Trial) -> int:
        self._trials.append(trial)
        return len(self._trials) - 1

    def _try(self, operation: str, inputs: Sequence[int], attributes: Attributes) -> _Trial:
        function, named = _function_of(operation), dict(attributes)
        trials = [self._trials[register] for register in inputs]
        with np.errstate(all="ignore"):
            values = tuple(
                np.asarray(function(*arguments, **named))
                for arguments in zip(*(trial.values for trial in trials), strict=True)
            )
            is_fixed = operation in _OF_THE_SHAPE or all(trial.is_fixed for trial in trials)
            depends_on = np.zeros(values[self._followed].shape, np.uint8)
            if not is_fixed:
                depends_on = dependence(
                    operation,
                    [trial.depends_on for trial in trials],
                    [trial.values[self._followed] for trial in trials],
                    values[self._followed],
                    named,
                )
            is_whole = self._is_whole(operation, trials, values[0])
            if operation not in _MOVES or (operation == "Pack" and len(inputs) > 1):
                return _Trial(values, depends_on, is_whole, is_fixed)
            positions = trials[0].order or self._positions_of(inputs[0])
            order = tuple(
                np.asarray(function(*arguments, **named))
                for arguments in zip(
                    positions, *(trial.values for trial in trials[1:]), strict=True
                )
            )
        origin = inputs[0] if trials[0].origin is None else trials[0].origin
        return _Trial(values, depends_on, is_whole, is_fixed, origin, order)

    def _positions_of(self, register: int) -> tuple[Array, ...]:
        """Return the place of each of a register's numbers, made once for all that move them."""
        if register not in self._positions:
            values = self._trials[register].values
            self._positions[register] = tuple(map(_positions, values))
        return self._positions[register]

    def _known(self, operation: str, inputs: Sequence[int], trial: _Trial) -> int | None:
        """Return a register that already holds a step's result."""
        if trial.origin is not None and all(
            map(_is_same, trial.order, self._positions_of(trial.origin))
        ):
            return trial.origin
        if operation in _SELECTIONS:
            return self._selected(inputs, trial)
        if operation in _SUMS:
            for term, other in (inputs, inputs[::-1]):
                if self._is_zero(other) and self._has_shape_of(term, trial):
                    return term
        return None

    def _selected(self, inputs: Sequence[int], trial: _Trial) -> int | None:
        condition = self._trials[inputs[0]]
        if not condition.is_fixed:
            return None
        for branch, is_taken in ((inputs[1], True), (inputs[2], False)):
            if all((value == is_taken).all() for value in condition.values):
                return branch if self._has_shape_of(branch, trial) else None
        return None

    def _is_zero(self, register: int) -> bool:
        trial = self._trials[register]
        return trial.is_fixed and not any(value.any() for value in trial.values)

    def _has_shape_of(self, register: int, trial: _Trial) -> bool:
        pairs = zip(self._trials[register].values, trial.values, strict=True)
        return all(
            mine.shape == theirs.shape and mine.dtype == theirs.dtype for mine, theirs in pairs
        )

    def _open_shape(self, register: int) -> int:
        """Return a shape with -1 for the size that varies, so that NumPy works it out."""
        trial = self._trials[register]
        if register in self._constants or not trial.is_fixed:
            return register
        shapes = np.stack(trial.values)
        is_open = (shapes != shapes[0]).any(axis=0)
        return self.keep(np.where(is_open, -1, shapes[0])) if is_open.sum() == 1 else register

    def _one_row(self, register: int, *, beside: int, result: _Trial) -> int:
        """Return one row for an operand that repeats it, where the other gives the batch size."""
        trial = self._trials[register]
        if (
            register in self._constants
            or not trial.is_fixed
            or not self._has_shape_of(beside, result)
        ):
            return register
        row = trial.values[0]
        is_repeated = row.ndim > 0 and all(
            _is_same(value, np.repeat(row, size, axis=0))
            for value, size in zip(trial.values, self._sizes, strict=True)
        )
        return self.keep(row) if is_repeated else register


def _function_of(operation: str) -> Callable[..., Array]:
    return _TRIED.get(operation) or FOLLOWED.get(operation) or OPERATIONS[operation]


def _are_repeated(values: Sequence[Array]) -> bool:
    """Return whether values at several batch sizes are one row, or one value, over again."""
    first = values[0]
    if all(_is_same(value, first) for value in values):
        return True
    return first.ndim > 0 and all(
        value.ndim == first.ndim
        and value.shape[1:] == first.shape[1:]
        and bool((value == first[:1]).all())
        for value in values
    )


def _are_whole(value: Array) -> bool:
    with np.errstate(invalid="ignore"):
        return value.dtype.kind in "iub" or bool((value == np.rint(value)).all())


def _are_far_from_zero(value: Array) -> bool:
    return value.dtype.kind == "f" and bool((np.abs(value) >= np.finfo(value.dtype).tiny).all())


def _positions(value: Array) -> Array:
    return np.arange(value.size, dtype=np.min_scalar_type(value.size)).reshape(value.shape)


def _is_same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
