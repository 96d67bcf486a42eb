"""What the graph says of the distribution: from which part of its inputs each action is drawn.

The signature holds no sizes. The graph does: constant sizes of the `SplitV` nodes that consume
`action_dist_inputs`, and the paths from them to the actions, which also undo the order in which a
dictionary's actions were flattened.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.saved_model.graph import LoadedGraph
from policy_server.saved_model.nodes import SHAPE_OPS, GraphNodes

__all__ = ["GraphStructure", "Segment"]

Segment = tuple[int, int]

_SCALING_OPS = ("RealDiv", "Div", "DivNoNan", "Mul")


class GraphStructure:
    """A walk over the frozen graph.

    Segments are (start, length) in a row of `action_dist_inputs`.

    Attributes:
        is_split_into_one: the inputs are split as a tuple's are, into one part.
    """

    def __init__(self, loaded: LoadedGraph, *, distribution: str, width: int) -> None:
        """Index the graph and follow the splits of the distribution's inputs.

        Args:
            loaded: the frozen graph.
            distribution: the output that holds the distribution's inputs.
            width: how many values a row of it has.
        """
        self._nodes = GraphNodes(loaded.graph_def)
        self._fetches = loaded.fetches
        self._whole: Segment = (0, width)
        self._segments: dict[str, Segment] = {}
        self._temperatures: set[float] = set()
        self._clips: dict[Segment, tuple[float, float]] = {}
        root = self._nodes.source(loaded.fetches[distribution])
        self._follow_splits(root)
        # RLlib's MultiActionDistribution splits by the list of its parts' sizes, of one too.
        self.is_split_into_one = any(
            len(sizes) == 1
            for node in self._nodes.consumers_of(root)
            if node.op == "SplitV" and (sizes := self._sizes(node, width)[0]) is not None
        )

    @property
    def temperatures(self) -> list[float]:
        """Return the constants that logits are divided by before an action is drawn, without 1."""
        return sorted(self._temperatures)

    def clip_of(self, segment: Segment) -> tuple[float, float] | None:
        """Return the constants that a part is clipped to, as SAC's log_std is; None for none.

        Args:
            segment: a part that the graph cuts.
        """
        return self._clips.get(segment)

    def segments_of(self, output: str) -> list[Segment]:
        """Return the parts of the distribution's inputs that an action is drawn from.

        Args:
            output: a key of the signature, such as `actions_0`.

        Returns:
            The smallest parts that the graph cuts, in order; empty where the action does not
            depend on them.
        """
        waiting = deque([self._nodes.source(self._fetches[output])])
        seen: set[str] = set()
        found: set[Segment] = set()
        while waiting:
            tensor = waiting.popleft()
            if tensor in seen:
                continue
            seen.add(tensor)
            if tensor in self._segments:
                found.add(self._segments[tensor])
                continue
            node = self._nodes.node(tensor)
            if node.op not in SHAPE_OPS:
                waiting.extend(self._nodes.inputs_of(node))
        if len(found) > 1:
            found.discard(self._whole)
        return sorted(found)

    def _follow_splits(self, root: str) -> None:
        self._segments[root] = self._whole
        waiting = deque([root])
        while waiting:
            tensor = waiting.popleft()
            for node in self._nodes.consumers_of(tensor):
                self._note_temperature(node, tensor)
                self._note_clip(node, tensor)
                for part, segment in self._parts(node, tensor):
                    self._segments[part] = segment
                    waiting.append(part)

    def _parts(self, node: Any, tensor: str) -> list[tuple[str, Segment]]:  # noqa: ANN401 -- TensorFlow is untyped
        """Return the tensors that a node makes of a part, each with what it holds of a row."""
        start, length = self._segments[tensor]
        if node.op in _SCALING_OPS:
            return [(f"{node.name}:0", (start, length))] if self._scale(node, tensor) else []
        if node.op == "StridedSlice":
            return self._slice(node, tensor)
        sizes, axis = self._sizes(node, length)
        if sizes is None or axis not in (1, -1) or int(sizes.sum()) != length:
            return []
        ends = start + np.cumsum(sizes)
        return [
            (f"{node.name}:{port}", (int(end - size), int(size)))
            for port, (end, size) in enumerate(zip(ends, sizes, strict=True))
        ]

    def _sizes(self, node: Any, length: int) -> tuple[NDArray[Any] | None, float | None]:  # noqa: ANN401 -- TensorFlow is untyped
        """Return the sizes that a node splits a row into, and the axis; None where it does not."""
        if node.op == "SplitV":
            return self._nodes.constant(node.input[1]), self._nodes.scalar(node.input[2])
        if node.op == "Split":
            parts = int(node.attr["num_split"].i)
            return np.full(parts, length // parts), self._nodes.scalar(node.input[0])
        if node.op == "Unpack":
            return np.ones(node.attr["num"].i, np.int64), node.attr["axis"].i
        return None, None

    def _slice(self, node: Any, tensor: str) -> list[tuple[str, Segment]]:  # noqa: ANN401 -- TensorFlow is untyped
        """Read `values[:, low:high]`."""
        start, length = self._segments[tensor]
        begin, end, strides = (self._nodes.constant(node.input[port]) for port in (1, 2, 3))
        if begin is None or end is None or strides is None or len(begin) != 2 or strides[1] != 1:
            return []
        masks = {
            key: node.attr[f"{key}_mask"].i for key in ("begin", "end", "ellipsis", "new_axis")
        }
        if masks["ellipsis"] or masks["new_axis"] or not masks["begin"] & masks["end"] & 1:
            return []
        low = None if masks["begin"] & 2 else int(begin[1])
        high = None if masks["end"] & 2 else int(end[1])
        low, high, _ = slice(low, high).indices(length)
        return [(f"{node.name}:0", (start + low, high - low))] if high > low else []

    def _scale(self, node: Any, tensor: str) -> float | None:  # noqa: ANN401 -- TensorFlow is untyped
        """Return the constant that a node divides a part by; None where it does something else."""
        first, second = self._nodes.inputs_of(node)[:2]
        if node.op == "Mul":
            factor = self._nodes.scalar(second if first == tensor else first)
            return 1 / factor if factor else None
        return self._nodes.scalar(second) if first == tensor else None

    def _note_temperature(self, node: Any, tensor: str) -> None:  # noqa: ANN401 -- TensorFlow is untyped
        scale = self._scale(node, tensor) if node.op in _SCALING_OPS else None
        if scale is not None and scale > 0.0 and scale != 1.0:
            self._temperatures.add(scale)

    def _note_clip(self, node: Any, tensor: str) -> None:  # noqa: ANN401 -- TensorFlow is untyped
        """Recognise `tf.clip_by_value`: one op, or a Minimum inside a Maximum."""
        if node.op == "ClipByValue" and self._nodes.source(node.input[0]) == tensor:
            bounds = [(self._nodes.scalar(node.input[1]), self._nodes.scalar(node.input[2]))]
        elif node.op == "Minimum":
            high = self._nodes.scalar(node.input[1])
            outer = self._nodes.consumers_of(f"{node.name}:0")
            lows = [self._nodes.scalar(item.input[1]) for item in outer if item.op == "Maximum"]
            bounds = [(low, high) for low in lows]
        else:
            return
        for low, high in bounds:
            if low is not None and high is not None:
                self._clips[self._segments[tensor]] = (low, high)
