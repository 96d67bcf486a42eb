"""The meaning of a graph's outputs where probes alone would mislead."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from policy_server.errors import ModelError, SchemaError
from policy_server.formats.known_formats import load_policy
from policy_server.policy import Policy, PolicyInputs
from policy_server.schema import parse_schema
from tests.support.library_policies import POLICIES
from tests.support.onnx_models import actor, node, tensor, weights, write_model

Array = NDArray[Any]
CENTRE = np.array([300, 250, 20, 1000], np.float32)
SCALE = np.array([0.05, 0.02, 0.01, 0.1], np.float32)
# Where the policy works, which no common probe comes near.
WORKING = CENTRE + SCALE * np.random.default_rng(7).standard_normal((6, 4)).astype(np.float32)
CONTINUOUS = [
    pytest.param("parameters: {}", id="nothing"),
    pytest.param("parameters: {discrete: False}", id="discrete False"),
    pytest.param("actions: {valve: {low: [0, 0], high: [10, 10], normalized: false}}", id="bounds"),
]


def load(folder: Path, schema: str = "parameters: {}") -> Policy:
    return load_policy(folder, parse_schema(schema))


def modes_of(policy: Policy, rows: Array) -> Array:
    return policy.infer(PolicyInputs.of(rows, is_deterministic=True)).actions


def theirs(path: Path, rows: Array) -> Array:
    found: Array = onnxruntime.InferenceSession(path).run(None, {"obs": rows})[0]
    return found


def normalizing_actor(folder: Path, *ending: Any, output: str = "actions") -> Path:  # noqa: ANN401 -- onnx is untyped
    """Write an actor with its normaliser inside, whose tensor `net` the ending bounds."""
    return write_model(
        folder,
        [
            node("Sub", ["obs", "mean"], ["centred"]),
            node("Div", ["centred", "std"], ["normal"]),
            node("Gemm", ["normal", "w0", "b0"], ["layer"]),
            node("Relu", ["layer"], ["hidden"]),
            node("MatMul", ["hidden", "w1"], ["net"]),
            *ending,
        ],
        [tensor("obs", ["batch", 4])],
        [tensor(output, ["batch", 2])],
        {
            "mean": CENTRE,
            "std": SCALE,
            "w0": weights(4, 64, seed=17),
            "b0": weights(64, seed=1),
            "w1": weights(64, 2, seed=117) / 8,
            "axis": np.array(1),
            "low": np.array(-1, np.float32),
            "high": np.array(1, np.float32),
            "many": np.array(1e7, np.float32),
        },
    )


BOUNDED = [
    pytest.param([node("Tanh", ["net"], ["actions"])], id="tanh"),
    pytest.param([node("Clip", ["net", "low", "high"], ["actions"])], id="clip"),
    pytest.param([node("HardSigmoid", ["net"], ["actions"])], id="hard sigmoid"),
    pytest.param([node("Mul", ["net", "many"], ["actions"])], id="large"),
]


@pytest.mark.parametrize("schema", CONTINUOUS)
@pytest.mark.parametrize("ending", BOUNDED)
def test_continuous_action_that_the_probes_saturate_is_no_integer(
    ending: list[Any], schema: str, tmp_path: Path
) -> None:
    path = normalizing_actor(tmp_path, *ending)

    policy = load(tmp_path, schema)

    assert not policy.signature.action_outputs[0].is_integer
    if "low" not in schema:
        expected = theirs(path, WORKING)
        np.testing.assert_allclose(modes_of(policy, WORKING), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param([node("Round", ["net"], ["actions"])], id="round"),
        pytest.param(
            [node("Floor", ["net"], ["f"]), node("Clip", ["f", "low", "high"], ["actions"])],
            id="clipped floor",
        ),
        pytest.param(
            [node("Cast", ["net"], ["i"], to=7), node("Cast", ["i"], ["actions"], to=1)],
            id="cast",
        ),
        pytest.param(
            [
                node("Sign", ["net"], ["s"]),
                node("Add", ["s", "high"], ["a"]),
                node("Identity", ["a"], ["actions"]),
            ],
            id="shifted sign",
        ),
        pytest.param(
            [
                node("Round", ["net"], ["r"]),
                node("Mod", ["r", "high"], ["m"], fmod=1),
                node("Dropout", ["m"], ["actions"]),
            ],
            id="remainder",
        ),
        pytest.param(
            [node("Ceil", ["net"], ["c"]), node("CumSum", ["c", "axis"], ["actions"])],
            id="sums",
        ),
    ],
)
def test_numbers_that_the_graph_makes_whole_are_integers(ending: list[Any], tmp_path: Path) -> None:
    normalizing_actor(tmp_path, *ending)

    assert load(tmp_path).signature.action_outputs[0].is_integer


@pytest.mark.parametrize("schema", CONTINUOUS[1:])
def test_whole_floats_are_continuous_where_schema_states_it(schema: str, tmp_path: Path) -> None:
    path = normalizing_actor(tmp_path, node("Round", ["net"], ["actions"]))

    policy = load(tmp_path, schema)

    assert not policy.signature.action_outputs[0].is_integer
    if "low" not in schema:
        np.testing.assert_allclose(modes_of(policy, WORKING), theirs(path, WORKING))


def test_softmax_that_the_probes_saturate_is_no_one_hot_vector(tmp_path: Path) -> None:
    path = normalizing_actor(
        tmp_path,
        node("ReduceMax", ["net"], ["largest"], axes=[1]),
        node("Sub", ["net", "largest"], ["below"]),
        node("Exp", ["below"], ["e"]),
        node("ReduceSum", ["e", "axes"], ["sum"]),
        node("Div", ["e", "sum"], ["out"]),
        output="out",
    )
    add_constant(path, "axes", np.array([1]))

    policy = load(tmp_path, "parameters: {discrete: True}")

    assert policy.signature.family == "categorical(2)"
    described = policy.infer(PolicyInputs.of(WORKING, is_deterministic=True)).distribution
    assert described is not None
    np.testing.assert_allclose(np.exp(described), theirs(path, WORKING), atol=1e-5)


def test_corner_of_a_box_is_no_distribution_of_choices(tmp_path: Path) -> None:
    """Both shares are clipped to 1 and 0 for whatever a probe holds."""
    actor(
        tmp_path,
        node("Constant", [], ["far"], value_floats=[1e6, -1e6]),
        node("Constant", [], ["none"], value_float=0.0),
        node("Constant", [], ["one"], value_float=1.0),
        node("Add", ["net", "far"], ["shifted"]),
        node("Clip", ["shifted", "none", "one"], ["actions"]),
        output="actions",
        actions=2,
    )

    policy = load(tmp_path)

    assert policy.signature.family == "deterministic(2)"
    assert not policy.signature.action_outputs[0].is_integer
    assert "the same answer" in policy.signature.engine_reason


def test_working_range_is_compared_with_the_runtime(tmp_path: Path) -> None:
    normalizing_actor(tmp_path, node("Tanh", ["net"], ["actions"]))

    reason = load(tmp_path).signature.engine_reason

    assert "equal to onnxruntime on 382 probes" in reason
    assert "the same answer" not in reason


def add_constant(path: Path, name: str, value: Array) -> None:
    import onnx

    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, path)


TWO = "actions: {a: {choices: 2}, b: {choices: 3}}"
CUT = [
    node("Constant", [], ["sizes"], value_ints=[2, 3]),
    node("Split", ["net", "sizes"], ["first", "second"], axis=1),
]
JOINED = [
    *CUT,
    node("Softmax", ["first"], ["p"]),
    node("Softmax", ["second"], ["q"]),
    node("Concat", ["p", "q"], ["out"], axis=1),
]
ROWS = np.random.default_rng(9).standard_normal((6, 4)).astype(np.float32)


def test_joined_softmaxes_are_the_probabilities_of_each_action(tmp_path: Path) -> None:
    path = actor(tmp_path, *JOINED, output="out", actions=5)

    policy = load(tmp_path, TWO)

    inputs = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True)).distribution
    assert inputs is not None
    np.testing.assert_allclose(np.exp(inputs), theirs(path, ROWS), atol=1e-6)
    assert policy.signature.family == "categorical(2) + categorical(3)"
    assert any("as the graph shows" in finding for finding in policy.signature.findings)


def test_joined_softmaxes_are_not_cut_elsewhere(tmp_path: Path) -> None:
    actor(tmp_path, *JOINED, output="out", actions=5)

    with pytest.raises(ModelError, match="holds softmaxes of 2, 3 numbers; if these are 2 actions"):
        load(tmp_path, "actions: {a: {choices: 3}, b: {choices: 2}}")


@pytest.mark.parametrize("output", ["out", "logits"])
def test_probabilities_that_the_graph_spells_out_are_no_logits(output: str, tmp_path: Path) -> None:
    path = actor(
        tmp_path,
        *JOINED[:-1],
        node("Sub", ["p", "nothing"], ["p less"]),
        node("Concat", ["p less", "q"], [output], axis=1),
        output=output,
        actions=5,
    )
    add_constant(path, "nothing", np.array(0, np.float32))

    with pytest.raises(ModelError, match="'values: probabilities' or 'values: logits' under"):
        load(tmp_path, TWO)

    stated = "actions: {a: {choices: 2, values: %s}, b: {choices: 3, values: %s}}"
    for values, read in (("probabilities", np.exp), ("logits", np.asarray)):
        policy = load(tmp_path, stated % (values, values))
        inputs = policy.infer(PolicyInputs.of(ROWS, is_deterministic=True)).distribution
        assert inputs is not None
        np.testing.assert_allclose(read(inputs), theirs(path, ROWS), atol=1e-6)
        assert any("as schema.yaml states" in one for one in policy.signature.findings)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (TWO, "as logits, for the choices in schema.yaml"),
        ("parameters: {discrete: True}", "as logits, for the 'discrete: True' in schema.yaml"),
        ("actions: {a: {dimensions: 5}}", "as action, for the dimensions in schema.yaml"),
    ],
)
def test_meaning_that_schema_does_not_state_itself_is_told_so(
    schema: str, words: str, tmp_path: Path
) -> None:
    actor(tmp_path, output="out", actions=5)

    assert any(words in finding for finding in load(tmp_path, schema).signature.findings)


HALVES = node("Split", ["net"], ["mean", "log_std"], axis=1)


def test_action_that_is_the_tanh_of_the_mean_is_the_mode_of_sac(tmp_path: Path) -> None:
    names = ("action", "mean", "log_std")
    path = actor(
        tmp_path,
        HALVES,
        node("Tanh", ["mean"], ["action"]),
        actions=4,
        outputs=[tensor(name, ["batch", 2]) for name in names],
    )

    policy = load(tmp_path)

    assert policy.signature.family == "squashed_normal(2)"
    np.testing.assert_allclose(modes_of(policy, ROWS), theirs(path, ROWS), atol=1e-6)


def test_draw_by_the_clients_noise_leaves_the_mean_as_it_is(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        [
            node("MatMul", ["obs", "w"], ["net"]),
            node("Split", ["net"], ["mean", "log_std"], axis=1),
            node("Exp", ["log_std"], ["std"]),
            node("Mul", ["std", "noise"], ["spread"]),
            node("Add", ["mean", "spread"], ["action"]),
        ],
        [tensor("obs", ["batch", 4]), tensor("noise", ["batch", 2])],
        [tensor(name, ["batch", 2]) for name in ("action", "mean", "log_std")],
        {"w": weights(4, 4)},
    )

    signature = load(tmp_path).signature

    assert signature.family == "normal(2)"
    assert any("(its 'action' does not tell it)" in finding for finding in signature.findings)


@pytest.mark.parametrize("size", [1, 100, 1000])
def test_mode_of_a_scaled_draw_stands_beside_it(size: int, tmp_path: Path) -> None:
    path = write_model(
        tmp_path,
        [
            node("MatMul", ["obs", "w"], ["mu"]),
            node("RandomNormalLike", ["mu"], ["noise"]),
            node("Add", ["mu", "noise"], ["drawn"]),
            node("Tanh", ["drawn"], ["bounded"]),
            node("Mul", ["bounded", "most"], ["action"]),
            node("Tanh", ["mu"], ["mode"]),
            node("Mul", ["mode", "most"], ["deterministic_actions"]),
        ],
        [tensor("obs", ["batch", 4])],
        [tensor(name, ["batch", 2]) for name in ("action", "deterministic_actions")],
        {"w": weights(4, 2) * size, "most": np.array([2, 0.5], np.float32)},
    )
    rows = np.ones((1, 4), np.float32)

    modes = modes_of(load(tmp_path), rows)

    session = onnxruntime.InferenceSession(path)
    expected = session.run(["deterministic_actions"], {"obs": rows})[0]
    assert modes == pytest.approx(expected, abs=1e-5)


def test_bounds_of_a_scaled_tanh_are_held_against_schema(tmp_path: Path) -> None:
    path = actor(
        tmp_path,
        HALVES,
        node("Tanh", ["mean"], ["bounded"]),
        node("Mul", ["bounded", "most"], ["action"]),
        actions=4,
        outputs=[tensor(name, ["batch", 2]) for name in ("action", "mean", "log_std")],
    )
    add_constant(path, "most", np.array([2, 0.5], np.float32))

    policy = load(tmp_path, "actions: {torque: {low: [-2, -0.5], high: [2, 0.5]}}")

    np.testing.assert_allclose(modes_of(policy, ROWS), theirs(path, ROWS), atol=1e-6)
    with pytest.raises(SchemaError, match="low: is -3, the policy's file says -2"):
        load(tmp_path, "actions: {torque: {low: -3, high: 3}}")
    np.testing.assert_allclose(modes_of(load(tmp_path), ROWS), theirs(path, ROWS), atol=1e-6)


def test_bounds_of_a_mean_are_none_of_the_action(tmp_path: Path) -> None:
    actor(
        tmp_path,
        node("Split", ["net"], ["wide", "log_std"], axis=1),
        node("Constant", [], ["five"], value_float=5.0),
        node("Div", ["wide", "five"], ["narrow"]),
        node("Tanh", ["narrow"], ["bounded"]),
        node("Mul", ["bounded", "five"], ["mean"]),
        actions=4,
        outputs=[tensor(name, ["batch", 2]) for name in ("mean", "log_std")],
    )

    policy = load(tmp_path, "actions: {torque: {low: -2, high: 2}}")

    assert policy.signature.family == "normal(2)"


def test_mean_and_deviation_are_of_sac_where_schema_states_it(tmp_path: Path) -> None:
    path = actor(
        tmp_path, HALVES, actions=4, outputs=[tensor(x, ["batch", 2]) for x in ("mean", "log_std")]
    )

    policy = load(tmp_path, "actions: {a: {low: -2, high: 2, values: squashed_normal}}")

    expected = 2 * np.tanh(theirs(path, ROWS))
    np.testing.assert_allclose(modes_of(policy, ROWS), expected, atol=1e-6)


MULTINOMIAL = node("Multinomial", ["chances"], ["discrete_actions"], sample_size=1, dtype=7)
CHOICE = tensor("discrete_actions", ["batch", 1], "int64")
HYBRID = [
    node("Constant", [], ["parts"], value_ints=[3, 2]),
    node("Split", ["net", "parts"], ["chances", "aim"], axis=1),
    MULTINOMIAL,
]


@pytest.mark.parametrize("name", ["continuous_actions", "mean"])
def test_action_beside_a_draw_is_never_dropped(name: str, tmp_path: Path) -> None:
    others = [tensor(name, ["batch", 2])]
    ending = [*HYBRID, node("Tanh", ["aim"], [name])]
    if name == "mean":
        ending.append(node("Neg", ["aim"], ["log_std"]))
        others.append(tensor("log_std", ["batch", 2]))
    actor(tmp_path, *ending, actions=5, outputs=[CHOICE, *others])

    with pytest.raises(ModelError) as caught:
        load(tmp_path)

    assert caught.value.message == (
        f"policy.onnx: its output {name!r} is an action beside the draw 'discrete_actions', and "
        "would be left out; export one of the two alone, draw both in the graph, or describe both "
        "in the file's metadata (docs/onnx.md)"
    )


def test_bounded_vector_beside_a_draw_is_left_out_with_a_word(tmp_path: Path) -> None:
    ending = [*HYBRID, node("Tanh", ["aim"], ["aimed"])]
    actor(tmp_path, *ending, actions=5, outputs=[CHOICE, tensor("aimed", ["batch", 2])])

    signature = load(tmp_path).signature

    assert signature.family == "categorical(3)"
    assert "nothing tells that 'aimed' is an action: it is left out" in signature.findings


@pytest.mark.parametrize("wide", [1, 8])
def test_bounded_features_of_the_value_stand_beside_a_draw(wide: int, tmp_path: Path) -> None:
    path = actor(
        tmp_path,
        *HYBRID,
        node("MatMul", ["obs", "v"], ["h"]),
        node("Tanh", ["h"], ["latent_vf"]),
        node("ReduceSum", ["latent_vf"], ["value"]),
        actions=5,
        outputs=[CHOICE, tensor("latent_vf", ["batch", wide]), tensor("value", [1, 1])],
    )
    add_constant(path, "v", weights(4, wide))

    assert load(tmp_path).signature.family == "categorical(3)"


@pytest.mark.parametrize(
    ("ending", "others"),
    [
        (
            [node("Tanh", ["h"], ["features"]), node("MatMul", ["features", "k2"], ["mean"])],
            [tensor("features", ["batch", 8])],
        ),
        (
            [
                node("MatMul", ["obs", "k3"], ["v0"]),
                node("Tanh", ["v0"], ["critic_value"]),
                node("MatMul", ["h", "k2"], ["mean"]),
            ],
            [tensor("critic_value", ["batch", 1])],
        ),
    ],
    ids=["features", "value"],
)
def test_bounded_output_beside_a_mean_is_no_action(
    ending: list[Any], others: list[Any], tmp_path: Path
) -> None:
    path = actor(
        tmp_path,
        node("MatMul", ["obs", "k1"], ["h"]),
        *ending,
        node("Identity", ["net"], ["log_std"]),
        actions=2,
        outputs=[tensor("mean", ["batch", 2]), tensor("log_std", ["batch", 2]), *others],
    )
    add_constant(path, "k1", weights(4, 8))
    add_constant(path, "k2", weights(8, 2))
    add_constant(path, "k3", weights(4, 1))

    assert load(tmp_path).signature.family == "normal(2)"


@pytest.mark.parametrize(
    ("ending", "outputs"),
    [
        ([node("Identity", ["chances"], ["logits"])], [tensor("logits", ["batch", 3])]),
        ([node("LogSoftmax", ["chances"], ["log_probs"])], [tensor("log_probs", ["batch", 3])]),
        (
            [node("ArgMax", ["chances"], ["action"], axis=1)],
            [tensor("action", ["batch", 1], "int64")],
        ),
        (
            [
                node("MatMul", ["obs", "v"], ["value"]),
                node("Constant", [], ["size"], value_floats=[1.0]),
                node("Add", ["value", "size"], ["q_values"]),
            ],
            [tensor("value", ["batch", 2]), tensor("q_values", ["batch", 2])],
        ),
    ],
    ids=["logits", "log-softmax", "mode", "values"],
)
def test_outputs_of_a_draws_own_distribution_stand_beside_it(
    ending: list[Any], outputs: list[Any], tmp_path: Path
) -> None:
    path = actor(tmp_path, *HYBRID, *ending, actions=5, outputs=[CHOICE, *outputs])
    add_constant(path, "v", weights(4, 2))

    assert load(tmp_path).signature.family == "categorical(3)"


@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
def test_action_beside_its_values_is_compared_with_their_best(
    operator: str, tmp_path: Path
) -> None:
    actor(
        tmp_path,
        node(operator, ["net"], ["action"], axis=1, keepdims=0),
        node("Identity", ["net"], ["q_values"]),
        outputs=[tensor("action", ["batch"], "int64"), tensor("q_values", ["batch", 3])],
    )

    if operator == "ArgMax":
        assert load(tmp_path).signature.family == "greedy over categorical(3)"
        return
    with pytest.raises(ModelError, match="is not always the best choice of its 'q_values'"):
        load(tmp_path)
    stated = load(tmp_path, "actions: {a: {values: action}}")
    assert stated.signature.family == "deterministic(1)"


def test_bounded_features_are_no_second_action(tmp_path: Path) -> None:
    actor(
        tmp_path,
        node("Identity", ["net"], ["logits"]),
        outputs=[tensor("logits", ["batch", 3]), tensor("hidden", ["batch", 8])],
    )

    assert load(tmp_path).signature.family == "categorical(3)"


SPELLED_OUT = [
    node("Softmax", ["first"], ["p"], axis=1),
    node("Softmax", ["second"], ["q"], axis=1),
    node("Concat", ["p", "q"], ["chances"], axis=1),
    node("Constant", [], ["small"], value_float=1e-7),
    node("Add", ["chances", "small"], ["positive"]),
    node("Log", ["positive"], ["action"]),
]


@pytest.mark.parametrize("schema", ["parameters: {}", TWO])
@pytest.mark.parametrize(
    "ending",
    [
        [
            node("LogSoftmax", ["first"], ["p"], axis=1),
            node("LogSoftmax", ["second"], ["q"], axis=1),
            node("Concat", ["p", "q"], ["action"], axis=1),
        ],
        SPELLED_OUT,
    ],
    ids=["log-softmax", "spelled out"],
)
def test_discrete_action_of_old_ml_agents_is_the_logits_of_its_branches(
    ending: list[Any], schema: str, tmp_path: Path
) -> None:
    control = node("Constant", [], ["is_continuous_control"], value_ints=[0])
    outputs = [tensor("action", ["batch", 5]), tensor("is_continuous_control", [1], "int64")]
    path = actor(tmp_path, *CUT, *ending, control, actions=5, outputs=outputs)

    policy = load(tmp_path, schema)

    assert policy.signature.family == "categorical(2) + categorical(3)"
    numbers = theirs(path, ROWS)
    expected = np.stack([numbers[:, :2].argmax(axis=1), numbers[:, 2:].argmax(axis=1)], axis=1)
    np.testing.assert_array_equal(modes_of(policy, ROWS), expected)


def logarithms(names: str) -> list[Any]:
    """Return the nodes that normalise logits to log-probabilities, named by an `n` behind."""
    return [
        one
        for name in names.split()
        for one in (
            node("ReduceLogSumExp", [name], [f"{name}_sum"], axes=[1], keepdims=1),
            node("Sub", [name, f"{name}_sum"], [f"{name}_n"]),
        )
    ]


def test_log_probabilities_beside_their_logits_are_no_second_action(tmp_path: Path) -> None:
    names = [("logits", 3), ("log_pi", 3), ("value", 1)]
    actor(
        tmp_path,
        *logarithms("net"),
        node("Identity", ["net"], ["logits"]),
        node("Identity", ["net_n"], ["log_pi"]),
        node("ReduceMean", ["net"], ["value"], axes=[1], keepdims=1),
        outputs=[tensor(name, ["batch", width]) for name, width in names],
    )

    assert load(tmp_path).signature.family == "categorical(3)"


def test_joined_log_probabilities_given_twice_are_read_once(tmp_path: Path) -> None:
    actor(
        tmp_path,
        *CUT,
        *logarithms("first second"),
        node("Concat", ["first_n", "second_n"], ["action"], axis=1),
        node("Identity", ["action"], ["discrete_actions"]),
        actions=5,
        outputs=[tensor(name, ["batch", 5]) for name in ("action", "discrete_actions")],
    )

    assert load(tmp_path).signature.family == "categorical(2) + categorical(3)"


@pytest.mark.parametrize(
    "schema", ["parameters: {}", "actions: {a: {choices: 4}, b: {choices: 2}}"]
)
@pytest.mark.parametrize("is_joined", [True, False], ids=["concat", "sum"])
def test_choice_that_is_never_taken_does_not_move_the_cut(
    is_joined: bool,  # noqa: FBT001 -- a parameter
    schema: str,
    tmp_path: Path,
) -> None:
    path = actor(
        tmp_path,
        node("Add", ["net", "shift"], ["shifted"]),
        node("Split", ["shifted", "sizes"], ["first", "second"], axis=1),
        *logarithms("first second"),
        node("Concat", ["first_n", "second_n"], ["joined"], axis=1),
        # As where no Concat shows the sizes.
        node("Identity" if is_joined else "Abs", ["joined"], ["steps"]),
        node("Identity" if is_joined else "Neg", ["steps"], ["logits"]),
        actions=6,
        outputs=[tensor("logits", ["batch", 6])],
    )
    add_constant(path, "shift", np.array([0, 0, 0, -40, 0, 0], np.float32))
    add_constant(path, "sizes", np.array([4, 2]))

    family = load(tmp_path, schema).signature.family

    is_told = is_joined or "choices" in schema
    assert family == ("categorical(4) + categorical(2)" if is_told else "categorical(6)")


def test_softmaxes_that_the_graph_joins_are_cut_where_it_joins_them(tmp_path: Path) -> None:
    actor(tmp_path, *JOINED, output="out", actions=5)

    assert load(tmp_path).signature.family == "categorical(2) + categorical(3)"


@pytest.mark.parametrize("sharpness", [1, 30])
def test_masked_branches_of_old_ml_agents_are_the_logits_of_their_softmaxes(
    sharpness: float, tmp_path: Path
) -> None:
    names, sizes = ("first", "second"), (3, 2)
    branches = [
        one
        for name in names
        for one in (
            node("Mul", [name, f"{name}_mask"], [f"{name}_kept"]),
            node("Sub", ["one", f"{name}_mask"], [f"{name}_off"]),
            node("Mul", [f"{name}_off", "huge"], [f"{name}_low"]),
            node("Sub", [f"{name}_kept", f"{name}_low"], [f"{name}_masked"]),
            node("Softmax", [f"{name}_masked"], [f"{name}_p"], axis=-1),
            node("Add", [f"{name}_p", "tiny"], [f"{name}_positive"]),
            node("Log", [f"{name}_positive"], [f"{name}_log"]),
        )
    ]
    write_model(
        tmp_path,
        [
            node("MatMul", ["obs", "w"], ["net"]),
            node("Split", ["net", "sizes"], [*names], axis=1),
            node("Split", ["action_masks", "sizes"], [f"{x}_mask" for x in names], axis=1),
            *branches,
            node("Concat", [f"{name}_log" for name in names], ["action"], axis=1),
        ],
        [tensor("obs", ["batch", 4]), tensor("action_masks", ["batch", 5])],
        [tensor("action", ["batch", 5])],
        {
            "w": weights(4, 5) * np.float32(sharpness),
            "sizes": np.array(sizes),
            "one": np.array(1, np.float32),
            "huge": np.array(1e8, np.float32),
            "tiny": np.array(1e-7, np.float32),
        },
    )

    policy = load(tmp_path)

    assert policy.signature.family == "categorical(3) + categorical(2)"
    assert policy.signature.mask_name == "action_masks"
    logits = policy.infer(PolicyInputs.of(ROWS)).distribution
    assert logits is not None
    np.testing.assert_allclose(logits, ROWS @ weights(4, 5) * sharpness, rtol=1e-5, atol=1e-4)


def test_draw_of_an_unknown_distribution_is_left_out_with_a_word(tmp_path: Path) -> None:
    actor(
        tmp_path,
        node("RandomUniformLike", ["net"], ["noise"]),
        node("Add", ["net", "noise"], ["noisy"]),
        node("ArgMax", ["noisy"], ["action"], axis=1, keepdims=0),
        node("Identity", ["net"], ["mean"]),
        outputs=[tensor("action", ["batch"], "int64"), tensor("mean", ["batch", 3])],
    )

    policy = load(tmp_path)

    assert policy.signature.family == "deterministic(3)"
    left_out = "the draw 'action' is left out: its distribution is not known"
    assert left_out in policy.signature.findings


def test_draw_of_cleanrls_sac_is_a_squashed_normal_in_its_bounds(tmp_path: Path) -> None:
    """SAC's `get_action` gives the draw, its log-probability and the mean's tanh, scaled."""
    path = actor(
        tmp_path,
        node("Split", ["net"], ["mu", "log_std"], axis=1),
        node("Exp", ["log_std"], ["std"]),
        node("RandomNormalLike", ["mu"], ["noise"]),
        node("Mul", ["noise", "std"], ["spread"]),
        node("Add", ["mu", "spread"], ["x"]),
        node("Tanh", ["x"], ["y"]),
        node("Mul", ["y", "scale"], ["scaled"]),
        node("Add", ["scaled", "bias"], ["action"]),
        node("Constant", [], ["one"], value_ints=[1]),
        node("ReduceSum", ["y", "one"], ["log_prob"], keepdims=1),
        node("Tanh", ["mu"], ["bounded"]),
        node("Mul", ["scale", "bounded"], ["scaled_mean"]),
        node("Add", ["bias", "scaled_mean"], ["mean"]),
        actions=4,
        outputs=[
            tensor("mean", ["batch", 2]),
            tensor("action", ["batch", 2]),
            tensor("log_prob", ["batch", 1]),
        ],
    )
    add_constant(path, "scale", np.array([2, 0.5], np.float32))
    add_constant(path, "bias", np.array([1, 0], np.float32))

    policy = load(tmp_path)

    assert policy.signature.family == "squashed_normal(2)"
    assert policy.signature.components is not None
    (part,) = policy.signature.components
    assert (part.low, part.high) == ((-1, -0.5), (3, 0.5))
    np.testing.assert_allclose(modes_of(policy, ROWS), theirs(path, ROWS), atol=1e-6)


def test_bounds_that_rescale_sb3s_documented_export_are_told(tmp_path: Path) -> None:
    shutil.copy(POLICIES / "onnx_sb3_doc_ppo_box" / "policy.onnx", tmp_path)

    policy = load(tmp_path, "actions: {a: {low: [-1, 0], high: [3, 0.5]}}")

    assert any("write 'normalized: False'" in one for one in policy.signature.findings)


@pytest.mark.parametrize("names", [("20", "21"), ("action0", "action1")])
def test_output_for_each_choice_is_read_in_order(names: tuple[str, str], tmp_path: Path) -> None:
    path = actor(
        tmp_path,
        node("Constant", [], ["sizes"], value_ints=[3, 2]),
        node("Split", ["net", "sizes"], list(names), axis=1),
        actions=5,
        outputs=[tensor(names[0], ["batch", 3]), tensor(names[1], ["batch", 2])],
    )

    policy = load(tmp_path, "actions: {turn: {choices: 3}, jump: {choices: 2}}")

    first, second = onnxruntime.InferenceSession(path).run(None, {"obs": ROWS})
    expected = np.stack([first.argmax(axis=1), second.argmax(axis=1)], axis=1)
    assert modes_of(policy, ROWS).tolist() == expected.tolist()
    assert policy.signature.family == "categorical(3) + categorical(2)"


@pytest.mark.parametrize(
    "schema", ["{low: [-1, -1], high: [1, 1]}", "{dimensions: 2}", "{values: action}"]
)
def test_action_and_value_without_names_are_told_by_their_widths(
    schema: str, tmp_path: Path
) -> None:
    path = actor(
        tmp_path,
        node("Constant", [], ["sizes"], value_ints=[2, 1]),
        node("Split", ["net", "sizes"], ["21", "22"], axis=1),
        outputs=[tensor("21", ["batch", 2]), tensor("22", ["batch", 1])],
    )

    policy = load(tmp_path, f"actions: {{torque: {schema}}}")

    expected = theirs(path, ROWS)
    expected = np.clip(expected, -1, 1) if "low" in schema else expected
    np.testing.assert_allclose(modes_of(policy, ROWS), expected, atol=1e-6)
