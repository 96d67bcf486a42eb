"""A policy network as a list of NumPy operations, served where it is proved equal to the model.

One forward pass of a small network costs TensorFlow a hundred microseconds and more of its own;
NumPy takes ten. The operations are those of TensorFlow that feed-forward policies are made of,
under TensorFlow's names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.actions import ActionDistribution
from policy_server.policy import Int64Array, PolicyOutputs, PolicySignature

__all__ = ["OPERATIONS", "CompiledPolicy", "NetworkPolicy", "NumpyNetwork", "Step"]

Array = NDArray[Any]


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

    Attributes:
        constants: the weights and other constants, by register.
        steps: the operations in order.
        result: the register that holds `action_dist_inputs` at the end.
        registers: how many there are.
    """

    constants: Mapping[int, Array]
    steps: tuple[Step, ...]
    result: int
    registers: int

    def compile(self) -> Callable[[Array], Array]:
        """Return the function float[B, D] -> float[B, K]."""
        template: list[Any] = [None] * self.registers
        for register, value in self.constants.items():
            template[register] = value
        program = [
            (OPERATIONS[step.operation], step.inputs, step.output, dict(step.attributes))
            for step in self.steps
        ]
        result = self.result

        def run(observations: Array) -> Array:
            registers = template.copy()
            registers[0] = observations
            for operation, inputs, output, attributes in program:
                registers[output] = operation(*[registers[i] for i in inputs], **attributes)
            answer: Array = registers[result]
            return answer

        return run


def _matmul(a: Array, b: Array, *, transpose_a: bool = False, transpose_b: bool = False) -> Array:
    product: Array = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
    return product


def _relu(x: Array) -> Array:
    result: Array = np.maximum(x, x.dtype.type(0))
    return result


def _sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


def _elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _selu(x: Array) -> Array:
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return np.where(x > 0, scale * x, scale * alpha * np.expm1(np.minimum(x, 0))).astype(x.dtype)


def _softmax(x: Array) -> Array:
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def _concat(*parts: Array) -> Array:
    return np.concatenate(parts[:-1], axis=int(parts[-1]))


def _reshape(x: Array, shape: Array) -> Array:
    return x.reshape([int(size) for size in shape])


def _split(axis: Array, x: Array, *, num_split: int, port: int) -> Array:
    parts: Array = np.split(x, num_split, axis=int(axis))[port]
    return parts


def _split_v(x: Array, sizes: Array, axis: Array, *, port: int) -> Array:
    ends = np.cumsum(sizes)
    index: list[Any] = [slice(None)] * x.ndim
    index[int(axis)] = slice(int(ends[port] - sizes[port]), int(ends[port]))
    part: Array = x[tuple(index)]
    return part


def _slice(x: Array, begin: Array, size: Array) -> Array:
    index = tuple(
        slice(int(b), None if s < 0 else int(b) + int(s)) for b, s in zip(begin, size, strict=True)
    )
    part: Array = x[index]
    return part


def _strided_slice(x: Array, begin: Array, end: Array, strides: Array, **masks: int) -> Array:
    """Slice by TensorFlow's masks, which have one bit a dimension."""
    index: list[Any] = []
    for axis, (first, last, stride) in enumerate(zip(begin, end, strides, strict=True)):
        is_set = {name: bool(mask >> axis & 1) for name, mask in masks.items()}
        if is_set["ellipsis_mask"]:
            index.append(Ellipsis)
        elif is_set["new_axis_mask"]:
            index.append(None)
        elif is_set["shrink_axis_mask"]:
            index.append(int(first))
        else:
            start = None if is_set["begin_mask"] else int(first)
            index.append(slice(start, None if is_set["end_mask"] else int(last), int(stride)))
    part: Array = np.asarray(x)[tuple(index)]
    return part


def _reduction(function: Callable[..., Any]) -> Callable[..., Array]:
    def reduce(x: Array, axes: Array, *, keep_dims: bool) -> Array:
        result: Array = function(
            x, axis=tuple(int(axis) for axis in np.ravel(axes)), keepdims=keep_dims
        )
        return result

    return reduce


def _one_hot(
    indices: Array, depth: Array, on_value: Array, off_value: Array, *, axis: int
) -> Array:
    values = np.where(np.arange(int(depth)) == indices[..., None], on_value, off_value)
    return np.moveaxis(values, -1, axis)


def _cast(x: Array, *, dtype: str) -> Array:
    return np.asarray(x).astype(dtype)


def _squeeze(x: Array, *, squeeze_dims: tuple[int, ...]) -> Array:
    return np.squeeze(x, axis=squeeze_dims or None)


def _pack(*parts: Array, axis: int) -> Array:
    return np.stack(parts, axis=axis)


def _range(start: Any, limit: Any, delta: Any) -> Array:  # noqa: ANN401 -- zero-dimensional arrays
    return np.arange(start, limit, delta, dtype=start.dtype)


def _where(condition: Array, a: Array, b: Array) -> Array:
    return np.where(condition, a, b)


def _leaky_relu(x: Array, *, alpha: float) -> Array:
    result: Array = np.maximum(x, x * x.dtype.type(alpha))
    return result


OPERATIONS: Mapping[str, Callable[..., Array]] = {
    "Abs": np.abs,
    "Add": np.add,
    "AddN": lambda *parts: np.sum(np.stack(parts), axis=0),
    "AddV2": np.add,
    "BiasAdd": np.add,
    "Cast": _cast,
    "ConcatV2": _concat,
    "Elu": _elu,
    "Equal": np.equal,
    "Exp": np.exp,
    "ExpandDims": lambda x, axis: np.expand_dims(x, int(axis)),
    "Fill": lambda shape, value: np.full([int(size) for size in shape], value),
    "Greater": np.greater,
    "LeakyRelu": _leaky_relu,
    "Less": np.less,
    "Log": np.log,
    "LogicalAnd": np.logical_and,
    "LogicalNot": np.logical_not,
    "MatMul": _matmul,
    "Max": _reduction(np.max),
    "Maximum": np.maximum,
    "Mean": _reduction(np.mean),
    "Min": _reduction(np.min),
    "Minimum": np.minimum,
    "Mul": np.multiply,
    "Neg": np.negative,
    "NotEqual": np.not_equal,
    "OneHot": _one_hot,
    "OnesLike": np.ones_like,
    "Pack": _pack,
    "Pow": np.power,
    "Range": _range,
    "RealDiv": np.divide,
    "Relu": _relu,
    "Reshape": _reshape,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Select": _where,
    "SelectV2": _where,
    "Selu": _selu,
    "Shape": lambda x, dtype="int32": np.array(np.shape(x), dtype),
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": lambda x: np.logaddexp(x, x.dtype.type(0)),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Split": _split,
    "SplitV": _split_v,
    "Sqrt": np.sqrt,
    "Square": np.square,
    "SquaredDifference": lambda a, b: np.square(a - b),
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "Sub": np.subtract,
    "Sum": _reduction(np.sum),
    "Tanh": np.tanh,
    "Tile": lambda x, multiples: np.tile(x, multiples),
    "ZerosLike": np.zeros_like,
}


@dataclass(frozen=True, eq=False)
class CompiledPolicy:
    """All that serving needs of a policy whose family and network were proved.

    Attributes:
        signature: what is known of it.
        network: computes its `action_dist_inputs`.
    """

    signature: PolicySignature
    network: NumpyNetwork


class NetworkPolicy:
    """A compiled policy, ready to answer: without TensorFlow, in microseconds."""

    def __init__(self, compiled: CompiledPolicy) -> None:
        """Make the network a function.

        Args:
            compiled: what was proved.
        """
        self.signature = compiled.signature
        self.compiled: CompiledPolicy | None = compiled
        self._run = compiled.network.compile()
        components = compiled.signature.components
        assert components is not None, "only a policy of a known family is compiled"
        self._actions = ActionDistribution(components, is_greedy=self.signature.is_value_based)

    def infer(
        self,
        observations: NDArray[np.floating[Any]],
        *,
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
    ) -> PolicyOutputs:
        """Answer B observations; see `PolicyBackend.infer`.

        Args:
            observations: float[B, observation_width].
            is_deterministic: bool[B]; True asks for the mode, False for a draw.
            seeds: int64[B]; the seed of a row's draw, or -1 for an independent one.

        Returns:
            The answers.

        Raises:
            DistributionError: if the network's outputs are no distribution.
        """
        with np.errstate(all="ignore"):
            inputs = self._run(observations)
        return self._actions.answer(
            inputs.astype(np.float32, copy=False), is_deterministic=is_deterministic, seeds=seeds
        )
