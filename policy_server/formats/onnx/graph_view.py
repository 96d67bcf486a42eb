"""The operation that an output of a graph ends with, and the tensors that it comes from."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from numpy.typing import NDArray

from policy_server.formats.onnx.model_file import Node, OnnxModel
from policy_server.formats.onnx.node_constants import constants_of
from policy_server.formats.onnx.random_nodes import RandomNodes
from policy_server.formats.onnx.state_pairs import ancestors_of
from policy_server.formats.output_meaning import Ending

__all__ = ["NORMALIZING", "GraphView"]

Array = NDArray[Any]

NORMALIZING = ("Hardmax", "LogSoftmax", "Softmax", "OneHot")
"""Their numbers along one axis are one choice."""

# They give the numbers of their first input, in another shape.
_PASSED = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
# TensorProto's types that hold any number of a network, and those that hold any index.
_FLOATS = (1, 10, 11, 16)
_INTEGERS = (2, 3, 4, 5, 6, 7, 12, 13)
_ACTIVATIONS = (
    *("Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu"),
    *("Selu", "Sigmoid", "Softplus", "Softsign", "Swish"),
)
_ENDINGS: Mapping[str, Ending] = {
    **dict.fromkeys(_ACTIVATIONS, "activation"),
    "ArgMax": "arg_max",
    "Hardmax": "one_hot",
    "LogSoftmax": "log_softmax",
    "OneHot": "one_hot",
    "Softmax": "softmax",
    "Tanh": "tanh",
}
# What is added to a probability, so that it has a logarithm.
_TINY = 1e-5
_LINEAR = ("Add", "Div", "Mul", "Sub")
# More parts of an action than any policy has: a tensor that is joined with itself some twenty
# times has a million of them.
_MOST_JOINED = 10_000


class GraphView:
    """A graph that is followed from its outputs to what they are computed from."""

    def __init__(
        self,
        model: OnnxModel,
        shape_of: Callable[[str], tuple[int, ...]],
        has_integer_type: Callable[[str], bool],
        random: RandomNodes,
    ) -> None:
        """Own nothing but the order of the nodes.

        Args:
            model: the graph.
            shape_of: gives a tensor's dimensions for a batch, by its name.
            has_integer_type: whether a tensor's type is an integer or a truth value, by its name.
            random: the graph's operations that draw random numbers.
        """
        self._model = model
        self._shape_of = shape_of
        self._has_integer_type = has_integer_type
        self._random = random
        self._writers = model.writers()
        self._constants = constants_of(model)

    def source(self, tensor: str) -> str:
        """Return the tensor that another only gives in another shape or type.

        Args:
            tensor: the other's name.
        """
        while (node := self._writers.get(tensor)) is not None and self._is_passed(node, tensor):
            tensor = node.inputs[0]
        return tensor

    def _is_passed(self, node: Node, tensor: str) -> bool:
        """Return whether a node gives the numbers of its first input; an integer cuts a float."""
        if node.operator == "Dropout":
            # Its second output is a mask.
            return node.outputs[0] == tensor and not self._random.is_random(node)
        if node.operator != "Cast":
            return node.operator in _PASSED
        kind = node.attributes.get("to")
        return kind in _FLOATS or (kind in _INTEGERS and self._has_integer_type(node.inputs[0]))

    def node(self, tensor: str) -> Node | None:
        """Return the node that gives a tensor's numbers; None for an input or a constant.

        Args:
            tensor: its name.
        """
        return self._writers.get(self.source(tensor))

    def ending(self, tensor: str) -> Ending | None:
        """Return the operation that a tensor ends with; None for any that does not tell a meaning.

        A tanh may be scaled to the environment's range, and clipped.

        Args:
            tensor: its name.
        """
        node = self.node(tensor)
        if node is None:
            return None
        if node.operator in _ENDINGS:
            return _ENDINGS[node.operator] if self._is_along_last_axis(node) else None
        while node is not None and node.operator in (*_LINEAR, "Clip", "Max", "Min"):
            following = [name for name in node.inputs if name and not self.is_constant(name)]
            if len(following) != 1:
                return None
            node = self.node(following[0])
        return "tanh" if node is not None and node.operator == "Tanh" else None

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return a tensor's dimensions for a batch.

        Args:
            tensor: its name.
        """
        return self._shape_of(tensor)

    def row_length(self, tensor: str) -> int | None:
        """Return how many numbers a softmax at a tensor's end is taken over; None without one.

        Args:
            tensor: its name.
        """
        node = self.node(tensor)
        return None if node is None or node.operator not in NORMALIZING else self._length(node)

    def joined(self, tensor: str, operator: Literal["LogSoftmax", "Softmax"]) -> tuple[int, ...]:
        """Return the sizes of the softmaxes that a tensor joins in order; empty for another.

        Args:
            tensor: its name.
            operator: the softmaxes' operator.
        """
        parts = self.leaves(tensor, operator) or []
        sizes = [self._length(part) for part in parts]
        known = tuple(size for size in sizes if size is not None)
        width = math.prod(self._shape_of(tensor)[1:]) if len(known) > 1 else 0
        # A softmax of several rows, or along another axis, has other sizes than its width.
        return known if len(known) == len(parts) and sum(known) == width else ()

    def _is_along_last_axis(self, node: Node) -> bool:
        return node.operator not in ("ArgMax", *NORMALIZING) or self._length(node) is not None

    def _length(self, node: Node) -> int | None:
        """Return how many numbers a node compares; None where they are not behind one another."""
        shape = self._shape_of((node.inputs if node.operator == "ArgMax" else node.outputs)[0])
        # Before opset 13 a softmax was taken over all axes from the one that it names.
        is_over_rest = self._model.opset < 13 and node.operator in NORMALIZING[:3]
        default = 0 if node.operator == "ArgMax" else 1 if is_over_rest else -1
        axis = int(node.attributes.get("axis", default))
        axis += len(shape) if axis < 0 else 0
        behind = math.prod(shape[axis + 1 :])
        if behind != 1 and not is_over_rest:
            return None
        is_over_rows = axis == 0 and len(shape) > 1 and shape[1:] != (1,) * (len(shape) - 1)
        return None if is_over_rows else shape[axis] * behind

    def is_constant(self, tensor: str) -> bool:
        """Return whether a tensor is computed from constants alone.

        Args:
            tensor: its name.
        """
        return tensor in self._constants or tensor not in self._varying

    @functools.cached_property
    def _varying(self) -> frozenset[str]:
        """Return the tensors that inputs or random numbers change.

        They are found in one pass over the graph, since long chains are asked for node by node.
        """
        found = {item.name for item in self._model.inputs}
        for node in self._model.nodes:
            is_random = any(self._random.is_random(one) for one in (node, *node.inner))
            if is_random or found.intersection(node.reads):
                found.update(node.outputs)
        return frozenset(found)

    def random_nodes(self, tensor: str) -> list[Node]:
        """Return the nodes that draw random numbers on the way to a tensor.

        Args:
            tensor: its name.
        """
        return self._random.before(tensor)

    def leaves(self, tensor: str, operator: str) -> list[Node] | None:
        """Return the nodes of one operator that a tensor joins in order.

        Args:
            tensor: its name.
            operator: the nodes' operator, such as `Multinomial`.

        Returns:
            The nodes; None where another operation lies between.
        """
        waiting = [tensor]
        found: list[Node] = []
        for _ in range(_MOST_JOINED):
            if not waiting:
                return found
            node = self.node(waiting.pop())
            if node is not None and node.operator == operator:
                found.append(node)
            elif node is not None and node.operator == "Concat":
                waiting += reversed(node.inputs)
            else:
                return None
        return None

    def concatenated(self, tensor: str) -> tuple[str, ...]:
        """Return the tensors that another joins, before constants or a log change it.

        Args:
            tensor: the other's name.
        """
        node = self.node(tensor)
        while node is not None and node.operator in (*_LINEAR, "Clip", "Log", "Max"):
            following = [name for name in node.inputs if name and not self.is_constant(name)]
            node = self.node(following[0]) if len(following) == 1 else None
        return node.inputs if node is not None and node.operator == "Concat" else ()

    def softmax_inputs(self, tensor: str) -> tuple[str, ...]:
        """Return the logits of the softmaxes whose logarithms a tensor joins; empty for another.

        A tiny number may be added to the probabilities, as ML-Agents does.

        Args:
            tensor: its name.
        """
        waiting = [(tensor, False)]
        found: list[str] = []
        for _ in range(_MOST_JOINED):
            if not waiting:
                return tuple(found)
            name, is_log = waiting.pop()
            node = self.node(name)
            if is_log and node is not None and node.operator == "Softmax":
                if self._length(node) is None:
                    return ()
                found.append(node.inputs[0])
                continue
            following = None if node is None else self._before_log(node, is_log=is_log)
            if following is None:
                return ()
            waiting += reversed(following)
        return ()

    def _before_log(self, node: Node, *, is_log: bool) -> list[tuple[str, bool]] | None:
        """Return the tensors before a node, and whether a logarithm follows; None for another."""
        if node.operator == "Concat":
            return [(name, is_log) for name in node.inputs]
        if node.operator == "Log" and not is_log:
            return [(node.inputs[0], True)]
        if node.operator == "Add" and is_log:
            following = [name for name in node.inputs if not self._is_tiny(name)]
            return [(following[0], True)] if len(following) == 1 else None
        return None

    def _is_tiny(self, tensor: str) -> bool:
        value = self.constant(tensor)
        return value is not None and bool((abs(value) <= _TINY).all())

    def constant(self, tensor: str) -> Array | None:
        """Return the value that a constant holds; None for another tensor.

        Args:
            tensor: its name.
        """
        return self._constants.get(self.source(tensor))

    def written_before(self, tensors: Sequence[str], *later: str) -> bool:
        """Return whether a tensor is computed from another of some tensors.

        Args:
            tensors: the names of those.
            later: its name; of several, one has to be computed from them.
        """
        return bool(ancestors_of(self._model, later) & {self.source(name) for name in tensors})
