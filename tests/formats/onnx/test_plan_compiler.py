"""Each operator of ONNX that NumPy computes, held against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from policy_server.engine.building import NotCompiledError
from policy_server.formats.onnx.elementwise_operators import ELEMENTWISE
from policy_server.formats.onnx.layer_operators import LAYERS
from policy_server.formats.onnx.model_file import read_model
from policy_server.formats.onnx.plan import Feed, Piece, Plan
from policy_server.formats.onnx.plan_compiler import compile_plan
from policy_server.formats.onnx.recurrent_operators import RECURRENT
from policy_server.formats.onnx.shape_operators import SHAPES
from tests.support.onnx_models import Shape, node, tensor, weights, write_model

Array = NDArray[Any]
WIDTH = 12
INT = np.int64


class Case:
    """One operator over rows of observations, in the shape [rows, *shape]."""

    def __init__(
        self,
        operator: str,
        *inputs: Array | str | None,
        shape: tuple[int, ...] = (WIDTH,),
        opset: int = 17,
        before: str | None = None,
        outputs: int = 1,
        taken: int = 0,
        **attributes: Any,  # noqa: ANN401 -- ONNX's
    ) -> None:
        self.operator, self.inputs, self.shape, self.opset = operator, inputs, shape, opset
        self.before, self.outputs, self.taken, self.attributes = before, outputs, taken, attributes

    def __repr__(self) -> str:
        named = "-".join(f"{key}={value}"[:24] for key, value in self.attributes.items())
        return f"{self.operator}{self.opset}-{named}"

    def write(self, folder: Path) -> Path:
        source = "obs"
        nodes = []
        if self.before:
            named = {"to": 7} if self.before == "Cast" else {}
            nodes.append(node(self.before, ["obs"], ["before"], **named))
            source = "before"
        constants: dict[str, Array] = {}
        names = [source]
        for index, item in enumerate(self.inputs):
            if isinstance(item, str):
                names.append(source if item == "obs" else item)
            elif item is None:
                names.append("")
            else:
                constants[f"c{index}"] = item
                names.append(f"c{index}")
        if self.operator in ("Constant", "ConstantOfShape", "Range"):
            names = names[1:]
        outputs = [f"y{index}" for index in range(self.outputs)]
        nodes.append(node(self.operator, names, outputs, **self.attributes))
        # An integer, a truth value and a constant become a part of the rows too.
        last = outputs[self.taken]
        nodes += [node("Cast", [last], ["cast"], to=1), node("Identity", ["cast"], ["result"])]
        return write_model(
            folder,
            nodes,
            [tensor("obs", ["batch", *self.shape])],
            [tensor("result", None)],
            constants,
            opset=self.opset,
        )


def square(*shape: int) -> Array:
    return np.abs(weights(*shape)) + np.float32(0.1)


CASES = [
    *(
        Case(name)
        for name in (
            "Abs",
            "Atan",
            "Ceil",
            "Cos",
            "Elu",
            "Erf",
            "Exp",
            "Floor",
            "HardSigmoid",
            "HardSwish",
        )
    ),
    *(
        Case(name)
        for name in ("LeakyRelu", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign")
    ),
    *(
        Case(name)
        for name in ("Asinh", "Sin", "Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu")
    ),
    *(Case(name) for name in ("Celu", "Cosh", "Identity", "Sinh", "IsNaN", "IsInf", "Dropout")),
    *(Case(name, before="Sigmoid") for name in ("Acos", "Asin", "Atanh", "Log", "Sqrt")),
    Case("Acosh", before="Softplus"),
    Case("Celu", alpha=0.5),
    Case("Elu", alpha=0.3),
    Case("Gelu", opset=20),
    Case("Gelu", opset=20, approximate="tanh"),
    Case("HardSigmoid", alpha=0.3, beta=0.1),
    Case("LeakyRelu", alpha=0.2),
    Case("Mish", opset=18),
    Case("PRelu", weights(WIDTH)),
    Case("Selu", alpha=1.1, gamma=0.9),
    *(
        Case(name, weights(WIDTH))
        for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum")
    ),
    *(
        Case(name, weights(WIDTH))
        for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    Case("Pow", np.array(2.0, np.float32)),
    Case("Pow", np.array(3, INT)),
    Case("Mod", square(WIDTH), fmod=1),
    Case("Clip", np.array(-0.5, np.float32), np.array(0.5, np.float32)),
    Case("Clip", None, np.array(0.5, np.float32)),
    Case("Clip", opset=9, min=-0.2, max=0.7),
    Case("Cast", to=7),
    Case("CastLike", np.zeros(1, INT)),
    Case("Concat", "obs", axis=1),
    Case("Not", before="IsNaN"),
    *(Case(name, np.array([True]), before="IsNaN") for name in ("And", "Or", "Xor")),
    Case("Where", weights(WIDTH), weights(WIDTH), before="IsNaN"),
    Case("ArgMax", axis=1),
    Case("ArgMax", axis=-1, keepdims=0),
    Case("ArgMin", axis=1),
    Case("ArgMax", before="Sign", axis=1, select_last_index=1),
    Case("AveragePool", shape=(2, 4, 5), kernel_shape=[2, 2], strides=[2, 1]),
    Case("AveragePool", shape=(2, 4, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    Case(
        "AveragePool", shape=(2, 4, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    Case("BatchNormalization", square(3), weights(3), weights(3), square(3), shape=(3, 4, 4)),
    Case("BatchNormalization", square(WIDTH), weights(WIDTH), weights(WIDTH), square(WIDTH)),
    Case("Constant", value_floats=[1.0, 2.0]),
    Case("ConstantOfShape", np.array([2, 3], INT)),
    Case("Conv", weights(4, 2, 3, 3), weights(4), shape=(2, 6, 6)),
    Case("Conv", weights(4, 1, 3, 3), shape=(2, 6, 6), group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
    Case("Conv", weights(4, 2, 3, 3), shape=(2, 7, 7), dilations=[2, 2]),
    Case("Conv", weights(4, 2, 3, 3), shape=(2, 6, 7), auto_pad="SAME_UPPER", strides=[2, 2]),
    Case("Conv", weights(4, 2, 2, 2), shape=(2, 6, 7), auto_pad="SAME_LOWER"),
    Case("Conv", weights(4, 3, 3), weights(4), shape=(3, 8)),
    Case("CumSum", np.array(1, INT)),
    Case("Einsum", weights(WIDTH, 3), equation="bi,ij->bj"),
    Case("Expand", np.array([1, 1, 3], INT), shape=(4, 1)),
    Case("Flatten", shape=(2, 6)),
    Case("Flatten", shape=(2, 6), axis=-2),
    Case("Gather", np.array([0, -1, 2], INT), axis=1),
    Case("Gather", np.array(3, INT), axis=-1),
    Case("Gemm", weights(WIDTH, 5), weights(5)),
    Case("Gemm", weights(5, WIDTH), transB=1, alpha=0.5),
    Case("Gemm", weights(5, WIDTH), weights(5), transB=1, beta=0.3),
    Case("GlobalAveragePool", shape=(3, 4, 4)),
    Case("GlobalMaxPool", shape=(3, 4, 4)),
    Case("Hardmax", axis=1),
    Case("InstanceNormalization", square(3), weights(3), shape=(3, 4, 4)),
    Case("LayerNormalization", square(WIDTH), weights(WIDTH)),
    Case("LayerNormalization", square(3, 4), shape=(3, 4), axis=1),
    Case("LogSoftmax", axis=-1),
    Case("LpNormalization", axis=1),
    Case("LpNormalization", axis=1, p=1),
    Case("MatMul", weights(WIDTH, 3)),
    Case("MatMul", weights(4, 3), shape=(3, 4)),
    Case("MaxPool", shape=(2, 4, 5), kernel_shape=[2, 2]),
    Case("MaxPool", shape=(2, 4, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
    Case("OneHot", np.array(5, INT), np.array([0.0, 2.0], np.float32), before="Cast", axis=-1),
    Case("Pad", np.array([0, 1, 0, 2], INT), np.array(0.5, np.float32)),
    Case("Pad", opset=9, pads=[0, 1, 0, 2], value=0.5),
    Case("RMSNormalization", square(WIDTH), opset=23),
    Case("Range", *(np.array(number, INT) for number in (2, 9, 3))),
    *(
        Case(f"Reduce{kind}", shape=(3, 4), axes=[2], keepdims=keep)
        for kind in ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
        for keep in (0, 1)
        if kind != "Sum"
    ),
    Case("ReduceLogSum", before="Sigmoid", axes=[1]),
    Case("ReduceSum", np.array([1], INT), keepdims=0),
    Case("ReduceSum", opset=11, axes=[1]),
    Case("ReduceMean", np.array([1], INT), opset=18),
    Case("Reshape", np.array([-1, 3, 4], INT)),
    Case("Reshape", np.array([0, 2, -1], INT), shape=(3, 4)),
    Case("Shape", opset=15, start=1),
    Case("Slice", np.array([1], INT), np.array([9], INT), np.array([1], INT), np.array([2], INT)),
    Case(
        "Slice", np.array([-1], INT), np.array([-100], INT), np.array([1], INT), np.array([-1], INT)
    ),
    Case("Slice", opset=9, starts=[2], ends=[2**62], axes=[1]),
    Case("Softmax"),
    Case("Softmax", shape=(3, 4), axis=1),
    Case("Softmax", opset=11),
    Case("Split", np.array([5, 7], INT), axis=1, outputs=2, taken=1),
    Case("Split", opset=11, axis=1, split=[5, 7], outputs=2),
    Case("Split", axis=1, outputs=3, taken=2),
    Case("Squeeze", np.array([1], INT), shape=(1, 12)),
    Case("Squeeze", opset=11, shape=(12, 1)),
    Case("Swish", opset=24),
    Case("Tile", np.array([1, 2], INT)),
    Case("Transpose", shape=(3, 4), perm=[0, 2, 1]),
    Case("Trilu", shape=(4, 4), opset=14),
    Case("Trilu", np.array(1, INT), shape=(4, 4), opset=14, upper=0),
    Case("Unsqueeze", np.array([1, -1], INT)),
    Case("Unsqueeze", opset=11, axes=[2]),
]


def function_of(path: Path, *, is_row_by_row: bool, axis: int | None) -> Any:  # noqa: ANN401 -- a function of arrays
    model = read_model({path.name: path})
    (item,) = model.inputs
    assert item.shape is not None
    shape = tuple(size or 0 for size in item.shape[1:])
    feed = Feed(item.name, item.dtype, shape, 0, 0)
    probe = onnxruntime.InferenceSession(path).run(None, {"obs": np.zeros((1, *shape), "f4")})[0]
    piece = Piece("result", probe.size, rows_axis=axis)
    plan = Plan(feed.width, (feed,), (piece,))
    return compile_plan(model, plan, is_row_by_row=is_row_by_row).network.compile()


@pytest.mark.parametrize("is_row_by_row", [False, True], ids=["batch", "row by row"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_operator_gives_what_onnxruntime_gives(
    case: Case, tmp_path: Path, *, is_row_by_row: bool
) -> None:
    path = case.write(tmp_path)
    rows = np.random.default_rng(5).standard_normal((7, *case.shape)).astype(np.float32)
    rows[0] = 0.0
    expected = onnxruntime.InferenceSession(path).run(None, {"obs": rows})[0]
    is_of_rows = expected.ndim > 0 and len(expected) == len(rows)
    if not is_of_rows:
        expected = np.broadcast_to(expected.reshape(1, -1), (len(rows), expected.size))

    run = function_of(path, is_row_by_row=is_row_by_row, axis=0 if is_of_rows else None)
    with np.errstate(all="ignore"):
        found = run(rows.reshape(len(rows), -1))

    assert expected.size > 0
    np.testing.assert_allclose(
        found, expected.reshape(len(rows), -1), rtol=2e-5, atol=2e-5, equal_nan=True
    )


def recurrent(folder: Path, operator: str, **attributes: Any) -> Path:  # noqa: ANN401 -- ONNX's
    """Write a recurrent layer over two steps, with its state as an input."""
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[operator]
    both = 2 if attributes.get("direction") == "bidirectional" else 1
    states = ["h", "c"] if operator == "LSTM" else ["h"]
    shape: Shape = [both, "batch", 5]
    inputs = ["x", "w", "r", "b", "", *states]
    outputs = ["", *(f"{name}_out" for name in states)]
    nodes = [
        node("Transpose", ["obs"], ["x"], perm=[1, 0, 2]),
        node(operator, inputs, outputs, hidden_size=5, **attributes),
    ]
    return write_model(
        folder,
        nodes,
        [tensor("obs", ["batch", 2, 4]), *(tensor(s, shape) for s in states)],
        [tensor(f"{s}_out", shape) for s in states],
        {
            "w": weights(both, gates * 5, 4),
            "r": weights(both, gates * 5, 5, seed=1),
            "b": weights(both, 2 * gates * 5, seed=2),
        },
    )


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("LSTM", {}),
        ("LSTM", {"direction": "reverse"}),
        ("LSTM", {"direction": "bidirectional"}),
        ("GRU", {}),
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"direction": "bidirectional", "linear_before_reset": 1}),
        ("RNN", {}),
    ],
    ids=str,
)
def test_recurrent_layer_gives_what_onnxruntime_gives(
    operator: str, attributes: Mapping[str, Any], tmp_path: Path
) -> None:
    path = recurrent(tmp_path, operator, **attributes)
    model = read_model({path.name: path})
    generator = np.random.default_rng(6)
    both = 2 if attributes.get("direction") == "bidirectional" else 1
    states = [item.name for item in model.inputs[1:]]
    feeds = [Feed("obs", "float32", (2, 4), 0, 0)]
    feeds += [
        Feed(name, "float32", (both, 5), 1, 8 + index * both * 5)
        for index, name in enumerate(states)
    ]
    pieces = [Piece(f"{name}_out", both * 5, rows_axis=1) for name in states]
    plan = Plan(8 + len(states) * both * 5, tuple(feeds), tuple(pieces))
    rows = generator.standard_normal((6, plan.width)).astype(np.float32)

    compilation = compile_plan(model, plan, is_row_by_row=False)
    found = compilation.network.compile()(rows)

    values = onnxruntime.InferenceSession(path).run(
        [f"{name}_out" for name in states], {feed.name: feed.of(rows) for feed in feeds}
    )
    expected = np.concatenate([np.moveaxis(value, 1, 0).reshape(6, -1) for value in values], axis=1)
    assert compilation.is_row_wise
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_every_operator_that_is_translated_is_held_against_onnxruntime() -> None:
    held = {case.operator for case in CASES} | {"LSTM", "GRU", "RNN"}

    assert {*ELEMENTWISE, *SHAPES, *LAYERS, *RECURRENT} == held


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("NonZero"), "NumPy has no NonZero"),
        (
            Case("MaxPool", shape=(2, 4, 5), kernel_shape=[2, 2], ceil_mode=1),
            "NumPy has no such MaxPool",
        ),
        (Case("CumSum", np.array(1, INT), reverse=1), "NumPy has no such CumSum"),
        (Case("Pad", np.array([0, 1, 0, 2], INT), mode="reflect"), "NumPy has no such Pad"),
        (Case("Reshape", np.array([2, -1], INT)), "a reshape joins the rows of a batch"),
        (
            Case("ConstantOfShape", np.array([10**6, 10**6], INT)),
            "an array of 1000000000000 numbers",
        ),
        (Case("Tile", np.array([1, 10**9], INT)), "an array is asked for 1000000000 times"),
        (
            Case("Range", *(np.array(n, INT) for n in (0, 10**12, 1))),
            "a range has too many numbers",
        ),
        (Case("Expand", np.array([10**6, 10**6, 12], INT)), "is asked for"),
        (Case("Pad", np.array([0, 10**9, 0, 0], INT)), "is asked for"),
    ],
    ids=lambda item: repr(item) if isinstance(item, Case) else None,
)
def test_operator_that_numpy_lacks_or_that_joins_rows_is_told(
    case: Case, reason: str, tmp_path: Path
) -> None:
    path = case.write(tmp_path)
    model = read_model({path.name: path})
    width = int(np.prod(case.shape))
    feed = Feed("obs", "float32", case.shape, 0, 0)
    plan = Plan(width, (feed,), (Piece("result", width),))

    with pytest.raises(NotCompiledError) as caught:
        compile_plan(model, plan, is_row_by_row=False)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "case",
    [
        Case("Gather", np.array([0, 1, 2], INT), axis=0),
        Case("Softmax", axis=0),
        Case("CumSum", np.array(0, INT)),
        Case("ReduceMax", axes=[0]),
        Case("Flatten", axis=0),
    ],
    ids=repr,
)
def test_operator_over_the_rows_of_a_batch_is_told(case: Case, tmp_path: Path) -> None:
    path = case.write(tmp_path)
    model = read_model({path.name: path})
    feed = Feed("obs", "float32", case.shape, 0, 0)
    plan = Plan(WIDTH, (feed,), (Piece("result", WIDTH),))

    try:
        is_row_wise = compile_plan(model, plan, is_row_by_row=False).is_row_wise
    except NotCompiledError:
        is_row_wise = False

    assert not is_row_wise
