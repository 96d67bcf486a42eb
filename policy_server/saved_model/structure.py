"""What the graph itself says of the action distribution: which part of `action_dist_inputs` each action is drawn from.

The signature holds no sizes. The graph does: constant sizes of the `SplitV` nodes that consume `action_dist_inputs`, and
the paths from them to the actions, which also undo the order in which a dictionary's actions were flattened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from policy_server.saved_model.graph import LoadedGraph

__all__ = ["DISTRIBUTION_INPUTS", "GraphStructure"]

DISTRIBUTION_INPUTS = "action_dist_inputs"
Segment = tuple[int, int]

_PASSING_OPS = ("Identity", "StopGradient", "Snapshot", "PreventGradient")
# These read a tensor's size, not its values: a random action takes its batch size from anywhere.
_SHAPE_OPS = ("Shape", "Size", "Rank", "ZerosLike", "OnesLike", "ShapeN")
_FEATURE_OPS = ("Relu", "Relu6", "Tanh", "Elu", "Selu", "Sigmoid", "LeakyRelu", "Softplus", "Softsign")
_DIVISION_OPS = ("RealDiv", "Div", "DivNoNan")


class GraphStructure:
    """A walk over the frozen graph. Segments are (start, length) in a row of `action_dist_inputs`."""

    def __init__(self, loaded: LoadedGraph, *, distribution: str, width: int) -> None:
        """Index the graph and follow the splits of the distribution's inputs.

        Args:
            loaded: the frozen graph.
            distribution: the output that holds the distribution's inputs.
            width: how many values a row of it has.
        """
        self._nodes: Mapping[str, Any] = {node.name: node for node in loaded.graph_def.node}
        self._tensors = loaded.tensors
        self._root = self._source(loaded.tensors[distribution])
        self._segments: dict[str, Segment] = {self._root: (0, width)}
        self._temperatures: dict[str, float] = {}
        self._clips: dict[Segment, tuple[float, float]] = {}
        self._follow_splits()

    @property
    def temperatures(self) -> list[float]:
        """Return the constants that logits are divided by before an action is drawn, without 1."""
        return sorted({value for value in self._temperatures.values() if value != 1.0 and value > 0.0})

    def clip_of(self, segment: Segment) -> tuple[float, float] | None:
        """Return the constants that a part is clipped to before it is used, as SAC's log_std is; None for no clipping.

        Args:
            segment: a part that the graph cuts.
        """
        return self._clips.get(segment)

    @property
    def is_feature_layer(self) -> bool:
        """Return whether the distribution's inputs come straight out of an activation function, as logits never do."""
        return self._nodes[self._root.split(":")[0]].op in _FEATURE_OPS

    def segments_of(self, output: str) -> list[Segment]:
        """Return the parts of the distribution's inputs that an action is drawn from.

        Args:
            output: a key of the signature, such as `actions_0`.

        Returns:
            The smallest parts that the graph cuts, in order; empty where the action does not depend on them.
        """
        queue = deque([self._source(self._tensors[output])])
        seen: set[str] = set()
        found: set[Segment] = set()
        while queue:
            tensor = queue.popleft()
            if tensor in seen:
                continue
            seen.add(tensor)
            if tensor in self._segments:
                found.add(self._segments[tensor])
                continue
            node = self._nodes[tensor.split(":")[0]]
            if node.op not in _SHAPE_OPS:
                queue.extend(self._source(name) for name in node.input if not name.startswith("^"))
        whole = self._segments[self._root]
        if len(found) > 1:
            found.discard(whole)
        return sorted(found)

    def _follow_splits(self) -> None:
        consumers: dict[str, list[Any]] = {}
        for node in self._nodes.values():
            for name in node.input:
                if not name.startswith("^"):
                    consumers.setdefault(self._source(name), []).append(node)
        queue = deque([self._root])
        while queue:
            tensor = queue.popleft()
            for node in consumers.get(tensor, []):
                self._note_temperature(node, tensor)
                self._note_clip(node, tensor, consumers)
                for index, segment in enumerate(self._cut(node, tensor)):
                    part = f"{node.name}:{index}"
                    if part not in self._segments:
                        self._segments[part] = segment
                        queue.append(part)

    def _cut(self, node: Any, tensor: str) -> Sequence[Segment]:  # noqa: ANN401 -- TensorFlow is untyped
        start, length = self._segments[tensor]
        if node.op == "SplitV" and self._source(node.input[0]) == tensor:
            sizes, axis = self._constant(node.input[1]), self._constant(node.input[2])
        elif node.op == "Split" and self._source(node.input[1]) == tensor:
            parts = node.attr["num_split"].i
            sizes, axis = np.full(parts, length // parts), self._constant(node.input[0])
        elif node.op == "Unpack" and node.attr["axis"].i in (1, -1):
            sizes, axis = np.ones(node.attr["num"].i, np.int64), np.array(1)
        else:
            return []
        if sizes is None or axis is None or int(axis) not in (1, -1) or int(sizes.sum()) != length:
            return []
        ends = np.cumsum(sizes)
        return [(start + int(end - size), int(size)) for end, size in zip(ends, sizes, strict=True)]

    def _note_temperature(self, node: Any, tensor: str) -> None:  # noqa: ANN401 -- TensorFlow is untyped
        if node.op in _DIVISION_OPS and self._source(node.input[0]) == tensor:
            divisor = self._constant(node.input[1])
            if divisor is not None and divisor.size == 1:
                self._temperatures[tensor] = float(divisor.ravel()[0])

    def _note_clip(self, node: Any, tensor: str, consumers: Mapping[str, Sequence[Any]]) -> None:  # noqa: ANN401 -- TensorFlow is untyped
        """Recognise `tf.clip_by_value`: one op, or a Minimum inside a Maximum."""
        if node.op == "ClipByValue" and self._source(node.input[0]) == tensor:
            low, high = self._constant(node.input[1]), self._constant(node.input[2])
            if low is not None and high is not None and low.size == high.size == 1:
                self._clips[self._segments[tensor]] = (float(low.ravel()[0]), float(high.ravel()[0]))
        if node.op != "Minimum" or (high := self._constant(node.input[1])) is None or high.size != 1:
            return
        for outer in consumers.get(f"{node.name}:0", []):
            low = self._constant(outer.input[1]) if outer.op == "Maximum" else None
            if low is not None and low.size == 1:
                self._clips[self._segments[tensor]] = (float(low.ravel()[0]), float(high.ravel()[0]))

    def _source(self, name: str) -> str:
        """Return the tensor's canonical name, behind nodes that only pass it on."""
        base, _, port = name.partition(":")
        node = self._nodes.get(base)
        while node is not None and node.op in _PASSING_OPS:
            base, _, port = node.input[0].partition(":")
            node = self._nodes.get(base)
        return f"{base}:{port or 0}"

    def _constant(self, name: str) -> np.ndarray[Any, np.dtype[Any]] | None:
        node = self._nodes.get(self._source(name).split(":")[0])
        if node is None or node.op != "Const":
            return None
        value: np.ndarray[Any, np.dtype[Any]] = tf.make_ndarray(node.attr["value"].tensor)
        return value
