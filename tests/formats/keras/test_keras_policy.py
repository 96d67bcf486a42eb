"""Keras files as policies: the meaning of their outputs, their inputs, units and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from policy_server.errors import (
    ModelError,
    ObservationError,
    PolicyServerError,
)
from policy_server.policy import PolicyInputs
from tests.support.batches import space_of
from tests.support.keras_files import change_config, load, numbers, save
from tests.support.library_policies import cases_of, raw_rows, unzipped

Keras = Any  # keras has no types
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAME, FILE = "keras_actor_softmax", "actor.keras"
INPUTS = keras.Input((4,), name="obs")
ROWS = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)


def dense(units: int, name: str | None = None, activation: str | None = None) -> Keras:
    """Return the result of a layer of the observation."""
    return layers.Dense(units, activation=activation, name=name)(INPUTS)


def test_softmax_of_the_librarys_policy_is_its_distribution(tmp_path: Path) -> None:
    cases = cases_of(NAME)

    policy = load(unzipped(NAME, FILE, tmp_path))

    logits = numbers(policy, raw_rows(cases))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert policy.signature.family == "categorical(2)"
    assert policy.signature.basis == "structure"
    assert chances == pytest.approx(np.array([c["keras"]["probs"] for c in cases]), abs=1e-6)


@pytest.mark.parametrize(
    ("outputs", "schema", "family", "basis"),
    [
        (dense(3, activation="softmax"), None, "categorical(3)", "structure"),
        ([dense(3, activation="softmax"), dense(1)], None, "categorical(3)", "structure"),
        ([dense(3, name="logits"), dense(1, name="value")], None, "categorical(3)", "names"),
        ({"logits": dense(3), "critic": dense(1)}, None, "categorical(3)", "names"),
        (dense(3, name="q_values"), None, "greedy over categorical(3)", "names"),
        (dense(3), "parameters: {discrete: True}", "categorical(3)", "schema"),
        (
            dense(3),
            "actions: {move: {choices: 3, values: q_values}}",
            "greedy over categorical(3)",
            "schema",
        ),
        (
            dense(5),
            "actions: {a: {choices: 3}, b: {choices: 2}}\nparameters: {tuple: True}",
            "categorical(3) + categorical(2)",
            "schema",
        ),
        ({"mean": dense(2), "log_std": dense(2), "value": dense(1)}, None, "normal(2)", "names"),
        (dense(2, activation="tanh"), None, "deterministic(2)", "structure"),
        (dense(2), "actions: {go: {dimensions: 2}}", "deterministic(2)", "schema"),
        (ops.argmax(dense(3), axis=-1), None, "deterministic(1)", "structure"),
    ],
    ids=[
        *("softmax", "softmax-beside-value", "logits", "logits-by-key", "q-values"),
        *("stated-logits", "stated-q-values", "stated-parts", "mean-and-log-std", "tanh"),
        *("stated-action", "argmax"),
    ],
)
def test_meaning_is_read_from_the_end_the_names_and_schema_yaml(
    outputs: Keras, schema: str | None, family: str, basis: str, tmp_path: Path
) -> None:
    policy = load(save(keras.Model(INPUTS, outputs), tmp_path), schema)

    assert (policy.signature.family, policy.signature.basis) == (family, basis)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (dense(3), "nothing tells the meaning of its output"),
        ([dense(3), dense(2)], "nothing tells which of the outputs"),
        (dense(1, name="value"), "hold no action"),
        (
            layers.Softmax()(layers.Reshape((2, 3))(dense(6))),
            "holds 2 softmaxes over 3 numbers; if these are 2 actions",
        ),
        (
            layers.Reshape((2, 3), name="logits")(dense(6)),
            "'logits' holds 2 rows of 3 logits; if these are 2 actions, list them under",
        ),
    ],
    ids=["one", "two", "value", "rows-of-softmaxes", "rows-of-logits"],
)
def test_outputs_that_nothing_tells_the_meaning_of_are_refused(
    outputs: Keras, expected: str, tmp_path: Path
) -> None:
    folder = save(keras.Model(INPUTS, outputs), tmp_path)

    with pytest.raises(PolicyServerError, match=expected):
        load(folder)


@pytest.mark.parametrize(
    ("outputs", "schema", "expected"),
    [
        (dense(4, "probs", "sigmoid"), None, r"its probabilities sum to [\d.]+ for an observation"),
        (dense(4, "probs"), None, "its probabilities hold -.* expected none below 0"),
        (
            layers.Flatten(name="probs")(layers.Softmax()(layers.Reshape((2, 3))(dense(6)))),
            None,
            "its probabilities sum to 2 for an observation, expected 1",
        ),
        (
            layers.Softmax(name="probs")(layers.Reshape((2, 3))(dense(6))),
            "actions: {a: {choices: 2}, b: {choices: 4}}",
            "its probabilities sum to",
        ),
        (
            layers.Activation("log_softmax")(layers.Reshape((2, 3))(dense(6))),
            "actions: {a: {choices: 2}, b: {choices: 4}}",
            "its probabilities sum to",
        ),
    ],
    ids=["sigmoids", "numbers", "two-softmaxes-in-one", "cut-elsewhere", "logarithms"],
)
def test_probabilities_of_no_distribution_over_the_choices_are_refused(
    outputs: Keras, schema: str | None, expected: str, tmp_path: Path
) -> None:
    folder = save(keras.Model(INPUTS, outputs), tmp_path)

    with pytest.raises(ModelError, match=expected):
        load(folder, schema)


def test_probabilities_that_another_layer_has_made_are_taken_by_their_name(tmp_path: Path) -> None:
    positive = dense(3, activation="exponential")
    model = keras.Model(
        INPUTS, layers.Identity(name="probs")(positive / ops.sum(positive, axis=1, keepdims=True))
    )

    policy = load(save(model, tmp_path))

    assert policy.signature.family == "categorical(3)"
    assert np.exp(numbers(policy, ROWS)) == pytest.approx(np.asarray(model(ROWS)), abs=1e-6)


@pytest.mark.parametrize(
    "outputs",
    [
        *(
            dense(3, activation=name)
            for name in ("sigmoid", "relu", "relu6", "elu", "silu", "gelu")
        ),
        layers.ReLU(max_value=2.0)(dense(3)),
        layers.LeakyReLU()(dense(3)),
        layers.PReLU()(dense(3)),
        ops.gelu(dense(3)),
    ],
    ids=[
        *("sigmoid", "relu", "relu6", "elu", "silu", "gelu"),
        *("layer", "leaky-layer", "prelu-layer", "function"),
    ],
)
def test_activation_at_the_end_is_no_layer_of_logits(outputs: Keras, tmp_path: Path) -> None:
    folder = save(keras.Model(INPUTS, outputs), tmp_path)

    with pytest.raises(ModelError, match="ends with an activation, as a layer of features does"):
        load(folder, "parameters: {discrete: True}")


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (1, 2, 3)])
def test_rows_of_logits_are_as_many_actions_where_schema_yaml_lists_them(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = keras.Model(INPUTS, layers.Reshape(shape, name="logits")(dense(6)))
    theirs = np.asarray(model(ROWS)).reshape(len(ROWS), 6)

    policy = load(save(model, tmp_path), "actions: {a: {choices: 3}, b: {choices: 3}}")

    assert policy.signature.family == "categorical(3) + categorical(3)"
    assert numbers(policy, ROWS) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (1, 6)])
def test_logits_in_one_row_are_one_action_whatever_their_shape(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = keras.Model(INPUTS, layers.Reshape(shape, name="logits")(dense(6)))

    assert load(save(model, tmp_path)).signature.family == "categorical(6)"


def test_rows_of_logits_that_schema_yaml_cuts_elsewhere_are_refused(tmp_path: Path) -> None:
    model = keras.Model(INPUTS, layers.Reshape((2, 3), name="logits")(dense(6)))

    with pytest.raises(ModelError, match="holds 2 rows of 3 logits"):
        load(save(model, tmp_path), "actions: {a: {choices: 2}, b: {choices: 4}}")


def test_mean_and_deviation_of_each_dimension_side_by_side_are_refused(tmp_path: Path) -> None:
    model = keras.Model(INPUTS, layers.Reshape((3, 2))(dense(6)))

    with pytest.raises(ModelError, match="holds 3 rows of 2 numbers; expected the means"):
        load(save(model, tmp_path), "actions: {go: {dimensions: 3, values: normal}}")


def test_row_of_means_above_one_of_deviations_is_a_normal(tmp_path: Path) -> None:
    model = keras.Model(INPUTS, layers.Reshape((2, 3))(dense(6)))

    policy = load(save(model, tmp_path), "actions: {go: {dimensions: 3, values: normal}}")

    assert policy.signature.family == "normal(3)"


def test_rows_of_softmaxes_are_as_many_actions_where_schema_yaml_lists_them(tmp_path: Path) -> None:
    model = keras.Model(INPUTS, layers.Softmax()(layers.Reshape((2, 3))(dense(6))))
    theirs = np.asarray(model(ROWS))

    policy = load(
        save(model, tmp_path), "actions: {a: {choices: 3}, b: {choices: 3}}\nparameters: {}"
    )

    logits = numbers(policy, ROWS).reshape(20, 2, 3)
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert policy.signature.family == "categorical(3) + categorical(3)"
    assert chances == pytest.approx(theirs, abs=1e-6)


def test_deterministic_action_is_the_networks(tmp_path: Path) -> None:
    model = keras.Model(INPUTS, ops.argmax(dense(3), axis=-1))

    policy = load(save(model, tmp_path))

    outputs = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True))
    assert outputs.actions[:, 0].tolist() == np.asarray(model(ROWS)).tolist()
    assert policy.signature.action_outputs[0].is_integer
    assert np.isnan(outputs.log_probability).all()


def scaled_tanh() -> keras.Model:
    return keras.Model(INPUTS, layers.Rescaling(2.0)(dense(1, activation="tanh")))


@pytest.mark.parametrize(
    "schema",
    [None, "actions: {torque: {low: -2, high: 2}}", "actions: {torque: {dimensions: 1}}"],
    ids=["none", "bounds", "dimensions"],
)
def test_action_that_the_network_has_scaled_is_not_scaled_again(
    schema: str | None, tmp_path: Path
) -> None:
    model = scaled_tanh()

    policy = load(save(model, tmp_path), schema)

    actions = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True)).actions
    assert actions == pytest.approx(np.asarray(model(ROWS)), abs=1e-6)


def test_bounds_that_would_scale_a_scaled_action_are_refused(tmp_path: Path) -> None:
    folder = save(scaled_tanh(), tmp_path)

    with pytest.raises(ModelError, match=r"gives numbers in \[-2, 2\]; write 'normalized: False'"):
        load(folder, "actions: {torque: {low: -5, high: 5}}")


def test_action_of_a_plain_tanh_is_rescaled_to_the_bounds(tmp_path: Path) -> None:
    model = keras.Model(INPUTS, dense(1, activation="tanh"))

    policy = load(save(model, tmp_path), "actions: {torque: {low: -5, high: 5}}")

    actions = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True)).actions
    assert actions == pytest.approx(np.asarray(model(ROWS)) * 5, abs=1e-5)


TANH = dense(3, activation="tanh")
WIDER = layers.Rescaling([4.0, 1.0, 1.0])(TANH)


@pytest.mark.parametrize(
    "output",
    [
        ops.concatenate([TANH[:, :1] * 4.0, (TANH[:, 1:] + 1.0) / 2.0], 1),
        ops.concatenate([WIDER[:, :1], (WIDER[:, 1:] + 1.0) / 2.0], 1),
        ops.concatenate([ops.split(WIDER, [1], 1)[0], (ops.split(WIDER, [1], 1)[1] + 1.0) / 2], 1),
        ops.stack([TANH[:, 0] * 4.0, (TANH[:, 1] + 1.0) / 2.0, (TANH[:, 2] + 1.0) / 2.0], 1),
    ],
    ids=["slices", "slices of each scale", "split", "stacked"],
)
def test_parts_of_a_tanh_in_the_environments_units_are_not_scaled_again(
    output: Keras, tmp_path: Path
) -> None:
    model = keras.Model(INPUTS, output)

    policy = load(save(model, tmp_path), "actions: {a: {low: [-4, 0, 0], high: [4, 1, 1]}}")

    actions = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True)).actions
    assert actions == pytest.approx(np.asarray(model(ROWS)), abs=1e-5)


@pytest.mark.parametrize(
    "output",
    [
        dense(2, activation="softmax"),
        dense(2, activation="sigmoid"),
        dense(2, activation="hard_sigmoid"),
        ops.clip(dense(2), 0, 1),
        ops.clip(ops.tanh(dense(2)), 0, 1),
        layers.ReLU(max_value=1.0)(dense(2)),
        layers.Concatenate()([dense(1, activation="sigmoid"), dense(1, activation="sigmoid")]),
    ],
    ids=["softmax", "sigmoid", "hard sigmoid", "clip", "clipped tanh", "relu", "joined"],
)
def test_action_of_its_own_bounds_is_not_rescaled(output: Keras, tmp_path: Path) -> None:
    model = keras.Model(INPUTS, output)
    folder = save(model, tmp_path)

    policy = load(folder, "actions: {force: {low: [0, 0], high: [1, 1]}}")

    actions = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True)).actions
    assert actions == pytest.approx(np.asarray(model(ROWS)), abs=1e-6)
    with pytest.raises(ModelError, match=r"gives numbers in \[0, 1\]; write 'normalized: False'"):
        load(folder, "actions: {force: {low: [0, 0], high: [10, 10]}}")


def two_inputs() -> keras.Model:
    near, far = keras.Input((2,), name="near"), keras.Input((2, 3), name="far")
    joined = layers.Concatenate()([near, layers.Flatten()(far)])
    return keras.Model([near, far], layers.Dense(3, name="logits")(joined))


@pytest.mark.parametrize(
    ("schema", "places"),
    [
        (None, range(8)),
        (
            "observations: {far: {type: 'List[float]', min_items: 6, max_items: 6}, "
            "near: {type: 'List[float]', min_items: 2, max_items: 2}}",
            [6, 7, 0, 1, 2, 3, 4, 5],
        ),
    ],
    ids=["in-the-models-order", "in-schema-yamls-order"],
)
def test_several_inputs_lie_one_after_another(
    schema: str | None, places: Keras, tmp_path: Path
) -> None:
    model = two_inputs()
    rows = np.random.default_rng(2).normal(size=(20, 8)).astype(np.float32)
    own = rows[:, list(places)]
    theirs = np.asarray(model([own[:, :2], own[:, 2:].reshape(20, 2, 3)]))

    policy = load(save(model, tmp_path), schema)

    assert numbers(policy, rows) == pytest.approx(theirs, abs=1e-5)
    assert {item.name for item in policy.signature.inputs} == {"near", "far"}
    parts = {part.key: part.shape for part in policy.signature.observation_parts}
    assert parts == {"near": (2,), "far": (2, 3)}


def test_whole_numbers_beside_a_float_are_held_to_their_type(tmp_path: Path) -> None:
    number, x = keras.Input((2,), name="id", dtype="int32"), keras.Input((1,), name="x")
    vectors = layers.Flatten()(layers.Embedding(5, 2)(number))
    model = keras.Model(
        [number, x], layers.Dense(3, name="logits")(layers.Concatenate()([vectors, x]))
    )
    schema = "observations: {id: {type: 'List[float]'}, x: {type: float}}"

    policy = load(save(model, tmp_path), schema)

    space = space_of(schema, policy.signature)
    assert policy.signature.row_dtype is np.float64
    assert space.parse_named(b'{"id": [1, 2.0], "x": 0.5}') == [1, 2, 0.5]
    with pytest.raises(ObservationError):
        space.parse_named(b'{"id": [1.9, 2.5], "x": 0.5}')
    with pytest.raises(ObservationError):
        space.parse_raw(b'{"obs": [1, 2.5, 0.5]}')


def test_image_of_uint8_beside_a_float_is_answered_as_keras_does(tmp_path: Path) -> None:
    place, image = keras.Input((2,), name="pos"), keras.Input((3,), name="img", dtype="uint8")
    scaled = layers.Rescaling(1 / 255)(image)
    model = keras.Model(
        [place, image], layers.Dense(3, name="logits")(layers.Concatenate()([place, scaled]))
    )
    places, images = ROWS[:3, :2], np.array([[0, 127, 255], [1, 2, 254], [128, 0, 3]], np.uint8)
    schema = "observations: {pos: {type: 'List[float]'}, img: {type: 'List[float]'}}"

    policy = load(save(model, tmp_path), schema)

    expected = np.asarray(model([places, images]))
    found = numbers(policy, np.concatenate([places, images], axis=1))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ObservationError):
        space_of(schema, policy.signature).parse_named(b'{"pos": [0, 0], "img": [0, 0, 256]}')


def sequence(model: Keras, policy: Keras, rows: Keras) -> tuple[Any, Any]:
    """Return a policy's and a model's numbers for the observations of one episode, in turn."""
    state = np.zeros((1, policy.signature.memory_width), np.float32)
    ours = []
    for row in rows:
        asked = PolicyInputs.of(row[None].astype(np.float32), state=state)
        answer = policy.infer(asked)
        ours.append(answer.distribution[0])
        state = answer.state
    return np.array(ours), np.array([model(rows[None, : n + 1])[0] for n in range(len(rows))])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_sequence_of_open_length_is_one_step_with_memory(kind: str, tmp_path: Path) -> None:
    layer = getattr(layers, kind)
    model = keras.Sequential(
        [
            keras.Input((None, 4)),
            layers.Dense(5, "relu"),
            layer(3, return_sequences=True),
            layer(6),
            layers.Dense(2, name="logits"),
        ]
    )

    policy = load(save(model, tmp_path))

    ours, theirs = sequence(model, policy, ROWS[:4])
    assert policy.signature.observation_width == 4
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert numbers(policy, ROWS[:1]) == pytest.approx(theirs[:1], abs=1e-5)


def episode(build: Keras) -> keras.Model:
    """Return a model over sequences of open length, which a function builds."""
    steps = keras.Input((None, 4), name="steps")
    return keras.Model(steps, layers.Dense(2, name="logits")(build(steps)))


def lstm_of_all(x: Keras) -> Keras:
    return layers.LSTM(3, return_sequences=True)(x)


@pytest.mark.parametrize(
    "build",
    [
        lambda x: layers.GRU(4)(lstm_of_all(x)),
        lambda x: lstm_of_all(x)[:, -1, :],
        lambda x: layers.LSTM(3)(layers.LayerNormalization()(layers.Dense(5, "relu")(x))),
        lambda x: layers.Concatenate()([layers.LSTM(3)(x), layers.GRU(2)(x)]),
        lambda x: layers.LSTM(3)(layers.Conv1D(5, 1)(x)),
    ],
    ids=["stacked", "last-of-all", "dense-before", "side-by-side", "convolution-of-one"],
)
def test_model_whose_recurrent_layers_alone_see_time_is_stepped(
    build: Keras, tmp_path: Path
) -> None:
    model = episode(build)

    policy = load(save(model, tmp_path))

    ours, theirs = sequence(model, policy, ROWS[:5])
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_model_that_answers_every_step_is_stepped(tmp_path: Path) -> None:
    model = episode(lstm_of_all)

    policy = load(save(model, tmp_path))

    ours, theirs = sequence(model, policy, ROWS[:1])
    assert ours == pytest.approx(theirs[:, -1], abs=1e-5)


def test_input_beside_a_sequence_may_stay_the_same(tmp_path: Path) -> None:
    steps, goal = keras.Input((None, 4), name="steps"), keras.Input((2,), name="goal")
    joined = layers.Concatenate()([layers.LSTM(3)(steps), goal])
    model = keras.Model([steps, goal], layers.Dense(2, name="logits")(joined))

    policy = load(save(model, tmp_path))

    rows = np.concatenate([ROWS[:1], [[1.0, 2.0]]], axis=1)
    theirs = np.asarray(model([ROWS[:1, None], rows[:, 4:]]))
    assert numbers(policy, rows) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda x: layers.LSTM(3)(layers.Conv1D(4, 3, padding="causal")(x)),
        lambda x: layers.LSTM(3)(layers.Conv1D(4, 3, padding="same")(x)),
        lambda x: layers.LSTM(3)(layers.MaxPooling1D(2, strides=1, padding="same")(x)),
        lambda x: layers.GlobalAveragePooling1D()(lstm_of_all(x)),
        lambda x: layers.GlobalMaxPooling1D()(lstm_of_all(x)),
        lambda x: layers.LSTM(3)(x - ops.mean(x, axis=1, keepdims=True)),
        lambda x: lstm_of_all(x)[:, 0, :],
    ],
    ids=[
        *("causal-convolution", "convolution", "pooling", "global-mean", "global-largest"),
        *("mean", "first-of-all"),
    ],
)
def test_model_with_another_layer_that_sees_time_is_refused(build: Keras, tmp_path: Path) -> None:
    folder = save(episode(build), tmp_path)

    with pytest.raises(ModelError, match="another layer than the recurrent ones looks at several"):
        load(folder)


def test_model_that_only_takes_one_step_at_once_is_refused(tmp_path: Path) -> None:
    folder = save(episode(lambda x: ops.reshape(lstm_of_all(x), (-1, 3))), tmp_path)

    with pytest.raises(
        ModelError, match=r"over 4 steps at once, .* \(.*does not keep each"
    ) as caught:
        load(folder)

    assert "\n" not in caught.value.message


def test_states_between_inputs_and_outputs_are_the_memory(tmp_path: Path) -> None:
    row = keras.Input((1, 4), name="row")
    hidden, cell = keras.Input((3,), name="h_in"), keras.Input((3,), name="c_in")
    result, *after = layers.LSTM(3, return_state=True)(row, initial_state=[hidden, cell])
    model = keras.Model(
        [hidden, row, cell], [layers.Dense(2, activation="softmax")(result), *after]
    )
    states = np.random.default_rng(4).normal(size=(20, 6)).astype(np.float32)
    theirs = model([states[:, :3], ROWS[:, None], states[:, 3:]])

    policy = load(save(model, tmp_path))

    answer = policy.infer(PolicyInputs.of(ROWS, state=states))
    assert answer.distribution is not None
    chances = np.exp(answer.distribution) / np.exp(answer.distribution).sum(1, keepdims=True)
    assert [(item.name, item.shape) for item in policy.signature.memory] == [
        ("h_in", (3,)),
        ("c_in", (3,)),
    ]
    assert policy.signature.observation_width == 4
    assert chances == pytest.approx(np.asarray(theirs[0]), abs=1e-5)
    assert answer.state == pytest.approx(np.concatenate(theirs[1:], axis=1), abs=1e-5)


def test_state_whose_next_is_no_output_is_refused(tmp_path: Path) -> None:
    row, hidden = keras.Input((1, 4)), keras.Input((3,), name="h_in")
    result = layers.GRU(3)(row, initial_state=hidden)
    folder = save(keras.Model([row, hidden], layers.Softmax()(result)), tmp_path)

    with pytest.raises(ModelError, match="takes its state from the input 'h_in', and the state"):
        load(folder)


def test_sequence_of_open_length_without_memory_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((None, 4)), layers.GlobalMaxPooling1D(), layers.Dense(2, "softmax")]
    )
    folder = save(model, tmp_path)

    with pytest.raises(ModelError, match="sequences of an open length without a recurrent layer"):
        load(folder)


class Own(layers.Layer):
    def call(self, x: Keras) -> Keras:
        return x


class OwnModel(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.layer = layers.Dense(2)

    def call(self, x: Keras) -> Keras:
        return self.layer(x)


@pytest.mark.parametrize(
    "model",
    [keras.Sequential([keras.Input((4,)), Own()]), OwnModel()],
    ids=["layer", "model"],
)
def test_class_of_ones_own_is_refused_by_name(model: Keras, tmp_path: Path) -> None:
    model(ROWS)
    name = "OwnModel" if isinstance(model, OwnModel) else "Own"
    folder = save(model, tmp_path)

    with pytest.raises(ModelError, match=f"{name} is a class of your own, whose code is not in"):
        load(folder)


def edited(folder: Path, change: Keras) -> Path:
    unzipped(NAME, FILE, folder)
    change_config(folder, change)
    return folder


def cycle(config: dict[str, Any]) -> None:
    layer = config["config"]["layers"][1]
    tensor = layer["inbound_nodes"][0]["args"][0]
    tensor["config"]["keras_history"] = [layer["config"]["name"], 0, 0]


def deep(config: dict[str, Any]) -> None:
    config["config"]["layers"] = [config["config"]["layers"][0]]
    value: Keras = None
    for _ in range(900):
        value = [value]
    config["config"]["output_layers"] = value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(class_name="Model2"), "is no Sequential or Functional model"),
        (lambda c: c.update(class_name=["a"]), "expected layers with a class_name"),
        (lambda c: c.update(config=3), "has no config"),
        (lambda c: c["config"].update(layers=[3]), "expected layers with a class_name"),
        (cycle, "has a layer that needs its own result"),
        (deep, "expected inputs and outputs by name|nested too deeply"),
        (
            lambda c: c["config"]["layers"][0]["config"].update(batch_shape=[None, 10**9]),
            "numbers wide, expected at most",
        ),
        (
            lambda c: c["config"]["layers"][0]["config"].update(batch_shape=[None, None]),
            "has the open shape",
        ),
        (
            lambda c: c["config"]["layers"][1].update(inbound_nodes=[[["observation", 0, 0, {}]]]),
            "was saved by Keras 2",
        ),
        (
            lambda c: c["config"]["layers"][1]["config"].update(units="many"),
            r"units is 'many', expected an integer",
        ),
        (
            lambda c: c["config"]["layers"][1]["config"].update(name="other"),
            "its place in the weights is that of",
        ),
    ],
    ids=[
        *("kind", "kind-of-kind", "config", "layers", "cycle", "deep", "wide", "open"),
        *("keras-2", "units", "names"),
    ],
)
def test_damaged_description_is_one_line(change: Keras, words: str, tmp_path: Path) -> None:
    folder = edited(tmp_path, change)

    with pytest.raises(ModelError, match=words) as caught:
        load(folder)

    assert "\n" not in caught.value.message


def test_names_of_functions_may_stand_beside_their_settings(tmp_path: Path) -> None:
    model = keras.Model(INPUTS, {"logits": dense(3) * 2.0 + 1.0})
    folder = save(model, tmp_path)

    def move(config: dict[str, Any]) -> None:
        parts = [part["config"] for part in config["config"]["layers"]]
        functions = [part for part in parts if part["name"].startswith(("add", "multiply"))]
        assert len(functions) == 2
        for part in functions:
            del part["name"]

    change_config(folder, move)

    assert numbers(load(folder), ROWS) == pytest.approx(np.asarray(model(ROWS)["logits"]), abs=1e-5)


def test_file_of_keras_2_is_refused(tmp_path: Path) -> None:
    unzipped(NAME, FILE, tmp_path)
    (tmp_path / "metadata.json").write_text('{"keras_version": "2.15.0"}')

    with pytest.raises(ModelError, match=r"of Keras 2\.15\.0; load it with Keras 3"):
        load(tmp_path)


def spelled_out() -> Keras:
    """Return a softmax of plain operations."""
    powers = ops.exp(dense(3))
    return powers / ops.sum(powers, axis=-1, keepdims=True)


def both_of(chance: Keras) -> Keras:
    """Return the probabilities of a choice and of the other."""
    return layers.Concatenate()([1 - chance, chance])


@pytest.mark.parametrize(
    ("output", "schema"),
    [
        (layers.Rescaling(1.0)(dense(3, activation="softmax")), "parameters: {discrete: True}"),
        (ops.clip(dense(3, activation="softmax"), 1e-6, 1), "parameters: {discrete: True}"),
        (spelled_out(), "parameters: {discrete: True}"),
        (both_of(dense(1, activation="sigmoid")), "parameters: {discrete: True}"),
        (
            layers.Flatten()(layers.Softmax()(layers.Reshape((2, 3))(dense(6)))),
            "actions: {a: {choices: 3}, b: {choices: 3}}",
        ),
    ],
    ids=["rescaled", "clipped", "spelled out", "sigmoid and rest", "rows of softmaxes"],
)
def test_probabilities_are_not_read_as_logits(output: Keras, schema: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'values: probabilities' or 'values: logits' under"):
        load(save(keras.Model(INPUTS, output), tmp_path), schema)


def test_action_that_is_the_tanh_of_the_mean_is_the_mode_of_sac(tmp_path: Path) -> None:
    mean = dense(2)
    outputs = {"action": ops.tanh(mean), "mean": mean, "log_std": dense(2)}
    model = keras.Model(INPUTS, outputs)

    policy = load(save(model, tmp_path))

    assert policy.signature.family == "squashed_normal(2)"
    modes = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True)).actions
    assert modes == pytest.approx(np.asarray(model(ROWS)["action"]), abs=1e-6)


def test_continuous_action_beside_a_choice_is_never_dropped(tmp_path: Path) -> None:
    outputs = {"logits": dense(3), "mean": dense(2), "log_std": dense(2)}

    with pytest.raises(ModelError, match="its 'mean' and its 'logits' are two actions"):
        load(save(keras.Model(INPUTS, outputs), tmp_path))


def test_bounded_features_are_no_second_action(tmp_path: Path) -> None:
    features = dense(8, activation="tanh")
    outputs = {"logits": layers.Dense(3)(features), "features": features}

    assert load(save(keras.Model(INPUTS, outputs), tmp_path)).signature.family == "categorical(3)"


def test_bounded_features_of_the_value_stand_beside_the_mean(tmp_path: Path) -> None:
    features = dense(2, "critic_features", "tanh")
    value = layers.Dense(1, name="value")(features)
    outputs = [dense(2, "mean"), dense(2, "log_std"), value, features]

    policy = load(save(keras.Model(INPUTS, outputs), tmp_path))

    assert policy.signature.family == "normal(2)"


def test_output_as_wide_as_the_actions_is_theirs_beside_a_value(tmp_path: Path) -> None:
    model = keras.Model(INPUTS, [dense(3), dense(1)])

    policy = load(save(model, tmp_path), "actions: {force: {dimensions: 3}}")

    actions = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True)).actions
    assert actions == pytest.approx(np.asarray(model(ROWS)[0]), abs=1e-5)
