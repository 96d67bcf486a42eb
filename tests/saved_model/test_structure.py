"""What a graph says of its own action distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.saved_model.graph import load_graph
from policy_server.saved_model.structure import GraphStructure
from tests.saved_model.hand_built import Part, V1Policy, save_functions, tf

Cut = Callable[[Any], Mapping[str, Any]]


def structure_of(cut: Cut, folder: Path, width: int = 6) -> GraphStructure:
    """Return the structure of a policy that cuts its own observation into actions."""

    def policy(observations: tf.Tensor) -> Mapping[str, tf.Tensor]:
        inputs = observations * 1.0
        return {"action_dist_inputs": inputs, **cut(inputs)}

    save_functions(folder, policy, {"observations": ([None, width], "float32")})
    return GraphStructure(load_graph(folder), distribution="action_dist_inputs", width=width)


def two(first: tf.Tensor, second: tf.Tensor) -> dict[str, Any]:
    """Return two actions, in the other order."""
    return {"actions_1": tf.argmax(first, axis=1), "actions_0": tf.argmax(second, axis=1)}


@pytest.mark.parametrize(
    "cut",
    [
        lambda inputs: two(*tf.split(inputs, [4, 2], axis=1)),
        lambda inputs: two(*tf.split(inputs, [4, 2], axis=-1)),
        lambda inputs: two(inputs[:, :4], inputs[:, 4:]),
        lambda inputs: two(inputs[:, 0:4], inputs[:, -2:]),
        lambda inputs: two(*tf.split(inputs / 3.0, [4, 2], axis=1)),
        lambda inputs: two(*tf.split(2.0 * inputs, [4, 2], axis=1)),
        lambda inputs: two(*tf.split(tf.ensure_shape(inputs, [None, 6]), [4, 2], axis=1)),
    ],
    ids=["split", "last-axis", "slices", "counted-slices", "divided", "scaled", "passed-on"],
)
def test_each_action_has_the_part_that_it_is_drawn_from(cut: Cut, tmp_path: Path) -> None:
    structure = structure_of(cut, tmp_path / "m")

    assert structure.segments_of("actions_1") == [(0, 4)]
    assert structure.segments_of("actions_0") == [(4, 2)]


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (lambda inputs: {"actions_0": tf.argmax(tf.split(inputs, [6], axis=1)[0], axis=1)}, True),
        (lambda inputs: {"actions_0": tf.argmax(inputs / 1.0, axis=1)}, False),
        (lambda inputs: two(*tf.split(inputs, [4, 2], axis=1)), False),
        (lambda inputs: two(*tf.split(inputs, 2, axis=1)), False),
    ],
    ids=["tuple of one", "one action", "tuple of two", "mean and deviation"],
)
def test_tuple_of_one_action_is_told_from_the_action_alone(
    cut: Cut, *, expected: bool, tmp_path: Path
) -> None:
    assert structure_of(cut, tmp_path / "m").is_split_into_one == expected


def test_equal_parts_are_read_from_the_number_of_splits(tmp_path: Path) -> None:
    structure = structure_of(lambda inputs: two(*tf.split(inputs, 2, axis=1)), tmp_path / "m")

    assert structure.segments_of("actions_0") == [(3, 3)]


def test_parts_of_a_part_are_counted_from_the_start_of_the_row(tmp_path: Path) -> None:
    def cut(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        first, rest = tf.split(inputs, [1, 5], axis=1)
        parts = [tf.argmax(part, axis=1) for part in tf.split(rest, [2, 3], axis=1)]
        return {"actions_0": first[:, 0], "actions_1": tf.stack(parts, axis=1)}

    structure = structure_of(cut, tmp_path / "m")

    assert structure.segments_of("actions_0") == [(0, 1)]
    assert structure.segments_of("actions_1") == [(1, 2), (3, 3)]


def test_columns_are_read_from_unstack(tmp_path: Path) -> None:
    def cut(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        columns = tf.unstack(inputs, axis=1)
        return {"actions_0": tf.cast(columns[4], tf.int64)}

    assert structure_of(cut, tmp_path / "m").segments_of("actions_0") == [(4, 1)]


@pytest.mark.parametrize(
    "cut",
    [
        lambda inputs: inputs[0:2, :4],
        lambda inputs: inputs[:, :4:2],
        lambda inputs: inputs[:, tf.newaxis, :4],
        lambda inputs: inputs[..., :4],
        lambda inputs: inputs[:, 5:5],
        lambda inputs: tf.split(inputs, 1, axis=0)[0],
        lambda inputs: inputs * tf.reduce_sum(inputs),
        lambda inputs: 6.0 / (inputs + 7.0),
        lambda inputs: inputs * tf.reduce_sum(inputs, axis=1, keepdims=True) * 0.0,
    ],
    ids=[
        "rows",
        "every-other",
        "new-axis",
        "ellipsis",
        "empty",
        "rows-of-a-split",
        "product",
        "reciprocal",
        "times-zero",
    ],
)
def test_what_is_no_part_of_a_row_leaves_the_whole(
    cut: Callable[[tf.Tensor], tf.Tensor], tmp_path: Path
) -> None:
    def whole(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        unrelated = tf.reduce_sum(tf.cast(tf.zeros_like(cut(inputs)), tf.float32))
        return {"actions_0": tf.argmax(inputs, axis=1), "actions_1": unrelated + inputs[:, 0]}

    structure = structure_of(whole, tmp_path / "m")

    assert structure.segments_of("actions_0") == [(0, 6)]
    assert structure.temperatures == []


def test_action_that_depends_on_sizes_only_has_no_part(tmp_path: Path) -> None:
    def cut(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"actions_0": tf.random.uniform([tf.shape(inputs)[0]])}

    assert structure_of(cut, tmp_path / "m").segments_of("actions_0") == []


def test_temperatures_are_all_constants_that_logits_are_divided_by(tmp_path: Path) -> None:
    def cut(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        first, second, third = tf.split(inputs, 3, axis=1)
        best = [tf.argmax(part, axis=1) for part in (first / 2.5, second * 2.0, third / 1.0)]
        return {"actions_0": tf.add_n(best)}

    assert structure_of(cut, tmp_path / "m").temperatures == [0.5, 2.5]


def test_clip_is_read_from_one_operation_or_from_two(tmp_path: Path) -> None:
    def cut(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        first, second, third = tf.split(inputs, 3, axis=1)
        clipped = [
            tf.raw_ops.ClipByValue(t=first, clip_value_min=-5.0, clip_value_max=2.0),
            tf.maximum(tf.minimum(second, 3.0), -4.0),
            tf.maximum(tf.minimum(third, first), -4.0),
        ]
        return {"actions_0": tf.reduce_sum(tf.concat(clipped, axis=1), axis=1)}

    structure = structure_of(cut, tmp_path / "m")

    assert structure.clip_of((0, 2)) == (-5.0, 2.0)
    assert structure.clip_of((2, 2)) == (-4.0, 3.0)
    assert structure.clip_of((4, 2)) is None


def test_sizes_of_rllibs_own_graph_are_in_the_order_of_the_actions(tmp_path: Path) -> None:
    parts = (Part(sizes=(4,)), Part("normal", (2,)), Part("multi_discrete", (2, 3)))
    loaded = load_graph(V1Policy(parts=parts, order=(2, 0, 1)).save(tmp_path / "m"))

    structure = GraphStructure(loaded, distribution="action_dist_inputs", width=13)

    found = [structure.segments_of(f"actions_{index}") for index in range(3)]
    assert found == [[(4, 2), (6, 2)], [(8, 2), (10, 3)], [(0, 4)]]
    assert np.sum([length for part in found for _, length in part]) == 13
