"""PyTorch's activations and LSTM layers, held against PyTorch's own answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.engine.building import NetworkBuilder
from policy_server.formats.torch_layers import (
    ACTIVATIONS,
    LstmLayer,
    add_activation,
    add_lstm_layer,
)
from tests.support.folders import ROOT

TORCH: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "torch" / "layers.json").read_text())


def computed(builder: NetworkBuilder, result: int, rows: NDArray[np.float32]) -> NDArray[Any]:
    """Return the result of a network for float32 rows."""
    return builder.finish(result).compile()(rows)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_pytorch_s(name: str) -> None:
    rows = np.array([TORCH["inputs"]], np.float32)
    builder = NetworkBuilder(rows.shape[1])
    # A PReLU's slope before it has learned.
    slopes = np.array([0.25], np.float32) if name == "PReLU" else None

    answers = computed(builder, add_activation(builder, 0, name, slopes), rows)

    assert answers.dtype == np.float32
    assert answers[0] == pytest.approx(TORCH["answers"][name], abs=1e-6, rel=1e-6)


def test_every_activation_was_asked_of_pytorch() -> None:
    assert sorted(TORCH["answers"]) == list(ACTIVATIONS)


def test_activation_of_a_row_is_the_same_among_others() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for name in set(ACTIVATIONS) - {"PReLU"}:
        builder = NetworkBuilder(3)
        result = add_activation(builder, 0, name)
        assert builder.is_row_wise(result), name
        together = computed(builder, result, rows)
        alone = [computed(builder, result, row[None])[0] for row in rows]
        assert together.tolist() == np.array(alone).tolist(), name


def test_lstm_layer_is_pytorch_s() -> None:
    tensors = {name: np.array(value, np.float32) for name, value in TORCH["lstm"].items()}
    step = {name: np.array(value, np.float32) for name, value in TORCH["lstm_step"].items()}
    rows = np.concatenate([step["inputs"], step["hidden"], step["cell"]], axis=1)
    builder = NetworkBuilder(rows.shape[1])
    x, hidden, cell = (
        builder.add("Slice", (0, *(builder.keep(np.array(part)) for part in bounds)))
        for bounds in (([0, 0], [-1, 3]), ([0, 3], [-1, 2]), ([0, 5], [-1, 2]))
    )
    layer = LstmLayer(
        tensors["weight_ih_l0"],
        tensors["weight_hh_l0"],
        tensors["bias_ih_l0"] + tensors["bias_hh_l0"],
    )

    after = add_lstm_layer(builder, x, hidden, cell, layer)

    for register, name in zip(after, ("hidden_after", "cell_after"), strict=True):
        assert computed(builder, register, rows) == pytest.approx(step[name], abs=1e-6)
