"""A compiled network held against the graph: common observations, extreme ones, many sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.engine.building import NotCompiledError
from policy_server.engine.network import NumpyNetwork, Step
from policy_server.engine.proof import (
    extreme_rows,
    hold_against_graph,
    mixes_rows,
)
from policy_server.formats.saved_model.graph_compiler import compile_network
from policy_server.formats.saved_model.runner import GraphRunner
from tests.support.graphs import ROWS, WEIGHTS, graph_of
from tests.support.hand_built import tf

NEGATED = NumpyNetwork({}, (Step("Neg", (0,), 1),), result=1, registers=2)
EXTREMES = extreme_rows(3, "float32", np.float32)


def test_difference_is_measured_and_limited() -> None:
    def nearly(rows: NDArray[Any]) -> NDArray[Any]:
        return -rows + np.where(rows == ROWS[7, 1], 1e-3, 0.0)

    assert (
        hold_against_graph(
            NEGATED, np.negative, ROWS, EXTREMES, [1], refusal=tf.errors.OpError
        ).largest
        == 0.0
    )
    with pytest.raises(NotCompiledError, match=r"differs by \d.* from TensorFlow in batches of 40"):
        hold_against_graph(NEGATED, nearly, ROWS, EXTREMES, [1], refusal=tf.errors.OpError)


def test_network_that_gives_nan_where_the_graph_does_not_is_refused() -> None:
    network = NumpyNetwork({}, (Step("Log", (0,), 1),), result=1, registers=2)

    with pytest.raises(
        NotCompiledError, match="gives NaN or infinity apart from TensorFlow in batches of"
    ):
        hold_against_graph(
            network, np.negative, -np.abs(ROWS), EXTREMES, [1], refusal=tf.errors.OpError
        )


def overflowing_to(value: float, at: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return a graph that gives another value than a sum for observations so large."""
    return lambda rows: np.where((np.abs(rows) > at).any(axis=1, keepdims=True), value, -rows)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_sum_that_overflows_in_the_graph_alone_is_no_difference(value: float) -> None:
    graph = overflowing_to(value, 1e37)

    proof = hold_against_graph(NEGATED, graph, ROWS, EXTREMES, [1], refusal=tf.errors.OpError)

    assert proof.largest_on_extremes == 0.0


def test_mask_on_observations_that_overflow_is_no_overflow() -> None:
    overflowing = EXTREMES[np.abs(EXTREMES).max(axis=1) > 1e37]

    def masked_at_extremes(rows: NDArray[Any]) -> NDArray[Any]:
        is_masked = (np.abs(rows[:, :1]) > np.abs(rows[:, 1:2])) & (np.abs(rows).max() > 1e20)
        return np.where(is_masked, -np.inf, overflowing_to(np.inf, 1e37)(rows))

    with pytest.raises(NotCompiledError, match="gives NaN or infinity apart from TensorFlow on"):
        hold_against_graph(
            NEGATED,
            masked_at_extremes,
            ROWS,
            overflowing,
            [1],
            refusal=tf.errors.OpError,
        )


def test_number_that_overflows_on_the_way_in_the_network_alone_is_no_difference() -> None:
    constants = {1: np.array(4, np.float32), 2: np.array(0.25, np.float32)}
    steps = (Step("Mul", (0, 1), 3), Step("Mul", (3, 2), 4))
    network = NumpyNetwork(constants, steps, result=4, registers=5)
    with np.errstate(over="ignore"):
        assert not np.isfinite(network.compile()(EXTREMES)).all()

    proof = hold_against_graph(network, np.positive, ROWS, EXTREMES, [1], refusal=tf.errors.OpError)

    assert proof.largest_on_extremes == 0.0


def test_network_whose_overflow_is_hidden_by_a_bound_is_no_difference() -> None:
    factors = [64.0, 1e-30, 1e-10]
    constants = {index: np.array(value, np.float32) for index, value in enumerate(factors, 1)}
    steps = (
        Step("Mul", (0, 1), 4),
        Step("Mul", (4, 2), 5),
        Step("Mul", (5, 3), 6),
        Step("Tanh", (6,), 7),
    )
    network = NumpyNetwork(constants, steps, result=7, registers=8)

    def graph(factor: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
        return lambda rows: np.tanh(rows.astype(np.float64) * factor).astype(np.float32)

    proof = hold_against_graph(
        network, graph(64e-40), ROWS, EXTREMES, [1], refusal=tf.errors.OpError
    )

    assert 0 < proof.overflows < proof.extremes
    with pytest.raises(NotCompiledError, match="from TensorFlow on extreme observations"):
        hold_against_graph(network, graph(32e-40), ROWS, EXTREMES, [1], refusal=tf.errors.OpError)


def test_graph_whose_overflow_is_hidden_by_a_bound_is_no_difference() -> None:
    steps = (Step("Neg", (0,), 1), Step("Tanh", (1,), 2))
    network = NumpyNetwork({}, steps, result=2, registers=3)

    def graph(at: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
        return lambda rows: np.tanh(overflowing_to(np.inf, at)(rows))

    proof = hold_against_graph(network, graph(1e37), ROWS, EXTREMES, [1], refusal=tf.errors.OpError)

    assert 0 < proof.overflows < proof.extremes
    told = proof.told("TensorFlow")
    assert f"on {304 - proof.overflows} of 304 extreme ones" in told
    assert told.endswith("; the others overflow 32 bits)")
    with pytest.raises(NotCompiledError, match="from TensorFlow on extreme observations"):
        hold_against_graph(network, graph(1e25), ROWS, EXTREMES, [1], refusal=tf.errors.OpError)


@pytest.mark.parametrize(("value", "at"), [(np.nan, 1e25), (np.inf, 1e25), (-np.inf, 1e25)])
def test_no_number_that_is_no_overflow_is_a_difference(value: float, at: float) -> None:
    with pytest.raises(NotCompiledError, match="gives NaN or infinity apart from TensorFlow on"):
        hold_against_graph(
            NEGATED, overflowing_to(value, at), ROWS, EXTREMES, [1], refusal=tf.errors.OpError
        )


def test_difference_on_extreme_observations_alone_is_found() -> None:
    def careful(rows: NDArray[Any]) -> NDArray[Any]:
        return np.where(np.abs(rows) > 1e6, 0.0, -rows)

    with pytest.raises(NotCompiledError, match=r"differs by .* from TensorFlow on extreme"):
        hold_against_graph(NEGATED, careful, ROWS, EXTREMES, [1], refusal=tf.errors.OpError)


def test_observation_that_tensorflow_refuses_has_to_be_refused() -> None:
    def picky(rows: NDArray[Any]) -> NDArray[Any]:
        if (np.abs(rows) > 1e6).any():
            raise tf.errors.InvalidArgumentError(None, None, "too large")
        return -rows

    with pytest.raises(NotCompiledError, match="NumPy answers an extreme observation"):
        hold_against_graph(NEGATED, picky, ROWS, EXTREMES, [1], refusal=tf.errors.OpError)


def test_too_few_finite_probes_prove_nothing() -> None:
    def broken(rows: NDArray[Any]) -> NDArray[Any]:
        return np.where(np.arange(len(rows))[:, None] >= 10, np.nan, -rows)

    with pytest.raises(NotCompiledError, match="fewer than 32 probes"):
        hold_against_graph(NEGATED, broken, ROWS, EXTREMES, [1], refusal=tf.errors.OpError)


def test_result_that_depends_on_the_size_of_the_batch_is_found() -> None:
    """The builder tries sizes up to five; a change beyond them has to show here."""
    loaded = graph_of(lambda rows: tf.where(tf.shape(rows)[0] > 300, rows * 2, rows))
    network = compile_network(loaded, "out", 3).network
    assert network is not None
    runner = GraphRunner(loaded, row_dtype=np.float32)

    def graph(rows: NDArray[Any]) -> NDArray[Any]:
        return runner.run(["out"], rows)[0]

    many = np.resize(ROWS, (400, 3))
    assert (graph(many) == many * 2).all()
    assert mixes_rows(graph, ROWS, EXTREMES, [1, 5, 257, 513], refusal=tf.errors.OpError) == 513


@pytest.mark.parametrize(
    "build",
    [
        lambda rows: tf.math.log(rows),
        lambda rows: tf.maximum(tf.math.log(tf.abs(rows)), tf.float32.min) + rows,
        lambda rows: tf.cast(rows > 0, tf.float32),
        lambda rows: tf.cast(tf.not_equal(rows, 0), tf.float32) * 2,
        lambda rows: tf.cast(tf.cast(rows, tf.bool), tf.float32) + rows,
        lambda rows: 1 / rows,
        lambda rows: tf.math.rsqrt(tf.abs(rows)),
        lambda rows: tf.math.floordiv(rows, 0.1 + 0 * rows),
        lambda rows: tf.nn.leaky_relu(rows, 1.5),
        lambda rows: tf.cast(tf.reduce_sum(tf.cast(rows, tf.int32), 1, keepdims=True), tf.float32),
        lambda rows: tf.add_n([rows, rows, rows]),
        lambda rows: tf.math.softplus(rows) + tf.nn.elu(rows) + tf.nn.selu(rows),
        lambda rows: tf.reduce_mean(rows, 1, keepdims=True) + tf.square(rows),
        lambda rows: tf.tanh(rows @ WEIGHTS) + tf.sigmoid(rows @ WEIGHTS),
    ],
    ids=[
        "log",
        "mask",
        "above zero",
        "not zero",
        "bool",
        "reciprocal",
        "reciprocal root",
        "floor division",
        "steep leaky relu",
        "wrapping sum",
        "sum of many",
        "activations",
        "mean and square",
        "layer",
    ],
)
def test_numpy_gives_what_tensorflow_gives_for_extreme_numbers(build: Any) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    loaded = graph_of(build)
    network = compile_network(loaded, "out", 3).network
    assert network is not None
    runner = GraphRunner(loaded, row_dtype=np.float32)
    positive = np.abs(ROWS) + 0.1

    proof = hold_against_graph(
        network,
        lambda rows: runner.run(["out"], rows)[0],
        positive,
        EXTREMES,
        [1, 513],
        refusal=tf.errors.OpError,
    )

    assert proof.extremes == len(EXTREMES)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda rows: tf.cast(tf.cast(rows, tf.uint8), tf.float32),
            "a number of any size becomes uint8",
        ),
        (
            lambda rows: tf.cast(
                tf.reduce_mean(tf.cast(rows, tf.int32), 1, keepdims=True), tf.float32
            ),
            "no mean of integers",
        ),
    ],
    ids=["overflow", "integer mean"],
)
def test_operation_that_numpy_can_not_do_alike_is_left_to_tensorflow(
    build: Any,  # noqa: ANN401 -- TensorFlow is untyped
    reason: str,
) -> None:
    assert reason in compile_network(graph_of(build), "out", 3).reason


def test_index_out_of_range_is_refused_as_tensorflow_refuses_it() -> None:
    loaded = graph_of(lambda rows: tf.gather(WEIGHTS, tf.cast(rows[:, 0], tf.int32)))
    network = compile_network(loaded, "out", 3).network
    assert network is not None
    runner = GraphRunner(loaded, row_dtype=np.float32)
    valid = np.random.default_rng(0).integers(0, 3, (64, 3)).astype(np.float32)
    others = np.array([[-1, 0, 0], [3, 0, 0], [2, 0, 0], [-5, 1, 1]], np.float32)

    proof = hold_against_graph(
        network,
        lambda rows: runner.run(["out"], rows)[0],
        valid,
        others,
        [1, 513],
        refusal=tf.errors.OpError,
    )

    assert proof.largest == 0.0
    for index in (-1, 3):
        with pytest.raises(IndexError, match="an index lies outside 0 to 2"):
            network.compile()(np.array([[index, 0, 0]], np.float32))


def test_extreme_observations_stay_within_the_policys_own_type() -> None:
    for name in ("uint8", "int8", "int32", "int64", "bool", "float16"):
        rows = extreme_rows(4, name, np.float64)
        kept = rows.astype(np.dtype(name)).astype(np.float64)
        if np.dtype(name).kind == "f":
            assert np.isfinite(kept).all()
        else:
            assert (kept == rows).all()


def test_probes_with_few_different_answers_are_told() -> None:
    """A network that is saturated on all probes equals another there, and says little."""
    constants = {1: np.array(1e30, np.float32)}
    steps = (Step("Mul", (0, 1), 2), Step("Tanh", (2,), 3), Step("Abs", (3,), 4))
    network = NumpyNetwork(constants, steps, result=4, registers=5)

    def graph(rows: NDArray[Any]) -> NDArray[Any]:
        return np.abs(np.tanh(rows.astype(np.float64) * 1e30)).astype(np.float32)

    rows = np.abs(ROWS) + np.float32(1)
    proof = hold_against_graph(network, graph, rows, rows, [1], refusal=tf.errors.OpError)

    assert proof.told("TensorFlow").startswith(
        f"equal to TensorFlow on {len(rows)} probes, all with the same answer (within 0.0e+00)"
    )
