"""Tensors whose size a graph states, refused before anything computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from policy_server.errors import ModelError
from policy_server.formats.known_formats import load_policy
from policy_server.formats.onnx.model_file import OnnxModel, read_model
from policy_server.formats.onnx.tensor_sizes import check_sizes
from policy_server.schema import parse_schema
from tests.support.onnx_models import actor, node, tensor, write_model

MANY = 700_000_000


def whole(name: str, *values: int) -> Any:  # noqa: ANN401 -- onnx is untyped
    return node("Constant", [], [name], value_ints=list(values))


LARGE = [
    pytest.param([whole("n", MANY), node("ConstantOfShape", ["n"], ["x"])], id="ConstantOfShape"),
    pytest.param([whole("n", MANY, 1, 3), node("Expand", ["net", "n"], ["x"])], id="Expand"),
    pytest.param([whole("n", 1, MANY), node("Tile", ["net", "n"], ["x"])], id="Tile"),
    pytest.param([whole("n", 0, 0, 0, MANY), node("Pad", ["net", "n"], ["x"])], id="Pad"),
    pytest.param(
        [
            node("Constant", [], ["start"], value_int=0),
            node("Constant", [], ["n"], value_int=MANY),
            node("Constant", [], ["step"], value_int=1),
            node("Range", ["start", "n", "step"], ["x"]),
        ],
        id="Range",
    ),
    pytest.param(
        [
            node("ArgMax", ["net"], ["best"], axis=1, keepdims=0),
            node("Constant", [], ["n"], value_int=MANY),
            node("Constant", [], ["both"], value_floats=[0.0, 1.0]),
            node("OneHot", ["best", "n", "both"], ["x"]),
        ],
        id="OneHot",
    ),
    pytest.param(
        [whole("n", 1, MANY), node("Resize", ["net", "", "", "n"], ["x"])], id="Resize to sizes"
    ),
    pytest.param(
        [
            node("Constant", [], ["n"], value_floats=[1.0, 7e8]),
            node("Resize", ["net", "", "n"], ["x"]),
        ],
        id="Resize by scales",
    ),
    pytest.param([node("RandomUniform", [], ["x"], shape=[MANY])], id="RandomUniform"),
    pytest.param(
        [
            whole("c0", 1),
            *(node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(28)),
            node("Cast", ["c28"], ["x"], to=TensorProto.FLOAT),
        ],
        id="Concat of a tensor with itself",
    ),
    pytest.param(
        [
            *(whole(name, *sizes) for name, sizes in (("r", (60_000, 1)), ("c", (1, 60_000)))),
            *(node("ConstantOfShape", [name], [f"all_{name}"]) for name in ("r", "c")),
            node("Mul", ["all_r", "all_c"], ["x"]),
        ],
        id="broadcasting",
    ),
    pytest.param(
        [
            whole("n", 60_000),
            node("ConstantOfShape", ["n"], ["v"]),
            node("Einsum", ["v", "v"], ["x"], equation="a,b->ab"),
        ],
        id="Einsum",
    ),
    pytest.param(
        [node("Constant", [], ["n"], value_int=3_000_000_000), node("HammingWindow", ["n"], ["x"])],
        id="HammingWindow",
    ),
    pytest.param(
        [
            *(
                node("Constant", [], [name], value_int=size)
                for name, size in (("bins", 60_000), ("length", 60_000), ("rate", 8_000))
            ),
            *(node("Constant", [], [f"f{i}"], value_float=float(i)) for i in (1, 2_000)),
            node("MelWeightMatrix", ["bins", "length", "rate", "f1", "f2000"], ["x"]),
        ],
        id="MelWeightMatrix",
    ),
]


@pytest.mark.parametrize("nodes", LARGE)
def test_tensor_of_too_many_numbers_is_refused(nodes: list[Any], tmp_path: Path) -> None:
    path = actor(
        tmp_path, *nodes, node("ReduceSum", ["x"], ["s"]), node("Add", ["net", "s"], ["logits"])
    )

    with pytest.raises(ModelError, match="makes a tensor of more than"):
        check_sizes(read_model({path.name: path}))


def test_large_tensor_is_refused_before_a_runtime_computes_it(tmp_path: Path) -> None:
    actor(
        tmp_path,
        whole("n", MANY),
        node("ConstantOfShape", ["n"], ["x"]),
        node("ReduceSum", ["x"], ["s"]),
        node("Add", ["net", "s"], ["logits"]),
    )

    with pytest.raises(ModelError, match="its ConstantOfShape makes a tensor of more than"):
        load_policy(tmp_path, parse_schema("parameters: {}"))


def test_large_tensor_within_a_branch_is_refused(tmp_path: Path) -> None:
    yes = helper.make_graph(
        [
            whole("n", MANY),
            node("ConstantOfShape", ["n"], ["x"]),
            node("ReduceSum", ["x"], ["s"]),
            node("Add", ["net", "s"], ["y"]),
        ],
        "yes",
        [],
        [tensor("y", None)],
    )
    no = helper.make_graph([node("Identity", ["net"], ["z"])], "no", [], [tensor("z", None)])
    path = actor(
        tmp_path,
        node("Constant", [], ["rare"], value_float=77.5),
        node("ReduceMax", ["obs"], ["largest"], keepdims=0),
        node("Equal", ["largest", "rare"], ["is_rare"]),
        node("If", ["is_rare"], ["logits"], then_branch=yes, else_branch=no),
    )

    with pytest.raises(ModelError, match="its ConstantOfShape makes a tensor of more than"):
        check_sizes(read_model({path.name: path}))


def quantized(folder: Path, *nodes: Any) -> OnnxModel:  # noqa: ANN401 -- onnx is untyped
    """Return a policy with 51.2 million weights of 8 bits; nodes make its weights `w` of those."""
    path = write_model(
        folder,
        [
            *nodes,
            node("MatMul", ["obs", "first"], ["hidden"]),
            node("MatMul", ["hidden", "w"], ["wide"]),
            node("MatMul", ["wide", "last"], ["logits"]),
        ],
        [tensor("obs", ["batch", 4])],
        [tensor("logits", ["batch", 3])],
        {
            "q": np.zeros((8_000, 6_400), np.int8),
            "scale": np.array(0.01, np.float32),
            "first": np.ones((4, 8_000), np.float32),
            "last": np.ones((6_400, 3), np.float32),
        },
    )
    return read_model({path.name: path})


def test_tensor_of_the_weights_own_size_is_taken(tmp_path: Path) -> None:
    check_sizes(quantized(tmp_path, node("DequantizeLinear", ["q", "scale"], ["w"])))


@pytest.mark.parametrize(
    ("nodes", "operator"),
    [
        (
            [
                node("DequantizeLinear", ["q", "scale"], ["one"]),
                node("Concat", ["one", "one"], ["w"], axis=0),
            ],
            "Concat",
        ),
        (
            [
                node("DequantizeLinear", ["q", "scale"], ["one"]),
                node("ReduceSum", ["obs"], ["sum"], keepdims=0),
                node("Mul", ["one", "sum"], ["w"]),
            ],
            "Mul",
        ),
    ],
    ids=["larger than the weights", "of the observation"],
)
def test_larger_tensor_than_the_weights_and_one_of_an_observation_are_refused(
    nodes: list[Any], operator: str, tmp_path: Path
) -> None:
    model = quantized(tmp_path, *nodes)

    with pytest.raises(ModelError, match=f"its {operator} makes a tensor of more than 5"):
        check_sizes(model)


def test_tensor_of_an_ordinary_size_is_taken(tmp_path: Path) -> None:
    path = actor(
        tmp_path,
        whole("n", 60_000, 1),
        node("ConstantOfShape", ["n"], ["x"]),
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Add", ["net", "s"], ["logits"]),
    )

    check_sizes(read_model({path.name: path}))
    assert np.isfinite(load_policy(tmp_path).signature.observation_width or 0)
