"""The attributes of TensorFlow's operations, as the engine's NumPy operations take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from policy_server.engine.building import NotCompiledError
from policy_server.formats.saved_model import slim_tensorflow as tf

__all__ = ["PORTED", "STRIDED_SLICE_MASKS", "attributes_of"]

STRIDED_SLICE_MASKS = (
    "begin_mask",
    "end_mask",
    "ellipsis_mask",
    "new_axis_mask",
    "shrink_axis_mask",
)
# Operations with several results, of which a tensor is one.
PORTED = ("Split", "SplitV")
# TensorFlow's attributes that change an operation's result, by operation.
_ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "LeakyRelu": ("alpha",),
    "MatMul": ("transpose_a", "transpose_b"),
    "Max": ("keep_dims",),
    "Mean": ("keep_dims",),
    "Min": ("keep_dims",),
    "OneHot": ("axis",),
    "Pack": ("axis",),
    "Split": ("num_split",),
    "StridedSlice": STRIDED_SLICE_MASKS,
    "Prod": ("keep_dims",),
    "Sum": ("keep_dims",),
}


def attributes_of(node: Any, tensor: str) -> tuple[tuple[str, Any], ...]:  # noqa: ANN401 -- TensorFlow is untyped
    """Return an operation's attributes by the names that `OPERATIONS` gives them.

    Args:
        node: the operation.
        tensor: the result that is meant.

    Raises:
        NotCompiledError: if the engine can't compute the operation with these attributes.
    """
    known: list[tuple[str, Any]] = []
    for name in _ATTRIBUTES.get(node.op, ()):
        value = node.attr[name]
        known.append((name, getattr(value, value.WhichOneof("value") or "i")))
    if node.op in PORTED:
        known.append(("port", int(tensor.partition(":")[2] or 0)))
    if node.op in _CONVERTED:
        known += _CONVERTED[node.op](node)
    return tuple(known)


def _type(node: Any, attribute: str) -> list[tuple[str, Any]]:  # noqa: ANN401 -- TensorFlow is untyped
    return [("dtype", tf.dtypes.as_dtype(node.attr[attribute].type).name)]


def _convolution(node: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 -- TensorFlow is untyped
    padding, layout = node.attr["padding"].s.decode(), node.attr["data_format"].s.decode()
    if (
        layout != "NHWC"
        or padding not in ("SAME", "VALID")
        or set(node.attr["dilations"].list.i) > {1}
    ):
        raise NotCompiledError(f"NumPy has no Conv2D of {layout}, {padding} or dilated")
    return [("strides", tuple(node.attr["strides"].list.i)), ("padding", padding)]


def _normalisation(node: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 -- TensorFlow is untyped
    layout = node.attr["data_format"].s.decode()
    return [
        ("epsilon", node.attr["epsilon"].f),
        ("data_format", layout),
        ("is_training", node.attr["is_training"].b),
    ]


# The attributes that NumPy takes in another form.
_CONVERTED: Mapping[str, Callable[[Any], list[tuple[str, Any]]]] = {
    "Cast": lambda node: _type(node, "DstT"),
    "Conv2D": _convolution,
    "Einsum": lambda node: [("equation", node.attr["equation"].s.decode())],
    "FusedBatchNormV3": _normalisation,
    "Shape": lambda node: _type(node, "out_type"),
    "Squeeze": lambda node: [("squeeze_dims", tuple(node.attr["squeeze_dims"].list.i))],
}
