"""Functions of a file, held against their nodes in their place as onnxruntime computes both."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from policy_server.errors import ModelError
from policy_server.formats.known_formats import load_policy
from policy_server.formats.onnx.graph_readings import read_by_graph
from policy_server.formats.onnx.inlining_check import check_inlined
from policy_server.formats.onnx.model_file import OnnxModel, read_model
from policy_server.schema import parse_schema
from tests.support.onnx_models import files_in, node, tensor, weights, write_model

DISCRETE = parse_schema("parameters: {discrete: True}")


def with_function(
    folder: Path,
    *nodes: Any,  # noqa: ANN401 -- onnx is untyped
    after: Any = None,  # noqa: ANN401 -- onnx is untyped
    output: str = "logits",
) -> OnnxModel:
    """Write a policy whose logits, or what comes before its last node, a function computes."""
    folder.mkdir(exist_ok=True)
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "f", ["x"], ["y"], list(nodes), opsets)
    result = output if after is None else after.input[0]
    write_model(
        folder,
        [
            node("MatMul", ["obs", "w"], ["net"]),
            node("f", ["net"], [result], domain="own"),
            *([] if after is None else [after]),
        ],
        [tensor("obs", ["batch", 4])],
        [_output(output if after is None else after.output[0])],
        {"w": weights(4, 3)},
        functions=[function],
    )
    return read_model(files_in(folder))


def _output(name: str) -> Any:  # noqa: ANN401 -- onnx is untyped
    if name == "action":
        return tensor(name, ["batch", 1], "int64")
    return tensor(name, ["batch", 3])


def leaky(slope: float) -> Any:  # noqa: ANN401 -- onnx is untyped
    return node("LeakyRelu", ["x"], ["y"], alpha=slope)


def check(model: OnnxModel) -> None:
    reading = read_by_graph(model, None, DISCRETE)
    check_inlined(reading.graph, reading.plan)


@pytest.mark.parametrize(
    "after",
    [None, node("Softmax", ["before"], ["probabilities"], axis=-1)],
    ids=["a function's result", "a tensor behind it"],
)
def test_functions_that_are_computed_as_others_are_refused(after: Any, tmp_path: Path) -> None:  # noqa: ANN401 -- onnx is untyped
    model = with_function(tmp_path / "first", leaky(0.4), after=after)
    other = with_function(tmp_path / "other", leaky(0.01), after=after)

    check(model)
    with pytest.raises(ModelError) as caught:
        check(replace(model, original=other.original))

    name = "logits" if after is None else "probabilities"
    assert caught.value.message == (
        f"policy.onnx: onnxruntime computes another {name!r} with its functions than with their "
        "operations in the place of their calls; export it without functions"
    )


def test_functions_with_another_shape_of_result_are_refused(tmp_path: Path) -> None:
    model = with_function(tmp_path / "first", leaky(0.4))
    columns = node("Constant", [], ["c"], value_ints=[0, 1])
    other = with_function(tmp_path / "other", columns, node("Gather", ["x", "c"], ["y"], axis=1))

    with pytest.raises(
        ModelError, match="onnxruntime computes another 'logits' with its functions"
    ):
        check(replace(model, original=other.original))


def test_random_numbers_are_not_compared(tmp_path: Path) -> None:
    draw = node("Multinomial", ["before"], ["action"], sample_size=1, dtype=7)
    model = with_function(tmp_path, leaky(0.4), after=draw)

    check(model)


def test_draw_within_a_function_is_not_compared(tmp_path: Path) -> None:
    draw = node("Multinomial", ["h"], ["y"], sample_size=1, dtype=7)
    leaky_relu = node("LeakyRelu", ["x"], ["h"], alpha=0.4)
    model = with_function(tmp_path, leaky_relu, draw, output="action")

    check(model)


def test_text_beside_the_logits_is_not_compared(tmp_path: Path) -> None:
    with_function(tmp_path, leaky(0.4))
    path = tmp_path / "policy.onnx"
    model = onnx.load(path)
    model.graph.node.append(node("Constant", [], ["version"], value_string="1.0"))
    model.graph.output.append(helper.make_tensor_value_info("version", onnx.TensorProto.STRING, []))
    path.write_bytes(model.SerializeToString())

    check(read_model(files_in(tmp_path)))


def test_without_onnxruntime_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_function(tmp_path / "first", leaky(0.4))
    other = with_function(tmp_path / "other", leaky(0.01))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    check(replace(model, original=other.original))


def test_numbers_of_a_function_that_lie_beside_the_file_are_read(tmp_path: Path) -> None:
    number = numpy_helper.from_array(np.full(3, 0.5, np.float32))
    constant = node("Constant", [], ["c"], value=number)
    with_function(tmp_path, constant, node("Mul", ["x", "c"], ["y"]))
    path = tmp_path / "policy.onnx"
    model = onnx.load(path)
    stored = model.functions[0].node[0].attribute[0].t
    (tmp_path / "beside.bin").write_bytes(stored.raw_data)
    stored.ClearField("raw_data")
    stored.data_location = onnx.TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="beside.bin")
    path.write_bytes(model.SerializeToString())

    assert load_policy(tmp_path, DISCRETE).signature.engine == "numpy"
