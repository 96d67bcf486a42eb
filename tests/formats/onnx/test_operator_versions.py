"""Operators that mean the same in two versions, held against onnxruntime in models of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from policy_server.formats.onnx.operator_versions import is_same_operation
from tests.support.onnx_models import node, tensor

ROWS = np.random.default_rng(5).standard_normal((3, 4, 2, 2)).astype(np.float32)
SCALE = numpy_helper.from_array(np.linspace(0.5, 2, 4, dtype=np.float32), "c")
ROIS = numpy_helper.from_array(np.array([[0, 0, 2, 2]], np.float32), "r")
FIRST = numpy_helper.from_array(np.array([0]), "i")


def answers(one: Any, opset: int) -> Any:  # noqa: ANN401 -- onnx is untyped
    graph = helper.make_graph(
        [one], "g", [tensor("x", [3, 4, 2, 2])], [tensor("y", None)], [SCALE, ROIS, FIRST]
    )
    # The type of the output is the operator's own.
    graph.output[0].ClearField("type")
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": ROWS})[0]


@pytest.mark.parametrize(
    ("one", "versions"),
    [
        (node("Relu", ["x"], ["y"]), (7, 21)),
        (node("ArgMax", ["x"], ["y"], axis=1), (11, 13)),
        (node("BatchNormalization", ["x", "c", "c", "c", "c"], ["y"]), (9, 15)),
        (node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2]), (7, 19)),
        (node("Dropout", ["x"], ["y"]), (7, 13)),
        (node("Clip", ["x"], ["y"]), (7, 13)),
        (node("ReduceSum", ["x"], ["y"]), (11, 13)),
        (node("LogSoftmax", ["x"], ["y"], axis=2), (7, 11)),
        (node("Softmax", ["x"], ["y"], axis=-1), (11, 13)),
        (node("LeakyRelu", ["x"], ["y"]), (7, 16)),
    ],
    ids=lambda item: item.op_type if hasattr(item, "op_type") else "",
)
def test_operation_that_is_the_same_gives_the_same_numbers(
    one: Any,  # noqa: ANN401 -- onnx is untyped
    versions: tuple[int, int],
) -> None:
    older, newer = (answers(one, version) for version in versions)

    np.testing.assert_allclose(older, newer, atol=1e-6)
    assert is_same_operation(one, "", *versions)
    assert is_same_operation(one, "", *versions[::-1])


@pytest.mark.parametrize(
    ("one", "versions"),
    [
        (node("Softmax", ["x"], ["y"]), (12, 13)),
        (node("Softmax", ["x"], ["y"], axis=1), (12, 13)),
        (node("Hardmax", ["x"], ["y"], axis=1), (12, 13)),
        (node("LogSoftmax", ["x"], ["y"], axis=2), (10, 13)),
        (node("RoiAlign", ["x", "r", "i"], ["y"], output_height=2, output_width=2), (15, 16)),
        (node("DFT", ["x"], ["y"]), (17, 20)),
    ],
    ids=["default", "axis", "Hardmax", "LogSoftmax", "RoiAlign", "DFT"],
)
def test_operation_that_gives_other_numbers_is_another(
    one: Any,  # noqa: ANN401 -- onnx is untyped
    versions: tuple[int, int],
) -> None:
    older, newer = (answers(one, version) for version in versions)

    assert not np.allclose(older, newer)
    assert not is_same_operation(one, "", *versions)
    assert not is_same_operation(one, "", *versions[::-1])


def test_operation_of_a_domain_that_onnx_does_not_know_is_the_same() -> None:
    assert is_same_operation(node("Gelu", ["x"], ["y"]), "com.microsoft", 1, 2)
    assert not is_same_operation(node("Gelu", ["x"], ["y"]), "", 19, 20)
    assert is_same_operation(node("Normalizer", ["x"], ["y"]), "ai.onnx.ml", 1, 3)
