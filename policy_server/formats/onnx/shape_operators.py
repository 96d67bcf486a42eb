"""ONNX's operators that move values, or make them from sizes, in the engine's operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from policy_server.engine.building import NotCompiledError
from policy_server.formats.onnx.model_file import Node
from policy_server.formats.onnx.node_constants import constant_value
from policy_server.formats.onnx.registers import Registers, TooLargeError
from policy_server.formats.onnx.tensor_sizes import MOST_NUMBERS

__all__ = ["SHAPES"]

Inputs = Sequence[int | None]
Translation = Callable[[Registers, Node, Sequence[int | None]], int | Sequence[int]]


def _given(x: Inputs, place: int) -> int | None:
    return x[place] if len(x) > place else None


def _value(x: Inputs) -> int:
    value = x[0]
    if value is None:
        raise NotCompiledError("an operation lacks its input")
    return value


def _axes(registers: Registers, node: Node, x: Inputs) -> tuple[int, ...] | None:
    """Return the axes, which are an attribute, or an input since opset 13."""
    axes = _given(x, 1)
    if axes is not None:
        return registers.integers(axes, "axes")
    given = node.attributes.get("axes")
    return None if given is None else tuple(given)


def _constant(registers: Registers, node: Node, _x: Inputs) -> int:
    value = constant_value(node)
    if value is None:
        raise NotCompiledError("NumPy has no constant text")
    return registers.keep(value)


def _identity(_registers: Registers, _node: Node, x: Inputs) -> int:
    return _value(x)


def _dropout(registers: Registers, node: Node, x: Inputs) -> int:
    training = registers.constant(_given(x, 2))
    if _given(x, 2) is not None and (training is None or training.any()):
        raise NotCompiledError(f"its {node.operator} is that of training")
    return _value(x)


def _reshape(registers: Registers, node: Node, x: Inputs) -> int:
    value, shape = _value(x), _given(x, 1)
    if shape is None:
        raise NotCompiledError("an operation lacks its input")
    known = registers.constant(shape)
    if known is None:
        return registers.add("Reshape", value, shape)
    if node.attributes.get("allowzero", 0) and (known == 0).any():
        raise NotCompiledError("an array is empty")
    return registers.reshape(value, [int(size) for size in known])


def _flatten(registers: Registers, node: Node, x: Inputs) -> int:
    return registers.add("flatten", _value(x), axis=int(node.attributes.get("axis", 1)))


def _transpose(registers: Registers, node: Node, x: Inputs) -> int:
    value = _value(x)
    order = node.attributes.get("perm", range(registers.rank(value))[::-1])
    return registers.transpose(value, tuple(order))


def _squeeze(registers: Registers, node: Node, x: Inputs) -> int:
    value, axes = _value(x), _axes(registers, node, x)
    if axes is None:
        axes = tuple(axis for axis, size in enumerate(registers.sizes(value)) if size == 1)
    return registers.squeeze(value, axes)


def _unsqueeze(registers: Registers, node: Node, x: Inputs) -> int:
    axes = _axes(registers, node, x)
    return registers.unsqueeze(_value(x), axes or ())


def _concat(registers: Registers, node: Node, x: Inputs) -> int:
    parts = [item for item in x if item is not None]
    axis = int(node.attributes.get("axis", 1)) % registers.rank(parts[0])
    return registers.add("ConcatV2", *parts, registers.keep(np.array(axis)))


def _split(registers: Registers, node: Node, x: Inputs) -> Sequence[int]:
    value = _value(x)
    axis = int(node.attributes.get("axis", 0)) % registers.rank(value)
    given = _given(x, 1)
    sizes = node.attributes.get("split") if given is None else registers.integers(given, "sizes")
    if sizes is None:
        total = registers.sizes(value)[axis]
        if total is None:
            raise NotCompiledError("the rows of a batch are split")
        count = len(node.outputs)
        each = -(-total // count)
        sizes = [min(each, total - first * each) for first in range(count)]
    return registers.split(value, [int(size) for size in sizes], axis)


def _slice(registers: Registers, node: Node, x: Inputs) -> int:
    value = _value(x)
    if len(x) > 1:
        starts, ends = (registers.integers(x[place], "positions") for place in (1, 2))
        axes = _optional(registers, x, 3)
        steps = _optional(registers, x, 4)
    else:
        starts, ends = tuple(node.attributes["starts"]), tuple(node.attributes["ends"])
        axes, steps = node.attributes.get("axes"), None
    axes = tuple(range(len(starts)) if axes is None else axes)
    rank = registers.rank(value)
    return registers.add(
        "slice_axes",
        value,
        axes=tuple(axis % rank for axis in axes),
        starts=starts,
        ends=ends,
        steps=(1,) * len(starts) if steps is None else steps,
    )


def _optional(registers: Registers, x: Inputs, place: int) -> tuple[int, ...] | None:
    given = _given(x, place)
    return None if given is None else registers.integers(given, "positions")


def _gather(registers: Registers, node: Node, x: Inputs) -> int:
    value, indices = _value(x), _given(x, 1)
    if indices is None:
        raise NotCompiledError("an operation lacks its input")
    axis = int(node.attributes.get("axis", 0)) % registers.rank(value)
    return registers.add("take", value, indices, axis=axis)


def _shape(registers: Registers, node: Node, x: Inputs) -> int:
    found = registers.add("Shape", _value(x), dtype="int64")
    start, end = int(node.attributes.get("start", 0)), node.attributes.get("end")
    if start == 0 and end is None:
        return found
    rank = registers.rank(_value(x))
    return registers.part(found, 0, start, rank if end is None else int(end))


def _filled(registers: Registers, node: Node, x: Inputs) -> int:
    """Make an array of one value, of a constant shape or one that varies with the rows alone."""
    value = np.ravel(node.attributes.get("value", np.zeros(1, np.float32)))[:1].reshape(())
    shape = _value(x)
    known = registers.constant(shape)
    if known is not None and math.prod(int(size) for size in known) > MOST_NUMBERS:
        raise TooLargeError(f"an array of {math.prod(known.tolist())} numbers is asked for")
    return registers.add("expand", registers.keep(value), shape)


def _expand(registers: Registers, _node: Node, x: Inputs) -> int:
    shape = _given(x, 1)
    if shape is None:
        raise NotCompiledError("an operation lacks its input")
    return registers.add("expand", _value(x), shape)


def _tile(registers: Registers, _node: Node, x: Inputs) -> int:
    value, repeats = _value(x), registers.integers(_given(x, 1), "repeats")
    if math.prod(repeats) > MOST_NUMBERS:
        raise TooLargeError(f"an array is asked for {math.prod(repeats)} times")
    return registers.add("Tile", value, registers.keep(np.array(repeats)))


def _pad(registers: Registers, node: Node, x: Inputs) -> int:
    if node.attributes.get("mode", "constant") != "constant" or len(x) > 3:
        raise NotCompiledError("NumPy has no such Pad")
    pads = node.attributes.get("pads")
    if pads is None:
        pads = registers.integers(_given(x, 1), "pads")
    given = _given(x, 2)
    value = registers.constant(given)
    if given is not None and value is None:
        raise NotCompiledError("the value of its Pad depends on the observation")
    number = node.attributes.get("value", 0.0) if value is None else value.item()
    return registers.add("pad", _value(x), pads=tuple(pads), value=float(number))


def _range(registers: Registers, _node: Node, x: Inputs) -> int:
    bounds = [registers.constant(item) for item in x]
    if any(item is None for item in bounds):
        raise NotCompiledError("its Range depends on the observation or their number")
    start, limit, step = (np.asarray(item).reshape(()) for item in bounds)
    if not step or abs(float(limit - start)) / abs(float(step)) > MOST_NUMBERS:
        raise TooLargeError("a range has too many numbers")
    return registers.add("Range", *(registers.keep(item) for item in (start, limit, step)))


def _one_hot(registers: Registers, node: Node, x: Inputs) -> int:
    indices, depth, values = (item for item in x[:3])
    size = registers.integers(depth, "depth")[0]
    both = registers.constant(values)
    if indices is None or both is None or size > MOST_NUMBERS:
        raise NotCompiledError("NumPy has no such OneHot")
    off, on = (registers.keep(item.reshape(())) for item in both)
    whole = registers.cast(indices, "int64")
    below = registers.add("less", whole, registers.keep(np.int64(0)))
    wrapped = registers.add("Add", whole, registers.keep(np.int64(size)))
    index = registers.add("where", below, wrapped, whole)
    axis = int(node.attributes.get("axis", -1))
    return registers.add("OneHot", index, registers.keep(np.array(size)), on, off, axis=axis)


def _triangle(registers: Registers, node: Node, x: Inputs) -> int:
    value = _value(x)
    rows, columns = registers.sizes(value)[-2:]
    if rows is None or columns is None:
        raise NotCompiledError("NumPy has no Trilu over the rows of a batch")
    shift = registers.integers(x[1], "diagonal")[0] if _given(x, 1) is not None else 0
    is_kept = np.triu if node.attributes.get("upper", 1) else np.tril
    mask = registers.keep(is_kept(np.ones((rows, columns), np.bool_), shift))
    return registers.add("where", mask, value, registers.keep(0, like=value))


SHAPES: Mapping[str, Translation] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _unsqueeze,
}
"""The translation of each operator: from its inputs' registers to those of its outputs."""
