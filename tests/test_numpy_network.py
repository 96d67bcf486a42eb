"""A network as NumPy operations: any number of rows, and no array written over too early."""

from __future__ import annotations

import numpy as np
import pytest

from policy_server.numpy_network import CompiledPolicy, NetworkPolicy, NumpyNetwork, Step
from tests.fakes import components_of, signature_of

WEIGHTS = np.array([[1.0, -2.0], [2.0, 0.5]], np.float32)
BIAS = np.array([0.5, -0.5], np.float32)


def test_network_runs_its_steps_for_any_batch() -> None:
    weights, bias = np.array([[1.0], [2.0]], np.float32), np.array([0.5], np.float32)
    steps = (Step("MatMul", (0, 1), 3), Step("BiasAdd", (3, 2), 4), Step("Relu", (4,), 5))
    run = NumpyNetwork({1: weights, 2: bias}, steps, result=5, registers=6).compile()

    assert run(np.array([[1.0, 1.0], [-1.0, -1.0]], np.float32)).tolist() == [[3.5], [0.0]]
    assert run(np.array([[0.0, 1.0]], np.float32)).tolist() == [[2.5]]


def test_compiled_policy_answers_from_its_network() -> None:
    signature = signature_of(components_of(("categorical", 2)))
    network = NumpyNetwork({}, (Step("Neg", (0,), 1),), result=1, registers=2)
    policy = NetworkPolicy(CompiledPolicy(signature, network))

    outputs = policy.infer(
        np.array([[5.0, 0.0], [0.0, 5.0]], np.float32),
        is_deterministic=np.array([True, True]),
        seeds=np.array([-1, -1]),
    )

    assert outputs.actions.tolist() == [[1.0], [0.0]]
    assert outputs.probability == pytest.approx(1 / (1 + np.exp(-5.0)))


def test_activation_does_not_write_over_what_is_read_again() -> None:
    """A residual network adds a layer's product to what its activation made of it."""
    steps = (
        Step("MatMul", (0, 1), 3),
        Step("BiasAdd", (3, 2), 4),
        Step("Tanh", (4,), 5),
        Step("Add", (4, 5), 6),
        Step("Relu", (0,), 7),
        Step("Sub", (6, 7), 8),
    )
    run = NumpyNetwork({1: WEIGHTS, 2: BIAS}, steps, result=8, registers=9).compile()
    rows = np.array([[1.0, -1.0], [0.25, 0.5]], np.float32)
    sent = rows.copy()

    first, second = run(rows), run(rows)

    product = sent @ WEIGHTS + BIAS
    assert first == pytest.approx(product + np.tanh(product) - np.maximum(sent, 0))
    assert (first == second).all()
    assert (rows == sent).all()


def test_result_that_a_later_step_reads_too_stays_as_it_is() -> None:
    steps = (Step("MatMul", (0, 1), 2), Step("Tanh", (2,), 3), Step("Neg", (3,), 4))
    run = NumpyNetwork({1: WEIGHTS}, steps, result=2, registers=5).compile()
    rows = np.array([[1.0, 1.0]], np.float32)

    assert run(rows).tolist() == (rows @ WEIGHTS).tolist()


def test_sum_of_another_shape_makes_a_new_array() -> None:
    """A column of products plus a row of numbers is a matrix."""
    steps = (Step("MatMul", (0, 1), 3), Step("AddV2", (3, 2), 4))
    run = NumpyNetwork({1: WEIGHTS[:, :1], 2: BIAS}, steps, result=4, registers=5).compile()

    assert run(np.array([[1.0, 1.0]], np.float32)).tolist() == [[3.5, 2.5]]


def test_many_rows_are_answered_as_few_are() -> None:
    signature = signature_of(components_of(("categorical", 2)))
    network = NumpyNetwork({1: WEIGHTS}, (Step("MatMul", (0, 1), 2),), result=2, registers=3)
    policy = NetworkPolicy(CompiledPolicy(signature, network))
    rows = np.random.default_rng(5).normal(size=(1100, 2)).astype(np.float32)
    is_deterministic = np.arange(1100) % 3 == 0
    seeds = np.arange(1100)

    whole = policy.infer(rows, is_deterministic=is_deterministic, seeds=seeds)

    parts = [
        policy.infer(rows[part], is_deterministic=is_deterministic[part], seeds=seeds[part])
        for part in (slice(0, 300), slice(300, 800), slice(800, 1100))
    ]
    assert whole.actions.tolist() == np.concatenate([part.actions for part in parts]).tolist()
    expected = np.concatenate([part.log_probability for part in parts])
    assert whole.log_probability == pytest.approx(expected)
    assert whole.distribution == pytest.approx(rows @ WEIGHTS, abs=1e-6)
