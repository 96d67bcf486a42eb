"""What the weights tell: the width of an observation, and whether a network is a policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.formats.saved_model.graph import load_graph
from policy_server.formats.saved_model.weights import find_width, is_feature_layer, is_untrained
from tests.support.hand_built import save_functions, tf, weights

KERNEL, BIAS = weights(6, 3)


@pytest.mark.parametrize(
    ("network", "width"),
    [
        (lambda rows: tf.matmul(rows, KERNEL), 6),
        (lambda rows: tf.matmul(rows, KERNEL.T, transpose_b=True), 6),
        (lambda rows: tf.matmul((tf.identity(rows) - 0.5) * 2.0, KERNEL), 6),
        (lambda rows: tf.matmul(tf.clip_by_value(rows + rows, -1.0, 1.0), KERNEL), 6),
        (lambda rows: tf.matmul(KERNEL, rows), None),
        (lambda rows: tf.matmul(rows, tf.matmul(rows, rows, transpose_b=True)), None),
        (lambda rows: tf.reduce_sum(rows, axis=1, keepdims=True), None),
    ],
    ids=["dense", "transposed", "normalised", "clipped", "from-the-left", "computed", "no-layer"],
)
def test_width_is_that_of_the_first_layers_weights(
    network: Callable[[Any], Any], width: int | None, tmp_path: Path
) -> None:
    folder = save_functions(
        tmp_path / "m",
        lambda observations: {"actions_0": network(observations)},
        {"observations": ([None, None], "float32")},
    )

    assert find_width(load_graph(folder)) == width


def test_output_that_only_its_own_size_is_read_from_is_no_feature_layer(tmp_path: Path) -> None:
    def network(observations: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = tf.matmul(observations, KERNEL)
        return {"logits": logits, "value": tf.zeros_like(logits)}

    folder = save_functions(tmp_path / "m", network, {"observations": ([None, 6], "float32")})

    assert not is_feature_layer(load_graph(folder), "logits")


def test_logits_with_more_paths_than_operations_are_looked_at_once(tmp_path: Path) -> None:
    def network(observations: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = tf.matmul(observations, KERNEL)
        for _ in range(100):
            logits = logits * logits
        return {"logits": logits}

    folder = save_functions(tmp_path / "m", network, {"observations": ([None, 6], "float32")})

    assert not is_feature_layer(load_graph(folder), "logits")


@pytest.mark.parametrize(
    ("kernel", "bias", "expected"),
    [
        (KERNEL / np.linalg.norm(KERNEL, axis=0), BIAS * 0, True),
        (KERNEL / np.linalg.norm(KERNEL, axis=0), None, True),
        (KERNEL / np.linalg.norm(KERNEL, axis=0), BIAS, False),
        (KERNEL, BIAS * 0, False),
    ],
    ids=["initial", "initial-without-bias", "trained-bias", "trained-kernel"],
)
def test_weights_are_untrained_where_all_are_rllibs_initial_ones(
    kernel: np.ndarray, bias: np.ndarray | None, *, expected: bool, tmp_path: Path
) -> None:
    def network(observations: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = tf.matmul(observations, kernel)
        return {"logits": logits if bias is None else logits + bias}

    folder = save_functions(tmp_path / "m", network, {"observations": ([None, 6], "float32")})

    assert is_untrained(load_graph(folder)) == expected


def test_network_without_layers_is_not_called_untrained(tmp_path: Path) -> None:
    folder = save_functions(
        tmp_path / "m",
        lambda observations: {"logits": observations * 2.0},
        {"observations": ([None, 6], "float32")},
    )

    assert not is_untrained(load_graph(folder))
