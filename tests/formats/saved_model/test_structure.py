"""Where a graph's distribution is, and what its structure says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.formats.saved_model.graph import load_graph
from policy_server.formats.saved_model.runner import GraphRunner
from policy_server.formats.saved_model.structure import (
    PolicyStructure,
    find_distribution_inputs,
    read_structure,
)
from policy_server.policy import ActionComponent
from tests.support.hand_built import Part, V1Policy, save_functions, tf

Cut = Callable[[Any], Mapping[str, Any]]


def structure_of(folder: Path, *, is_certain: bool = True) -> PolicyStructure:
    """Return what is read of a saved policy, from the likeliest of its inputs."""
    loaded = load_graph(folder)
    runner = GraphRunner(loaded, row_dtype=np.float32)
    width = loaded.observation_input.shape
    assert width is not None
    assert width[1] is not None
    rows = np.random.default_rng(0).normal(size=(3, width[1])).astype(np.float32)
    root = find_distribution_inputs(loaded, runner)[0]
    size = runner.evaluate(root, rows, is_exploring=False).shape[1]
    return read_structure(loaded, runner, root, rows, size, is_certain=is_certain)


def cut_of(cut: Cut, folder: Path, width: int = 6) -> PolicyStructure:
    """Return the structure of a policy that cuts its own observation into actions."""

    def policy(observations: tf.Tensor) -> Mapping[str, tf.Tensor]:
        inputs = observations * 1.0
        return {"action_dist_inputs": inputs, **cut(inputs)}

    return structure_of(
        save_functions(folder, policy, {"observations": ([None, width], "float32")})
    )


def drawn(values: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a choice among logits."""
    return tf.random.categorical(values, 1)[:, 0]


def two(first: tf.Tensor, second: tf.Tensor) -> dict[str, Any]:
    """Return two actions, in the other order."""
    return {"actions_1": drawn(first), "actions_0": drawn(second)}


def parts_of(structure: PolicyStructure) -> list[tuple[int, int]]:
    """Return where each component begins, and its size."""
    assert structure.family is not None, structure.problem
    return [(part.first_input, part.size) for part in structure.family.components]


@pytest.mark.parametrize(
    "cut",
    [
        lambda inputs: two(*tf.split(inputs, [4, 2], axis=1)),
        lambda inputs: two(*tf.split(inputs, [4, 2], axis=-1)),
        lambda inputs: two(inputs[:, :4], inputs[:, 4:]),
        lambda inputs: two(inputs[:, 0:4], inputs[:, -2:]),
        lambda inputs: two(inputs[..., :4], inputs[..., 4:]),
        lambda inputs: two(*tf.split(inputs / 3.0, [4, 2], axis=1)),
        lambda inputs: two(*tf.split(2.0 * inputs, [4, 2], axis=1)),
        lambda inputs: two(*tf.split(tf.ensure_shape(inputs, [None, 6]), [4, 2], axis=1)),
        lambda inputs: two(
            tf.gather(inputs, [0, 1, 2, 3], axis=1), tf.slice(inputs, [0, 4], [-1, 2])
        ),
    ],
    ids=[
        "split",
        "last-axis",
        "slices",
        "counted-slices",
        "ellipsis",
        "divided",
        "scaled",
        "passed-on",
        "gathered",
    ],
)
def test_each_action_has_the_part_that_it_is_drawn_from(cut: Cut, tmp_path: Path) -> None:
    assert parts_of(cut_of(cut, tmp_path / "m")) == [(4, 2), (0, 4)]


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (lambda inputs: {"actions_0": drawn(tf.split(inputs, [6], axis=1)[0])}, True),
        (lambda inputs: {"actions_0": drawn(inputs / 1.0)}, False),
        (lambda inputs: two(*tf.split(inputs, [4, 2], axis=1)), False),
        (lambda inputs: two(*tf.split(inputs, 2, axis=1)), False),
    ],
    ids=["tuple of one", "one action", "tuple of two", "two halves"],
)
def test_tuple_of_one_action_is_told_from_the_action_alone(
    cut: Cut, *, expected: bool, tmp_path: Path
) -> None:
    assert cut_of(cut, tmp_path / "m").is_tuple_of_one == expected


def test_parts_of_a_part_are_counted_from_the_start_of_the_row(tmp_path: Path) -> None:
    def cut(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        first, rest = tf.split(inputs, [1, 5], axis=1)
        parts = [drawn(part) for part in tf.split(rest, [2, 3], axis=1)]
        return {"actions_0": first, "actions_1": tf.stack(parts, axis=1)}

    structure = cut_of(cut, tmp_path / "m")

    assert parts_of(structure) == [(0, 1), (1, 2), (3, 3)]
    assert structure.family is not None
    assert [part.kind for part in structure.family.components] == [
        "deterministic",
        "categorical",
        "categorical",
    ]


def test_equal_parts_hidden_in_a_reshape_are_read(tmp_path: Path) -> None:
    def cut(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"actions_0": tf.reshape(drawn(tf.reshape(inputs, [-1, 2])), [-1, 3])}

    assert parts_of(cut_of(cut, tmp_path / "m")) == [(0, 2), (2, 2), (4, 2)]


def test_columns_are_read_from_unstack(tmp_path: Path) -> None:
    def cut(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"actions_0": tf.unstack(inputs, axis=1)[4]}

    assert parts_of(cut_of(cut, tmp_path / "m")) == [(4, 1)]


@pytest.mark.parametrize(
    ("cut", "problem"),
    [
        (lambda x: drawn(x[:, ::2]), "the logits of an action don't lie side by side"),
        (lambda x: drawn(x * tf.reduce_sum(x)), "Sum stands between"),
        (lambda x: drawn(6.0 / (x + 7.0)), "a logit goes through Div"),
        (lambda x: drawn(-x), "logits change their sign"),
        (lambda x: drawn(x + 1.0), "a logit goes through Add"),
        (lambda x: drawn(x * [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]), "different temperatures"),
        (lambda x: drawn(tf.zeros_like(x)), "a logit is a constant"),
        (lambda x: drawn(tf.nn.log_softmax(x)), "LogSoftmax stands between"),
        (lambda x: drawn(x[::-1]), "depends on other rows of the batch"),
        (lambda x: tf.cast(drawn(x), tf.int8), "a Cast from int64 to int8"),
        (lambda x: tf.reduce_max(drawn(x)), "Max stands between"),
        (lambda x: x[:, 0] * 2.0, "a value goes through Mul"),
    ],
    ids=[
        "every other",
        "sum",
        "reciprocal",
        "negative",
        "shifted",
        "two temperatures",
        "constant",
        "log softmax",
        "other rows",
        "narrow integer",
        "one for all",
        "scaled value",
    ],
)
def test_step_that_no_family_has_is_named(
    cut: Callable[[Any], Any], problem: str, tmp_path: Path
) -> None:
    structure = cut_of(lambda x: {"actions_0": cut(x)}, tmp_path / "m")

    assert structure.family is None
    assert structure.problem is not None
    assert problem in structure.problem


def test_sizes_of_rllibs_own_graph_are_in_the_order_of_the_actions(tmp_path: Path) -> None:
    parts = (Part(sizes=(4,)), Part("normal", (2,)), Part("multi_discrete", (2, 3)))
    folder = V1Policy(parts=parts, order=(2, 0, 1)).save(tmp_path / "m")

    structure = structure_of(folder, is_certain=False)

    assert parts_of(structure) == [(4, 2), (8, 2), (10, 3), (0, 4)]


def test_log_std_bounds_are_read_from_the_graph(tmp_path: Path) -> None:
    folder = V1Policy(parts=(Part("squashed", (2,)),), log_std_bounds=(-5.0, 2.0)).save(
        tmp_path / "m"
    )

    structure = structure_of(folder, is_certain=False)

    assert structure.family is not None
    assert structure.family.components == (
        ActionComponent("squashed_normal", 2, 0, 0, log_std_bounds=(-5.0, 2.0)),
    )


def test_inputs_that_the_signature_leaves_out_are_what_the_draws_are_made_from(
    tmp_path: Path,
) -> None:
    parts = (Part(), Part("normal", (2,)), Part("multi_discrete", (2, 4)))
    folder = V1Policy(parts=parts, outputs=(), has_exploring=False).save(tmp_path / "m")

    structure = structure_of(folder, is_certain=False)

    assert not structure.is_output
    assert parts_of(structure) == [(0, 3), (3, 2), (7, 2), (9, 4)]


@pytest.mark.parametrize(
    ("network", "noise", "mixing"),
    [
        (lambda _, x: x + tf.random.uniform([3]), "RandomUniform", None),
        (
            lambda _, x: x + tf.random.stateless_uniform(tf.shape(x), seed=[1, 2]),
            "StatelessRandomUniformV2",
            None,
        ),
        (
            lambda rows, x: tf.cond(
                tf.reduce_max(rows) > 1e6, lambda: x * 0, lambda: tf.identity(x)
            ),
            None,
            "a branch (cond) that the observations of a batch decide together",
        ),
        (lambda _, x: tf.cond(tf.constant(True), lambda: x, lambda: x * 2), None, None),  # noqa: FBT003 -- a value
    ],
    ids=["noise", "stateless noise", "branch", "constant branch"],
)
def test_noise_and_branches_above_the_inputs_are_seen(
    network: Callable[[Any, Any], Any], noise: str | None, mixing: str | None, tmp_path: Path
) -> None:
    structure = structure_of(V1Policy(network=network).save(tmp_path / "m"), is_certain=False)

    assert structure.noise == noise
    assert structure.row_mixing == mixing


def test_noise_of_a_branch_that_is_never_taken_is_not_seen(tmp_path: Path) -> None:
    def network(_rows: Any, values: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        is_training = tf.compat.v1.placeholder_with_default(np.False_, [], name="policy/keras")
        return tf.cond(is_training, lambda: values + tf.random.normal([3]), lambda: values)

    folder = V1Policy(network=network, inputs=("timestep",)).save(tmp_path / "m")
    loaded = load_graph(folder)

    assert any("keras" in node.name for node in loaded.graph_def.node)
