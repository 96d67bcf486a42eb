"""Observations around the constants that a graph normalises its own by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.formats.onnx.model_file import read_model
from policy_server.formats.onnx.roles import find_roles
from policy_server.formats.onnx.working_range import working_rows
from tests.support.onnx_models import node, tensor, weights, write_model

Array = NDArray[Any]
CENTRE = np.array([300, 250, 20, 1000], np.float32)
SCALE = np.array([0.05, 0.02, 0.01, 0.1], np.float32)
CONSTANTS: dict[str, Array] = {
    "mean": CENTRE,
    "minus": -CENTRE,
    "std": SCALE,
    "inverse": 1 / SCALE,
    "var": SCALE**2,
    "ones": np.ones(4, np.float32),
    "zeros": np.zeros(4, np.float32),
    "half": np.array(0.5, np.float32),
    "eight": np.array(8, np.float32),
    "flat": np.array([-1, 4]),
    "w": weights(4, 2),
}


def rows_of(folder: Path, *nodes: Any, inputs: list[Any] | None = None) -> Array | None:  # noqa: ANN401 -- onnx is untyped
    path = write_model(
        folder,
        [*nodes, node("MatMul", ["z", "w"], ["logits"])],
        inputs or [tensor("obs", ["batch", 4])],
        [tensor("logits", ["batch", 2])],
        CONSTANTS,
    )
    model = read_model({path.name: path})
    roles = find_roles(model, None)
    return working_rows(model, roles.feeds, 4)


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param(
            [node("Sub", ["obs", "mean"], ["c"]), node("Div", ["c", "std"], ["z"])], id="sub, div"
        ),
        pytest.param(
            [node("Add", ["minus", "obs"], ["c"]), node("Mul", ["c", "inverse"], ["z"])],
            id="add, mul",
        ),
        pytest.param(
            [
                node("Sub", ["obs", "mean"], ["c"]),
                node("Add", ["var", "zeros"], ["v"]),
                node("Sqrt", ["v"], ["s"]),
                node("Div", ["c", "s"], ["z"]),
            ],
            id="computed constants",
        ),
        pytest.param(
            [
                node(
                    "BatchNormalization",
                    ["obs", "ones", "zeros", "mean", "var"],
                    ["z"],
                    epsilon=0.0,
                )
            ],
            id="batch normalization",
        ),
        pytest.param(
            [
                node("Cast", ["obs"], ["wide"], to=11),
                node("Cast", ["wide"], ["o"], to=1),
                node("Reshape", ["o", "flat"], ["f"]),
                node("Sub", ["f", "mean"], ["c"]),
                node("Div", ["c", "std"], ["z"]),
            ],
            id="reshaped",
        ),
    ],
)
def test_rows_are_normal_behind_the_normaliser(nodes: list[Any], tmp_path: Path) -> None:
    rows = rows_of(tmp_path, *nodes)

    assert rows is not None
    behind = (rows - CENTRE) / SCALE
    assert np.abs(behind.mean(axis=0)).max() < 0.3
    assert (behind.std(axis=0) > 0.3).all()
    assert (behind.std(axis=0) < 1.5).all()


def test_inputs_that_are_joined_first_have_their_own_columns(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        node("Concat", ["b", "a"], ["x"], axis=1),
        node("Sub", ["x", "mean"], ["c"]),
        node("Div", ["c", "std"], ["z"]),
        inputs=[tensor("a", ["batch", 1]), tensor("b", ["batch", 3])],
    )

    assert rows is not None
    np.testing.assert_allclose(rows.mean(axis=0), [1000, 300, 250, 20], rtol=0.01)


def test_integers_stay_in_the_range_of_their_type(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        node("Cast", ["obs"], ["o"], to=1),
        node("Mul", ["o", "half"], ["z"]),
        inputs=[tensor("obs", ["batch", 4], "uint8")],
    )

    assert rows is not None
    assert (rows == rows.round()).all()
    assert rows.min() >= 0


def test_graph_without_a_normaliser_has_none(tmp_path: Path) -> None:
    assert rows_of(tmp_path, node("Tanh", ["obs"], ["z"])) is None
