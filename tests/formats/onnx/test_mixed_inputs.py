"""Graphs whose inputs hold numbers of different types, which one row carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.engine.operations import OPERATIONS
from policy_server.errors import DistributionError, ObservationError
from policy_server.formats.known_formats import load_policy
from policy_server.observation_fit import fit_observations
from policy_server.observations import ObservationSpace
from policy_server.observations.array_rules import ArrayRules
from policy_server.policy import PolicyInputs
from policy_server.schema import number_range, parse_schema
from policy_server.settings import Engine
from tests.support.onnx_models import node, tensor, weights, write_model


def two_inputs(folder: Path, dtype: str) -> Path:
    """Write a graph that adds the remainder of a whole number by 2 to the first observation."""
    return write_model(
        folder,
        [
            node("Mod", ["id", "two"], ["odd"], fmod=int(dtype.startswith("float"))),
            node("Cast", ["odd"], ["parity"], to=1),
            node("Add", ["x", "parity"], ["actions"]),
        ],
        [tensor("x", ["batch", 1]), tensor("id", ["batch", 1], dtype)],
        [tensor("actions", ["batch", 1])],
        {"two": np.array([2], dtype)},
    )


@pytest.mark.parametrize("dtype", ["float64", "int64", "int32"])
@pytest.mark.parametrize("engine", ["numpy", "onnxruntime"])
def test_large_number_beside_a_float32_is_not_rounded(
    engine: Engine, dtype: str, tmp_path: Path
) -> None:
    two_inputs(tmp_path, dtype)

    policy = load_policy(tmp_path, engine=engine)

    assert policy.signature.row_dtype is np.float64
    rows = np.array([[0.5, 2**24 + 1], [0.5, 2**24]], np.float64)
    found = policy.infer(PolicyInputs.of(rows)).actions[:, 0]
    assert found.tolist() == [1.5, 0.5]


@pytest.mark.parametrize(
    "body",
    ['{"obs": [0.5, 300]}', '{"obs": [0.5, 0.9]}', '{"obs": [0.5, -1]}'],
    ids=["too large", "no whole number", "negative"],
)
def test_number_that_its_own_input_does_not_hold_is_refused(body: str, tmp_path: Path) -> None:
    two_inputs(tmp_path, "uint8")
    schema = parse_schema("observations: {x: {type: float}, id: {type: float}}")
    signature = load_policy(tmp_path, schema).signature
    numbers = number_range(signature.observation_dtype, signature.observation_columns)
    space = ObservationSpace(fit_observations(schema, signature), numbers)
    x, number = json.loads(body)["obs"]

    with pytest.raises(ObservationError, match="whole number"):
        space.parse_raw(body.encode())
    with pytest.raises(ObservationError, match=r"body\.id"):
        space.parse_named(json.dumps({"x": x, "id": number}).encode())
    with pytest.raises(ObservationError, match="whole number"):
        ArrayRules(None, numbers).check(np.array([[x, number]]), None)
    space.parse_raw(b'{"obs": [0.5, 255]}')
    space.parse_named(b'{"x": 0.5, "id": 255}')


@pytest.mark.parametrize("engine", ["numpy", "onnxruntime"])
def test_integer_action_that_would_be_rounded_is_refused(engine: Engine, tmp_path: Path) -> None:
    write_model(
        tmp_path,
        [node("Identity", ["id"], ["actions"])],
        [tensor("id", ["batch", 1], "int64")],
        [tensor("actions", ["batch", 1], "int64")],
    )
    policy = load_policy(tmp_path, engine=engine)

    largest = policy.infer(PolicyInputs.of(np.array([[2.0**24 - 1]]))).actions

    assert largest.tolist() == [[2**24 - 1]]
    with pytest.raises(DistributionError, match="an integer beyond 16777215"):
        policy.infer(PolicyInputs.of(np.array([[2.0**24 + 1]])))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_padded_pool_of_an_image_of_integers_is_that_of_onnxruntime(
    dtype: str, tmp_path: Path
) -> None:
    write_model(
        tmp_path,
        [
            node("MaxPool", ["obs"], ["pooled"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Cast", ["pooled"], ["numbers"], to=1),
            node("Flatten", ["numbers"], ["flat"]),
            node("MatMul", ["flat", "w"], ["logits"]),
        ],
        [tensor("obs", ["batch", 1, 4, 4], dtype)],
        [tensor("logits", ["batch", 3])],
        {"w": weights(16, 3)},
    )
    rows = np.random.default_rng(1).integers(-128 if dtype == "int8" else 0, 127, (5, 16))
    inputs = PolicyInputs.of(rows.astype(np.float64), is_deterministic=True)

    ours, theirs = (
        load_policy(tmp_path, engine=engine).infer(inputs).distribution
        for engine in ("numpy", "onnxruntime")
    )

    assert ours is not None
    assert theirs is not None
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_number_that_an_array_of_integers_can_not_hold_leaves_the_policy_to_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(_: NDArray[Any]) -> NDArray[Any]:
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setitem(OPERATIONS, "Tanh", overflowing)
    write_model(
        tmp_path,
        [node("Tanh", ["obs"], ["logits"])],
        [tensor("obs", ["batch", 3])],
        [tensor("logits", ["batch", 3])],
    )

    signature = load_policy(tmp_path).signature

    assert signature.engine == "onnxruntime"
