"""A policy network as NumPy operations, served where its outputs agree with the model's.

One forward pass of a small network costs TensorFlow a hundred microseconds and more of its own;
NumPy takes ten. The operations stand in `operations`; `proof` compares the outputs.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.engine.operations import OPERATIONS, slices_of
from policy_server.engine.overflow import is_finite, widened, without_overflow
from policy_server.errors import DistributionError
from policy_server.policy import (
    Int64Array,
    PolicyInputs,
    PolicyOutputs,
    PolicySignature,
    refuse_masks,
    refuse_state,
)

__all__ = [
    "FAILURES",
    "CompiledPolicy",
    "NetworkPolicy",
    "NumpyNetwork",
    "Step",
    "answered",
    "seeded_apart",
]

FAILURES = (IndexError, ValueError, TypeError, OverflowError, ZeroDivisionError)
"""What a step raises on an observation that it can't compute, such as an index out of range."""

Array = NDArray[Any]

# So many rows are computed at once: the numbers between two layers then stay in the cache.
_ROWS_AT_ONCE = 512
# The sizes of the calls whose times tell that of every call, and how often each is tried.
_MEASURED_ROWS = (1, 33)
_MEASURED_TIMES = 3
# 32-bit floats hold every integer below it.
_ROUNDED = 2.0**24
_SUMS = ("Add", "AddV2", "BiasAdd")
_ACTIVATIONS = ("Relu", "Tanh")


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        operation: its name in `OPERATIONS`.
        inputs: the registers that it reads.
        output: the register that it writes.
        attributes: its constant attributes, by TensorFlow's names.
    """

    operation: str
    inputs: tuple[int, ...]
    output: int
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, eq=False)
class NumpyNetwork:
    """A network with its weights. Register 0 holds the observations.

    A recurrent policy's network computes one step: a row of register 0 is an observation followed
    by the state before the step, and a row of the result is `action_dist_inputs` followed by the
    state after it.

    Attributes:
        constants: the weights and other constants, by register.
        steps: the operations in order.
        result: the register that holds the result at the end.
        registers: how many there are.
        is_row_by_row: it takes one observation at a time.
    """

    constants: Mapping[int, Array]
    steps: tuple[Step, ...]
    result: int
    registers: int
    is_row_by_row: bool = False

    def compile(self) -> Callable[[Array], Array]:
        """Return the function float[B, D] -> float[B, K]."""
        template: list[Any] = [None] * self.registers
        for register, value in self.constants.items():
            template[register] = value
        program = [
            (
                step.output,
                self._in_place(step)
                if self._is_in_place(step)
                else _by_constants(step, self.constants) or _apart(step),
            )
            for step in self.steps
        ]
        result = self.result

        def run(observations: Array) -> Array:
            registers = template.copy()
            registers[0] = observations
            for output, operation in program:
                registers[output] = operation(registers)
            answer: Array = registers[result]
            return answer

        if not self.is_row_by_row:
            return run
        return lambda rows: np.concatenate([run(rows[i : i + 1]) for i in range(len(rows))])

    @functools.cached_property
    def _layers(self) -> Mapping[int, Array]:
        """Return the registers that only hold a layer's product on its way, with its weights."""
        readers = Counter(register for step in self.steps for register in step.inputs)
        readers[self.result] += 1
        found: dict[int, Array] = {}
        for step in self.steps:
            first, *others = step.inputs
            weights = self.constants.get(others[0]) if others else None
            if (
                step.operation == "MatMul"
                and weights is not None
                and not any(value for _, value in step.attributes)
            ):
                found[step.output] = weights
            elif first in found and readers[first] == 1 and self._fits(step, found[first]):
                found[step.output] = found[first]
        return found

    def _fits(self, step: Step, weights: Array) -> bool:
        """Return whether a step leaves shape and type of a layer's product as they are."""
        if step.operation in _ACTIVATIONS:
            return len(step.inputs) == 1
        other = self.constants.get(step.inputs[-1])
        return (
            step.operation in _SUMS
            and other is not None
            and other.shape == weights.shape[1:]
            and other.dtype == weights.dtype
        )

    def _is_in_place(self, step: Step) -> bool:
        return step.operation != "MatMul" and step.output in self._layers

    def _in_place(self, step: Step) -> Callable[[list[Any]], Array]:
        """Return a step that writes over its first input, which nothing else reads.

        For one observation arrays of equal shapes cost a third of what others cost.
        """
        first = step.inputs[0]
        if step.operation == "Tanh":
            return lambda registers: np.tanh(registers[first], registers[first])
        if step.operation == "Relu":
            weights = self._layers[step.output]
            zeros = np.zeros((1, *weights.shape[1:]), weights.dtype)
            return lambda registers: _rectify(registers[first], zeros)
        row = self.constants[step.inputs[-1]][None]
        return lambda registers: _add(registers[first], row)


def _by_constants(
    step: Step, constants: Mapping[int, Array]
) -> Callable[[list[Any]], Array] | None:
    """Return a step whose columns or axis are constants, read once; None for any other step.

    They are a third of the steps of an LSTM, and took half of its time for one observation.
    """
    if step.operation == "Slice" and constants.keys() >= {*step.inputs[1:]}:
        whole, begin, size = step.inputs
        index = slices_of(constants[begin], constants[size])
        return lambda registers: registers[whole][index]
    if step.operation == "ConcatV2" and step.inputs[-1] in constants:
        parts, axis = step.inputs[:-1], int(constants[step.inputs[-1]])
        return lambda registers: np.concatenate([registers[part] for part in parts], axis)
    return None


def _apart(step: Step) -> Callable[[list[Any]], Array]:
    """Return a step that makes a new array."""
    function = functools.partial(OPERATIONS[step.operation], **dict(step.attributes))
    if len(step.inputs) == 1:
        (only,) = step.inputs
        return lambda registers: function(registers[only])
    if len(step.inputs) == 2:
        first, second = step.inputs
        return lambda registers: function(registers[first], registers[second])
    return lambda registers: function(*[registers[register] for register in step.inputs])


def _rectify(layer: Array, zeros: Array) -> Array:
    return np.maximum(layer, zeros if layer.shape == zeros.shape else 0, out=layer)


def _add(layer: Array, row: Array) -> Array:
    return np.add(layer, row if layer.ndim == row.ndim else row[0], layer)


@dataclass(frozen=True, eq=False)
class CompiledPolicy:
    """A policy whose distribution and network agree with the model: all that serving needs.

    Attributes:
        signature: its inputs, outputs and distribution.
        network: computes its `action_dist_inputs`, and the state after a step.
    """

    signature: PolicySignature
    network: NumpyNetwork


class NetworkPolicy:
    """A compiled policy, ready to answer: without TensorFlow, in microseconds."""

    def __init__(self, compiled: CompiledPolicy) -> None:
        """Own the network as a function, for as long as the policy is served.

        Args:
            compiled: the network and its signature.
        """
        self.signature = compiled.signature
        self.compiled = compiled
        self._run = compiled.network.compile()
        components = compiled.signature.components
        assert components is not None, "only a policy of a known family is compiled"
        self._actions = ActionDistribution(components, is_greedy=self.signature.is_value_based)

    def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer B observations; see `Policy.infer`.

        Args:
            inputs: the observations, and the options of each.

        Returns:
            The answers.

        Raises:
            IndexError, ValueError, TypeError, OverflowError, ZeroDivisionError: if the network
                can't compute an observation (`FAILURES`).
            DistributionError: if the network's outputs are no distribution.
            UnsupportedAnswerError: if a state or a mask is given to a policy that takes none.
        """
        refuse_masks(inputs, self.signature)
        if not self.signature.memory:
            refuse_state(inputs)
        total = len(inputs)
        if total <= _ROWS_AT_ONCE:
            return self._infer(inputs)
        return PolicyOutputs.joined(
            [
                self._infer(inputs.part(first, first + _ROWS_AT_ONCE))
                for first in range(0, total, _ROWS_AT_ONCE)
            ]
        )

    def seconds_for(self, rows: int) -> float:
        """Return about how long a call takes; see `Policy.seconds_for`.

        Args:
            rows: how many observations the call has.
        """
        for_one, for_another = self._cost
        return for_one + (rows - 1) * for_another

    @functools.cached_property
    def _cost(self) -> tuple[float, float]:
        """Return the seconds for one observation, and for each further one, as measured now."""
        width = self.signature.observation_width
        assert width is not None, "only a policy of a known width is compiled"
        fewest, most = (
            self._seconds(np.zeros((rows, width), self.signature.row_dtype))
            for rows in _MEASURED_ROWS
        )
        return fewest, max(most - fewest, 0.0) / (_MEASURED_ROWS[1] - _MEASURED_ROWS[0])

    def _seconds(self, rows: Array) -> float:
        inputs = PolicyInputs.of(rows)
        taken = []
        for _ in range(_MEASURED_TIMES):
            started = time.perf_counter()
            # A policy may refuse an observation of zeros; that takes its time too.
            with contextlib.suppress(*FAILURES, DistributionError):
                self._infer(inputs)
            taken.append(time.perf_counter() - started)
        return min(taken)

    # As a decorator it costs half of what a block costs.
    @np.errstate(all="ignore")
    def _infer(self, asked: PolicyInputs) -> PolicyOutputs:
        return answered(self._run_widely, self._actions, self.signature, asked)

    def _run_widely(self, rows: Array) -> Array:
        """Run the network, in 64 bits where numbers of 32 may have overflowed on the way."""
        found = self._run(rows).astype(np.float32, copy=False)
        if is_finite(found):
            return found
        return without_overflow(found, self._wide, rows, self._actions.components)

    @functools.cached_property
    def _wide(self) -> Callable[[Array], Array]:
        return widened(self.compiled.network).compile()


def answered(
    run: Callable[[Array], Array],
    actions: ActionDistribution,
    signature: PolicySignature,
    asked: PolicyInputs,
) -> PolicyOutputs:
    """Return the answers of one call, from the function that computes a policy's network.

    Args:
        run: the function float[B, D] -> float[B, K]; a row is an observation followed by its state,
            a row of the result `action_dist_inputs` followed by the state after the step.
        actions: the policy's action distribution.
        signature: the policy's signature.
        asked: the observations, and the options of each.

    Raises:
        DistributionError: if the outputs are no distribution.
    """
    width = signature.memory_width
    rows = _with_state(asked, width) if width else asked.observations
    found = seeded_apart(run, rows, asked.seeds).astype(np.float32, copy=False)
    inputs = found[:, :-width] if width else found
    if signature.whole_inputs and (np.abs(inputs[:, signature.whole_inputs]) >= _ROUNDED).any():
        raise DistributionError(
            "the policy's action is an integer beyond 16777215, which 32-bit floats round; export "
            "a smaller one, such as an index"
        )
    if asked.masks is not None:
        inputs = actions.masked(inputs, asked.masks)
    options: dict[str, Any] = {
        "is_deterministic": asked.is_deterministic,
        "seeds": asked.seeds,
        "wants_distribution": asked.wants_distribution,
    }
    if asked.state is None:
        return actions.answer(inputs, **options)
    state = found[:, inputs.shape[1] :]
    if signature.noted_places:
        outputs, own = actions.answer_with_own(inputs, **options)
        state = state.copy()
        state[:, signature.noted_places] = own
    else:
        outputs = actions.answer(inputs, **options)
    return PolicyOutputs(outputs.actions, outputs.log_probability, outputs.distribution, state)


def _with_state(asked: PolicyInputs, width: int) -> Array:
    """Return the observations, each followed by its state."""
    state = asked.state
    if state is None:
        state = np.zeros((len(asked), width), np.float32)
    return np.concatenate([asked.observations, state], axis=1)


def seeded_apart(
    run: Callable[[Array], Array], observations: NDArray[np.floating[Any]], seeds: Int64Array
) -> Array:
    """Return `action_dist_inputs`, each seeded row computed by itself.

    The last digit of a matrix product depends on the number of its rows, and a seeded draw is the
    same to the last bit whatever else is asked at once.

    Args:
        run: the function float[B, D] -> float[B, K].
        observations: float[B, D].
        seeds: int64[B]; -1 for a row without a seed.

    Returns:
        float[B, K].
    """
    if len(observations) == 1:
        return run(observations)
    is_seeded = seeds >= 0
    rows = np.flatnonzero(is_seeded)
    if not rows.size:
        return run(observations)
    alone = np.concatenate([run(observations[row : row + 1]) for row in rows])
    if len(rows) == len(observations):
        return alone
    inputs = np.empty((len(observations), *alone.shape[1:]), alone.dtype)
    inputs[is_seeded] = alone
    inputs[~is_seeded] = run(observations[~is_seeded])
    return inputs
