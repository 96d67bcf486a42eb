"""Draws from a normal distribution, as the operations of a graph make them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.onnx.graph_view import GraphView
from policy_server.formats.onnx.model_file import Node

__all__ = ["NormalDraw", "normal_draw"]

Array = NDArray[Any]
Bounds = tuple[Array, Array]

_NORMAL = ("RandomNormal", "RandomNormalLike")
_LINEAR = ("Add", "Div", "Mul", "Sub")


@dataclass(frozen=True, eq=False)
class NormalDraw:
    """A draw from a normal distribution, as the graph makes it.

    The action is factor * clip(mean + std * noise, bounds), or the tanh of the sum, scaled from
    [-1, 1] to the bounds.

    Attributes:
        mean: the tensor of the mean.
        std: the tensor of the deviation.
        noise: the tensor of the graph's own noise.
        noise_scale: the deviation of the graph's own noise.
        is_squashed: whether a tanh follows the sum.
        bounds: the least and the most, one number or one a dimension; None for none.
        factor: the number that everything is multiplied by at last; of a squashed draw 1.
    """

    mean: str
    std: str
    noise: str
    noise_scale: float
    is_squashed: bool = False
    bounds: Bounds | None = None
    factor: float = 1.0


def normal_draw(view: GraphView, tensor: str) -> NormalDraw | None:
    """Return the draw from a normal distribution that a tensor is; None for another.

    Args:
        view: the graph.
        tensor: its name.
    """
    squashed = _squashed(view, tensor)
    if squashed is not None:
        return squashed
    factor, bounds = 1.0, None
    node = view.node(tensor)
    while node is not None and node.operator != "Add":
        scale = _factor(view, node)
        if scale is not None and bounds is None:
            factor *= scale
        elif node.operator == "Clip" and bounds is None:
            bounds = _clip_bounds(view, node)
            if bounds is None:
                return None
        else:
            return None
        node = view.node(node.inputs[0])
    draw = None if node is None else _sum(view, node)
    return None if draw is None else replace(draw, bounds=bounds, factor=factor)


def _squashed(view: GraphView, tensor: str) -> NormalDraw | None:
    """Return the draw whose tanh a tensor is, scaled and moved by constants or not."""
    scale, offset = np.ones(1), np.zeros(1)
    node = view.node(tensor)
    while node is not None and node.operator in _LINEAR:
        step = _affine(view, node)
        if step is None or len({*map(len, step[1:]), len(scale), len(offset)} - {1}) > 1:
            return None
        tensor, by, moved = step
        scale, offset = scale * by, offset + scale * moved
        node = view.node(tensor)
    if node is None or node.operator != "Tanh" or not (scale > 0).all():
        return None
    inner = view.node(node.inputs[0])
    draw = None if inner is None or inner.operator != "Add" else _sum(view, inner)
    if draw is None:
        return None
    is_plain = bool((scale == 1).all() and (offset == 0).all())
    bounds = None if is_plain else (offset - scale, offset + scale)
    return replace(draw, is_squashed=True, bounds=bounds)


def _affine(view: GraphView, node: Node) -> tuple[str, Array, Array] | None:
    """Return the tensor that a node scales and moves by a constant, with both; None for another."""
    at = next((i for i, name in enumerate(node.inputs) if view.constant(name) is not None), None)
    constant = None if at is None else view.constant(node.inputs[at])
    if at is None or constant is None or (at == 0 and node.operator in ("Div", "Sub")):
        return None
    value, other = np.ravel(constant).astype(np.float64), node.inputs[1 - at]
    if node.operator in ("Add", "Sub"):
        return other, np.ones(1), value if node.operator == "Add" else -value
    if node.operator == "Div" and not value.all():
        return None
    return other, value if node.operator == "Mul" else 1 / value, np.zeros(1)


def _sum(view: GraphView, node: Node) -> NormalDraw | None:
    """Return the draw that a sum of the mean and the noise is."""
    for mean, other in (node.inputs, node.inputs[::-1]):
        if view.random_nodes(mean):
            continue
        product = view.node(other)
        if product is None or product.operator != "Mul":
            continue
        std, noise = _deviation(view, product)
        if std is None or noise is None or noise.attributes.get("mean", 0.0):
            continue
        return NormalDraw(mean, std, noise.outputs[0], float(noise.attributes.get("scale", 1.0)))
    return None


def _deviation(view: GraphView, node: Node) -> tuple[str | None, Node | None]:
    for std, other in (node.inputs, node.inputs[::-1]):
        noise = view.node(other)
        if noise is not None and noise.operator in _NORMAL and not view.random_nodes(std):
            return std, noise
    return None, None


def _factor(view: GraphView, node: Node) -> float | None:
    """Return the number that a node multiplies its first input by; None for another node."""
    if node.operator not in ("Div", "Mul"):
        return None
    number = _number(view, node.inputs[1])
    if number is None or number <= 0:
        return None
    return 1 / number if node.operator == "Div" else number


def _clip_bounds(view: GraphView, node: Node) -> Bounds | None:
    if len(node.inputs) > 1:
        low, high = (_number(view, name) for name in (*node.inputs[1:], "")[:2])
    else:
        low, high = node.attributes.get("min"), node.attributes.get("max")
    return None if low is None or high is None else (np.array([low]), np.array([high]))


def _number(view: GraphView, tensor: str) -> float | None:
    """Return the one number that a constant holds; None for another tensor."""
    value = view.constant(tensor)
    return float(np.ravel(value)[0]) if value is not None and np.size(value) == 1 else None
