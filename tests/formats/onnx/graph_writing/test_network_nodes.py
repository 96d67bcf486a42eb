"""Each operation of the engine as nodes of ONNX, computed by onnxruntime and by NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import DTypeLike, NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from policy_server.engine.network import NumpyNetwork, Step
from policy_server.engine.operations import OPERATIONS
from policy_server.errors import ExportError
from policy_server.formats.onnx.graph_writing.graph_writer import GraphWriter
from policy_server.formats.onnx.graph_writing.network_nodes import TRANSLATIONS, write_network
from tests.support.onnx_models import tensor, weights

Array = NDArray[Any]

WIDTH = 48
ROWS = np.random.default_rng(3).standard_normal((5, WIDTH)).astype(np.float32)


class Steps:
    """A network of a few steps on rows of 48 numbers, in shapes and types that policies have."""

    def __init__(self) -> None:
        """Begin with the rows."""
        self.constants: dict[int, Array] = {}
        self.steps: list[Step] = []
        self.last = 0

    def keep(self, value: object, dtype: DTypeLike | None = None) -> int:
        """Return the register of a constant."""
        self.last += 1
        self.constants[self.last] = np.asarray(value, dtype)
        return self.last

    def add(self, operation: str, *inputs: int, **attributes: object) -> int:
        """Return the register of an operation's result."""
        self.last += 1
        self.steps.append(Step(operation, inputs, self.last, tuple(attributes.items())))
        return self.last

    def finish(self, result: int) -> NumpyNetwork:
        """Return the network."""
        return NumpyNetwork(self.constants, tuple(self.steps), result, self.last + 1)

    @property
    def positive(self) -> int:
        """Return float32[N, 48] above 0.5."""
        return self.add("AddV2", self.add("Abs", 0), self.keep(0.5, np.float32))

    @property
    def small(self) -> int:
        """Return float32[N, 48] within 0.9 of 0."""
        return self.add("Mul", self.add("Tanh", 0), self.keep(0.9, np.float32))

    @property
    def whole(self) -> int:
        """Return int64[N, 48], some of them negative."""
        return self.add("Cast", self.add("Mul", 0, self.keep(5, np.float32)), dtype="int64")

    @property
    def flags(self) -> int:
        """Return bool[N, 48]."""
        return self.add("greater", 0, self.keep(0, np.float32))

    @property
    def others(self) -> int:
        """Return bool[N, 48], other ones."""
        return self.add("greater", 0, self.keep(0.4, np.float32))

    @property
    def image(self) -> int:
        """Return float32[N, 4, 4, 3]."""
        return self.add("reshape_copying", 0, shape=(-1, 4, 4, 3))

    @property
    def channels(self) -> int:
        """Return float32[N, 3, 4, 4]."""
        return self.add("reshape_copying", 0, shape=(-1, 3, 4, 4))

    @property
    def table(self) -> int:
        """Return float32[N, 4, 12]."""
        return self.add("reshape_copying", 0, shape=(-1, 4, 12))

    @property
    def half(self) -> int:
        """Return float32 0.5."""
        return self.keep(0.5, np.float32)


def of(operation: str, *kinds: str, **attributes: object) -> Callable[[Steps], int]:
    """Return the building of one operation on some of the values that `Steps` has."""
    return lambda s: s.add(
        operation, *(0 if kind == "rows" else getattr(s, kind) for kind in kinds), **attributes
    )


def kept(
    operation: str, kind: str, *constants: object, **attributes: object
) -> Callable[[Steps], int]:
    """Return the building of one operation on a value and constants."""
    return lambda s: s.add(
        operation,
        0 if kind == "rows" else getattr(s, kind),
        *map(s.keep, constants),
        **attributes,
    )


IMAGE_FILTERS = weights(3, 2, 3, 5)
FILTERS = weights(6, 3, 2, 3)
CHANNELS = [np.array([1.5, 0.5, 2.0], np.float32), np.array([0.1, 0.2, 0.3], np.float32)]
UNARY = "Abs Cos Elu Exp Neg Relu Selu Sigmoid Sin Softplus Softsign Square Tanh Gelu"
UNARY += " asinh atan ceil cosh erf floor is_nan round sign sinh tan Softmax OnesLike ZerosLike"
BINARY = "Add AddV2 BiasAdd Maximum Minimum Mul Sub SquaredDifference AddN"
COMPARED = "Equal Greater GreaterEqual Less LessEqual NotEqual equal greater greater_equal less"
COMPARED += " less_equal not_equal"
PLAIN = "PlainEqual PlainGreater PlainGreaterEqual PlainLess PlainLessEqual PlainNotEqual"
BEGIN, END, STRIDES = [0, 1, 9, 2], [0, 3, 1, 0], [1, 1, -2, 1]
MASKS = {
    "begin_mask": 1,
    "end_mask": 1,
    "ellipsis_mask": 0,
    "new_axis_mask": 0,
    "shrink_axis_mask": 8,
}

SHRUNK = {name: int(name == "shrink_axis_mask") for name in MASKS}

CASES: dict[str, list[Callable[[Steps], int]]] = {
    **{name: [of(name, "rows")] for name in UNARY.split()},
    **{name: [of(name, "rows", "small"), of(name, "rows", "half")] for name in BINARY.split()},
    **{
        name: [of(name, "whole", "whole"), of(name, "rows", "small"), of(name, "whole", "half")]
        for name in COMPARED.split()
    },
    **{name: [of(name, "rows", "small"), of(name, "rows", "half")] for name in PLAIN.split()},
    **{name: [of(name, "positive")] for name in ("Log", "log", "Rsqrt", "Sqrt")},
    **{name: [of(name, "small")] for name in ("acos", "asin", "atanh")},
    **{name: [of(name, "flags", "others")] for name in ("LogicalAnd", "LogicalOr", "logical_xor")},
    **{name: [of(name, "rows", "positive")] for name in ("PlainRealDiv", "RealDiv")},
    **{
        name: [
            kept(name, "table", [1, 2], keep_dims=False),
            kept(name, "table", [-1], keep_dims=True),
        ]
        for name in ("Max", "Mean", "Min", "Prod", "Sum")
    },
    "Cast": [
        of("Cast", "rows", dtype="float64"),
        of("Cast", "flags", dtype="float32"),
        of("Cast", "rows", dtype="bool"),
    ],
    "ConcatV2": [lambda s: s.add("ConcatV2", 0, s.whole, s.keep(1))],
    "Conv2D": [
        kept("Conv2D", "image", IMAGE_FILTERS, strides=(1, 2, 1, 1), padding="SAME"),
        kept("Conv2D", "image", IMAGE_FILTERS, strides=(1, 1, 2, 1), padding="VALID"),
    ],
    "Einsum": [kept("Einsum", "table", weights(12, 3), equation="bij,jk->bik")],
    "ExpandDims": [kept("ExpandDims", "table", -1), kept("ExpandDims", "rows", 1)],
    "Fill": [lambda s: s.add("Fill", s.add("Shape", 0), s.half)],
    "FloorDiv": [
        kept("FloorDiv", "rows", np.float32(0.3)),
        kept("FloorDiv", "whole", np.int64(3)),
        kept("FloorDiv", "whole", np.int64(-2)),
    ],
    "FusedBatchNormV3": [
        kept(
            "FusedBatchNormV3",
            kind,
            *CHANNELS,
            *(CHANNELS if not is_training else []),
            epsilon=1e-3,
            data_format=data_format,
            is_training=is_training,
        )
        for kind, data_format in (("image", "NHWC"), ("channels", "NCHW"))
        for is_training in (False,)
    ]
    + [
        # Layer normalisation: each row is a channel of its own.
        lambda s: s.add(
            "FusedBatchNormV3",
            s.add("reshape_copying", 0, shape=(1, -1, 48, 1)),
            s.add("OnesLike", s.add("Mean", 0, s.keep([1]), keep_dims=False)),
            s.add("ZerosLike", s.add("Mean", 0, s.keep([1]), keep_dims=False)),
            epsilon=1e-3,
            data_format="NCHW",
            is_training=True,
        )
    ],
    "GatherV2": [
        lambda s: s.add("GatherV2", s.keep(weights(40, 3)), s.add("Abs", s.whole), s.keep(0)),
        kept("GatherV2", "table", [0, 3], 1),
        lambda s: s.add(
            "GatherV2",
            s.keep(weights(40, 3)),
            s.add("Cast", s.add("Max", s.positive, s.keep([0, 1]), keep_dims=False), dtype="int64"),
            s.keep(0),
        ),
    ],
    "LeakyRelu": [of("LeakyRelu", "rows", alpha=0.2)],
    "LogicalNot": [of("LogicalNot", "flags")],
    "MatMul": [
        kept("MatMul", "rows", weights(48, 3)),
        kept("MatMul", "rows", weights(3, 48), transpose_a=False, transpose_b=True),
        kept("MatMul", "table", weights(12, 2)),
    ],
    "OneHot": [
        kept("OneHot", "whole", 4, np.float32(2), np.float32(-1), axis=-1),
        kept("OneHot", "whole", 4, np.float32(1), np.float32(0), axis=1),
    ],
    "Pack": [of("Pack", "rows", "small", axis=1), of("Pack", "rows", "whole", axis=-1)],
    "Pad": [kept("Pad", "image", [[0, 0], [1, 2], [0, 1], [0, 0]])],
    "Pow": [kept("Pow", "positive", np.float32(1.7))],
    "Range": [
        lambda s: s.add(
            "Range",
            s.keep(0, np.int32),
            s.add("StridedSlice", s.add("Shape", 0), *map(s.keep, ([1], [2], [1])), **SHRUNK),
            s.keep(2, np.int32),
        )
    ],
    "Reshape": [
        kept("Reshape", "rows", [-1, 6, 8]),
        lambda s: s.add("Reshape", s.table, s.add("Shape", 0)),
    ],
    "Select": [
        of("Select", "flags", "rows", "small"),
        lambda s: s.add(
            "Select",
            s.add("greater", s.add("Mean", 0, s.keep([1]), keep_dims=False), s.keep(0.0)),
            0,
            s.small,
        ),
    ],
    "SelectV2": [of("SelectV2", "flags", "rows", "half")],
    "Shape": [of("Shape", "table"), of("Shape", "table", dtype="int64")],
    "Slice": [kept("Slice", "table", [0, 1, 2], [-1, 2, -1])],
    "Split": [lambda s: s.add("Split", s.keep(2), s.table, num_split=3, port=1)],
    "SplitV": [kept("SplitV", "table", [2, 7, 3], 2, port=1)],
    "Squeeze": [
        lambda s: s.add("Squeeze", s.add("ExpandDims", 0, s.keep(1)), squeeze_dims=(1,)),
    ],
    "StridedSlice": [
        kept("StridedSlice", "image", BEGIN, END, STRIDES, **MASKS),
        kept(
            "StridedSlice",
            "image",
            [0, -1],
            [0, 0],
            [1, 1],
            **MASKS | {"begin_mask": 0, "end_mask": 0, "ellipsis_mask": 1, "shrink_axis_mask": 2},
        ),
        kept(
            "StridedSlice",
            "table",
            [0, 0, 0, -2],
            [0, 0, 0, -9],
            [1, 1, 1, -3],
            **MASKS | {"begin_mask": 5, "end_mask": 5, "new_axis_mask": 2, "shrink_axis_mask": 0},
        ),
    ],
    "Tile": [kept("Tile", "table", [1, 2, 3])],
    "Transpose": [kept("Transpose", "image", [0, 3, 1, 2]), of("Transpose", "rows")],
    "acosh": [lambda s: s.add("acosh", s.add("AddV2", s.positive, s.half))],
    "arg_max": [
        of("arg_max", "rows", axis=1, keep_dims=True, is_last=False, is_min=False),
        of("arg_max", "whole", axis=1, keep_dims=False, is_last=True, is_min=True),
    ],
    "convolve": [
        kept(
            "convolve",
            "channels",
            weights(6, 1, 2, 3),
            strides=(1, 2),
            dilations=(2, 1),
            pads=(1, 0, 2, 1),
            groups=3,
        ),
        kept(
            "convolve",
            "channels",
            FILTERS,
            strides=(1, 1),
            dilations=(1, 1),
            pads=(0, 0, 0, 0),
            groups=1,
        ),
    ],
    "cumulated": [of("cumulated", "table", axis=-1)],
    "divide": [of("divide", "rows", "positive"), kept("divide", "whole", np.int64(-3))],
    "expand": [
        lambda s: s.add("expand", s.add("ExpandDims", 0, s.keep(1)), s.keep([1, 3, 48])),
    ],
    "flatten": [of("flatten", "image", axis=1), of("flatten", "image", axis=2)],
    "log_softmax": [of("log_softmax", "table", axis=1)],
    "matmul": [
        kept("matmul", "table", weights(12, 5)),
        lambda s: s.add("matmul", s.table, s.add("reshape_copying", 0, shape=(-1, 12, 4))),
    ],
    "modulo": [
        kept("modulo", "rows", np.float32(0.7), is_fmod=False),
        kept("modulo", "rows", np.float32(-0.7), is_fmod=True),
        kept("modulo", "whole", np.int64(-3), is_fmod=False),
        kept("modulo", "whole", np.int64(3), is_fmod=True),
    ],
    "pad": [of("pad", "channels", pads=(0, 0, 1, 2, 0, 0, 3, 0), value=0.5)],
    "pool": [
        of("pool", "channels", window=(2, 3), strides=(1, 2), pads=(1, 0, 0, 1), kind=kind)
        for kind in ("max", "mean", "mean_with_padding")
    ],
    "power": [
        kept("power", "positive", np.int64(3)),
        kept("power", "whole", np.int64(2)),
    ],
    "repeat_rows": [kept("repeat_rows", "table", weights(2, 5))],
    "reshape_copying": [of("reshape_copying", "table", shape=(0, -1, 6))],
    "slice_axes": [
        of("slice_axes", "table", axes=(2, 1), starts=(-1, 1), ends=(-(2**40), 3), steps=(-2, 1)),
    ],
    "softmax": [of("softmax", "table", axis=1)],
    "take": [
        kept("take", "table", [-1, 0], axis=2),
        lambda s: s.add("take", s.keep(weights(60, 2)), s.whole, axis=0),
    ],
    "where": [of("where", "flags", "rows", "half")],
}


def test_every_operation_of_the_engine_has_a_form_in_onnx() -> None:
    assert set(TRANSLATIONS) == set(OPERATIONS) == set(CASES)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        pytest.param(name, build, id=f"{name}-{place}")
        for name, builds in CASES.items()
        for place, build in enumerate(builds)
    ],
)
def test_operation_gives_the_same_by_onnxruntime(name: str, build: Callable[[Steps], int]) -> None:
    steps = Steps()
    network = steps.finish(build(steps))

    run = _runtime(network)

    assert name in {step.operation for step in network.steps}
    for size in (1, 3, 5):
        expected = network.compile()(ROWS[:size].copy())
        found = run(ROWS[:size])
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def _runtime(network: NumpyNetwork, tried: Array = ROWS) -> Callable[[Array], Array]:
    writer = GraphWriter()
    result = write_network(writer, network, tried, observations="observation")
    writer.add("Identity", result, output="result")
    writer.prune(["result"])
    graph = onnx.helper.make_graph(
        writer.nodes,
        "graph",
        [tensor("observation", ["N", WIDTH])],
        [tensor("result", None)],
        [onnx.numpy_helper.from_array(value, key) for key, value in writer.constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def run(rows: Array) -> Array:
        (found,) = session.run(None, {"observation": rows})
        return np.asarray(found)

    return run


@pytest.mark.parametrize("operation", ["FloorDiv", "divide"])
def test_division_of_integers_by_what_may_be_zero_is_refused(operation: str) -> None:
    steps = Steps()
    one = steps.add("AddV2", steps.add("Abs", steps.whole), steps.keep(1))
    network = steps.finish(steps.add(operation, steps.whole, one))

    with pytest.raises(ExportError, match=f"its operation {operation}: it divides integers by a"):
        write_network(GraphWriter(), network, ROWS, observations="observation")


def test_negative_index_is_refused_as_the_engine_refuses_it() -> None:
    steps = Steps()
    network = steps.finish(
        steps.add("GatherV2", steps.keep(weights(40, 3)), steps.whole, steps.keep(0))
    )
    rows = np.abs(ROWS)

    run = _runtime(network, rows)

    assert np.array_equal(run(rows), network.compile()(rows))
    with pytest.raises(IndexError):
        network.compile()(-rows)
    with pytest.raises(InvalidArgument):
        run(-rows)


def test_batch_of_open_size_where_one_is_needed_is_refused() -> None:
    steps = Steps()
    network = steps.finish(steps.add("Split", steps.keep(0), 0, num_split=1, port=0))

    with pytest.raises(ExportError, match="Split: its step observation needs the number of rows"):
        write_network(GraphWriter(), network, ROWS, observations="observation")
