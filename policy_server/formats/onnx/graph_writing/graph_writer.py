"""A growing ONNX graph, whose values are known by their types and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ExportError

__all__ = ["FIRST", "LAST", "GraphWriter", "Value"]

Array = NDArray[Any]

FIRST = -(2**63)
"""An index before the first item, where ONNX's Slice counts down."""
LAST = 2**63 - 1
"""An index behind the last item, for ONNX's Slice."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph.

    Attributes:
        name: its name.
        dtype: the type of its numbers.
        shape: its dimensions; None for one that varies with the number of rows.
        constant: its numbers where they are always the same; None where they vary.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    constant: Array | None = None

    @property
    def rank(self) -> int:
        """Return how many dimensions it has."""
        return len(self.shape)

    def size(self, axis: int) -> int:
        """Return the length of an axis.

        Args:
            axis: its number; a negative one counts from the end.

        Raises:
            ExportError: if it varies with the number of rows.
        """
        size = self.shape[axis]
        if size is None:
            raise ExportError(f"its step {self.name} needs the number of rows in a batch")
        return size

    def integers(self) -> tuple[int, ...]:
        """Return a constant's numbers, such as axes or sizes.

        Raises:
            ExportError: if it is no constant.
        """
        return tuple(int(number) for number in np.ravel(self.known()))

    def known(self) -> Array:
        """Return a constant's numbers.

        Raises:
            ExportError: if it is no constant.
        """
        if self.constant is None:
            raise ExportError(f"its step {self.name} is a size or an axis that an observation sets")
        return self.constant


class GraphWriter:
    """Nodes and constants; the name of each tensor is its own.

    Attributes:
        nodes: the nodes' messages in order.
        constants: the constants by name.
    """

    def __init__(self) -> None:
        """Own the nodes until the graph is written."""
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self._kept: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def keep(self, value: Array, dtype: Any = None) -> str:  # noqa: ANN401 -- any name of a type
        """Return the name of a constant.

        Args:
            value: its numbers.
            dtype: their type; None to leave it.
        """
        found = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        key = (found.dtype.str, found.shape, found.tobytes())
        if key not in self._kept:
            self._kept[key] = f"constant_{len(self._kept)}"
            self.constants[self._kept[key]] = found
        return self._kept[key]

    def integers(self, values: Sequence[int]) -> str:
        """Return the name of a constant of integers, such as axes."""
        return self.keep(np.array(values, np.int64))

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:  # noqa: ANN401 -- as ONNX has them
        """Return the name of a new node's only output.

        Args:
            operator: its operator, such as `MatMul`.
            inputs: the names of its inputs.
            output: the name of its output; empty for the next number.
            attributes: its attributes, without those that are None.
        """
        import onnx

        name = output or f"value_{len(self.nodes)}"
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(onnx.helper.make_node(operator, inputs, [name], **given))
        return name

    def cast(self, value: Value, dtype: Any) -> str:  # noqa: ANN401 -- any name of a type
        """Return the name of a value in another type: a constant's numbers are changed here."""
        if value.constant is not None:
            return self.keep(value.constant, dtype)
        if value.dtype == np.dtype(dtype):
            return value.name
        return self.cast_name(value.name, dtype)

    def cast_name(self, name: str, dtype: Any) -> str:  # noqa: ANN401 -- any name of a type
        """Return the name of a tensor in another type."""
        return self.add("Cast", name, to=onnx_type(dtype))

    def slice(
        self,
        name: str,
        axes: Sequence[int],
        starts: Sequence[int],
        ends: Sequence[int],
        steps: Sequence[int] | None = None,
    ) -> str:
        """Return the name of a part of a tensor along some axes."""
        if not axes:
            return name
        bounds = [self.integers(starts), self.integers(ends), self.integers(axes)]
        if steps is not None and set(steps) != {1}:
            bounds.append(self.integers(steps))
        return self.add("Slice", name, *bounds)

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """Return the name of a tensor in another shape: -1 for the size that is worked out."""
        return self.add("Reshape", name, self.integers(shape))

    def squeeze(self, name: str, axes: Sequence[int]) -> str:
        """Return the name of a tensor without some axes of size 1."""
        return self.add("Squeeze", name, self.integers(axes)) if axes else name

    def unsqueeze(self, name: str, axes: Sequence[int]) -> str:
        """Return the name of a tensor with new axes, at places of the result."""
        return self.add("Unsqueeze", name, self.integers(axes)) if axes else name

    def transpose(self, value: Value, order: Sequence[int]) -> str:
        """Return the name of a value with its axes in another order."""
        if value.constant is not None:
            return self.keep(value.constant.transpose(order))
        return self.transpose_name(value.name, order)

    def transpose_name(self, name: str, order: Sequence[int]) -> str:
        """Return the name of a tensor with its axes in another order."""
        return self.add("Transpose", name, perm=list(order))

    def prune(self, outputs: Sequence[str]) -> None:
        """Remove the nodes and constants that no output needs.

        Args:
            outputs: the names of the graph's outputs.
        """
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        self.constants = {name: self.constants[name] for name in self.constants if name in needed}


def onnx_type(dtype: Any) -> int:  # noqa: ANN401 -- any name of a type
    """Return ONNX's number of a type.

    Raises:
        ExportError: if ONNX has no such type.
    """
    import onnx

    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    except (KeyError, ValueError, TypeError) as error:
        raise ExportError(f"ONNX has no numbers of the type {dtype}") from error
