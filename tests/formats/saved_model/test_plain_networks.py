"""SavedModels of Keras's `model.export`: the meaning of outputs that have numbers for names."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import ModelError, ObservationError, PolicyServerError
from policy_server.formats.known_formats import load_policy
from policy_server.policy import Policy, PolicyInputs
from policy_server.schema import parse_schema
from tests.support.batches import space_of
from tests.support.hand_built import save_functions, weights

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

INPUTS = keras.Input((4,), name="obs")
ROWS = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
Keras = Any  # keras has no types


def dense(units: int, name: str | None = None, activation: str | None = None) -> Keras:
    """Return the result of a layer of the observation."""
    return layers.Dense(units, activation=activation, name=name)(INPUTS)


def exported(model: Keras, folder: Path) -> Path:
    model.export(folder / "exported", verbose=False)
    return folder / "exported"


def load(folder: Path, schema: str | None = None) -> Policy:
    return load_policy(folder, None if schema is None else parse_schema(schema))


def test_softmax_is_taken_once(tmp_path: Path) -> None:
    model = keras.Model(INPUTS, [dense(3, activation="softmax"), dense(1)])

    policy = load(exported(model, tmp_path))

    inputs = policy.infer(PolicyInputs.of(ROWS)).distribution
    assert inputs is not None
    assert policy.signature.components is not None
    (part,) = ActionDistribution(policy.signature.components).describe(inputs)
    assert part.probabilities == pytest.approx(np.asarray(model(ROWS)[0]), abs=1e-6)
    assert policy.signature.basis == "structure"


@pytest.mark.parametrize(
    ("outputs", "schema", "family", "basis"),
    [
        (dense(3, activation="log_softmax"), None, "categorical(3)", "structure"),
        (dense(3, name="q_values"), None, "greedy over categorical(3)", "names"),
        ([dense(3, name="logits"), dense(1, name="value")], None, "categorical(3)", "names"),
        (
            {"mean": dense(2), "log_std": dense(2), "value": dense(1)},
            None,
            "normal(2)",
            "names",
        ),
        (dense(2, activation="tanh"), None, "deterministic(2)", "structure"),
        (ops.argmax(dense(3), axis=-1), None, "deterministic(1)", "structure"),
        (dense(3), "parameters: {discrete: True}", "categorical(3)", "schema"),
        (
            dense(3),
            "actions: {move: {choices: 3, values: q_values}}",
            "greedy over categorical(3)",
            "schema",
        ),
    ],
    ids=[
        *("log-softmax", "layer-q-values", "layers", "keys", "tanh", "argmax", "stated-logits"),
        "stated-q-values",
    ],
)
def test_meaning_is_read_from_the_end_the_layers_and_schema_yaml(
    outputs: Keras, schema: str | None, family: str, basis: str, tmp_path: Path
) -> None:
    policy = load(exported(keras.Model(INPUTS, outputs), tmp_path), schema)

    assert (policy.signature.family, policy.signature.basis) == (family, basis)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "softplus"])
def test_activation_at_the_end_is_no_layer_of_logits(activation: str, tmp_path: Path) -> None:
    folder = exported(keras.Model(INPUTS, dense(3, activation=activation)), tmp_path)

    with pytest.raises(ModelError, match="ends with an activation, as a layer of features does"):
        load(folder, "parameters: {discrete: True}")


def test_mean_and_deviation_of_two_outputs_are_the_networks(tmp_path: Path) -> None:
    model = keras.Model(INPUTS, {"mu": dense(2), "std": dense(2, activation="softplus")})
    theirs = model(ROWS)

    policy = load(exported(model, tmp_path))

    inputs = policy.infer(PolicyInputs.of(ROWS)).distribution
    assert inputs is not None
    assert policy.signature.engine == "numpy"
    assert inputs[:, :2] == pytest.approx(np.asarray(theirs["mu"]), abs=1e-5)
    assert np.exp(inputs[:, 2:]) == pytest.approx(np.asarray(theirs["std"]), abs=1e-5)


@pytest.mark.parametrize(
    ("schema", "factor"),
    [(None, 2.0), ("actions: {torque: {low: -2, high: 2}}", 2.0)],
    ids=["none", "bounds"],
)
def test_action_that_the_network_has_scaled_is_not_scaled_again(
    schema: str | None, factor: float, tmp_path: Path
) -> None:
    model = keras.Model(INPUTS, layers.Rescaling(factor)(dense(1, activation="tanh")))

    policy = load(exported(model, tmp_path), schema)

    found = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True))
    assert found.actions == pytest.approx(np.asarray(model(ROWS)), abs=1e-5)
    assert np.isnan(found.log_probability).all()


@pytest.mark.parametrize(
    "output",
    [
        dense(2, activation="softmax"),
        dense(2, activation="sigmoid"),
        dense(2, activation="hard_sigmoid"),
        ops.clip(dense(2), 0, 1),
        layers.Rescaling(0.5, 0.5)(dense(2, activation="tanh")),
        layers.Concatenate()([dense(1, activation="sigmoid"), dense(1, activation="sigmoid")]),
    ],
    ids=["softmax", "sigmoid", "hard sigmoid", "clip", "scaled tanh", "joined"],
)
def test_action_of_its_own_bounds_is_not_rescaled(output: Keras, tmp_path: Path) -> None:
    model = keras.Model(INPUTS, output)
    folder = exported(model, tmp_path)

    policy = load(folder, "actions: {force: {low: [0, 0], high: [1, 1]}}")

    actions = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True)).actions
    assert actions == pytest.approx(np.asarray(model(ROWS)), abs=1e-6)
    with pytest.raises(ModelError, match=r"gives numbers in \[0, 1\]; write 'normalized: False'"):
        load(folder, "actions: {force: {low: [0, 0], high: [10, 10]}}")


def test_several_inputs_are_one_observation(tmp_path: Path) -> None:
    near, far = keras.Input((2,), name="near"), keras.Input((2, 3), name="far")
    joined = layers.Concatenate()([near, layers.Flatten()(far)])
    model = keras.Model([near, far], layers.Dense(3, name="logits")(joined))
    rows = np.random.default_rng(2).normal(size=(20, 8)).astype(np.float32)
    theirs = model([rows[:, :2], rows[:, 2:].reshape(20, 2, 3)])
    schema = (
        "observations: {near: {type: 'List[float]', min_items: 2, max_items: 2}, "
        "far: {type: 'List[float]', min_items: 6, max_items: 6}}"
    )

    policy = load(exported(model, tmp_path), schema)

    found = policy.infer(PolicyInputs.of(rows)).distribution
    assert found == pytest.approx(np.asarray(theirs), abs=1e-5)
    assert "an observation is the inputs near, far, one after another" in policy.signature.findings


def test_whole_number_beside_a_float_arrives_exactly(tmp_path: Path) -> None:
    number, x = keras.Input((1,), name="id", dtype="int32"), keras.Input((1,), name="x")
    odd = layers.Lambda(lambda value: ops.cast(value % 2, "float32"))(number)
    model = keras.Model([number, x], layers.Concatenate(name="logits")([odd, x]))
    schema = "observations: {id: {type: float}, x: {type: float}}"

    policy = load(exported(model, tmp_path), schema)

    rows = np.array([[2**24 + 1, 0.5], [2**24, 0.5], [-3, 0.5]], np.float64)
    found = policy.infer(PolicyInputs.of(rows)).distribution
    assert policy.signature.row_dtype is np.float64
    assert found is not None
    assert found.tolist() == [[1, 0.5], [0, 0.5], [1, 0.5]]
    with pytest.raises(ObservationError):
        space_of(schema, policy.signature).parse_named(b'{"id": 1.9, "x": 0.5}')


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (dense(3), "nothing tells the meaning of its output 'output_0'"),
        ([dense(3), dense(2)], "nothing tells which of the outputs 'output_0', 'output_1'"),
        (layers.Softmax()(layers.Reshape((2, 3))(dense(6))), "expected one row of fixed width"),
    ],
    ids=["one", "two", "rows"],
)
def test_outputs_that_nothing_tells_the_meaning_of_are_refused(
    outputs: Keras, expected: str, tmp_path: Path
) -> None:
    folder = exported(keras.Model(INPUTS, outputs), tmp_path)

    with pytest.raises(PolicyServerError, match=expected):
        load(folder)


def test_probabilities_behind_another_operation_are_not_read_as_logits(tmp_path: Path) -> None:
    output = layers.Rescaling(1.0)(dense(3, activation="softmax"))
    folder = exported(keras.Model(INPUTS, output), tmp_path)

    with pytest.raises(ModelError, match="'values: probabilities' or 'values: logits' under"):
        load(folder, "parameters: {discrete: True}")


def test_action_that_is_the_tanh_of_the_mean_is_the_mode_of_sac(tmp_path: Path) -> None:
    mean = dense(2)
    outputs = {"action": ops.tanh(mean) * 2, "mean": mean, "log_std": dense(2)}
    model = keras.Model(INPUTS, outputs)

    policy = load(exported(model, tmp_path), "actions: {torque: {}}")

    assert policy.signature.family == "squashed_normal(2)"
    modes = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True)).actions
    assert modes == pytest.approx(np.asarray(model(ROWS)["action"]), abs=1e-5)


def test_draw_that_the_graph_makes_itself_says_nothing_of_the_mean(tmp_path: Path) -> None:
    mean = dense(2)
    drawn = layers.Lambda(lambda x: x + tf.random.normal((2,)))(mean)
    outputs = {"action": drawn, "mean": mean, "log_std": dense(2)}

    policy = load(exported(keras.Model(INPUTS, outputs), tmp_path))

    assert policy.signature.family == "normal(2)"
    assert any("no tanh follows a draw" in finding for finding in policy.signature.findings)


@pytest.mark.parametrize("below", ["nothing", "logits", "value"])
def test_bounded_vector_beside_a_choice_is_left_out(below: str, tmp_path: Path) -> None:
    bounded = dense(8, activation="tanh")
    outputs = [
        layers.Dense(3, name="logits")(bounded if below == "logits" else INPUTS),
        layers.Dense(1, name="value")(bounded if below == "value" else INPUTS),
        bounded,
    ]
    folder = exported(keras.Model(INPUTS, outputs), tmp_path)

    assert load(folder).signature.family == "categorical(3)"


@pytest.mark.parametrize(
    ("beside", "rows"),
    [
        (lambda obs: tf.as_string(tf.argmax(obs, axis=1)), None),
        (lambda obs: tf.squeeze(obs[:, :1]), 1),
        (tf.reduce_mean, None),
    ],
    ids=["text", "scalar of one row", "scalar"],
)
def test_output_without_rows_of_numbers_stands_beside_the_actions(
    beside: Any,  # noqa: ANN401 -- TensorFlow is untyped
    rows: int | None,
    tmp_path: Path,
) -> None:
    module = tf.Module()
    module.weight = tf.Variable(np.eye(4, 3, dtype=np.float32))
    signature = [tf.TensorSpec([rows, 4], tf.float32, name="obs")]
    module.answer = tf.function(
        lambda obs: {"probs": tf.nn.softmax(obs @ module.weight), "value": beside(obs)},
        input_signature=signature,
    )
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.answer)

    assert load(tmp_path / "saved").signature.family == "categorical(3)"


def named_by_layer(folder: Path, name: str, finish: Callable[[Any], Any], width: int = 4) -> Path:
    """Write a network as tf.keras before Keras 3 does, whose outputs bear the names of layers."""
    kernel, bias = (tf.Variable(value) for value in weights(4, width))
    return save_functions(
        folder,
        lambda rows: {name: finish(tf.nn.bias_add(tf.matmul(rows, kernel), bias))},
        {"input_1": ([None, 4], "float32")},
        variables=[kernel, bias],
    )


@pytest.mark.parametrize("name", ["dense_2", "tf.math.multiply", "fc_out", "output_0"])
@pytest.mark.parametrize(
    ("finish", "schema", "family"),
    [
        (lambda x: x, "{values: q_values}", "greedy over categorical(4)"),
        (lambda x: x, "{values: q_values, choices: 4}", "greedy over categorical(4)"),
        (lambda x: x, "{values: action, dimensions: 4}", "deterministic(4)"),
        (lambda x: x, "{values: squashed_normal}", "squashed_normal(2)"),
        (lambda x: x, "{values: normal, dimensions: 2}", "normal(2)"),
        (lambda x: tf.tanh(x) * 2.0, "{values: action}", "deterministic(4)"),
    ],
    ids=["q-values", "q-values-choices", "action", "squashed", "normal", "scaled-tanh"],
)
def test_stated_values_hold_whatever_the_output_is_called(
    name: str, finish: Callable[[Any], Any], schema: str, family: str, tmp_path: Path
) -> None:
    folder = named_by_layer(tmp_path / "m", name, finish)

    assert load(folder, f"actions: {{move: {schema}}}").signature.family == family


@pytest.mark.parametrize(
    ("schema", "family"),
    [
        ("parameters: {discrete: True}", "categorical(4)"),
        ("actions: {move: {dimensions: 4}}", "deterministic(4)"),
        # Only RLlib's networks give both from one layer.
        (
            "actions: {a: {choices: 2}, b: {dimensions: 1}}\nparameters: {tuple: True}",
            "categorical(2) + normal(1)",
        ),
    ],
)
def test_layer_without_values_is_read_by_the_rest_of_the_schema(
    schema: str, family: str, tmp_path: Path
) -> None:
    folder = named_by_layer(tmp_path / "m", "dense_2", lambda x: x)

    assert load(folder, schema).signature.family == family


def test_layer_whose_meaning_nothing_states_is_asked_for(tmp_path: Path) -> None:
    folder = named_by_layer(tmp_path / "m", "dense_2", lambda x: x)

    with pytest.raises(ModelError, match=r"nothing tells the meaning of its output 'dense_2'"):
        load(folder)
    with pytest.raises(ModelError, match="state it as 'values' under 'actions'"):
        load(folder, "parameters: {discrete: False}")


def in_scope(folder: Path, scope: str) -> Path:
    """Write a network as Keras 3 does: its output has a number, and its layer names a scope."""
    kernel, bias = (tf.Variable(value) for value in weights(4, 4))

    def answer(rows: Any) -> dict[str, Any]:  # noqa: ANN401 -- TensorFlow is untyped
        with tf.name_scope(scope):
            return {"output_0": tf.nn.bias_add(tf.matmul(rows, kernel), bias)}

    return save_functions(
        folder, answer, {"input_1": ([None, 4], "float32")}, variables=[kernel, bias]
    )


@pytest.mark.parametrize("scope", ["q_values", "q_values_1", "q_values_1_2"])
def test_numbered_output_is_read_by_the_scope_of_its_layer(scope: str, tmp_path: Path) -> None:
    policy = load(in_scope(tmp_path / "m", scope), "parameters: {discrete: True}")

    assert policy.signature.family == "greedy over categorical(4)"


def test_scope_with_many_numbers_is_read_at_once(tmp_path: Path) -> None:
    folder = in_scope(tmp_path / "m", f"q{'_1' * 30_000}x")
    began = time.process_time()

    with pytest.raises(ModelError, match="nothing tells the meaning of its output 'output_0'"):
        load(folder)

    assert time.process_time() - began < 8


def test_untrained_weights_of_rllib_are_refused_whatever_is_stated(tmp_path: Path) -> None:
    kernel, _ = weights(4, 4)
    kernel = kernel / np.linalg.norm(kernel, axis=0)
    variables = [tf.Variable(kernel), tf.Variable(np.zeros(4, np.float32))]
    folder = save_functions(
        tmp_path / "m",
        lambda rows: {"fc_out": tf.nn.bias_add(tf.matmul(rows, variables[0]), variables[1])},
        {"observations": ([None, 4], "float32")},
        variables=variables,
    )

    with pytest.raises(ModelError, match="holds the weights that training started from"):
        load(folder, "actions: {move: {values: q_values}}")
