"""The engine's operations that move, join, choose and repeat numbers, as nodes of ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from policy_server.errors import ExportError
from policy_server.formats.onnx.graph_writing.elementwise_nodes import Translation
from policy_server.formats.onnx.graph_writing.graph_writer import FIRST, LAST, GraphWriter, Value

__all__ = ["SHAPES"]


def _concat(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    *parts, axis = x
    names = [writer.cast(part, result.dtype) for part in parts]
    return writer.add("Concat", *names, axis=axis.integers()[0])


def _pack(writer: GraphWriter, x: Sequence[Value], result: Value, *, axis: int) -> str:
    places = [axis % result.rank]
    names = [writer.unsqueeze(writer.cast(part, result.dtype), places) for part in x]
    return writer.add("Concat", *names, axis=places[0])


def _reshape(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    if x[1].constant is not None:
        return writer.reshape(x[0].name, x[1].integers())
    return _in_shape_of(writer, x[0], result, x[1])


def _in_shape_of(writer: GraphWriter, x: Value, result: Value, shape: Value) -> str:
    """Return a tensor in the result's shape, of which one size may be that of the batch."""
    if result.shape.count(None) <= 1:
        return writer.reshape(x.name, [-1 if size is None else size for size in result.shape])
    return writer.add("Reshape", x.name, writer.cast(shape, np.int64))


def _reshape_copying(
    writer: GraphWriter, x: Sequence[Value], _result: Value, *, shape: Sequence[int]
) -> str:
    return writer.reshape(x[0].name, [int(size) for size in shape])


def _flatten(writer: GraphWriter, x: Sequence[Value], _result: Value, *, axis: int) -> str:
    return writer.add("Flatten", x[0].name, axis=int(axis))


def _expand_dims(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    return writer.unsqueeze(x[0].name, [x[1].integers()[0] % result.rank])


def _squeeze(
    writer: GraphWriter, x: Sequence[Value], _result: Value, *, squeeze_dims: Sequence[int]
) -> str:
    single = [axis for axis, size in enumerate(x[0].shape) if size == 1]
    return writer.squeeze(x[0].name, [int(axis) for axis in squeeze_dims] or single)


def _transpose(writer: GraphWriter, x: Sequence[Value], _result: Value) -> str:
    order = x[1].integers() if len(x) > 1 else range(x[0].rank)[::-1]
    return writer.transpose_name(x[0].name, [axis % x[0].rank for axis in order])


def _split(
    writer: GraphWriter, x: Sequence[Value], _result: Value, *, num_split: int, port: int
) -> str:
    axis = x[0].integers()[0]
    size = x[1].size(axis) // num_split
    return writer.slice(x[1].name, [axis], [port * size], [(port + 1) * size])


def _split_v(writer: GraphWriter, x: Sequence[Value], _result: Value, *, port: int) -> str:
    sizes, axis = x[1].integers(), x[2].integers()[0]
    first = sum(sizes[:port])
    return writer.slice(x[0].name, [axis], [first], [first + sizes[port]])


def _slice(writer: GraphWriter, x: Sequence[Value], _result: Value) -> str:
    starts, sizes = x[1].integers(), x[2].integers()
    ends = [LAST if size < 0 else start + size for start, size in zip(starts, sizes, strict=True)]
    return writer.slice(x[0].name, range(len(starts)), starts, ends)


def _slice_axes(
    writer: GraphWriter,
    x: Sequence[Value],
    _result: Value,
    *,
    axes: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    steps: Sequence[int],
) -> str:
    return writer.slice(x[0].name, axes, starts, ends, steps)


def _strided_slice(writer: GraphWriter, x: Sequence[Value], _result: Value, **masks: int) -> str:
    """Slice by TensorFlow's masks, which have one bit for each entry of the bounds."""
    bounds = list(zip(*(one.integers() for one in x[1:]), strict=True))
    marks = [{name for name, mask in masks.items() if mask >> at & 1} for at in range(len(bounds))]
    taking = [not mark & {"new_axis_mask", "ellipsis_mask"} for mark in marks]
    axis = 0
    sliced: list[tuple[int, int, int, int]] = []
    dropped: list[int] = []
    new: list[int] = []
    for at, ((first, last, step), mark) in enumerate(zip(bounds, marks, strict=True)):
        if "ellipsis_mask" in mark:
            axis = x[0].rank - sum(taking[at:])
        elif "new_axis_mask" in mark:
            new.append(axis - len(dropped) + len(new))
        elif "shrink_axis_mask" in mark:
            sliced.append((axis, first, LAST if first == -1 else first + 1, 1))
            dropped.append(axis)
            axis += 1
        else:
            start = (FIRST if step > 0 else LAST) if "begin_mask" in mark else first
            end = (LAST if step > 0 else FIRST) if "end_mask" in mark else last
            sliced.append((axis, 0 if start == FIRST else start, end, step))
            axis += 1
    name = writer.slice(x[0].name, *zip(*sliced, strict=True)) if sliced else x[0].name
    return writer.unsqueeze(writer.squeeze(name, dropped), new)


def _gather(writer: GraphWriter, x: Sequence[Value], _result: Value) -> str:
    """Take by indices; a negative one is refused, which ONNX would count from the end."""
    axis = x[2].integers()[0]
    indices = writer.cast(x[1], np.int64)
    if x[1].constant is None and x[1].dtype.kind != "u":
        is_outside = writer.add("Less", indices, writer.integers([0]))
        size = writer.integers([x[0].size(axis)])
        scalar = writer.keep(np.array(0, np.int64)), writer.keep(np.array(x[0].size(axis)))
        if x[1].rank == 0:
            is_outside, size = writer.add("Less", indices, scalar[0]), scalar[1]
        indices = writer.add("Where", is_outside, size, indices)
    return writer.add("Gather", x[0].name, indices, axis=axis)


def _take(writer: GraphWriter, x: Sequence[Value], _result: Value, *, axis: int) -> str:
    return writer.add("Gather", x[0].name, writer.cast(x[1], np.int64), axis=int(axis))


def _one_hot(writer: GraphWriter, x: Sequence[Value], result: Value, *, axis: int) -> str:
    """Compare with each place, since ONNX's OneHot counts negative numbers from the end."""
    indices, depth, on_value, off_value = x
    places = np.arange(depth.integers()[0])
    dtype = np.float32 if indices.dtype.kind == "f" else np.int64
    wide = writer.unsqueeze(writer.cast(indices, dtype), [indices.rank])
    is_there = writer.add("Equal", wide, writer.keep(places, dtype))
    values = [writer.cast(one, result.dtype) for one in (on_value, off_value)]
    name = writer.add("Where", is_there, *values)
    if axis % result.rank == result.rank - 1:
        return name
    order = list(range(result.rank - 1))
    order.insert(axis % result.rank, result.rank - 1)
    return writer.transpose_name(name, order)


def _shape(writer: GraphWriter, x: Sequence[Value], result: Value, **_dtype: str) -> str:
    name = writer.add("Shape", x[0].name)
    return name if result.dtype == np.int64 else writer.cast_name(name, result.dtype)


def _filled(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    return writer.add("Expand", writer.cast(x[1], result.dtype), writer.cast(x[0], np.int64))


def _like(number: float) -> Translation:
    def translate(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
        shape = writer.add("Shape", x[0].name)
        return writer.add("Expand", writer.keep(np.array(number, result.dtype)), shape)

    return translate


def _expand(writer: GraphWriter, x: Sequence[Value], _result: Value) -> str:
    return writer.add("Expand", x[0].name, writer.cast(x[1], np.int64))


def _repeat_rows(writer: GraphWriter, x: Sequence[Value], _result: Value) -> str:
    """Return a row that is one for all, once for each row of the first input."""
    rows = writer.slice(writer.add("Shape", x[0].name), [0], [0], [1])
    sizes = writer.add("Concat", rows, writer.integers(x[1].known().shape), axis=0)
    return writer.add("Expand", x[1].name, sizes)


def _tile(writer: GraphWriter, x: Sequence[Value], _result: Value) -> str:
    return writer.add("Tile", x[0].name, writer.cast(x[1], np.int64))


def _range(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    return writer.add("Range", *(writer.cast(one, result.dtype) for one in x))


def _tensorflow_pad(writer: GraphWriter, x: Sequence[Value], result: Value) -> str:
    around = x[1].known()
    pads = writer.integers([*around[:, 0], *around[:, 1]])
    return writer.add("Pad", x[0].name, pads, writer.keep(np.array(0, result.dtype)))


def _pad(
    writer: GraphWriter, x: Sequence[Value], result: Value, *, pads: Sequence[int], value: float
) -> str:
    if len(pads) != 2 * x[0].rank:
        raise ExportError("it pads an array by sizes for other axes than it has")
    return writer.add(
        "Pad", x[0].name, writer.integers(pads), writer.keep(np.array(value, result.dtype))
    )


SHAPES: Mapping[str, Translation] = {
    "ConcatV2": _concat,
    "ExpandDims": _expand_dims,
    "Fill": _filled,
    "GatherV2": _gather,
    "OneHot": _one_hot,
    "OnesLike": _like(1),
    "Pack": _pack,
    "Pad": _tensorflow_pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "SplitV": _split_v,
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "Tile": _tile,
    "Transpose": _transpose,
    "ZerosLike": _like(0),
    "expand": _expand,
    "flatten": _flatten,
    "pad": _pad,
    "repeat_rows": _repeat_rows,
    "reshape_copying": _reshape_copying,
    "slice_axes": _slice_axes,
    "take": _take,
}
"""The translation of each operation: from its inputs and result to the name of the result."""
