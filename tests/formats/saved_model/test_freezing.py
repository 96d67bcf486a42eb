"""Freezing: what is left of a graph is constant, flat and no more than the policy."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from policy_server.formats.saved_model.freezing import (
    LATE_TIMESTEP,
    freeze,
    node_of,
    session_config,
)
from policy_server.formats.saved_model.graph import load_graph
from tests.support.hand_built import V1Policy, answer, load_policy, observations, tf

v1 = tf.compat.v1


@pytest.mark.parametrize("name", ["a/b", "a/b:0", "a/b:12", "^a/b"])
def test_node_of_a_tensor_is_its_name_without_port_and_mark(name: str) -> None:
    assert node_of(name) == "a/b"


def test_graph_without_variables_needs_no_files(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        tf.identity(tf.constant(2.0), name="answer")
        tf.constant(3.0, name="unneeded")
        meta_graph = v1.train.export_meta_graph(graph=graph)

    frozen = freeze(meta_graph, tmp_path, ["answer:0"])

    assert {node.name for node in frozen.node} == {"Const", "answer"}


def test_counter_that_an_assignment_returns_is_its_variable(tmp_path: Path) -> None:
    def count(_rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        counter = v1.get_variable("policy/calls", initializer=np.float32(4), use_resource=False)
        return logits + v1.assign_add(counter, 1.0)

    built = V1Policy(network=count)

    policy = load_policy(built.save(tmp_path / "m"))

    rows = observations()
    found = answer(policy, rows, is_deterministic=True).distribution
    assert found == pytest.approx(built.expected_inputs(rows) + 4, rel=1e-5)


@pytest.mark.parametrize(
    ("initial", "expected"),
    [(np.int64(3), LATE_TIMESTEP), (np.float32(3), 3.0), (np.array([3, 3]), [3, 3])],
    ids=["step-counter", "number", "vector"],
)
def test_step_counter_in_a_variable_is_late(
    initial: np.ndarray, expected: float, tmp_path: Path
) -> None:
    def steps(_rows: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        counter = v1.get_variable("policy/timestep", initializer=initial, use_resource=False)
        return logits + tf.reduce_sum(tf.cast(counter, tf.float32))

    loaded = load_graph(V1Policy(network=steps, inputs=()).save(tmp_path / "m"))

    node = next(node for node in loaded.graph_def.node if node.name == "policy/timestep")
    assert tf.make_ndarray(node.attr["value"].tensor).tolist() == expected


def test_calls_that_take_long_hold_up_no_other_thread() -> None:
    with tf.Graph().as_default() as graph:
        rounds = v1.placeholder(tf.int64, [])
        last = tf.while_loop(lambda i: i < rounds, lambda i: i + 1, [tf.constant(0, tf.int64)])
        with v1.Session(graph=graph, config=session_config()) as session:
            count = session.make_callable(last[0], [rounds])
            # As many as may hang at a time.
            long = [threading.Thread(target=count, args=(100_000,)) for _ in range(9)]
            for thread in long:
                thread.start()
            time.sleep(0.2)
            counted = count(1)
            go_on = all(thread.is_alive() for thread in long)
            for thread in long:
                thread.join()

    assert counted == 1
    assert go_on
