"""TensorFlow's operations in NumPy: each does what TensorFlow's of that name does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from policy_server.engine.operations import OPERATIONS, PLAIN_OPERATIONS

MATRIX = np.array([[-1.5, 0.0, 2.0], [0.5, -0.25, 1.0]], np.float32)
OTHER = np.array([[2.0, 1.0, 0.5], [3.0, -1.0, 4.0]], np.float32)
POSITIVE = np.abs(MATRIX) + 0.5
INDEX = np.array([2, 0], np.int64)
TWO = np.array([3, 2], np.int32)
ALL_AXES: Mapping[str, Any] = {"keep_dims": False}
NO_MASKS = {"shrink_axis_mask": 0, "ellipsis_mask": 0, "new_axis_mask": 0}
CASES: Mapping[str, tuple[tuple[Any, ...], Mapping[str, Any]]] = {
    "Abs": ((MATRIX,), {}),
    "Add": ((MATRIX, OTHER), {}),
    "AddN": ((MATRIX, OTHER, OTHER), {}),
    "AddV2": ((MATRIX, OTHER), {}),
    "BiasAdd": ((MATRIX, OTHER[0]), {}),
    "ConcatV2": ((MATRIX, OTHER, np.int32(1)), {}),
    "Cos": ((MATRIX,), {}),
    "Elu": ((MATRIX,), {}),
    "Equal": ((MATRIX, MATRIX), {}),
    "Exp": ((MATRIX,), {}),
    "ExpandDims": ((MATRIX, np.int32(1)), {}),
    "Fill": ((TWO, np.float32(7)), {}),
    "FloorDiv": ((np.array([7, -7], np.int32), np.int32(2)), {}),
    "GatherV2": ((MATRIX, np.array([2, 0], np.int32), np.int32(1)), {}),
    "Greater": ((MATRIX, OTHER), {}),
    "GreaterEqual": ((MATRIX, MATRIX.round()), {}),
    "LeakyRelu": ((MATRIX,), {"alpha": 0.2}),
    "Less": ((MATRIX, OTHER), {}),
    "LessEqual": ((MATRIX, MATRIX.round()), {}),
    "Log": ((POSITIVE,), {}),
    "LogicalAnd": ((MATRIX > 0, OTHER > 0), {}),
    "LogicalNot": ((MATRIX > 0,), {}),
    "LogicalOr": ((MATRIX > 0, OTHER > 0), {}),
    "MatMul": ((MATRIX, OTHER), {"transpose_a": False, "transpose_b": True}),
    "Max": ((MATRIX, np.int32(1)), {"keep_dims": True}),
    "Maximum": ((MATRIX, OTHER), {}),
    "Mean": ((MATRIX, np.array([1], np.int32)), ALL_AXES),
    "Min": ((MATRIX, np.int32(0)), ALL_AXES),
    "Minimum": ((MATRIX, OTHER), {}),
    "Mul": ((MATRIX, OTHER), {}),
    "Neg": ((MATRIX,), {}),
    "NotEqual": ((MATRIX, MATRIX), {}),
    "OneHot": ((INDEX, np.int32(4), np.float32(1), np.float32(0)), {"axis": -1}),
    "OnesLike": ((MATRIX,), {}),
    "Pack": ((MATRIX, OTHER), {"axis": 1}),
    "Pad": ((MATRIX, np.array([[1, 0], [0, 2]], np.int32)), {}),
    "Pow": ((POSITIVE, OTHER), {}),
    "Prod": ((MATRIX, np.array([0], np.int32)), {"keep_dims": False}),
    "Range": ((np.int32(1), np.int32(7), np.int32(2)), {}),
    "RealDiv": ((MATRIX, OTHER), {}),
    "Relu": ((MATRIX,), {}),
    "Reshape": ((MATRIX, TWO), {}),
    "Rsqrt": ((POSITIVE,), {}),
    "Select": ((MATRIX > 0, MATRIX, OTHER), {}),
    "SelectV2": ((MATRIX > 0, MATRIX, OTHER), {}),
    "Selu": ((MATRIX,), {}),
    "Shape": ((MATRIX,), {}),
    "Sigmoid": ((MATRIX,), {}),
    "Sin": ((MATRIX,), {}),
    "Slice": ((MATRIX, np.array([0, 1], np.int32), np.array([-1, 2], np.int32)), {}),
    "Softmax": ((MATRIX,), {}),
    "Softplus": ((MATRIX,), {}),
    "Softsign": ((MATRIX,), {}),
    "Sqrt": ((POSITIVE,), {}),
    "Square": ((MATRIX,), {}),
    "SquaredDifference": ((MATRIX, OTHER), {}),
    "Squeeze": ((MATRIX[:, None],), {"squeeze_dims": (1,)}),
    "StridedSlice": (
        (MATRIX, *(np.array(pair, np.int32) for pair in ([0, 1], [0, 3], [1, 1]))),
        {"begin_mask": 1, "end_mask": 1, **NO_MASKS},
    ),
    "Sub": ((MATRIX, OTHER), {}),
    "Sum": ((MATRIX, np.int32(-1)), ALL_AXES),
    "Tanh": ((MATRIX,), {}),
    "Tile": ((MATRIX, np.array([2, 1], np.int32)), {}),
    "Transpose": ((MATRIX, np.array([1, 0], np.int32)), {}),
    "ZerosLike": ((MATRIX,), {}),
}
# Their own names in TensorFlow's Python interface, where the generic call does not do.
SPECIAL: Mapping[str, tuple[Any, NDArray[Any]]] = {
    "Cast": (OPERATIONS["Cast"](MATRIX, dtype="int64"), tf.cast(MATRIX, tf.int64).numpy()),
    "Einsum": (
        OPERATIONS["Einsum"](MATRIX, OTHER, equation="bi,bj->bij"),
        tf.einsum("bi,bj->bij", MATRIX, OTHER).numpy(),
    ),
    "Split": (
        OPERATIONS["Split"](np.int32(1), MATRIX, num_split=3, port=2),
        tf.split(MATRIX, 3, axis=1)[2].numpy(),
    ),
    "SplitV": (
        OPERATIONS["SplitV"](MATRIX, np.array([1, 2]), np.int32(1), port=1),
        tf.split(MATRIX, [1, 2], axis=1)[1].numpy(),
    ),
}


@pytest.mark.parametrize("operation", sorted(CASES))
def test_operation_equals_tensorflows(operation: str) -> None:
    inputs, attributes = CASES[operation]

    ours = OPERATIONS[operation](*map(np.asarray, inputs), **attributes)

    expected = _tensorflow(operation, inputs, attributes)
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype
    assert ours == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("operation", sorted(SPECIAL))
def test_operation_of_one_output_among_several_equals_tensorflows(operation: str) -> None:
    ours, expected = SPECIAL[operation]

    assert ours == pytest.approx(expected)
    assert ours.dtype == expected.dtype


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1, 1, 1), (1, 2, 3, 1)], ids=["every place", "steps"])
def test_convolution_equals_tensorflows(padding: str, strides: tuple[int, ...]) -> None:
    generator = np.random.default_rng(3)
    images = generator.normal(size=(2, 9, 10, 3)).astype(np.float32)
    filters = generator.normal(size=(4, 3, 3, 5)).astype(np.float32)

    ours = OPERATIONS["Conv2D"](images, filters, strides=strides, padding=padding)

    expected = tf.raw_ops.Conv2D(
        input=images, filter=filters, strides=list(strides), padding=padding
    ).numpy()
    assert ours.shape == expected.shape
    assert ours.dtype == expected.dtype
    assert ours == pytest.approx(expected, abs=1e-5)


def test_convolution_of_a_large_batch_is_that_of_its_images() -> None:
    """One of 80 images has 262,144 numbers in its windows: more are not laid side by side."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(80, 32, 32, 16)).astype(np.float32)
    filters = generator.normal(size=(4, 4, 16, 2)).astype(np.float32)
    named: Mapping[str, Any] = {"strides": (1, 1, 1, 1), "padding": "SAME"}

    together = OPERATIONS["Conv2D"](images, filters, **named)
    apart = [OPERATIONS["Conv2D"](images[i : i + 1], filters, **named) for i in range(80)]

    assert together == pytest.approx(np.concatenate(apart), abs=1e-4)
    assert OPERATIONS["Conv2D"](images[:0], filters, **named).shape == (0, 32, 32, 2)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_layer_normalisation_equals_tensorflows(layout: str) -> None:
    generator = np.random.default_rng(4)
    shape = (2, 3, 1, 5) if layout == "NHWC" else (2, 5, 3, 1)
    x = generator.normal(size=shape).astype(np.float32)
    scale, offset = generator.normal(size=(2, 5)).astype(np.float32)
    empty = np.zeros(0, np.float32)

    ours = OPERATIONS["FusedBatchNormV3"](
        x, scale, offset, empty, empty, epsilon=1e-3, is_training=True, data_format=layout
    )

    expected = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=scale,
        offset=offset,
        mean=empty,
        variance=empty,
        epsilon=1e-3,
        is_training=True,
        data_format=layout,
    ).y.numpy()
    assert ours.dtype == expected.dtype
    assert ours == pytest.approx(expected, abs=1e-5)


def test_gelu_equals_tensorflows() -> None:
    ours = OPERATIONS["Gelu"](3 * MATRIX)

    assert ours.dtype == np.float32
    assert ours == pytest.approx(tf.nn.gelu(3 * MATRIX).numpy(), abs=1e-6)


def test_every_operation_is_held_against_tensorflow() -> None:
    by_name = {"Conv2D", "FusedBatchNormV3", "Gelu"}
    # Those with small letters are not TensorFlow's; tests/formats/onnx/ holds them.
    theirs = {name for name in OPERATIONS if name[0].isupper()}
    assert set(CASES) | set(SPECIAL) | by_name == theirs - set(PLAIN_OPERATIONS.values())


def _tensorflow(operation: str, inputs: tuple[Any, ...], attributes: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    call = getattr(tf.raw_ops, operation)
    names = list(call.__signature__.parameters) if hasattr(call, "__signature__") else None
    arguments = dict(attributes)
    tensors = [tf.constant(value) for value in inputs]
    if operation in ("AddN", "Pack"):
        return call(**{_first(call): tensors}, **arguments).numpy()
    if operation == "ConcatV2":
        return call(values=tensors[:-1], axis=tensors[-1]).numpy()
    if operation == "Squeeze":
        return call(input=tensors[0], axis=list(attributes["squeeze_dims"])).numpy()
    parameters = names or _parameters(call)
    return call(**dict(zip(parameters, tensors, strict=False)), **arguments).numpy()


def _parameters(call: Any) -> list[str]:  # noqa: ANN401 -- TensorFlow is untyped
    import inspect

    return list(inspect.signature(call).parameters)


def _first(call: Any) -> str:  # noqa: ANN401 -- TensorFlow is untyped
    return _parameters(call)[0]


@pytest.mark.parametrize(
    ("begin", "masks"),
    [
        ([0, 1], {"shrink_axis_mask": 2, "begin_mask": 1, "end_mask": 1}),
        ([0, 0], {"new_axis_mask": 2, "begin_mask": 1, "end_mask": 1}),
        ([0, 1], {"ellipsis_mask": 1, "end_mask": 2}),
    ],
    ids=["one column", "new axis", "ellipsis"],
)
def test_strided_slice_reads_every_mask_as_tensorflow(
    begin: list[int], masks: dict[str, int]
) -> None:
    bounds = [np.array(pair, np.int32) for pair in (begin, [2, 2], [1, 1])]
    attributes = {**NO_MASKS, "begin_mask": 0, "end_mask": 0, **masks}

    ours = OPERATIONS["StridedSlice"](MATRIX, *bounds, **attributes)

    assert ours.tolist() == _tensorflow("StridedSlice", (MATRIX, *bounds), attributes).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "float32"])
def test_largest_of_a_padded_window_is_never_the_padding(dtype: str) -> None:
    values = np.array([[[1, 0, 2]]], dtype)
    low = values if dtype == "uint8" else values - np.array(5, dtype)

    found = OPERATIONS["pool"](low, window=(3,), strides=(1,), pads=(1, 1), kind="max")

    assert found.dtype == low.dtype
    assert found.tolist() == [[[low[0, 0, 0], low[0, 0, 2], low[0, 0, 2]]]]


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int64", "float32"])
def test_place_of_the_smallest_is_that_of_any_type(dtype: str, *, is_last: bool) -> None:
    lowest = np.iinfo(dtype).min if dtype.startswith(("int", "uint")) else 0
    values = np.array([[1, lowest, 1, lowest, 1]], dtype)

    found = OPERATIONS["arg_max"](values, axis=1, keep_dims=False, is_last=is_last, is_min=True)

    assert found.tolist() == [3 if is_last else 1]
