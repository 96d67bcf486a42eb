"""The bounds that the last operations of a SavedModel's graph keep its numbers in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.formats.saved_model.graph import load_graph
from policy_server.formats.saved_model.graph_bounds import KeptBounds
from policy_server.formats.saved_model.nodes import GraphNodes
from tests.support.hand_built import save_functions, tf, weights

KERNEL, _ = weights(4, 2)
BIAS = np.array([1, 3], np.float32)


def joined_again_and_again(x: Any, count: int = 18) -> Any:  # noqa: ANN401 -- as below
    """Return numbers whose halves are joined so often that a walk of each path would not end."""
    for _ in range(count):
        x = tf.concat([x[:, :1], x[:, 1:], x[:, :1] * 1.0, x[:, 1:] * 1.0], 1)[:, :2]
    return x


def layer(rows: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    return tf.matmul(rows, KERNEL)


@pytest.mark.parametrize(
    ("ending", "bounds"),
    [
        (lambda x: tf.raw_ops.ClipByValue(t=x, clip_value_min=0.0, clip_value_max=2.0), (0, 2)),
        (lambda x: tf.raw_ops.ClipByValue(t=x, clip_value_min=x, clip_value_max=x), None),
        (lambda x: 3.0 - tf.nn.sigmoid(x), (2, 3)),
        (lambda x: 1.0 / tf.nn.sigmoid(x), None),
        (lambda x: tf.nn.relu6(x + 3.0) / 6.0, (0, 1)),
        (lambda x: tf.tanh(x) * BIAS, ([-1, -3], [1, 3])),
        (lambda x: tf.tanh(x) * x, None),
        (
            lambda x: tf.concat(
                [tf.tanh(layer(x @ KERNEL.T)), tf.nn.sigmoid(layer(x @ KERNEL.T))], 1
            ),
            ([-1, -1, 0, 0], [1, 1, 1, 1]),
        ),
        (lambda x: tf.concat([tf.tanh(x), layer(x @ KERNEL.T)], 1), None),
        (lambda x: tf.concat([tf.tanh(tf.sin(x)), tf.tanh(x)], 1), ([-1] * 4, [1] * 4)),
        (
            lambda x: tf.concat([tf.tanh(x)[:, :1] * 4.0, tf.tanh(x)[:, 1:] + 1.0], 1),
            ([-4, 0], [4, 2]),
        ),
        (lambda x: (tf.tanh(x) * BIAS)[:, 1:] + 1.0, ([-2], [4])),
        (lambda x: tf.split(tf.tanh(x) * BIAS, 2, 1)[1], ([-3], [3])),
        (lambda x: tf.split(tf.tanh(x) * BIAS, [1, 1], 1)[0], ([-1], [1])),
        (lambda x: tf.gather(tf.tanh(x) * BIAS, [1, 0], axis=1), ([-3, -1], [3, 1])),
        (lambda x: joined_again_and_again(tf.tanh(x) * BIAS), ([-1, -3], [1, 3])),
        (lambda x: tf.stack([tf.tanh(x)[:, 0] * 4.0, tf.sigmoid(x)[:, 1]], 1), ([-4, 0], [4, 1])),
    ],
    ids=[
        *("clip", "computed clip", "subtracted", "divided", "hard sigmoid", "each dimension"),
        *("computed", "joined", "joined with any", "joined behind other functions"),
        *("slices", "slice of each scale", "split", "split by sizes", "gather"),
        *("joined again and again", "stack"),
    ],
)
def test_bounds_are_those_behind_the_constants(
    ending: Callable[[Any], Any], bounds: tuple[Any, Any] | None, tmp_path: Path
) -> None:
    folder = save_functions(
        tmp_path / "m",
        lambda observations: {"logits": ending(layer(observations))},
        {"observations": ([None, 4], "float32")},
    )
    loaded = load_graph(folder)

    found = KeptBounds(loaded.graph_def, GraphNodes(loaded.graph_def)).of(loaded.fetches["logits"])

    assert (found is None) == (bounds is None)
    if found is not None and bounds is not None:
        np.testing.assert_allclose(found.low, bounds[0])
        np.testing.assert_allclose(found.high, bounds[1])
