"""Keras's layers as steps, but for convolutions, pooling, normalisation and recurrent layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.keras.activation_functions import (
    activated,
    elu,
    leaky_relu,
    relu,
    softmax,
)
from policy_server.formats.keras.model_config import NO, Part
from policy_server.formats.keras.network_steps import Steps
from policy_server.formats.keras.result_sizes import MOST_NUMBERS

__all__ = ["LAYERS", "Arrays", "Layer", "shaped"]

Arrays = Sequence[NDArray[Any]]
Layer = Callable[[Steps, Part, Sequence[int], Arrays], int]
"""A layer: it takes the registers of its inputs and its weights, and returns that of its result."""


def shaped(part: Part, arrays: Arrays, *shapes: tuple[int | None, ...]) -> Arrays:
    """Return a layer's weights, after holding their shapes against the expected ones.

    Args:
        part: the layer.
        arrays: its weights.
        shapes: one for each array, None where any size will do.

    Raises:
        ModelError: if there are others.
    """
    found = [array.shape for array in arrays]
    fits = len(found) == len(shapes) and all(
        len(mine) == len(theirs) and all(b in (a, None) for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in zip(found, shapes, strict=True)
    )
    if not fits:
        part.refuse(f"has weights of the shapes {found}, expected {list(shapes)}")
    return arrays


def _dense(steps: Steps, part: Part, inputs: Sequence[int], arrays: Arrays) -> int:
    x = steps.number(inputs[0])
    part.expect("quantization_config", None)
    if not steps.shape(x):
        part.refuse("takes a single number, expected a vector")
    *rest, width = steps.shape(x)
    units = part.count("units")
    if part.settings.get("lora_rank"):
        part.refuse("was trained with lora_rank; merge the weights and save the model again")
    has_bias = part.get("use_bias", bool, default=True)
    shapes = [(width, units), (units,)] if has_bias else [(width, units)]
    kernel, *bias = shaped(part, arrays, *shapes)
    if rest:
        x = steps.add("Reshape", x, steps.keep(np.array([-1, width])))
    x = steps.with_constant("MatMul", x, kernel)
    if has_bias:
        x = steps.with_constant("AddV2", x, bias[0])
    if rest:
        x = steps.add("Reshape", x, steps.keep(np.array([-1, *rest, units])))
    return activated(steps, x, part)


def _activation(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    return activated(steps, steps.number(inputs[0]), part)


def _relu(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    x = steps.number(inputs[0])
    slope = part.get("negative_slope", float, 0.0)
    part.expect("threshold", 0, 0.0, None)
    highest = part.get("max_value", float)
    return relu(steps, x, slope, highest)


def _softmax(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    x = steps.number(inputs[0])
    axis = part.get("axis", int, -1)
    if steps.axis(x, axis) != len(steps.shape(x)) - 1:
        part.refuse(f"axis is {axis}, expected the last one")
    return softmax(steps, x)


def _prelu(steps: Steps, part: Part, inputs: Sequence[int], arrays: Arrays) -> int:
    x = steps.number(inputs[0])
    if len(arrays) != 1:
        part.refuse(f"has {len(arrays)} weights, expected one")
    below = steps.with_constant("Mul", steps.with_constant("Minimum", x, 0), arrays[0])
    result = steps.add("AddV2", steps.add("Relu", x), below)
    steps.endings[result] = ("activation", x)
    return result


def _rescaling(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    x = steps.number(inputs[0])
    scale, offset = part.numbers("scale", 1.0), part.numbers("offset", 0.0)
    if max(scale.ndim, offset.ndim) > 1:
        part.refuse("scale and offset have to be numbers, or one list of numbers each")
    return steps.with_constant("AddV2", steps.with_constant("Mul", x, scale), offset)


def _flatten(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    """Lay a row's numbers one after another, the channels last in any format.

    Source: Keras `Flatten`, which moves the first axis to the end for `channels_first`.
    """
    x, rank = inputs[0], len(steps.shape(inputs[0]))
    if part.settings.get("data_format") == "channels_first" and rank > 1:
        x = steps.add("Transpose", x, steps.keep(np.array([0, *range(2, rank + 1), 1])))
    return steps.reshape(x, (steps.size(x),))


def _reshape(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    shape, size = list(part.integers("target_shape")), steps.size(inputs[0])
    if shape.count(-1) == 1:
        others = -math.prod(shape)
        shape[shape.index(-1)] = size // others if others > 0 else 0
    if math.prod(shape) != size or min(shape, default=1) < 1:
        part.refuse(f"target_shape is {shape}, and its input has {size} numbers")
    return steps.reshape(inputs[0], tuple(shape))


def _permute(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    dims = part.integers("dims")
    if sorted(dims) != [*range(1, len(steps.shape(inputs[0])) + 1)]:
        part.refuse(f"dims are {dims}, which are not its input's")
    return steps.add("Transpose", inputs[0], steps.keep(np.array([0, *dims])))


def _repeat_vector(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    times, shape = part.count("n"), steps.shape(inputs[0])
    if len(shape) != 1:
        part.refuse(f"takes an input of the shape {shape}, expected a vector")
    return steps.add(
        "Tile", steps.reshape(inputs[0], (1, *shape)), steps.keep(np.array([1, times, 1]))
    )


def _concatenate(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    axis = steps.axis(inputs[0], part.get("axis", int, -1))
    if len({steps.builder.dtype(x) for x in inputs}) > 1:
        inputs = [steps.number(x) for x in inputs]
    return steps.joined(*inputs, axis=axis + 1)


def _merged(operation: str) -> Layer:
    def merge(steps: Steps, _part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
        return functools.reduce(
            lambda a, b: steps.add(operation, a, b), [steps.number(x) for x in inputs]
        )

    return merge


def _average(steps: Steps, part: Part, inputs: Sequence[int], arrays: Arrays) -> int:
    total = _merged("AddV2")(steps, part, inputs, arrays)
    return steps.with_constant("RealDiv", total, len(inputs))


def _dot(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    part.expect("normalize", *NO)
    part.expect("axes", 1, -1, [1, 1], [-1, -1])
    if any(len(steps.shape(x)) != 1 for x in inputs):
        part.refuse("is computed for vectors only")
    product = steps.add("Mul", *(steps.number(x) for x in inputs))
    return steps.reduced("Sum", product, (0,), keeps=True)


def _embedding(steps: Steps, part: Part, inputs: Sequence[int], arrays: Arrays) -> int:
    part.expect("mask_zero", *NO)
    part.expect("quantization_config", None)
    size = (part.count("input_dim"), part.count("output_dim"))
    (table,) = shaped(part, arrays, size)
    indices = steps.add("Cast", inputs[0], dtype="int32")
    return steps.add("GatherV2", steps.numbers(table), indices, steps.keep(np.array(0)))


def _category_encoding(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    if (mode := part.get("output_mode", str, "multi_hot")) != "one_hot":
        part.refuse(f"output_mode is {mode}, expected one_hot")
    depth = part.count("num_tokens")
    if depth * steps.size(inputs[0]) > MOST_NUMBERS:
        part.refuse(f"num_tokens is {depth}, expected fewer")
    indices = steps.add("Cast", inputs[0], dtype="int32")
    if steps.shape(indices)[-1:] == (1,):
        indices = steps.reshape(indices, steps.shape(indices)[:-1])
    on, off = steps.numbers(1), steps.numbers(0)
    return steps.add("OneHot", indices, steps.keep(np.array(depth)), on, off, axis=-1)


def _unchanged(_steps: Steps, _part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    return inputs[0]


_NOISE = ("AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise")
_SPATIAL = ("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D")
LAYERS: Mapping[str, Layer] = {
    **dict.fromkeys((*_NOISE, *_SPATIAL, "ActivityRegularization", "Identity"), _unchanged),
    "Activation": _activation,
    "Add": _merged("AddV2"),
    "Average": _average,
    "CategoryEncoding": _category_encoding,
    "Concatenate": _concatenate,
    "Dense": _dense,
    "Dot": _dot,
    "ELU": lambda steps, part, inputs, _arrays: elu(
        steps, steps.number(inputs[0]), part.get("alpha", float, 1.0)
    ),
    "Embedding": _embedding,
    "Flatten": _flatten,
    "LeakyReLU": lambda steps, part, inputs, _arrays: leaky_relu(
        steps, steps.number(inputs[0]), part.get("negative_slope", float, 0.3)
    ),
    "Maximum": _merged("Maximum"),
    "Minimum": _merged("Minimum"),
    "Multiply": _merged("Mul"),
    "PReLU": _prelu,
    "Permute": _permute,
    "ReLU": _relu,
    "RepeatVector": _repeat_vector,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Subtract": _merged("Sub"),
}
"""Keras's class names of layers, and the steps that compute them."""
