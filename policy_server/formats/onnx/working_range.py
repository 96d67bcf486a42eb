"""Observations around the constants that a graph normalises its own by.

A network with its normaliser inside works in a narrow range, such as 300 to 301 kelvin. Far from
there it is saturated, and two wrong computations of it agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.onnx.model_file import Node, OnnxModel
from policy_server.formats.onnx.node_constants import constants_of
from policy_server.formats.onnx.plan import Feed
from policy_server.formats.onnx.runtimes import GraphRunError, open_runtime
from policy_server.formats.onnx.state_pairs import ancestors_of

__all__ = ["working_rows"]

Array = NDArray[Any]

_ROWS = 188
_NARROW = 0.3
_EPSILON = 1e-5
_LARGEST = 1e18
# They give their input in another shape or floating-point type.
_MOVING = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class _Scaled:
    """A tensor whose numbers are those of a row's columns, each scaled and shifted.

    Attributes:
        columns: the column that each number comes from.
        scale: the factor of each number.
        shift: the number that is added to each then.
    """

    columns: Array
    scale: Array
    shift: Array

    def then(self, scale: Array, shift: Array) -> _Scaled:
        """Return the tensor after a scaling and a shift of it."""
        found = np.broadcast_arrays(
            self.columns, self.scale * scale, self.shift * scale + shift, subok=False
        )
        return _Scaled(*found)

    def moved(self, change: Callable[[Array], Array]) -> _Scaled:
        """Return the tensor in another shape."""
        return _Scaled(change(self.columns), change(self.scale), change(self.shift))


def working_rows(model: OnnxModel, feeds: Sequence[Feed], width: int) -> Array | None:
    """Return observations that a graph's normaliser brings near zero; None without one.

    Example:
        Of `(obs - 300) / 0.05` they are normally distributed around 300, with the deviation 0.05.

    Args:
        model: the graph.
        feeds: its inputs.
        width: how many numbers a row has.

    Returns:
        float32[188, width], the same at every call.
    """
    scale, shift = np.ones(width), np.zeros(width)
    with np.errstate(all="ignore"):
        for found in _Follower(model, feeds, width).follow():
            is_usable = np.isfinite(found.scale) & np.isfinite(found.shift) & (found.scale != 0)
            columns = found.columns[is_usable]
            scale[columns], shift[columns] = found.scale[is_usable], found.shift[is_usable]
    if (scale == 1).all() and (shift == 0).all():
        return None
    normal = np.random.default_rng(23).standard_normal((_ROWS, width))
    normal[::2] *= _NARROW
    rows = ((normal - shift) / scale).clip(-_LARGEST, _LARGEST)
    for feed in feeds:
        if feed.first is not None and not feed.dtype.startswith(("float", "bfloat")):
            part = slice(feed.first, feed.first + feed.width)
            limits = np.iinfo(feed.dtype) if feed.dtype != "bool" else np.iinfo(np.uint8)
            rows[:, part] = rows[:, part].round().clip(limits.min, limits.max)
    return rows.astype(np.float32)


class _Follower:
    def __init__(self, model: OnnxModel, feeds: Sequence[Feed], width: int) -> None:
        self._model = model
        self._nothing = {feed.name: feed.of(np.zeros((1, width))) for feed in feeds}
        self._constants = constants_of(model)
        self._varying = {item.name for item in model.inputs}
        self._known = {
            feed.name: _first(feed)
            for feed in feeds
            if feed.first is not None and feed.rows_axis in (None, 0)
        }

    def follow(self) -> list[_Scaled]:
        """Return the tensors that are columns of a row, scaled and shifted, in order."""
        found = []
        for node in self._model.nodes:
            sources = [name for name in node.reads if name in self._varying]
            if not sources:
                continue
            self._varying.update(node.outputs)
            if any(name not in self._known for name in sources):
                continue
            try:
                after = self._after(node, sources)
            except (ValueError, IndexError, GraphRunError):
                # Shapes that fit in the graph alone, such as those of its own batch.
                after = None
            if after is not None:
                self._known[node.outputs[0]] = after
                found.append(after)
        return found

    def _after(self, node: Node, sources: Sequence[str]) -> _Scaled | None:
        before = self._known[sources[0]]
        if node.operator in _MOVING:
            return self._moved(node, before)
        if node.operator == "Concat":
            axis = int(node.attributes.get("axis", 1))
            parts = [self._known[name] for name in node.inputs if name in self._known]
            if len(parts) < len(node.inputs):
                return None
            return _Scaled(
                *(
                    np.concatenate([getattr(part, name) for part in parts], axis=axis)
                    for name in ("columns", "scale", "shift")
                )
            )
        if node.operator == "BatchNormalization" and len(sources) == 1:
            return self._normalized(node, before)
        if node.operator == "Scaler":
            offset, factor = (np.asarray(node.attributes[key]) for key in ("offset", "scale"))
            return before.then(factor, -offset * factor)
        if len(node.inputs) != 2 or len(sources) != 1:
            return None
        is_first = node.inputs[0] == sources[0]
        return self._linear(node, before, is_first=is_first)

    def _linear(self, node: Node, before: _Scaled, *, is_first: bool) -> _Scaled | None:
        one, none = np.ones(1), np.zeros(1)
        if node.operator not in ("Add", "Div", "Mul", "Sub"):
            return None
        value = self._constant(node.inputs[1 if is_first else 0])
        if node.operator == "Add":
            return before.then(one, value)
        if node.operator == "Mul":
            return before.then(value, none)
        if node.operator == "Sub":
            return before.then(one, -value) if is_first else before.then(-one, value)
        return before.then(1 / value, none) if is_first else None

    def _normalized(self, node: Node, before: _Scaled) -> _Scaled:
        """Return a tensor around a BatchNormalization's mean; what it scales by then is learnt."""
        mean, variance = (self._constant(name) for name in node.inputs[3:5])
        shape = (-1, *[1] * (before.columns.ndim - 2))
        deviation = np.sqrt(variance + node.attributes.get("epsilon", _EPSILON))
        scale = (1 / deviation).reshape(shape)
        return before.then(scale, -mean.reshape(shape) * scale)

    def _moved(self, node: Node, before: _Scaled) -> _Scaled | None:
        if node.operator == "Reshape":
            shape = self._constant(node.inputs[1]).astype(int)
            known = before.columns.shape
            sizes = [known[at] if size == 0 else int(size) for at, size in enumerate(shape)]
            return before.moved(lambda part: part.reshape(sizes))
        if node.operator == "Flatten":
            return before.moved(lambda part: part.reshape(1, -1))
        if node.operator in ("Squeeze", "Unsqueeze"):
            return self._with_axes(node, before)
        return before

    def _with_axes(self, node: Node, before: _Scaled) -> _Scaled | None:
        given = node.attributes.get("axes")
        if given is None and len(node.inputs) > 1:
            given = self._constant(node.inputs[1]).astype(int).tolist()
        if given is None:
            return None
        axes = tuple(given)
        change = np.squeeze if node.operator == "Squeeze" else np.expand_dims
        return before.moved(lambda part: change(part, axes))

    def _constant(self, tensor: str) -> Array:
        """Return a constant's value, which other nodes may compute of constants.

        Raises:
            GraphRunError: if it can't be computed.
        """
        if tensor not in self._constants:
            assert not self._varying & ancestors_of(self._model, [tensor]), "it is a constant"
            # A runtime asks for all inputs, whatever is computed of them.
            values = open_runtime(self._model, [tensor]).run(self._nothing)
            self._constants[tensor] = values[tensor]
        return self._constants[tensor].astype(np.float64)


def _first(feed: Feed) -> _Scaled:
    """Return an input as the columns of a row that fill it."""
    assert feed.first is not None, "a row fills it"
    columns = np.arange(feed.first, feed.first + feed.width).reshape(feed.shape)
    if feed.rows_axis == 0:
        columns = columns[None]
    return _Scaled(columns, np.ones(columns.shape), np.zeros(columns.shape))
