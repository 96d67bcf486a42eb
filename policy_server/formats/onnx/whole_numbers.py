"""Which floating-point tensors hold whole numbers for any observation, as the operations show.

Values alone don't show it: a tanh gives -1 and 1 far from its network's working range, and a
float32 above 2**23 has no fraction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.onnx.model_file import Node, OnnxModel
from policy_server.formats.onnx.node_constants import constants_of

__all__ = ["WholeNumbers"]

Array = NDArray[Any]

_MAKING = frozenset(
    (
        *("ArgMax", "ArgMin", "Bernoulli", "Binarizer", "Ceil", "Floor", "Hardmax", "Multinomial"),
        *("Round", "Sign"),
    )
)
# Their results are whole where all that they read is.
_KEEPING_ALL = frozenset(
    (
        *("Abs", "Add", "Clip", "Concat", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Relu"),
        *("Sub", "Sum"),
    )
)
# And these where their first input is.
_KEEPING_FIRST = frozenset(
    (
        *("ArrayFeatureExtractor", "Compress", "CumSum", "Dropout", "Expand", "Flatten", "Gather"),
        *("GatherElements", "GatherND", "Identity", "ReduceMax", "ReduceMin", "ReduceProd"),
        *("ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "Tile", "TopK", "Transpose"),
        "Unsqueeze",
    )
)
_DEEPEST = 64


class WholeNumbers:
    """The tensors of a graph that hold whole numbers by its operations."""

    def __init__(self, model: OnnxModel, has_integer_type: Callable[[str], bool]) -> None:
        """Own what was found, for as long as the graph is read.

        Args:
            model: the graph.
            has_integer_type: whether a tensor's type is an integer or a truth value, by its name.
        """
        self._writers = model.writers()
        self._constants = constants_of(model)
        self._has_integer_type = has_integer_type
        self._found: dict[str, bool] = {}

    def __contains__(self, tensor: str) -> bool:
        """Return whether the graph shows that a tensor's numbers are whole.

        Args:
            tensor: its name.
        """
        return self._is_whole(tensor, 0)

    def _is_whole(self, tensor: str, depth: int) -> bool:
        if tensor not in self._found:
            self._found[tensor] = depth < _DEEPEST and self._shows(tensor, depth)
        return self._found[tensor]

    def _shows(self, tensor: str, depth: int) -> bool:
        value, node = self._constants.get(tensor), self._writers.get(tensor)
        if value is not None:
            return value.dtype.kind in "iubf" and bool((value == np.rint(value)).all())
        if node is None:
            return False
        if node.operator == "Cast":
            source = node.inputs[0]
            return self._has_integer_type(source) or self._is_whole(source, depth + 1)
        if node.operator in _MAKING:
            return True
        if node.operator == "LabelEncoder":
            values = [
                *node.attributes.get("values_floats", ()),
                node.attributes.get("default_float", 0),
            ]
            return len(values) > 1 and all(float(value).is_integer() for value in values)
        read = self._read(node)
        return bool(read) and all(self._is_whole(name, depth + 1) for name in read)

    @staticmethod
    def _read(node: Node) -> list[str]:
        """Return the tensors that have to be whole for a node's result to be; none if none do."""
        if node.operator in _KEEPING_FIRST:
            return [node.inputs[0]]
        if node.operator == "OneHot":
            return [node.inputs[2]]
        if node.operator == "Where":
            return list(node.inputs[1:])
        if node.operator not in _KEEPING_ALL:
            return []
        bounds = [node.attributes[key] for key in ("min", "max") if key in node.attributes]
        is_clipped_whole = all(float(bound).is_integer() for bound in bounds)
        return [name for name in node.inputs if name] if is_clipped_whole else []
