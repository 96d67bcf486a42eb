"""Random numbers in a graph, and the draws that are read of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from policy_server.errors import ModelError
from policy_server.formats.known_formats import load_policy
from policy_server.policy import Policy
from policy_server.schema import parse_schema
from tests.support.onnx_models import actor, node, tensor


def load(folder: Path, schema: str = "parameters: {}") -> Policy:
    return load_policy(folder, parse_schema(schema))


def number(name: str, value: Any) -> Any:  # noqa: ANN401 -- onnx is untyped
    array = np.asarray(value)
    array = array.astype(np.float32) if array.dtype.kind == "f" else array
    return node(
        "Constant",
        [],
        [name],
        value=helper.make_tensor(
            "value", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.ravel()
        ),
    )


def branch(*nodes: Any, output: str) -> Any:  # noqa: ANN401 -- onnx is untyped
    return helper.make_graph(list(nodes), "branch", [], [tensor(output, None)])


def choice(name: str, yes: Any, no: Any, above: float = -1e38) -> list[Any]:  # noqa: ANN401 -- onnx is untyped
    """Return a choice between two branches by whether the largest observation is above a number."""
    return [
        number(f"{name} above", above),
        node("ReduceMax", ["obs"], [f"{name} largest"], keepdims=0),
        node("Greater", [f"{name} largest", f"{name} above"], [f"{name} is above"]),
        node("If", [f"{name} is above"], [name], then_branch=yes, else_branch=no),
    ]


TRAINING = [number("ratio", 0.5), number("training", np.array(1, np.bool_))]
DROPOUT = node("Dropout", ["net", "ratio", "training"], ["dropped"])
NOISY = branch(
    node("RandomNormalLike", ["net"], ["n"]), node("Add", ["net", "n"], ["y"]), output="y"
)
PLAIN = branch(node("Identity", ["net"], ["x"]), output="x")
DROPPED = branch(*TRAINING, node("Dropout", ["net", "ratio", "training"], ["z"]), output="z")


@pytest.mark.parametrize(
    ("ending", "operator"),
    [
        pytest.param([*TRAINING, DROPOUT, node("Neg", ["dropped"], ["actions"])], "Dropout"),
        pytest.param([*TRAINING, DROPOUT, node("Identity", ["dropped"], ["actions"])], "Dropout"),
        pytest.param(choice("actions", NOISY, PLAIN), "RandomNormalLike"),
        pytest.param(choice("actions", PLAIN, NOISY), "RandomNormalLike"),
        pytest.param(choice("actions", DROPPED, PLAIN), "Dropout"),
        pytest.param(
            choice("actions", branch(*choice("inner", NOISY, PLAIN), output="inner"), PLAIN),
            "RandomNormalLike",
        ),
    ],
    ids=["dropout", "dropout at the end", "branch", "other branch", "dropout within", "nested"],
)
def test_action_that_depends_on_random_numbers_is_refused(
    ending: list[Any], operator: str, tmp_path: Path
) -> None:
    actor(tmp_path, *ending, output="actions")

    with pytest.raises(ModelError, match=f"its output 'actions' is a draw by {operator}, and"):
        load(tmp_path)


def test_logits_of_random_numbers_are_refused(tmp_path: Path) -> None:
    actor(
        tmp_path,
        *TRAINING,
        DROPOUT,
        node("Multinomial", ["dropped"], ["actions"], dtype=7),
        outputs=[tensor("actions", ["batch", 1], "int64")],
    )

    with pytest.raises(ModelError, match="is a draw by Dropout, Multinomial, and"):
        load(tmp_path)


@pytest.mark.parametrize(
    "given", [["net"], ["net", "ratio", "training"]], ids=["left out", "False"]
)
def test_dropout_that_does_nothing_is_passed(given: list[str], tmp_path: Path) -> None:
    actor(
        tmp_path,
        number("ratio", 0.5),
        number("training", np.array(0, np.bool_)),
        node("Dropout", given, ["d"]),
        node("Softmax", ["d"], ["s"]),
        node("Dropout", ["s", *given[1:]], ["probs"]),
        output="probs",
    )

    assert load(tmp_path).signature.family == "categorical(3)"


def draw(
    *behind: Any,  # noqa: ANN401 -- onnx is untyped
    noise: Any = None,  # noqa: ANN401 -- onnx is untyped
    output: str = "draw",
    std: Sequence[float] = (0.5, 1.0, 2.0),
) -> list[Any]:
    return [
        number("std", [*std]),
        noise or node("RandomNormalLike", ["net"], ["noise"]),
        node("Mul", ["noise", "std"], ["scaled"]),
        node("Add", ["net", "scaled"], [output]),
        *behind,
    ]


def test_draw_with_a_negative_deviation_is_no_normal_distribution(tmp_path: Path) -> None:
    actor(tmp_path, *draw(output="actions", std=(0.5, -1.0, 2.0)), output="actions")

    with pytest.raises(ModelError, match="does not show the distribution that it comes from"):
        load(tmp_path)


def test_dropout_behind_a_draw_is_no_normal_distribution(tmp_path: Path) -> None:
    dropout = node("Dropout", ["draw", "ratio", "training"], ["actions"])
    actor(tmp_path, *TRAINING, *draw(dropout), output="actions")

    with pytest.raises(ModelError, match="does not show the distribution that it comes from"):
        load(tmp_path)


def test_draw_that_is_cut_to_integers_is_no_normal_distribution(tmp_path: Path) -> None:
    actor(
        tmp_path,
        *draw(node("Cast", ["draw"], ["actions"], to=7)),
        outputs=[tensor("actions", ["batch", 3], "int64")],
    )

    with pytest.raises(ModelError, match="does not show the distribution that it comes from"):
        load(tmp_path)


def test_softmax_that_is_cut_to_integers_holds_no_probabilities(tmp_path: Path) -> None:
    actor(
        tmp_path,
        node("Softmax", ["net"], ["s"]),
        node("Cast", ["s"], ["probs"], to=7),
        outputs=[tensor("probs", ["batch", 3], "int64")],
    )

    assert load(tmp_path).signature.family.startswith("deterministic")


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param([node("RandomNormal", [], ["noise"], shape=[1])], id="shape of one"),
        pytest.param([node("RandomNormal", [], ["noise"], shape=[1, 1])], id="row of one"),
        pytest.param(
            [
                number("first", np.array([0])),
                node("Gather", ["net", "first"], ["one"], axis=1),
                node("RandomNormalLike", ["one"], ["noise"]),
            ],
            id="like one",
        ),
    ],
)
def test_one_random_number_for_all_dimensions_is_no_independent_noise(
    noise: list[Any], tmp_path: Path
) -> None:
    actor(tmp_path, *noise[:-1], *draw(noise=noise[-1], output="actions"), output="actions")

    with pytest.raises(ModelError, match="does not show the distribution that it comes from"):
        load(tmp_path)


def test_outputs_that_share_their_noise_are_refused(tmp_path: Path) -> None:
    actor(
        tmp_path,
        node("Neg", ["net"], ["other"]),
        *draw(node("Add", ["other", "scaled"], ["actions_1"]), output="actions_0"),
        outputs=[tensor(name, ["batch", 3]) for name in ("actions_0", "actions_1")],
    )

    with pytest.raises(ModelError, match="'actions_0' and 'actions_1' share the random numbers"):
        load(tmp_path)


def test_choices_that_share_their_draw_are_refused(tmp_path: Path) -> None:
    actor(
        tmp_path,
        node("Multinomial", ["net"], ["one"], dtype=7),
        node("Concat", ["one", "one"], ["actions"], axis=1),
        outputs=[tensor("actions", ["batch", 2], "int64")],
    )

    with pytest.raises(ModelError, match="does not show the distribution that it comes from"):
        load(tmp_path)
