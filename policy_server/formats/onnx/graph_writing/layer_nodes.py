"""The engine's products, convolutions, pools, reductions and normalisations, as nodes of ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from policy_server.errors import ExportError
from policy_server.formats.onnx.graph_writing.elementwise_nodes import Translation
from policy_server.formats.onnx.graph_writing.graph_writer import GraphWriter, Value

__all__ = ["LAYERS"]


def _dense(
    writer: GraphWriter,
    x: Sequence[Value],
    result: Value,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> str:
    """Multiply as NumPy's `dot` does, which is ONNX's MatMul where the second has two axes."""
    if x[1].rank > 2 or (transpose_a and x[0].rank > 2):
        raise ExportError("it multiplies arrays of more than two axes as NumPy's dot")
    names = []
    for one, is_turned in zip(x, (transpose_a, transpose_b), strict=True):
        name = writer.cast(one, result.dtype)
        names.append(writer.transpose_name(name, (1, 0)) if is_turned and one.rank == 2 else name)
    return writer.add("MatMul", *names)


def _matmul(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    return writer.add("MatMul", *(writer.cast(one, result.dtype) for one in x))


def _einsum(writer: GraphWriter, x: Sequence[Value], result: Value, *, equation: str) -> str:
    names = [writer.cast(one, result.dtype) for one in x]
    return writer.add("Einsum", *names, equation=equation)


def _reduction(operator: str) -> Translation:
    def translate(
        writer: GraphWriter, x: Sequence[Value], result: Value, *, keep_dims: bool
    ) -> str:
        axes = [axis % x[0].rank for axis in x[1].integers()]
        return _reduced(writer, operator, x[0].name, axes, result.dtype, keep_dims=keep_dims)

    return translate


def _reduced(
    writer: GraphWriter,
    operator: str,
    name: str,
    axes: Sequence[int],
    dtype: np.dtype[Any],
    *,
    keep_dims: bool,
) -> str:
    if dtype.kind not in "fi":
        raise ExportError(f"it reduces {dtype} by {operator}, which ONNX does not")
    if not axes:
        return name
    if operator == "ReduceSum":
        return writer.add(operator, name, writer.integers(axes), keepdims=int(keep_dims))
    return writer.add(operator, name, axes=axes, keepdims=int(keep_dims))


def _last_softmax(writer: GraphWriter, x: Sequence[Value], _result: Value) -> str:
    return writer.add("Softmax", x[0].name, axis=-1)


def _along(operator: str) -> Translation:
    def translate(writer: GraphWriter, x: Sequence[Value], _result: Value, *, axis: int) -> str:
        return writer.add(operator, x[0].name, axis=int(axis))

    return translate


def _arg_max(
    writer: GraphWriter,
    x: Sequence[Value],
    _result: Value,
    *,
    axis: int,
    keep_dims: bool,
    is_last: bool,
    is_min: bool,
) -> str:
    return writer.add(
        "ArgMin" if is_min else "ArgMax",
        x[0].name,
        axis=int(axis),
        keepdims=int(keep_dims),
        select_last_index=int(is_last),
    )


def _cumulated(writer: GraphWriter, x: Sequence[Value], _result: Value, *, axis: int) -> str:
    return writer.add("CumSum", x[0].name, writer.keep(np.array(axis, np.int64)))


def _channels_last(
    writer: GraphWriter,
    x: Sequence[Value],
    _result: Value,
    *,
    strides: Sequence[int],
    padding: str,
) -> str:
    """Convolve with the channels first, as ONNX does, and put them last again."""
    height, width, _, _ = x[1].shape
    assert height is not None and width is not None, "filters have a size"  # noqa: PT018 -- one fact
    pads = [0, 0, 0, 0]
    if padding == "SAME":
        for place, window in enumerate((height, width)):
            size, stride = x[0].size(1 + place), strides[1 + place]
            more = max((-(-size // stride) - 1) * stride + window - size, 0)
            pads[place], pads[2 + place] = more // 2, more - more // 2
    image = writer.transpose_name(x[0].name, (0, 3, 1, 2))
    filters = writer.transpose(x[1], (3, 2, 0, 1))
    found = writer.add("Conv", image, filters, strides=list(strides[1:3]), pads=pads)
    return writer.transpose_name(found, (0, 2, 3, 1))


def _convolve(
    writer: GraphWriter,
    x: Sequence[Value],
    _result: Value,
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    groups: int,
) -> str:
    return writer.add(
        "Conv",
        *(one.name for one in x),
        strides=list(strides),
        dilations=list(dilations),
        pads=list(pads),
        group=int(groups),
    )


def _pool(
    writer: GraphWriter,
    x: Sequence[Value],
    _result: Value,
    *,
    window: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    kind: str,
) -> str:
    if x[0].rank != 2 + len(window):
        raise ExportError("it pools an array without an axis of rows and one of channels")
    is_max = kind == "max"
    return writer.add(
        "MaxPool" if is_max else "AveragePool",
        x[0].name,
        kernel_shape=list(window),
        strides=list(strides),
        pads=list(pads),
        count_include_pad=None if is_max else int(kind != "mean"),
    )


def _normalise(
    writer: GraphWriter,
    x: Sequence[Value],
    result: Value,
    *,
    epsilon: float,
    data_format: str,
    is_training: bool,
) -> str:
    """Normalise each channel by its own moments, as Keras's layer normalisation, or by given."""
    is_first = data_format == "NCHW"
    axes, shape = ([0, 2, 3], (1, -1, 1, 1)) if is_first else ([0, 1, 2], (-1,))
    scale, offset, *moments = (
        writer.keep(one.constant.reshape(shape))
        if one.constant is not None
        else writer.reshape(one.name, shape)
        for one in x[1:]
    )
    if is_training:
        mean = _reduced(writer, "ReduceMean", x[0].name, axes, result.dtype, keep_dims=True)
        centered = writer.add("Sub", x[0].name, mean)
        squares = writer.add("Mul", centered, centered)
        variance = _reduced(writer, "ReduceMean", squares, axes, result.dtype, keep_dims=True)
    else:
        centered, variance = writer.add("Sub", x[0].name, moments[0]), moments[1]
    small = writer.keep(np.array(epsilon, result.dtype))
    deviation = writer.add("Sqrt", writer.add("Add", variance, small))
    scaled = writer.add("Mul", writer.add("Div", centered, deviation), scale)
    return writer.add("Add", scaled, offset)


LAYERS: Mapping[str, Translation] = {
    "Conv2D": _channels_last,
    "Einsum": _einsum,
    "FusedBatchNormV3": _normalise,
    "MatMul": _dense,
    "Max": _reduction("ReduceMax"),
    "Mean": _reduction("ReduceMean"),
    "Min": _reduction("ReduceMin"),
    "Prod": _reduction("ReduceProd"),
    "Softmax": _last_softmax,
    "Sum": _reduction("ReduceSum"),
    "arg_max": _arg_max,
    "convolve": _convolve,
    "cumulated": _cumulated,
    "log_softmax": _along("LogSoftmax"),
    "matmul": _matmul,
    "pool": _pool,
    "softmax": _along("Softmax"),
}
"""The translation of each operation: from its inputs and result to the name of the result."""
