"""Keras-only exports: the network alone, read as schema.yaml states it, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_server.errors import ModelError, PolicyServerError
from policy_server.schema import parse_schema
from tests.support.hand_built import (
    describe,
    load_policy,
    observations,
    save_functions,
    tf,
    weights,
)

DISCRETE = "parameters: {discrete: True}"


def save_network(
    folder: Path,
    finish: Callable[[Any], Mapping[str, Any]],
    *,
    outputs: int = 4,
    scale: float | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Path:
    """Write a Keras-like network: a dense layer, and what `finish` makes of it."""
    kernel, bias = weights(4, outputs)
    if scale is not None:
        # RLlib's initial weights.
        kernel, bias = kernel / np.linalg.norm(kernel, axis=0) * scale, bias * 0
    variables = [tf.Variable(kernel), tf.Variable(bias)]

    def network(rows: tf.Tensor, *_others: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return finish(tf.nn.bias_add(tf.matmul(rows, variables[0]), variables[1]))

    known = {"observations": ([None, 4], "float32")} | dict(inputs or {})
    return save_functions(folder, network, known, variables=variables)


def refusal(folder: Path, schema: str = DISCRETE) -> str:
    """Return the one line that a policy is refused with."""
    with pytest.raises(PolicyServerError) as caught:
        load_policy(folder, parse_schema(schema))
    assert "\n" not in caught.value.message
    return caught.value.message


def value(logits: tf.Tensor) -> tf.Tensor:
    """Return a value for each row."""
    return tf.zeros_like(logits)[:, :1]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("fc_out", ("value_out",)),
        ("my_out", ("value_out",)),
        ("logits", ("features", "vf_preds")),
        ("anything", ()),
    ],
)
def test_output_that_is_not_the_value_is_the_logits(
    name: str, others: tuple[str, ...], tmp_path: Path
) -> None:
    folder = save_network(
        tmp_path / "m", lambda logits: {name: logits} | {other: value(logits) for other in others}
    )

    policy = load_policy(folder, parse_schema(DISCRETE))

    kernel, bias = weights(4, 4)
    rows = observations()
    exponentials = np.exp(rows @ kernel + bias)
    [component] = describe(policy, rows)
    assert policy.signature.family == "categorical(4)"
    assert not policy.signature.is_proved
    assert name in policy.signature.findings[0]
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert component.probabilities == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("schema", "family"),
    [
        ("parameters: {discrete: True}", "categorical(4)"),
        ("parameters: {discrete: False}", "normal(2)"),
        ("actions: {turn: {labels: [a, b, c, d]}}", "categorical(4)"),
        ("actions: {aim: {low: -1, high: 1}}", "normal(2)"),
        (
            "actions: {a: {choices: 2}, b: {dimensions: 1}}\nparameters: {tuple: True}",
            "categorical(2) + normal(1)",
        ),
        (
            "actions: {a: {choices: 2}, b: {low: [-1], high: [1]}}",
            "categorical(2) + normal(1)",
        ),
    ],
)
def test_meaning_of_the_output_is_the_schemas(schema: str, family: str, tmp_path: Path) -> None:
    folder = save_network(tmp_path / "m", lambda logits: {"fc_out": logits})

    assert load_policy(folder, parse_schema(schema)).signature.family == family


@pytest.mark.parametrize("width", [4, 5, 53])
def test_meaning_that_nothing_states_is_asked_for(width: int, tmp_path: Path) -> None:
    folder = save_network(tmp_path / "m", lambda logits: {"fc_out": logits}, outputs=width)

    with pytest.raises(ModelError, match=rf"fc_out \({width} wide\) means: one action of {width}"):
        load_policy(folder)
    with pytest.raises(ModelError, match=r"or several actions .*; state it"):
        load_policy(folder, parse_schema("observations: {a: {type: 'List[float]'}}"))


def test_finding_says_who_states_the_meaning(tmp_path: Path) -> None:
    stated = save_network(tmp_path / "s", lambda logits: {"fc_out": logits})
    named = save_network(tmp_path / "n", lambda logits: {"q_values": logits})

    policy = load_policy(stated, parse_schema(DISCRETE))

    assert policy.signature.basis == "schema"
    assert policy.signature.findings[0].endswith("as schema.yaml states")
    assert load_policy(named).signature.findings[0].endswith("as its name tells")


def test_q_values_are_taken_greedily(tmp_path: Path) -> None:
    folder = save_network(tmp_path / "m", lambda logits: {"q_values": logits})

    policy = load_policy(folder, parse_schema(DISCRETE))

    assert policy.signature.family == "greedy over categorical(4)"


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ("parameters: {}", "parameters.discrete: is missing, and this model's file does not say"),
        ("parameters: {discrete: True, tuple: True}", "without the sizes of its actions (4 values"),
        ("actions: {a: {choices: 2}, b: {}}", "actions.b: this model's file does not hold the"),
        ("actions: {a: {choices: 2}, b: {choices: 3}}", "is 4 wide, schema.yaml's actions need 5"),
        ("actions: {a: {choices: 3}}", "gives 3 choices, the policy has 4"),
    ],
)
def test_schema_that_does_not_say_enough_or_the_wrong_thing_is_refused(
    schema: str, expected: str, tmp_path: Path
) -> None:
    folder = save_network(tmp_path / "m", lambda logits: {"fc_out": logits})

    assert expected in refusal(folder, schema)


def test_odd_width_cannot_be_continuous(tmp_path: Path) -> None:
    folder = save_network(tmp_path / "m", lambda logits: {"fc_out": logits}, outputs=5)

    message = refusal(folder, "parameters: {discrete: False}")

    assert "is 5 wide, which can't be mean and standard deviation" in message


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        (lambda x: {"value_out": x}, "no output can be the action logits, got value_out"),
        (lambda x: {"vf": tf.reduce_sum(x, 1)}, "no output can be the action logits, got vf"),
        (lambda x: {"a": x, "b": x * 2.0}, "nothing tells which of the outputs 'a', 'b' holds the"),
        (
            lambda x: {"logits": x, "fc_out": x * 2.0},
            "several outputs can be the action logits, got fc_out, logits",
        ),
        (
            lambda x: {"fc_out": tf.boolean_mask(x, tf.reduce_sum(x, axis=0) > 0, axis=1)},
            "the output fc_out has no fixed width",
        ),
    ],
    ids=["value-only", "no-matrix", "two", "two-of-known-names", "open-width"],
)
def test_outputs_that_cannot_be_told_apart_are_refused(
    finish: Callable[[Any], Mapping[str, Any]], expected: str, tmp_path: Path
) -> None:
    assert expected in refusal(save_network(tmp_path / "m", finish))


@pytest.mark.parametrize(
    "activation",
    [
        tf.nn.relu,
        tf.nn.tanh,
        tf.nn.elu,
        tf.nn.leaky_relu,
        tf.nn.silu,
        tf.nn.gelu,
        lambda x: tf.nn.gelu(x, approximate=True),
        lambda x: x * tf.sigmoid(x),
        lambda x: tf.concat([tf.nn.relu(x), tf.nn.relu(-x)], axis=1),
        lambda x: tf.nn.relu(x) / 2.0,
    ],
    ids=[
        "relu",
        "tanh",
        "elu",
        "leaky-relu",
        "silu",
        "gelu",
        "approximate-gelu",
        "swish",
        "two-sided",
        "scaled",
    ],
)
def test_layer_of_features_is_refused(activation: Callable[[Any], Any], tmp_path: Path) -> None:
    folder = save_network(
        tmp_path / "m", lambda x: {"fc_out": activation(x), "value_out": value(x)}
    )

    assert "is a layer of features, not action logits" in refusal(folder)


def test_probabilities_of_no_file_of_rllib_are_refused_as_such(tmp_path: Path) -> None:
    def both(x: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        chance = tf.sigmoid(x[:, :1])
        return tf.concat([1 - chance, chance], axis=1)

    folder = save_network(tmp_path / "m", lambda x: {"logits": both(x)})

    message = refusal(folder)
    assert message == (
        "saved_model.pb: the output logits (2 wide) comes out of an activation, or another output "
        "is computed from it, as with features and probabilities; expected action logits: export "
        "the layer ahead of it"
    )


def test_layer_that_the_value_is_computed_from_is_refused(tmp_path: Path) -> None:
    kernel = tf.constant(weights(4, 1)[0])
    folder = save_network(
        tmp_path / "m", lambda x: {"fc_out": x, "value_out": tf.matmul(x, kernel)}
    )

    assert "the output fc_out (4 wide) is a layer of features" in refusal(folder)


@pytest.mark.parametrize(
    "finish",
    [
        lambda x: x + tf.maximum(tf.math.log(tf.cast(x > 0, tf.float32)), -1e9),
        lambda x: tf.where(x > 0, x, -1e9),
        lambda x: tf.concat([x[:, :2], tf.zeros_like(x[:, :2])], axis=1),
        lambda x: tf.concat([tf.tanh(x[:, :2]), x[:, 2:]], axis=1),
    ],
    ids=["added-mask", "chosen-mask", "free-log-std", "bounded-mean"],
)
def test_logits_behind_a_mask_or_beside_free_values_are_served(
    finish: Callable[[Any], Any], tmp_path: Path
) -> None:
    folder = save_network(tmp_path / "m", lambda x: {"fc_out": finish(x), "value_out": value(x)})

    assert load_policy(folder, parse_schema(DISCRETE)).signature.components is not None


def test_recurrent_trunk_is_refused(tmp_path: Path) -> None:
    folder = save_functions(
        tmp_path / "m",
        lambda observations, state_in_0: {"fc_out": observations + state_in_0},
        {"observations": ([None, 4], "float32"), "state_in_0": ([None, 4], "float32")},
    )

    message = refusal(folder)

    assert "holds only the recurrent trunk of a policy (inputs state_in_0)" in message


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_weights_that_training_started_from_are_refused(scale: float, tmp_path: Path) -> None:
    folder = save_network(tmp_path / "m", lambda x: {"fc_out": x}, scale=scale)

    assert "holds the weights that training started from, not the trained ones" in refusal(folder)


def test_weights_of_another_norm_are_served(tmp_path: Path) -> None:
    folder = save_network(tmp_path / "m", lambda x: {"fc_out": x}, scale=0.5)

    load_policy(folder, parse_schema(DISCRETE))


def test_network_of_nan_is_refused(tmp_path: Path) -> None:
    folder = save_network(tmp_path / "m", lambda x: {"fc_out": x * np.nan})

    with pytest.raises(ModelError, match="gives no answer on each of 194 observations"):
        load_policy(folder, parse_schema(DISCRETE))
