"""Whole ONNX models as policies: the exporters' own files, and small ones made node by node."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.engine.network import NetworkPolicy
from policy_server.errors import MissingPackageError, ModelError, SchemaError
from policy_server.formats.known_formats import load_policy
from policy_server.formats.onnx.onnxruntime_policy import OnnxRuntimePolicy
from policy_server.policy import Policy, PolicyInputs, PolicyOutputs
from policy_server.schema import parse_schema, read_schema
from policy_server.settings import Engine
from tests.support.folders import ROOT
from tests.support.library_policies import POLICIES, cases_of, raw_rows
from tests.support.onnx_models import actor, failing_actor, node, tensor, weights, write_model
from tests.support.processes import run

ROWS = np.random.default_rng(9).standard_normal((6, 4)).astype(np.float32)
DISCRETE = "parameters: {discrete: True}"


def load(folder: Path, schema: str = "parameters: {}", engine: Engine = "auto") -> Policy:
    return load_policy(folder, parse_schema(schema), engine=engine)


def asked(
    policy: Policy, rows: NDArray[np.float32] = ROWS, state: NDArray[np.float32] | None = None
) -> PolicyOutputs:
    return policy.infer(PolicyInputs.of(rows, is_deterministic=True, state=state))


def distribution_of(policy: Policy, rows: NDArray[np.float32] = ROWS) -> list[Any]:
    outputs = asked(policy, rows)
    assert policy.signature.components is not None
    assert outputs.distribution is not None
    is_greedy = policy.signature.is_value_based
    parts = ActionDistribution(policy.signature.components, is_greedy=is_greedy)
    return parts.describe(outputs.distribution)


def theirs(path: Path, rows: NDArray[np.float32] = ROWS) -> list[NDArray[Any]]:
    """Return all outputs as onnxruntime gives them."""
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    if session.get_inputs()[0].shape[0] == 1:
        each = [session.run(None, {name: row[None]}) for row in rows]
        return [np.concatenate(values) for values in zip(*each, strict=True)]
    values: list[NDArray[Any]] = session.run(None, {name: rows})
    return values


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances: NDArray[Any] = powers / powers.sum(axis=1, keepdims=True)
    return chances


def test_logits_of_a_real_export_give_its_librarys_distribution() -> None:
    folder = POLICIES / "onnx_actor_logits_dynamic"
    cases = cases_of(folder.name)

    policy = load_policy(folder, read_schema(folder / "schema.yaml"))

    (found,) = distribution_of(policy, raw_rows(cases))
    expected = [case["expected"]["probabilities"] for case in cases]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    assert isinstance(policy, NetworkPolicy)
    assert policy.signature.basis == "names"


def test_recurrent_policy_of_rsl_rl_follows_its_episode_by_its_state() -> None:
    folder = POLICIES / "onnx_rsl_rl_lstm"
    cases = cases_of(folder.name)

    policy = load_policy(folder, read_schema(folder / "schema.yaml"))

    assert policy.signature.engine == "numpy", policy.signature.engine_reason
    assert [(item.name, item.shape) for item in policy.signature.memory] == [
        ("h_in", (1, 16)),
        ("c_in", (1, 16)),
    ]
    state: NDArray[np.float32] | None = np.zeros((1, 32), np.float32)
    for case, row in zip(cases, raw_rows(cases), strict=True):
        outputs = asked(policy, row[None], state)
        expected = case["expected"]
        np.testing.assert_allclose(outputs.actions[0], expected["deterministic_action"], atol=1e-5)
        assert np.isnan(outputs.log_probability).all()
        state = outputs.state
        assert state is not None
        flat = [*expected["state_out"]["h"], *expected["state_out"]["c"]]
        np.testing.assert_allclose(state[0], flat, atol=1e-5)


def test_recurrent_policy_without_a_state_starts_from_zero() -> None:
    folder = POLICIES / "onnx_rsl_rl_lstm"
    cases = cases_of(folder.name)

    outputs = asked(load_policy(folder), raw_rows(cases))

    expected = [case["expected_zero_state"]["deterministic_action"] for case in cases]
    np.testing.assert_allclose(outputs.actions, expected, atol=1e-5)


def test_draws_of_ml_agents_are_left_out_for_their_distributions() -> None:
    folder = POLICIES / "onnx_mlagents_discrete"
    cases = cases_of(folder.name)
    rows = raw_rows(cases)

    policy = load_policy(folder, read_schema(folder / "schema.yaml"))

    masks = rows[:, 6:].astype(bool)
    inputs = PolicyInputs(
        rows[:, :6],
        np.ones(20, np.bool_),
        np.full(20, -1),
        masks=masks,
    )
    outputs = policy.infer(inputs)
    assert (policy.signature.mask_name, policy.signature.mask_sizes) == ("action_masks", (3, 2))
    assert policy.signature.components is not None
    assert outputs.distribution is not None
    parts = ActionDistribution(policy.signature.components).describe(outputs.distribution)
    for index, part in enumerate(parts):
        expected = [case["expected"]["probabilities"][index] for case in cases]
        assert part.probabilities is not None
        np.testing.assert_allclose(part.probabilities, expected, atol=1e-5)
    actions = [case["expected"]["deterministic_action"] for case in cases]
    assert outputs.actions.tolist() == actions


def test_documented_export_of_stable_baselines3_is_an_action_alone() -> None:
    folder = POLICIES / "onnx_sb3_doc_ppo_box"
    cases = cases_of(folder.name)

    policy = load_policy(folder, read_schema(folder / "schema.yaml"))
    outputs = asked(policy, raw_rows(cases))

    expected = [case["expected"]["deterministic_action_env_space"] for case in cases]
    np.testing.assert_allclose(outputs.actions, expected, atol=1e-5)
    assert policy.signature.family == "deterministic(2)"
    assert np.isnan(outputs.log_probability).all()


@pytest.mark.parametrize("batch", ["batch", 1], ids=["any batch", "batch of one"])
@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (["Softmax"], "softmax"),
        (["LogSoftmax"], "log softmax"),
        (["Softmax", "Identity"], "softmax"),
    ],
    ids=str,
)
def test_softmax_at_the_end_is_not_taken_twice(
    ending: Sequence[str], kind: str, batch: int | str, tmp_path: Path
) -> None:
    names = ["net", *(f"t{index}" for index in range(1, len(ending))), "logits"]
    nodes = [
        node(name, [names[i]], [names[i + 1]], **({"axis": -1} if "Soft" in name else {}))
        for i, name in enumerate(ending)
    ]
    path = actor(tmp_path, *nodes, batch=batch)

    policy = load(tmp_path, DISCRETE)

    (found,) = distribution_of(policy)
    (expected,) = theirs(path)
    expected = np.exp(expected) if kind.startswith("log") else expected
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert policy.signature.basis == "structure"
    assert "operations, equal to onnxruntime" in policy.signature.engine_reason


def test_softmax_called_prob_is_the_distribution(tmp_path: Path) -> None:
    path = actor(tmp_path, node("Softmax", ["net"], ["prob"]), output="prob")

    (found,) = distribution_of(load(tmp_path))

    np.testing.assert_allclose(found.probabilities, theirs(path)[0], atol=1e-6)


def test_softmax_of_continuous_shares_is_an_action_where_schema_states_dimensions(
    tmp_path: Path,
) -> None:
    path = actor(tmp_path, node("Softmax", ["net"], ["weights"]), output="weights")

    outputs = asked(load(tmp_path, "actions: {weights: {dimensions: 3}}"))

    np.testing.assert_allclose(outputs.actions, theirs(path)[0], atol=1e-6)


def test_softmax_that_is_spelled_out_is_told_by_its_numbers(tmp_path: Path) -> None:
    nodes = [
        node("Exp", ["net"], ["e"]),
        node("ReduceSum", ["e", "axes"], ["sum"]),
        node("Div", ["e", "sum"], ["out"]),
        node("Constant", [], ["axes"], value_ints=[1]),
    ]
    path = actor(tmp_path, nodes[3], *nodes[:3], output="out")

    (found,) = distribution_of(load(tmp_path, DISCRETE))

    np.testing.assert_allclose(found.probabilities, theirs(path)[0], atol=1e-6)


def test_one_hot_that_is_spelled_out_is_an_action(tmp_path: Path) -> None:
    nodes = [
        node("ArgMax", ["net"], ["best"], axis=1),
        node("Constant", [], ["range"], value_ints=[0, 1, 2]),
        node("Equal", ["best", "range"], ["is_best"]),
        node("Cast", ["is_best"], ["out"], to=1),
    ]
    path = actor(tmp_path, *nodes, output="out")

    outputs = asked(load(tmp_path, DISCRETE))

    assert outputs.actions[:, 0].tolist() == theirs(path)[0].argmax(axis=1).tolist()
    assert np.isnan(outputs.log_probability).all()


@pytest.mark.parametrize("schema", ["parameters: {}", DISCRETE, "actions: {a: {choices: 3}}"])
@pytest.mark.parametrize(("dtype", "kind"), [("float32", 1), ("int64", 7), ("bool", 9)])
def test_one_hot_vector_of_any_type_is_one_action(
    dtype: str, kind: int, schema: str, tmp_path: Path
) -> None:
    path = actor(
        tmp_path,
        node("ReduceMax", ["net"], ["largest"], axes=[1], keepdims=1),
        node("Equal", ["net", "largest"], ["is_best"]),
        node("Cast", ["is_best"], ["action"], to=kind),
        outputs=[tensor("action", ["batch", 3], dtype)],
    )

    policy = load(tmp_path, schema)

    assert asked(policy).actions.tolist() == theirs(path)[0].argmax(axis=1)[:, None].tolist()


@pytest.mark.parametrize("dtype", ["int64", "bool"])
@pytest.mark.parametrize(
    ("ending", "schema"),
    [
        (node("GreaterOrEqual", ["net", "zero"], ["is_on"]), "parameters: {}"),
        (node("Equal", ["net", "largest"], ["is_on"]), "parameters: {tuple: True}"),
        (
            node("Equal", ["net", "largest"], ["is_on"]),
            "actions: {a: {choices: 2}, b: {choices: 2}, c: {choices: 2}}",
        ),
    ],
    ids=["switches", "tuple", "three actions"],
)
def test_switches_are_actions_each(
    ending: Any,  # noqa: ANN401 -- onnx is untyped
    schema: str,
    dtype: str,
    tmp_path: Path,
) -> None:
    path = actor(
        tmp_path,
        node("Constant", [], ["zero"], value_float=0.0),
        node("ReduceMax", ["net"], ["largest"], axes=[1], keepdims=1),
        ending,
        node("Cast", ["is_on"], ["action"], to=7 if dtype == "int64" else 9),
        outputs=[tensor("action", ["batch", 3], dtype)],
    )

    policy = load(tmp_path, schema)

    assert asked(policy).actions.tolist() == theirs(path)[0].tolist()


def test_index_of_the_largest_is_an_integer_action_without_probability(tmp_path: Path) -> None:
    path = actor(
        tmp_path,
        node("ArgMax", ["net"], ["action"], axis=1, keepdims=0),
        output="action",
        outputs=[tensor("action", ["batch"], "int64")],
    )

    policy = load(tmp_path, DISCRETE)

    outputs = asked(policy)
    assert outputs.actions[:, 0].tolist() == theirs(path)[0].tolist()
    assert np.isnan(outputs.log_probability).all()
    (found,) = distribution_of(policy)
    assert found.value[:, 0].tolist() == theirs(path)[0].tolist()
    assert policy.signature.action_outputs[0].is_integer


def test_truth_values_as_floats_are_integer_actions(tmp_path: Path) -> None:
    path = actor(
        tmp_path,
        node("Constant", [], ["zero"], value_float=0.0),
        node("Greater", ["net", "zero"], ["is_on"]),
        node("Cast", ["is_on"], ["actions"], to=1),
        output="actions",
    )

    policy = load(tmp_path, DISCRETE)

    assert asked(policy).actions.tolist() == theirs(path)[0].tolist()
    assert policy.signature.action_outputs[0].is_integer
    assert policy.signature.family == "deterministic(1) + deterministic(1) + deterministic(1)"


def test_scaled_tanh_is_an_action(tmp_path: Path) -> None:
    path = actor(
        tmp_path,
        node("Tanh", ["net"], ["t"]),
        node("Constant", [], ["scale"], value_floats=[2.0, 1.0, 0.5]),
        node("Mul", ["t", "scale"], ["scaled"]),
        node("Constant", [], ["one"], value_float=1.0),
        node("Add", ["scaled", "one"], ["output"]),
        output="output",
    )

    outputs = asked(load(tmp_path))

    np.testing.assert_allclose(outputs.actions, theirs(path)[0], atol=1e-6)


SCALED_TANH = (
    node("Tanh", ["net"], ["squashed"]),
    node("Constant", [], ["scale"], value_floats=[2.0, 0.5, 1.0]),
    node("Constant", [], ["bias"], value_floats=[0.0, 0.5, -1.0]),
    node("Mul", ["squashed", "scale"], ["scaled"]),
    node("Add", ["scaled", "bias"], ["actions"]),
)
SIGMOID = (
    node("Sigmoid", ["net"], ["squashed"]),
    node("Constant", [], ["scale"], value_floats=[4.0, 1.0, 2.0]),
    node("Constant", [], ["bias"], value_floats=[2.0, 0.0, 2.0]),
    node("Mul", ["scale", "squashed"], ["scaled"]),
    node("Sub", ["scaled", "bias"], ["actions"]),
)
CLIPPED = (
    node("Constant", [], ["least"], value_floats=[-2.0, 0.0, -2.0]),
    node("Constant", [], ["most"], value_floats=[2.0, 1.0, 0.0]),
    node("Max", ["net", "least"], ["upper"]),
    node("Min", ["most", "upper"], ["actions"]),
)


@pytest.mark.parametrize(
    "ending", [SCALED_TANH, SIGMOID, CLIPPED], ids=["tanh", "sigmoid", "clipped"]
)
def test_action_in_the_environments_units_is_not_scaled_again(
    ending: Sequence[Any], tmp_path: Path
) -> None:
    path = actor(tmp_path, *ending, output="actions")

    policy = load(tmp_path, "actions: {force: {low: [-2, 0, -2], high: [2, 1, 0]}}")

    np.testing.assert_allclose(asked(policy).actions, theirs(path)[0], atol=1e-6)


def test_action_of_other_units_than_schema_rescales_is_refused(tmp_path: Path) -> None:
    actor(tmp_path, *SCALED_TANH, output="actions")

    with pytest.raises(ModelError, match=r"gives numbers in \[-2, 2\]; write 'normalized: False'"):
        load(tmp_path, "actions: {force: {low: [-3, -3, -3], high: [3, 3, 3]}}")
    load(tmp_path, "actions: {force: {low: [-1, -1, -1], high: [1, 1, 1]}}")


def test_clipping_of_more_than_the_scale_is_no_scaling(tmp_path: Path) -> None:
    wide = (
        node("Constant", [], ["least"], value_float=-2.0),
        node("Constant", [], ["most"], value_float=2.0),
        node("Clip", ["net", "least", "most"], ["actions"]),
    )
    path = actor(tmp_path, *wide, output="actions")

    policy = load(tmp_path, "actions: {force: {low: [0, 0, 0], high: [8, 8, 8]}}")

    expected = np.clip(4 * (theirs(path)[0] + 1), 0, 8)
    np.testing.assert_allclose(asked(policy).actions, expected, atol=1e-5)


HALF = node("Constant", [], ["half"], value_float=0.5)
# Numbers of other bounds than [-1, 1], which schema.yaml's rescale from.
OWN_BOUNDS = {
    "sigmoid": [node("Sigmoid", ["net"], ["actions"])],
    "hard sigmoid": [node("HardSigmoid", ["net"], ["actions"])],
    "softmax": [node("Softmax", ["net"], ["actions"], axis=-1)],
    "softmax in other operations": [
        node("Exp", ["net"], ["powers"]),
        node("Constant", [], ["last"], value_ints=[1]),
        node("ReduceSum", ["powers", "last"], ["sum"], keepdims=1),
        node("Div", ["powers", "sum"], ["actions"]),
    ],
    "clipped": [
        node("Constant", [], ["least"], value_float=0.0),
        node("Constant", [], ["most"], value_float=1.0),
        node("Clip", ["net", "least", "most"], ["actions"]),
    ],
    "tanh of halves": [
        HALF,
        node("Tanh", ["net"], ["full"]),
        node("Mul", ["full", "half"], ["weak"]),
        node("Add", ["weak", "half"], ["actions"]),
    ],
}


@pytest.mark.parametrize("ending", OWN_BOUNDS.values(), ids=OWN_BOUNDS)
def test_action_of_its_own_bounds_is_not_rescaled(ending: Sequence[Any], tmp_path: Path) -> None:
    path = actor(tmp_path, *ending, output="actions")

    policy = load(tmp_path, "actions: {force: {low: [0, 0, 0], high: [1, 1, 1]}}")

    np.testing.assert_allclose(asked(policy).actions, theirs(path)[0], atol=1e-6)
    with pytest.raises(ModelError, match=r"gives numbers in \[0, 1\]; write 'normalized: False'"):
        load(tmp_path, "actions: {force: {low: [0, 0, 0], high: [10, 10, 10]}}")


def test_weak_tanh_is_not_rescaled_as_if_it_were_whole(tmp_path: Path) -> None:
    actor(
        tmp_path,
        HALF,
        node("Tanh", ["net"], ["full"]),
        node("Mul", ["full", "half"], ["actions"]),
        output="actions",
    )

    with pytest.raises(ModelError, match=r"in \[-0\.5, 0\.5\]; write 'normalized: False'"):
        load(tmp_path, "actions: {force: {low: [-2, -2, -2], high: [2, 2, 2]}}")


def test_action_of_a_plain_tanh_is_rescaled(tmp_path: Path) -> None:
    path = actor(tmp_path, node("Tanh", ["net"], ["actions"]), output="actions")

    policy = load(tmp_path, "actions: {force: {low: [-2, -2, -2], high: [2, 2, 2]}}")

    np.testing.assert_allclose(asked(policy).actions, 2 * theirs(path)[0], atol=1e-6)


JOINED = (
    node("Split", ["net"], ["steering", "pedals"], axis=1, num_outputs=2),
    node("Tanh", ["steering"], ["turn"]),
    node("Sigmoid", ["pedals"], ["force"]),
    node("Concat", ["turn", "force"], ["actions"], axis=1),
)


@pytest.mark.parametrize(
    "schema",
    [
        "{drive: {low: [-1, -1, 0, 0], high: [1, 1, 1, 1]}}",
        "{turn: {low: [-1, -1], high: [1, 1]}, force: {low: [0, 0], high: [1, 1]}}",
    ],
    ids=["one action", "two"],
)
def test_joined_tanh_and_sigmoid_are_in_the_environments_units(schema: str, tmp_path: Path) -> None:
    path = actor(tmp_path, *JOINED, output="actions", actions=4, opset=18)

    policy = load(tmp_path, f"actions: {schema}")

    np.testing.assert_allclose(asked(policy).actions, theirs(path)[0], atol=1e-6)


def test_joined_sigmoid_is_not_rescaled_with_the_tanh_beside_it(tmp_path: Path) -> None:
    actor(tmp_path, *JOINED, output="actions", actions=4, opset=18)

    with pytest.raises(ModelError, match=r"numbers in \[0, 1\]; write 'normalized: False'"):
        load(tmp_path, "actions: {drive: {low: [-3, -3, 0, 0], high: [3, 3, 5, 5]}}")


TURN_AND_PEDALS = (
    node("Tanh", ["net"], ["a"]),
    node("Constant", [], ["wide"], value_floats=[4.0, 1.0, 1.0]),
    node("Mul", ["a", "wide"], ["wider"]),
    node("Constant", [], ["zero"], value_ints=[0]),
    node("Constant", [], ["one"], value_ints=[1]),
    node("Constant", [], ["rest"], value_ints=[1, 2]),
    node("Constant", [], ["end"], value_ints=[2**31]),
    node("Constant", [], ["sizes"], value_ints=[1, 2]),
    node("Constant", [], ["unit"], value_float=1.0),
    node("Constant", [], ["four"], value_float=4.0),
    HALF,
    node("Add", ["pedals", "unit"], ["positive"]),
    node("Mul", ["positive", "half"], ["force"]),
    node("Concat", ["turn", "force"], ["actions"], axis=1),
)
PARTS = {
    "slices": [
        node("Slice", ["a", "zero", "one", "one"], ["first"]),
        node("Mul", ["first", "four"], ["turn"]),
        node("Slice", ["a", "one", "end", "one"], ["pedals"]),
    ],
    "slices of each scale": [
        node("Slice", ["wider", "zero", "one", "one"], ["turn"]),
        node("Slice", ["wider", "one", "end", "one"], ["pedals"]),
    ],
    "split": [node("Split", ["wider", "sizes"], ["turn", "pedals"], axis=-1)],
    "gather": [
        node("Gather", ["wider", "zero"], ["turn"], axis=1),
        node("Gather", ["wider", "rest"], ["pedals"], axis=1),
    ],
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_parts_of_a_tanh_in_the_environments_units_are_not_scaled_again(
    parts: Sequence[Any], tmp_path: Path
) -> None:
    ending = [*TURN_AND_PEDALS[:-3], *parts, *TURN_AND_PEDALS[-3:]]
    path = actor(tmp_path, *ending, output="actions")

    policy = load(tmp_path, "actions: {a: {low: [-4, 0, 0], high: [4, 1, 1]}}")

    np.testing.assert_allclose(asked(policy).actions, theirs(path)[0], atol=1e-6)


@pytest.mark.parametrize(("scale", "factor"), [(2.0, 1.0), (1.0, 2.0)], ids=["own", "plain"])
def test_tanh_that_is_clipped_off_its_ends_is_scaled_once(
    scale: float, factor: float, tmp_path: Path
) -> None:
    path = actor(
        tmp_path,
        node("Tanh", ["net"], ["a"]),
        node("Constant", [], ["least"], value_float=-0.999),
        node("Constant", [], ["most"], value_float=0.999),
        node("Clip", ["a", "least", "most"], ["clipped"]),
        node("Constant", [], ["scale"], value_float=scale),
        node("Mul", ["clipped", "scale"], ["actions"]),
        output="actions",
    )

    policy = load(tmp_path, "actions: {a: {low: [-2, -2, -2], high: [2, 2, 2]}}")

    np.testing.assert_allclose(asked(policy).actions, factor * theirs(path)[0], atol=1e-6)


@pytest.mark.parametrize("deviation", ["log_std", "std"])
def test_mean_and_deviation_are_a_normal_distribution(deviation: str, tmp_path: Path) -> None:
    ending = [node("Identity", ["net"], ["mu"])]
    source = "log" if deviation == "std" else deviation
    ending.append(node("Constant", [], [source], value_floats=[-0.5, 0.1, 0.4]))
    if deviation == "std":
        ending.append(node("Exp", ["log"], ["std"]))
    outputs = [tensor("mu", ["batch", 3]), tensor(deviation, [3])]
    path = actor(tmp_path, *ending, outputs=outputs)

    (found,) = distribution_of(load(tmp_path))

    np.testing.assert_allclose(found.mean, theirs(path)[0], atol=1e-6)
    np.testing.assert_allclose(found.std, np.tile(np.exp([-0.5, 0.1, 0.4]), (6, 1)), rtol=1e-6)


def test_values_give_a_greedy_policy(tmp_path: Path) -> None:
    path = actor(tmp_path, output="q_values")

    policy = load(tmp_path)

    best = theirs(path)[0].argmax(axis=1)
    assert asked(policy).actions[:, 0].tolist() == best.tolist()
    (found,) = distribution_of(policy)
    assert found.probabilities.argmax(axis=1).tolist() == best.tolist()
    assert (found.probabilities.max(axis=1) == 1.0).all()


def test_schema_states_the_parts_of_a_nameless_output(tmp_path: Path) -> None:
    path = actor(tmp_path, output="output", actions=5)

    first, second = distribution_of(load(tmp_path, "actions: {a: {choices: 3}, b: {choices: 2}}"))

    logits = theirs(path)[0]
    np.testing.assert_allclose(first.probabilities, softmax(logits[:, :3]), atol=1e-6)
    np.testing.assert_allclose(second.probabilities, softmax(logits[:, 3:]), atol=1e-6)


def rows_of_choices(
    folder: Path,
    *ending: Any,  # noqa: ANN401 -- onnx is untyped
    output: str,
    sizes: Sequence[int],
) -> Path:
    """Write a network whose tensor `rows` has two rows of three numbers for an observation."""
    reshape = node("Reshape", ["net", "two by three"], ["rows"])
    return write_model(
        folder,
        [node("MatMul", ["obs", "w"], ["net"]), reshape, *ending],
        [tensor("obs", ["batch", 4])],
        [tensor(output, ["batch", *sizes])],
        {
            "w": weights(4, 6),
            "two by three": np.array([-1, 2, 3]),
            "six": np.array([-1, 6]),
        },
    )


ROWS_ENDINGS = [
    pytest.param([node("Softmax", ["rows"], ["out"])], "out", id="softmax"),
    pytest.param([node("LogSoftmax", ["rows"], ["out"])], "out", id="log-softmax"),
    pytest.param([node("Identity", ["rows"], ["logits"])], "logits", id="logits"),
    pytest.param([node("Identity", ["rows"], ["q_values"])], "q_values", id="q values"),
]


@pytest.mark.parametrize(("ending", "output"), ROWS_ENDINGS)
def test_rows_of_choices_are_the_actions_that_schema_states(
    ending: Sequence[Any], output: str, tmp_path: Path
) -> None:
    path = rows_of_choices(tmp_path, *ending, output=output, sizes=[2, 3])

    policy = load(tmp_path, "actions: {a: {choices: 3}, b: {choices: 3}}")

    assert policy.signature.components is not None
    assert [part.size for part in policy.signature.components] == [3, 3]
    expected = theirs(path)[0].argmax(axis=2)
    assert asked(policy).actions.tolist() == expected.tolist()


@pytest.mark.parametrize("schema", [DISCRETE, "actions: {a: {choices: 2}, b: {choices: 4}}"])
@pytest.mark.parametrize(("ending", "output"), ROWS_ENDINGS)
def test_rows_of_choices_are_not_cut_elsewhere(
    ending: Sequence[Any], output: str, schema: str, tmp_path: Path
) -> None:
    rows_of_choices(tmp_path, *ending, output=output, sizes=[2, 3])

    with pytest.raises(ModelError, match=r"holds 2 rows of 3 .*; if these are 2 actions, list"):
        load(tmp_path, schema)


def test_rows_of_a_softmax_are_known_behind_a_reshape(tmp_path: Path) -> None:
    ending = [node("Softmax", ["rows"], ["p"]), node("Reshape", ["p", "six"], ["probs"])]
    rows_of_choices(tmp_path, *ending, output="probs", sizes=[6])

    with pytest.raises(ModelError, match="'probs' holds 2 rows of 3 probabilities; if these are"):
        load(tmp_path, "actions: {a: {choices: 2}, b: {choices: 4}}")


def test_rows_of_one_hot_vectors_are_refused(tmp_path: Path) -> None:
    ending = node("Hardmax", ["rows"], ["out"])
    rows_of_choices(tmp_path, ending, output="out", sizes=[2, 3])

    with pytest.raises(ModelError, match="holds 2 rows of 3 one hot; export one row in an output"):
        load(tmp_path, "actions: {a: {choices: 3}, b: {choices: 3}}")


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_softmax_along_another_axis_than_the_last_is_refused(operator: str, tmp_path: Path) -> None:
    ending = node(operator, ["rows"], ["probs"], axis=1)
    rows_of_choices(tmp_path, ending, output="probs", sizes=[2, 3])

    message = f"its output 'probs' ends with a {operator} along axis 1 of 3, expected the last"
    with pytest.raises(ModelError, match=message):
        load(tmp_path, "actions: {a: {choices: 3}, b: {choices: 3}}")


def test_several_observations_are_one_after_another(tmp_path: Path) -> None:
    path = write_model(
        tmp_path,
        [node("Concat", ["b", "a"], ["x"], axis=1), node("MatMul", ["x", "w"], ["logits"])],
        [tensor("a", ["batch", 1]), tensor("b", ["batch", 3])],
        [tensor("logits", ["batch", 2])],
        {"w": weights(4, 2)},
    )

    (found,) = distribution_of(load(tmp_path))

    feeds = {"a": ROWS[:, :1], "b": ROWS[:, 1:]}
    logits = onnxruntime.InferenceSession(path).run(None, feeds)[0]
    np.testing.assert_allclose(found.probabilities, softmax(logits), atol=1e-6)


def noisy(folder: Path, *, is_squashed: bool, has_mode: bool = True) -> Path:
    """Write a graph that draws its action as ML-Agents does, or with a tanh."""
    ending = [
        node("Constant", [], ["log_std"], value=_tensor([-0.5, 0.1, 0.4])),
        node("Exp", ["log_std"], ["std"]),
        node("RandomNormalLike", ["net"], ["noise"]),
        node("Mul", ["noise", "std"], ["scaled"]),
        node("Add", ["net", "scaled"], ["draw"]),
    ]
    if is_squashed:
        ending.append(node("Tanh", ["draw"], ["continuous_actions"]))
        ending.append(node("Identity", ["net"], ["deterministic_continuous_actions"]))
    else:
        ending += [
            node("Clip", ["draw"], ["clipped"], min=-3.0, max=3.0),
            node("Constant", [], ["three"], value=_tensor(3.0)),
            node("Div", ["clipped", "three"], ["continuous_actions"]),
            node("Clip", ["net"], ["mode"], min=-3.0, max=3.0),
            node("Div", ["mode", "three"], ["deterministic_continuous_actions"]),
        ]
    outputs = [tensor("continuous_actions", ["batch", 3])]
    if has_mode:
        outputs.append(tensor("deterministic_continuous_actions", ["batch", 3]))
    return actor(folder, *ending, outputs=outputs, opset=9)


def _tensor(values: Any) -> Any:  # noqa: ANN401 -- onnx is untyped
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(values, np.float32))


def test_clipped_draw_is_a_normal_distribution_with_masses_at_its_bounds(tmp_path: Path) -> None:
    path = noisy(tmp_path, is_squashed=False)

    policy = load(tmp_path)

    (found,) = distribution_of(policy)
    np.testing.assert_allclose(found.std[0], np.exp([-0.5, 0.1, 0.4]) / 3, rtol=1e-6)
    np.testing.assert_allclose(asked(policy).actions, theirs(path)[1], atol=1e-6)
    draws = policy.infer(PolicyInputs.of(np.tile(ROWS[:1], (4000, 1)))).actions
    graph = theirs(path, np.tile(ROWS[:1], (4000, 1)))[0]
    np.testing.assert_allclose(draws.mean(axis=0), graph.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(draws.std(axis=0), graph.std(axis=0), atol=0.05)


def test_squashed_draw_is_a_squashed_normal_distribution(tmp_path: Path) -> None:
    path = noisy(tmp_path, is_squashed=True, has_mode=False)

    policy = load(tmp_path)

    assert policy.signature.family == "squashed_normal(3)"
    np.testing.assert_allclose(
        asked(policy).actions, np.tanh(distribution_of(policy)[0].mean), atol=1e-6
    )
    draws = policy.infer(PolicyInputs.of(np.tile(ROWS[:1], (4000, 1)))).actions
    graph = theirs(path, np.tile(ROWS[:1], (4000, 1)))[0]
    np.testing.assert_allclose(draws.mean(axis=0), graph.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(draws.std(axis=0), graph.std(axis=0), atol=0.05)


def test_mode_of_a_squashed_draw_is_the_graphs_own(tmp_path: Path) -> None:
    """ML-Agents' SAC answers the mean without its tanh."""
    path = noisy(tmp_path, is_squashed=True)

    policy = load(tmp_path)

    np.testing.assert_allclose(asked(policy).actions, theirs(path)[1], atol=1e-6)
    assert "the mean without its tanh" in policy.signature.findings[-1]


def test_mode_that_is_none_of_the_draw_is_refused(tmp_path: Path) -> None:
    actor(
        tmp_path,
        node("Multinomial", ["net"], ["discrete_actions"], dtype=7),
        node("ArgMin", ["net"], ["deterministic_discrete_actions"], axis=1),
        outputs=[
            tensor("discrete_actions", ["batch", 1], "int64"),
            tensor("deterministic_discrete_actions", ["batch", 1], "int64"),
        ],
    )

    with pytest.raises(ModelError, match="differs from the mode of the distribution that it draws"):
        load(tmp_path)


def test_draw_of_an_unknown_distribution_is_refused(tmp_path: Path) -> None:
    actor(
        tmp_path,
        node("RandomUniformLike", ["net"], ["noise"]),
        node("Add", ["net", "noise"], ["action"]),
        output="action",
    )

    with pytest.raises(ModelError) as caught:
        load(tmp_path)

    assert caught.value.message == (
        "policy.onnx: its output 'action' is a draw by RandomUniformLike, and the graph does not "
        "show the distribution that it comes from; export the logits, or mean and log_std, "
        "of SAC with 'values: squashed_normal' in schema.yaml"
    )


def test_action_of_several_draws_from_one_distribution_is_refused(tmp_path: Path) -> None:
    path = actor(
        tmp_path,
        node("Multinomial", ["net"], ["action"], sample_size=2, dtype=7),
        outputs=[tensor("action", ["batch", 2], "int64")],
    )
    assert theirs(path)[0].shape == (6, 2)

    message = "'action' holds 2 integers of 1 Multinomial, expected one of each; export it with"
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


def masked(folder: Path, *, forbids: bool) -> Path:
    """Write a graph with an action mask as an input, or one that adds it to the logits."""
    ending = (
        [
            node("Constant", [], ["low"], value_float=-1e8),
            node("Cast", ["action_mask"], ["allowed"], to=9),
            node("Where", ["allowed", "net", "low"], ["logits"]),
        ]
        if forbids
        else [node("Add", ["net", "action_mask"], ["logits"])]
    )
    constants = {"w": weights(4, 3)}
    return write_model(
        folder,
        [node("MatMul", ["obs", "w"], ["net"]), *ending],
        [tensor("obs", ["batch", 4]), tensor("action_mask", ["batch", 3])],
        [tensor("logits", ["batch", 3])],
        constants,
    )


def test_mask_that_forbids_choices_is_taken_beside_the_observation(tmp_path: Path) -> None:
    masked(tmp_path, forbids=True)

    policy = load(tmp_path)

    assert policy.signature.observation_width == 4
    assert policy.signature.mask_name == "action_mask"
    masks = np.array([[False, True, False]] * 6)
    inputs = PolicyInputs(ROWS, np.zeros(6, np.bool_), np.full(6, -1), masks=masks)
    assert policy.infer(inputs).actions[:, 0].tolist() == [1] * 6


def test_mask_that_does_more_than_forbid_is_refused(tmp_path: Path) -> None:
    masked(tmp_path, forbids=False)

    with pytest.raises(ModelError, match="'action_mask' does not only forbid choices; name it"):
        load(tmp_path)


def masked_action(
    folder: Path,
    *ending: Any,  # noqa: ANN401 -- onnx is untyped
    masks: Sequence[str] = ("action_mask",),
) -> Path:
    """Write a graph that answers the best action alone, of logits that the ending has masked."""
    return write_model(
        folder,
        [
            node("MatMul", ["obs", "w"], ["net"]),
            node("Constant", [], ["low"], value_float=-1e8),
            *ending,
            node("ArgMax", ["masked"], ["actions"], axis=1, keepdims=0),
        ],
        [tensor("obs", ["batch", 4]), *(tensor(name, ["batch", 3]) for name in masks)],
        [tensor("actions", ["batch"], "int64")],
        {"w": weights(4, 3)},
    )


ALLOWED = (
    node("Cast", ["action_mask"], ["allowed"], to=9),
    node("Where", ["allowed", "net", "low"], ["masked"]),
)
FORBIDDEN = (
    node("Mul", ["action_mask", "low"], ["penalty"]),
    node("Add", ["net", "penalty"], ["masked"]),
)
MASKS = np.random.default_rng(2).integers(0, 2, (6, 3)).astype(np.float32)
MASKED_ROWS = np.concatenate([ROWS, MASKS], axis=1)


@pytest.mark.parametrize("ending", [ALLOWED, FORBIDDEN], ids=["1 allows", "1 forbids"])
def test_mask_of_an_action_alone_is_part_of_the_observation(
    ending: Sequence[Any], tmp_path: Path
) -> None:
    path = masked_action(tmp_path, *ending)

    policy = load(tmp_path)

    assert policy.signature.mask_name is None
    assert policy.signature.observation_width == 7
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"obs": ROWS, "action_mask": MASKS})
    assert asked(policy, MASKED_ROWS).actions[:, 0].tolist() == expected.tolist()
    assert any("export the masked logits" in line for line in policy.signature.findings)


def test_mask_of_an_action_alone_is_a_field_of_schema(tmp_path: Path) -> None:
    masked_action(tmp_path, *ALLOWED)
    field = '{{type: "List[float]", min_items: {0}, max_items: {0}}}'
    fields = f"obs: {field.format(4)}, action_mask: {field.format(3)}"

    policy = load(tmp_path, f"observations: {{{fields}}}\nparameters: {{}}")

    assert policy.signature.observation_width == 7
    with pytest.raises(SchemaError, match="'action_mask' is a part of the observation"):
        load(tmp_path, f"observations: {{obs: {field.format(4)}}}\nparameters: {{}}")


def test_one_of_two_masks_that_both_matter_is_not_taken_for_ones(tmp_path: Path) -> None:
    names = ("action_mask", "legal_actions_mask")
    path = masked_action(
        tmp_path,
        node("Mul", ["action_mask", "legal_actions_mask"], ["both"]),
        node("Cast", ["both"], ["allowed"], to=9),
        node("Where", ["allowed", "net", "low"], ["masked"]),
        masks=names,
    )

    policy = load(tmp_path)

    feeds = {"obs": ROWS, "action_mask": MASKS, "legal_actions_mask": MASKS[::-1]}
    (expected,) = onnxruntime.InferenceSession(path).run(None, feeds)
    rows = np.concatenate([MASKED_ROWS, MASKS[::-1]], axis=1)
    assert asked(policy, rows).actions[:, 0].tolist() == expected.tolist()


@pytest.mark.parametrize("weight", [1.0, 0.0], ids=["remembered", "forgotten"])
def test_mask_that_a_state_depends_on_is_part_of_the_observation(
    weight: float, tmp_path: Path
) -> None:
    path = write_model(
        tmp_path,
        [
            node("Constant", [], ["low"], value_float=-1e8),
            node("Cast", ["action_mask"], ["allowed"], to=9),
            node("MatMul", ["obs", "w"], ["net"]),
            node("Add", ["net", "h_in"], ["sum"]),
            node("Where", ["allowed", "sum", "low"], ["logits"]),
            node("Mul", ["action_mask", "weight"], ["noted"]),
            node("Add", ["h_in", "noted"], ["h_out"]),
        ],
        [
            tensor("obs", ["batch", 4]),
            tensor("action_mask", ["batch", 3]),
            tensor("h_in", ["batch", 3]),
        ],
        [tensor("logits", ["batch", 3]), tensor("h_out", ["batch", 3])],
        {"w": weights(4, 3), "weight": np.full(1, weight, np.float32)},
    )

    policy = load(tmp_path)

    assert policy.signature.mask_name == (None if weight else "action_mask")
    if not weight:
        return
    state = np.zeros((6, 3), np.float32)
    found = asked(policy, MASKED_ROWS, state).state
    feeds = {"obs": ROWS, "action_mask": MASKS, "h_in": state}
    np.testing.assert_array_equal(found, onnxruntime.InferenceSession(path).run(None, feeds)[1])


def test_state_that_no_action_depends_on_is_no_memory(tmp_path: Path) -> None:
    actor(
        tmp_path,
        outputs=[tensor("logits", ["batch", 3])],
    )
    write_model(
        tmp_path,
        [
            node("MatMul", ["obs", "w"], ["output"]),
            node("Identity", ["state_ins"], ["state_outs"]),
        ],
        [tensor("obs", ["batch", 4]), tensor("state_ins", ["batch"])],
        [tensor("output", ["batch", 3]), tensor("state_outs", ["batch"])],
        {"w": weights(4, 3)},
    )

    policy = load(tmp_path, DISCRETE)

    assert policy.signature.memory == ()
    assert policy.signature.family == "categorical(3)"


@pytest.mark.parametrize("goal", [[], ["goal"]], ids=["alone", "beside a goal"])
def test_observation_whose_next_is_predicted_is_no_state(goal: list[str], tmp_path: Path) -> None:
    path = write_model(
        tmp_path,
        [
            node("Concat", ["state", *goal], ["x"], axis=1),
            node("MatMul", ["x", "w"], ["logits"]),
            node("MatMul", ["state", "v"], ["next_state"]),
        ],
        [tensor(name, ["batch", 2]) for name in ("state", *goal)],
        [tensor("logits", ["batch", 3]), tensor("next_state", ["batch", 2])],
        {"w": weights(2 + 2 * len(goal), 3), "v": weights(2, 2)},
    )

    policy = load(tmp_path)

    feeds = {name: ROWS[:, 2 * at : 2 * at + 2] for at, name in enumerate(["state", *goal])}
    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], feeds)
    (found,) = distribution_of(policy, ROWS[:, : 2 + 2 * len(goal)])
    np.testing.assert_allclose(found.probabilities, softmax(logits), atol=1e-6)
    assert policy.signature.memory == ()
    assert (
        "the input state is an observation, and no state that next_state follows; name them h_in "
        "and h_out if they are one"
    ) in policy.signature.findings


def test_cell_of_plain_operations_keeps_its_state(tmp_path: Path) -> None:
    path = write_model(
        tmp_path,
        [
            node("Concat", ["obs", "hidden"], ["x"], axis=1),
            node("MatMul", ["x", "w"], ["y"]),
            node("Tanh", ["y"], ["next_hidden"]),
            node("MatMul", ["next_hidden", "v"], ["logits"]),
        ],
        [tensor("obs", ["batch", 4]), tensor("hidden", ["batch", 3])],
        [tensor("logits", ["batch", 2]), tensor("next_hidden", ["batch", 3])],
        {"w": weights(7, 3), "v": weights(3, 2)},
    )

    policy = load(tmp_path)

    state = np.full((6, 3), 0.5, np.float32)
    expected = onnxruntime.InferenceSession(path).run(
        ["logits", "next_hidden"], {"obs": ROWS, "hidden": state}
    )
    outputs = asked(policy, ROWS, state)
    assert outputs.distribution is not None
    assert outputs.state is not None
    np.testing.assert_allclose(outputs.distribution, expected[0], atol=1e-6)
    np.testing.assert_allclose(outputs.state, expected[1], atol=1e-6)
    assert "a step's state goes from next_hidden to hidden of the next step" in (
        policy.signature.findings
    )


def test_recurrent_layer_without_its_state_is_refused(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        [
            node("Unsqueeze", ["obs", "first"], ["x"]),
            node("GRU", ["x", "w", "r"], ["", "h"], hidden_size=5),
            node("Squeeze", ["h", "first"], ["hidden"]),
            node("MatMul", ["hidden", "v"], ["logits"]),
        ],
        [tensor("obs", ["batch", 4])],
        [tensor("logits", ["batch", 3])],
        {
            "first": np.array([0]),
            "w": weights(1, 15, 4),
            "r": weights(1, 15, 5),
            "v": weights(5, 3),
        },
    )

    with pytest.raises(ModelError) as caught:
        load(tmp_path)

    assert caught.value.message == (
        "policy.onnx: holds a GRU whose state is no input, so that every step would forget the "
        "ones before; export the network with its state as inputs and outputs, such as h_in, c_in, "
        "h_out and c_out"
    )


def test_observation_without_an_axis_of_rows_is_computed_row_by_row(tmp_path: Path) -> None:
    path = write_model(
        tmp_path,
        [node("MatMul", ["obs", "w"], ["logits"])],
        [tensor("obs", [4])],
        [tensor("logits", [3])],
        {"w": weights(4, 3)},
    )

    policy = load(tmp_path)

    session = onnxruntime.InferenceSession(path)
    logits = np.stack([session.run(None, {"obs": row})[0] for row in ROWS])
    (found,) = distribution_of(policy)
    np.testing.assert_allclose(found.probabilities, softmax(logits), atol=1e-6)
    assert "row by row" in policy.signature.engine_reason


def test_graph_that_joins_the_rows_of_a_batch_is_computed_row_by_row(tmp_path: Path) -> None:
    path = actor(
        tmp_path,
        node("ReduceMax", ["net"], ["largest"], axes=[0]),
        node("Sub", ["net", "largest"], ["scaled"]),
        node("Add", ["scaled", "net"], ["logits"]),
    )

    policy = load(tmp_path)

    session = onnxruntime.InferenceSession(path)
    logits = np.concatenate([session.run(None, {"obs": row[None]})[0] for row in ROWS])
    (found,) = distribution_of(policy)
    np.testing.assert_allclose(found.probabilities, softmax(logits), atol=1e-6)


def sorted_actor(folder: Path) -> Path:
    """Write a graph with an operation that NumPy lacks."""
    return actor(
        folder,
        node("Constant", [], ["three"], value_ints=[3]),
        node("TopK", ["net", "three"], ["logits", "places"], axis=1),
    )


def test_graph_that_numpy_lacks_an_operation_of_is_computed_by_onnxruntime(tmp_path: Path) -> None:
    path = sorted_actor(tmp_path)

    policy = load(tmp_path)

    assert isinstance(policy, OnnxRuntimePolicy)
    assert (policy.signature.engine, policy.signature.engine_reason) == (
        "onnxruntime",
        "NumPy has no TopK",
    )
    (found,) = distribution_of(policy)
    np.testing.assert_allclose(found.probabilities, softmax(theirs(path)[0]), atol=1e-6)
    assert policy.seconds_for(2) > 0


def test_call_whose_time_depends_on_values_is_not_computed_in_the_event_loop(
    tmp_path: Path,
) -> None:
    failing_actor(tmp_path)

    policy = load(tmp_path, engine="onnxruntime")

    assert isinstance(policy, OnnxRuntimePolicy)
    assert policy.seconds_for(1) >= 1e-3


def test_memory_of_a_large_call_is_given_back(tmp_path: Path) -> None:
    failing_actor(tmp_path)
    policy = load(tmp_path, engine="onnxruntime")
    large = PolicyInputs.of(np.array([[0.1, 60_010.0, 0.3, 0.4]], np.float32))

    def mapped_bytes() -> int:
        [line] = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(line) * 1024

    before = mapped_bytes()
    policy.infer(large)

    # The tensor alone had 400 MB.
    assert mapped_bytes() - before < 100e6


def test_engine_that_is_asked_for_computes_the_policy(tmp_path: Path) -> None:
    actor(tmp_path)

    assert load(tmp_path, engine="onnxruntime").signature.engine == "onnxruntime"
    assert load(tmp_path, engine="numpy").signature.engine == "numpy"


def test_numpy_that_is_asked_for_in_vain_is_refused(tmp_path: Path) -> None:
    sorted_actor(tmp_path)

    with pytest.raises(ModelError) as caught:
        load(tmp_path, engine="numpy")

    assert caught.value.message == (
        "policy.onnx: can't be computed by NumPy: NumPy has no TopK; set POLICY_SERVER_ENGINE to "
        "auto or onnxruntime"
    )


def test_without_onnxruntime_numpy_is_held_against_the_reference_of_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = actor(tmp_path, batch=1)
    expected = theirs(path)[0]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    policy = load(tmp_path)

    assert "equal to onnx's reference" in policy.signature.engine_reason
    np.testing.assert_allclose(
        distribution_of(policy)[0].probabilities, softmax(expected), atol=1e-6
    )


def test_without_onnxruntime_its_extra_is_named_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_actor(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(MissingPackageError) as caught:
        load(tmp_path)

    assert caught.value.message == (
        "policy.onnx, which NumPy can't compute (NumPy has no TopK): needs onnxruntime, which is "
        "not installed; pip install -r requirements.txt"
    )


def test_without_onnx_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor(tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(MissingPackageError) as caught:
        load(tmp_path)

    assert caught.value.message == (
        "policy.onnx, an ONNX model: needs onnx, which is not installed; "
        "pip install -r requirements.txt"
    )


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            "observations: {a: {type: 'List[float]', min_items: 5, max_items: 5}}",
            "schema.yaml: gives 5 values, the policy expects 4; list each value of an observation "
            "once, in the order of training",
        ),
        (
            "parameters: {discrete: False}",
            "schema.yaml: parameters.discrete: is False, and the output 'logits' of policy.onnx "
            "holds logits of integer actions; set it to True or leave it out",
        ),
        (
            "actions: {a: {choices: 2}}",
            "schema.yaml: actions.a: gives 2 choices, the policy has 3",
        ),
    ],
    ids=["width", "discrete", "choices"],
)
def test_schema_that_does_not_fit_is_refused(schema: str, message: str, tmp_path: Path) -> None:
    actor(tmp_path)

    with pytest.raises(SchemaError) as caught:
        load(tmp_path, schema)

    assert caught.value.message == message


def test_probabilities_that_sum_to_no_one_are_refused(tmp_path: Path) -> None:
    actor(tmp_path, node("Sigmoid", ["net"], ["probs"]), output="probs")

    with pytest.raises(ModelError, match=r"its probabilities sum to .* for an observation"):
        load(tmp_path)


def test_open_width_is_told_by_schema(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        [node("MatMul", ["obs", "w"], ["logits"])],
        [tensor("obs", ["batch", "width"])],
        [tensor("logits", ["batch", 3])],
        {"w": weights(4, 3)},
    )

    with pytest.raises(ModelError, match="leaves the size of its input 'obs' open; list the obs"):
        load(tmp_path)

    schema = "observations: {a: {type: 'List[float]', min_items: 4, max_items: 4}}"
    assert load(tmp_path, schema).signature.observation_width == 4


def test_serving_needs_no_training_library(tmp_path: Path) -> None:
    actor(tmp_path)
    loading = (
        "import pathlib, sys; from policy_server.formats import load_policy; "
        f"load_policy(pathlib.Path({str(tmp_path)!r})); print(*sys.modules)"
    )

    # Other tests of this process import some of them.
    imported = run(sys.executable, "-c", loading).stdout.split()

    assert not {"torch", "gymnasium", "stable_baselines3", "tensorflow"} & set(imported)
    assert "numpy" in imported


def test_onnxruntime_reports_nothing_and_writes_nothing(tmp_path: Path) -> None:
    folder, home = tmp_path / "policy", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    actor(folder)
    loading = (
        "import pathlib; from policy_server.formats import load_policy; "
        f"load_policy(pathlib.Path({str(folder)!r}), engine='onnxruntime')"
    )
    # onnxruntime reports nothing in continuous integration.
    silent = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in silent}

    places = {"HOME": str(home), "PYTHONPATH": str(ROOT), "TMPDIR": str(home)}

    run(sys.executable, "-c", loading, folder=home, environment={**environment, **places})

    # What it reports by the network it keeps in files first.
    assert not list(home.iterdir())


def test_cases_of_the_refused_export_name_its_missing_file() -> None:
    folder = POLICIES / "onnx_external_data_missing"
    assert json.loads((folder / "cases.json").read_text())

    with pytest.raises(ModelError) as caught:
        load_policy(folder)

    assert caught.value.message == (
        "policy.onnx: its weights lie in policy.onnx.data, which is not beside it; put both files "
        "into one folder or zip, or export with external_data=False"
    )


@pytest.mark.parametrize("operator", ["Loop", "Scan"])
def test_loop_within_a_branch_is_refused(operator: str, tmp_path: Path) -> None:
    """It would turn for ever at the one observation that takes the branch."""
    body = helper.make_graph(
        [node("Identity", ["is_on"], ["is_on_then"]), node("Neg", ["x"], ["x_then"])],
        "body",
        [tensor("turn", [], "int64"), tensor("is_on", [], "bool"), tensor("x", None)],
        [tensor("is_on_then", [], "bool"), tensor("x_then", None)],
    )
    turning = [
        node("Constant", [], ["turns"], value_int=2**40),
        node("Loop", ["turns", "", "net"], ["y"], body=body),
    ]
    if operator == "Scan":
        step = helper.make_graph(
            [node("Neg", ["x"], ["x_then"])], "s", [tensor("x", None)], [tensor("x_then", None)]
        )
        turning = [node("Scan", ["net"], ["y"], body=step, num_scan_inputs=1)]
    yes = helper.make_graph(turning, "yes", [], [tensor("y", None)])
    no = helper.make_graph([node("Identity", ["net"], ["z"])], "no", [], [tensor("z", None)])
    actor(
        tmp_path,
        node("Constant", [], ["rare"], value_float=77.5),
        node("ReduceMax", ["obs"], ["largest"], keepdims=0),
        node("Equal", ["largest", "rare"], ["is_rare"]),
        node("If", ["is_rare"], ["logits"], then_branch=yes, else_branch=no),
    )

    with pytest.raises(ModelError, match=f"holds a {operator}, whose turns are not bounded"):
        load(tmp_path)


def test_state_that_a_branch_alone_reads_is_memory(tmp_path: Path) -> None:
    yes = helper.make_graph([node("Add", ["x", "h_in"], ["y"])], "yes", [], [tensor("y", None)])
    no = helper.make_graph([node("Sub", ["x", "h_in"], ["z"])], "no", [], [tensor("z", None)])
    write_model(
        tmp_path,
        [
            node("MatMul", ["obs", "w"], ["x"]),
            node("Constant", [], ["none"], value_float=0.0),
            node("ReduceMax", ["obs"], ["largest"], keepdims=0),
            node("Greater", ["largest", "none"], ["is_above"]),
            node("If", ["is_above"], ["logits"], then_branch=yes, else_branch=no),
            node("Tanh", ["x"], ["h_out"]),
        ],
        [tensor("obs", ["batch", 4]), tensor("h_in", ["batch", 3])],
        [tensor("logits", ["batch", 3]), tensor("h_out", ["batch", 3])],
        {"w": weights(4, 3)},
    )

    assert [item.name for item in load(tmp_path).signature.memory] == ["h_in"]


def resetting_actor(folder: Path, flag: str, *, goes_on: bool, dtype: str = "float32") -> Path:
    """Write a recurrent policy that keeps its state only where the flag says that it goes on."""
    kept = [node("Cast", [flag], ["number"], to=1)]
    if goes_on:
        kept.append(node("Identity", ["number"], ["keeps"]))
    else:
        kept += [node("Sub", ["one", "number"], ["keeps"])]
    return write_model(
        folder,
        [
            *kept,
            node("Mul", ["h_in", "keeps"], ["before"]),
            node("MatMul", ["obs", "w"], ["new"]),
            node("Add", ["before", "new"], ["sum"]),
            node("Tanh", ["sum"], ["h_out"]),
            node("Identity", ["h_out"], ["actions"]),
        ],
        [tensor("obs", ["b", 4]), tensor(flag, ["b", 1], dtype), tensor("h_in", ["b", 2])],
        [tensor("actions", ["b", 2]), tensor("h_out", ["b", 2])],
        {"w": weights(4, 2), "one": np.array(1, np.float32)},
    )


@pytest.mark.parametrize(
    ("flag", "goes_on", "dtype"),
    [
        ("is_init", False, "bool"),
        ("episode_starts", False, "float32"),
        ("dones", False, "float32"),
        ("not_done", True, "float32"),
    ],
)
def test_flag_that_clears_the_state_is_no_observation(
    flag: str,
    dtype: str,
    tmp_path: Path,
    *,
    goes_on: bool,
) -> None:
    resetting_actor(tmp_path, flag, goes_on=goes_on, dtype=dtype)

    policy = load(tmp_path)

    assert policy.signature.observation_width == 4
    first = asked(policy, state=np.zeros((6, 2), np.float32))
    second = asked(policy, state=first.state)
    expected = np.tanh(first.actions + np.arctanh(first.actions))
    np.testing.assert_allclose(second.actions, expected, atol=1e-5)


def test_flag_that_schema_yaml_observes_is_sent(tmp_path: Path) -> None:
    resetting_actor(tmp_path, "dones", goes_on=False)
    schema = (
        "observations: {obs: {type: 'List[float]', min_items: 4, max_items: 4}, "
        "dones: {type: float}}"
    )

    assert load(tmp_path, schema).signature.observation_width == 5


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4)], ids=["image", "matrix"])
@pytest.mark.parametrize("output", [(5,), (1, 5)], ids=["vector", "row"])
def test_single_observation_of_several_dimensions_is_taken_as_it_is(
    shape: tuple[int, ...], output: tuple[int, ...], tmp_path: Path
) -> None:
    size = int(np.prod(shape))
    path = write_model(
        tmp_path,
        [
            node("Reshape", ["pixels", "flat"], ["row"]),
            node("MatMul", ["row", "w"], ["product"]),
            node("Reshape", ["product", "size"], ["logits"]),
        ],
        [tensor("pixels", shape)],
        [tensor("logits", output)],
        {"w": weights(size, 5), "flat": np.array([1, size]), "size": np.array(output)},
    )
    rows = np.random.default_rng(4).standard_normal((6, size)).astype(np.float32)

    policy = load(tmp_path, DISCRETE)

    session = onnxruntime.InferenceSession(path)
    each = [session.run(None, {"pixels": row.reshape(shape)})[0].ravel() for row in rows]
    (found,) = distribution_of(policy, rows)
    np.testing.assert_allclose(found.probabilities, softmax(np.stack(each)), atol=1e-5)


def test_several_rows_at_once_are_no_single_observation(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        [node("MatMul", ["obs", "w"], ["logits"])],
        [tensor("obs", [2, 4])],
        [tensor("logits", [2, 3])],
        {"w": weights(4, 3)},
    )

    with pytest.raises(ModelError, match="takes 2 rows at once"):
        load(tmp_path, DISCRETE)


def starting_actor(folder: Path, flag: str, *, goes_on: bool, **metadata: str) -> Path:
    """Write a recurrent policy that begins an episode, as the flag says, with a trained state."""
    kept = node("Identity" if goes_on else "Sub", [flag] if goes_on else ["one", flag], ["keeps"])
    begun = node("Sub" if goes_on else "Identity", ["one", flag] if goes_on else [flag], ["begins"])
    return write_model(
        folder,
        [
            kept,
            begun,
            node("Mul", ["h_in", "keeps"], ["kept"]),
            node("Mul", ["first", "begins"], ["begun"]),
            node("Add", ["kept", "begun"], ["before"]),
            node("MatMul", ["obs", "w"], ["new"]),
            node("Add", ["before", "new"], ["sum"]),
            node("Tanh", ["sum"], ["h_out"]),
            node("Identity", ["h_out"], ["actions"]),
        ],
        [tensor("obs", ["b", 4]), tensor(flag, ["b", 1]), tensor("h_in", ["b", 2])],
        [tensor("actions", ["b", 2]), tensor("h_out", ["b", 2])],
        {
            "w": weights(4, 2),
            "one": np.array(1, np.float32),
            "first": np.array([[0.5, -0.25]], np.float32),
        },
        metadata=metadata,
    )


@pytest.mark.parametrize(
    ("flag", "goes_on"), [("is_first", False), ("not_done", True)], ids=["set", "not set"]
)
def test_flag_that_sets_a_trained_first_state_is_observed(
    flag: str, tmp_path: Path, *, goes_on: bool
) -> None:
    path = starting_actor(tmp_path, flag, goes_on=goes_on)

    policy = load(tmp_path)

    session = onnxruntime.InferenceSession(path)
    state = their_state = np.zeros((6, 2), np.float32)
    for step in range(3):
        flags = np.full((6, 1), float((step == 0) != goes_on), np.float32)
        found = asked(policy, np.concatenate([ROWS + step, flags], axis=1), state)
        actions, their_state = session.run(
            None, {"obs": ROWS + step, flag: flags, "h_in": their_state}
        )
        np.testing.assert_allclose(found.actions, actions, atol=1e-6)
        assert found.state is not None
        state = found.state
    told = f"the input {flag!r} is a part of the observation: it does more than clear the state"
    assert any(finding.startswith(told) for finding in policy.signature.findings)


def test_flag_of_another_meaning_than_its_name_is_observed(tmp_path: Path) -> None:
    # It clears the state where it is 0, as a flag of a step that goes on does.
    resetting_actor(tmp_path, "dones", goes_on=True)

    assert load(tmp_path).signature.observation_width == 5


def test_inspection_tells_of_a_flag_that_is_filled_in(tmp_path: Path) -> None:
    resetting_actor(tmp_path, "not_done", goes_on=True)

    findings = load(tmp_path).signature.findings

    assert any("'not_done' is filled with 1" in finding for finding in findings)


@pytest.mark.parametrize("inputs", [["obs", "is_first"], ["obs"]], ids=["named", "left out"])
def test_file_that_describes_itself_names_the_flag_of_a_trained_first_state(
    inputs: list[str], tmp_path: Path
) -> None:
    document = {
        "observation": {"inputs": inputs},
        "distribution": {"output": "actions", "components": [{"kind": "deterministic", "size": 2}]},
        "memory": [{"name": "h", "input": "h_in", "output": "h_out"}],
    }
    rows = np.zeros((20, 5), np.float32)
    rows[::2, 4] = 1
    after = np.tanh(rows[:, 4:] * [0.5, -0.25]).tolist()
    vectors = {
        "observations": rows.tolist(),
        "states": np.zeros((20, 2)).tolist(),
        **dict.fromkeys(("distributions", "actions", "states_after"), after),
    }
    metadata = {
        "policy_server.policy.v1": json.dumps(document),
        "policy_server.test_vectors.v1": json.dumps(vectors),
    }
    starting_actor(tmp_path, "is_first", goes_on=False, **metadata)

    if "is_first" in inputs:
        assert load(tmp_path).signature.observation_width == 5
        return
    with pytest.raises(ModelError, match=r"leaves 'is_first' out, .*; name it among them$"):
        load(tmp_path)
