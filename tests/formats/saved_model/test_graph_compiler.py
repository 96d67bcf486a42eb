"""From graphs to NumPy: what is unrolled, folded, refused, and proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from policy_server.engine.network import NumpyNetwork
from policy_server.engine.proof import hold_against_graph
from policy_server.formats.saved_model.graph import LoadedGraph
from policy_server.formats.saved_model.graph_compiler import compile_network
from policy_server.formats.saved_model.runner import GraphRunner
from tests.support.graphs import ROWS, WEIGHTS, graph_of

v1 = tf.compat.v1


def operations_of(network: NumpyNetwork) -> list[str]:
    """Return the operations that are left."""
    return [step.operation for step in network.steps]


def proved(loaded: LoadedGraph) -> NumpyNetwork:
    """Return the network of a graph, held against TensorFlow."""
    network = compile_network(loaded, "out", 3).network
    assert network is not None
    runner = GraphRunner(loaded, row_dtype=np.float32)
    proof = hold_against_graph(
        network,
        lambda rows: runner.run(["out"], rows)[0],
        ROWS,
        ROWS * 1e20,
        [1, 3, 700],
        refusal=tf.errors.OpError,
    )
    assert proof.largest < 1e-6
    return network


def recurrent(rows: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return one step of an Elman net from the zero state, as RLlib wraps it: a loop over time."""
    batch = tf.shape(rows)[0]
    steps = tf.transpose(tf.reshape(rows, [batch, 1, 3]), [1, 0, 2])
    inputs = tf.TensorArray(tf.float32, 1).unstack(steps)
    outputs = tf.TensorArray(tf.float32, 1)

    def turn(time: Any, state: Any, found: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        new = tf.tanh(tf.matmul(inputs.read(time), WEIGHTS) + tf.matmul(state, WEIGHTS[:2]))
        new = tf.where(tf.fill([batch, 2], True), new, state)  # noqa: FBT003 -- a value
        return time + 1, new, found.write(time, new)

    _, _, found = v1.while_loop(
        lambda time, *_: time < tf.shape(steps)[0], turn, (0, tf.zeros([batch, 2]), outputs)
    )
    return tf.reshape(found.stack(), [-1, 2])


def test_one_step_of_a_recurrent_layer_is_a_feed_forward_one() -> None:
    network = proved(graph_of(recurrent))

    assert operations_of(network) == ["Cast", "MatMul", "Tanh"]


def test_loop_of_several_turns_is_unrolled() -> None:
    loaded = graph_of(
        lambda rows: v1.while_loop(
            lambda turn, _: turn < 3, lambda turn, x: (turn + 1, tf.tanh(x) + rows), (0, rows)
        )[1]
    )

    assert operations_of(proved(loaded)).count("Tanh") == 3


def test_zero_state_and_filled_shapes_fold_away() -> None:
    loaded = graph_of(
        lambda rows: tf.reshape(
            tf.matmul(rows, WEIGHTS)
            + tf.zeros([tf.shape(rows)[0], 2]) @ np.eye(2, dtype=np.float32),
            [tf.shape(rows)[0], 2],
        )
    )

    assert operations_of(proved(loaded)) == ["Cast", "MatMul"]


def test_row_that_every_observation_shares_is_kept_once() -> None:
    loaded = graph_of(
        lambda rows: tf.matmul(rows, WEIGHTS) * tf.tile([[2.0, 3.0]], [tf.shape(rows)[0], 1])
    )

    network = proved(loaded)

    assert operations_of(network) == ["Cast", "MatMul", "Mul"]
    assert [[2.0, 3.0]] in [value.tolist() for value in network.constants.values()]


def test_turned_observations_are_not_taken_for_the_observations() -> None:
    """A reversed row is a row of the same shape, in another order."""
    loaded = graph_of(lambda rows: rows[:, ::-1] + rows)

    assert operations_of(proved(loaded)) == ["Cast", "StridedSlice", "AddV2"]


def test_convolution_and_flattening_are_computed() -> None:
    filters = np.arange(6, dtype=np.float32).reshape(1, 3, 1, 2)

    def build(rows: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        images = tf.reshape(rows, [-1, 1, 3, 1])
        return tf.reshape(tf.nn.conv2d(images, filters, 1, "SAME"), [-1, 6])

    loaded = graph_of(build)

    assert "Conv2D" in operations_of(proved(loaded))
    assert compile_network(loaded, "out", 3).in_convolutions == 18


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda rows: tf.linalg.inv(rows[:, None] * rows[..., None])[:, 0], "NumPy has no"),
        (
            lambda rows: v1.while_loop(
                lambda x: tf.reduce_sum(x) < 9.0, lambda x: tf.abs(x) + 1.0, (rows,)
            ),
            "a loop or an array whose size depends on the observation",
        ),
        (
            lambda rows: v1.while_loop(
                lambda turn, _: turn < 99, lambda turn, x: (turn + 1, tf.tanh(x)), (0, rows)
            )[1],
            "a loop of more than 16 turns",
        ),
        (lambda rows: v1.debugging.check_numerics(rows, "no"), "NumPy has no CheckNumerics"),
        (
            lambda rows: tf.nn.conv2d(
                tf.reshape(rows, [-1, 1, 3, 1]),
                np.ones((1, 2, 1, 1), np.float32),
                1,
                "VALID",
                dilations=2,
            ),
            "dilated",
        ),
    ],
    ids=["unknown operation", "open loop", "long loop", "check", "dilated convolution"],
)
def test_what_numpy_can_not_compute_is_left_to_tensorflow_with_the_reason(
    build: Callable[[Any], Any], reason: str
) -> None:
    compilation = compile_network(graph_of(build), "out", 3)

    assert compilation.network is None
    assert reason in compilation.reason


def test_graph_for_batches_of_one_size_is_left_to_tensorflow() -> None:
    compilation = compile_network(graph_of(tf.tanh, batch=4), "out", 3)

    assert compilation.network is None
    assert "batches of one size" in compilation.reason


def test_check_of_the_number_of_observations_alone_is_left_out() -> None:
    def build(rows: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        with tf.control_dependencies([tf.debugging.assert_greater(tf.shape(rows)[0], 0)]):
            return tf.tanh(rows)

    assert operations_of(proved(graph_of(build))) == ["Cast", "Tanh"]


@pytest.mark.parametrize(
    ("build", "is_row_wise"),
    [
        (lambda rows: tf.tanh(rows @ WEIGHTS), True),
        (lambda rows: rows - tf.reduce_mean(rows, axis=1, keepdims=True), True),
        (lambda rows: tf.nn.softmax(rows) * tf.reduce_max(rows, 1)[:, None], True),
        (lambda rows: tf.gather(WEIGHTS, tf.cast(tf.abs(rows[:, 0]) > 1, tf.int32)), True),
        (
            lambda rows: tf.reshape(tf.transpose(tf.reshape(rows, [-1, 3, 1]), [0, 2, 1]), [-1, 3]),
            True,
        ),
        (recurrent, True),
        (lambda rows: rows - tf.reduce_mean(rows, axis=0, keepdims=True), False),
        (lambda rows: rows / tf.sqrt(tf.nn.moments(rows, [0])[1] + 1e-3), False),
        (lambda rows: tf.matmul(tf.matmul(rows, rows, transpose_b=True), rows), False),
        (lambda rows: tf.where(tf.reduce_max(rows) > 1e6, rows * 2, rows), False),
        (lambda rows: rows[::-1], False),
        (lambda rows: tf.concat([rows[1:], rows[:1]], axis=0), False),
    ],
    ids=[
        "layer",
        "centred",
        "softmax",
        "embedding",
        "turned",
        "recurrent",
        "batch mean",
        "batch variance",
        "rows times rows",
        "switch for all",
        "reversed",
        "shifted",
    ],
)
def test_network_that_joins_observations_is_told_by_its_operations(
    build: Callable[[Any], Any], *, is_row_wise: bool
) -> None:
    compilation = compile_network(graph_of(build), "out", 3)

    assert compilation.network is not None, compilation.reason
    assert compilation.is_row_wise == is_row_wise
