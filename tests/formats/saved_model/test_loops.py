"""Loops that end by the numbers of an observation are refused, those by constants are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from policy_server.errors import ModelError
from policy_server.formats.saved_model.graph import load_graph
from tests.support.hand_built import save_functions, tf, weights

v1 = tf.compat.v1


def _endless(x: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    return tf.while_loop(
        lambda v: tf.equal(tf.reduce_max(v), 77.5), lambda v: (tf.identity(v),), [x]
    )[0]


ENDLESS: dict[str, Callable[[Any], Any]] = {
    "at the top": _endless,
    "in a branch": lambda x: tf.cond(x[0, 0] > 5, lambda: _endless(x), lambda: x),
    "in a case": lambda x: tf.switch_case(
        tf.cast(x[0, 0], tf.int32), [lambda: _endless(x), lambda: x]
    ),
    "in a loop": lambda x: tf.while_loop(
        lambda i, _: i < 3, lambda i, v: (i + 1, _endless(v)), [0, x]
    )[1],
    "in a function": lambda x: tf.function(_endless, autograph=False)(x),
    "by a count from the numbers": lambda x: tf.while_loop(
        lambda i, v: i < tf.cast(v[0, 0], tf.int32), lambda i, v: (i + 1, v), [0, x]
    )[1],
    "by a branch of constants": lambda x: tf.while_loop(
        lambda v: tf.cond(v[0, 0] > 5, lambda: True, lambda: False), lambda v: (v,), [x]
    )[0],
}
ENDING: dict[str, Callable[[Any], Any]] = {
    "by a constant": lambda x: tf.while_loop(
        lambda i, _: i < 3, lambda i, v: (i + 1, v * 2), [0, x]
    )[1],
    "by a constant behind the numbers": lambda x: tf.while_loop(
        lambda _, i: i < 3, lambda v, i: (v * 2, i + tf.constant(1)), [x, 0]
    )[0],
    "by a shape": lambda x: tf.map_fn(lambda row: row * 2, x),
    "by a shape with a branch inside": lambda x: tf.map_fn(
        lambda row: tf.cond(row[0] > 0, lambda: row, lambda: row * 2), x
    ),
}


@pytest.fixture(params=["functional", "in parts"])
def flow(request: pytest.FixtureRequest) -> Iterator[None]:
    """Write loops and branches as TensorFlow 2 does, or as TensorFlow 1, in functions too."""
    was_functional = v1.control_flow_v2_enabled()
    switch = (
        v1.enable_control_flow_v2 if request.param == "functional" else v1.disable_control_flow_v2
    )
    switch()
    yield
    (v1.enable_control_flow_v2 if was_functional else v1.disable_control_flow_v2)()


def saved(folder: Path, function: Callable[[Any], Any]) -> Path:
    """Write a network behind a function of the observation."""
    kernel, bias = weights(4, 3)
    return save_functions(
        folder,
        lambda observations: {"action_dist_inputs": function(observations) @ kernel + bias},
        {"observations": ([None, 4], "float32")},
    )


@pytest.mark.usefixtures("flow")
@pytest.mark.parametrize("function", ENDLESS.values(), ids=ENDLESS)
def test_loop_that_may_never_end_is_refused_by_its_name(
    tmp_path: Path, function: Callable[[Any], Any]
) -> None:
    with pytest.raises(ModelError, match=r"^saved_model.pb: the loop '[^']+' ends by the numbers "):
        load_graph(saved(tmp_path, function))


@pytest.mark.usefixtures("flow")
@pytest.mark.parametrize("function", ENDING.values(), ids=ENDING)
def test_loop_that_ends_is_loaded(tmp_path: Path, function: Callable[[Any], Any]) -> None:
    assert "action_dist_inputs" in load_graph(saved(tmp_path, function)).fetches
