"""The meaning of a network's outputs: by the graph, by their names, by schema.yaml, or refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.errors import ModelError, PolicyServerError, SchemaError
from policy_server.formats.output_meaning import Ending, Meaning, NetworkOutput, read_meaning
from policy_server.schema import ServerSchema, parse_schema

Array = NDArray[np.float32]
VALUE = NetworkOutput("value", 1)


def read(*outputs: NetworkOutput, schema: str = "parameters: {}") -> Meaning:
    return read_meaning(outputs, parse_schema(schema), subject="policy.onnx")


def kinds_of(meaning: Meaning) -> list[tuple[str, int, int, int]]:
    return [
        (part.kind, part.size, part.first_input, part.first_column) for part in meaning.components
    ]


def beside_mean(action: Callable[[Array], Array]) -> list[NetworkOutput]:
    """Return an action beside the mean and the deviation that it comes from."""
    rows = np.random.default_rng(3).normal(size=(64, 2)).astype(np.float32) * 2
    return [
        NetworkOutput("action", 2, rows=action(rows)),
        NetworkOutput("mean", 2, rows=rows),
        NetworkOutput("log_std", 2),
    ]


@pytest.mark.parametrize(
    ("output", "form", "kind", "basis"),
    [
        (NetworkOutput("x", 3, ending="softmax"), "probabilities", "categorical", "structure"),
        (NetworkOutput("logits", 3, ending="softmax"), "probabilities", "categorical", "structure"),
        (NetworkOutput("x", 3, ending="log_softmax"), "logits", "categorical", "structure"),
        (NetworkOutput("x", 3, ending="tanh"), "action", "deterministic", "structure"),
        (NetworkOutput("logits", 3), "logits", "categorical", "names"),
        (NetworkOutput("Policy_Logits", 3), "logits", "categorical", "names"),
        (NetworkOutput("logits", 3, ending="tanh"), "logits", "categorical", "names"),
        (NetworkOutput("probs", 3), "probabilities", "categorical", "names"),
        (NetworkOutput("q_values", 3), "q_values", "categorical", "names"),
        (NetworkOutput("mu", 3), "action", "deterministic", "names"),
        (NetworkOutput("mean", 3, ending="tanh"), "action", "deterministic", "names"),
        (NetworkOutput("actions", 3), "action", "deterministic", "names"),
        (NetworkOutput("deterministic_continuous_actions", 3), "action", "deterministic", "names"),
    ],
    ids=lambda item: f"{item.name}-{item.ending}" if isinstance(item, NetworkOutput) else None,
)
def test_output_tells_its_meaning_by_its_end_or_its_name(
    output: NetworkOutput, form: str, kind: str, basis: str
) -> None:
    meaning = read(output, VALUE)

    assert [item.output for item in meaning.read] == [output]
    assert kinds_of(meaning) == [(kind, 3, 0, 0)]
    assert meaning.basis == basis
    assert form.replace("_", " ") in meaning.findings[0]


def test_mean_and_log_of_the_deviation_are_a_normal_distribution() -> None:
    meaning = read(VALUE, NetworkOutput("log_std", 2), NetworkOutput("mu", 2))

    assert [(item.output.name, item.form) for item in meaning.read] == [
        ("mu", "mean"),
        ("log_std", "log_std"),
    ]
    assert kinds_of(meaning) == [("normal", 2, 0, 0)]


def test_mean_and_deviation_without_an_action_say_what_is_assumed() -> None:
    meaning = read(NetworkOutput("mean", 2), NetworkOutput("log_std", 2))

    assert meaning.findings[-1] == (
        "assumed: no tanh follows a draw around 'mean'; of SAC, whose action is the tanh of a "
        "draw, state 'values: squashed_normal' under 'actions' of schema.yaml"
    )


@pytest.mark.parametrize("kind", ["normal", "squashed_normal"])
def test_schema_states_the_distribution_of_a_mean_and_a_deviation(kind: str) -> None:
    outputs = [NetworkOutput("mean", 2), NetworkOutput("std", 2), VALUE]

    meaning = read(*outputs, schema=f"actions: {{a: {{values: {kind}}}}}")

    assert kinds_of(meaning) == [(kind, 2, 0, 0)]
    assert meaning.basis == "schema"
    assert not any("assumed" in finding for finding in meaning.findings)


def test_action_that_is_the_tanh_of_the_mean_tells_a_squashed_normal() -> None:
    meaning = read(*beside_mean(np.tanh))

    assert kinds_of(meaning) == [("squashed_normal", 2, 0, 0)]
    assert "is the tanh of its 'mean', on every probe" in meaning.findings[-1]
    assert not meaning.has_own_bounds


def test_action_that_is_a_scaled_tanh_tells_its_bounds_too() -> None:
    meaning = read(*beside_mean(lambda mean: 3 * np.tanh(mean) + 1))

    (part,) = meaning.components
    assert (part.kind, part.low, part.high) == ("squashed_normal", (-2, -2), (4, 4))
    assert meaning.has_own_bounds


@pytest.mark.parametrize("scale", [1, 3])
def test_action_that_is_the_mean_tells_a_normal_distribution(scale: int) -> None:
    meaning = read(*beside_mean(lambda mean: (mean * scale).clip(-2, 2)))

    assert kinds_of(meaning) == [("normal", 2, 0, 0)]
    assert "no tanh follows a draw" in meaning.findings[-1]
    assert ("scaled by 3 and moved by 0" in meaning.findings[-1]) == (scale == 3)


def test_action_that_is_no_mode_of_the_mean_is_refused_until_schema_states_values() -> None:
    outputs = beside_mean(np.sin)

    with pytest.raises(ModelError) as caught:
        read(*outputs)

    assert caught.value.message == (
        "policy.onnx: its action 'action' is neither its 'mean' nor the tanh of it, clipped or "
        "scaled, so that the distribution is not known; state 'values: normal' or 'values: "
        "squashed_normal' under 'actions' of schema.yaml, or 'values: action' for the action alone"
    )
    for kind in ("normal", "squashed_normal"):
        stated = read(*outputs, schema=f"actions: {{a: {{values: {kind}}}}}")
        assert kinds_of(stated) == [(kind, 2, 0, 0)]
    alone = read(*outputs, schema="actions: {a: {values: action}}")
    assert [one.output.name for one in alone.read] == ["action"]


def test_action_that_the_probes_do_not_tell_leaves_the_assumption() -> None:
    meaning = read(*beside_mean(lambda mean: (1000 * mean).clip(-1, 1)))

    assert kinds_of(meaning) == [("normal", 2, 0, 0)]
    assert meaning.findings[-1].startswith("assumed: no tanh follows a draw around 'mean'")
    assert meaning.findings[-1].endswith("(its 'action' does not tell it)")


def test_values_make_a_greedy_policy() -> None:
    assert read(NetworkOutput("q_values", 4)).is_value_based


def test_several_logits_are_a_tuple_in_their_order() -> None:
    meaning = read(NetworkOutput("logits_0", 3), NetworkOutput("logits_1", 2))

    assert kinds_of(meaning) == [("categorical", 3, 0, 0), ("categorical", 2, 3, 1)]
    assert [item.name for item in meaning.action_outputs] == ["actions_0", "actions_1"]


def test_action_beside_its_logits_is_left_aside() -> None:
    outputs = [NetworkOutput("action", 1, is_integer=True), NetworkOutput("logits", 5)]

    assert kinds_of(read(*outputs)) == [("categorical", 5, 0, 0)]


@pytest.mark.parametrize(
    ("output", "columns"),
    [
        (NetworkOutput("x", 1, is_integer=True, is_vector=False), 1),
        (NetworkOutput("actions", 2, is_integer=True), 2),
        (NetworkOutput("x", 4, ending="one_hot"), 1),
    ],
    ids=["scalar", "vector", "one-hot"],
)
def test_integer_action_alone_has_a_component_each_and_no_probability(
    output: NetworkOutput, columns: int
) -> None:
    meaning = read(output)

    assert kinds_of(meaning) == [("deterministic", 1, i, i) for i in range(columns)]
    assert all(part.has_integers and not part.has_probability for part in meaning.components)
    assert "probability is unknown" in meaning.findings[-1]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ("parameters: {discrete: True}", [("categorical", 6, 0, 0)]),
        ("actions: {a: {choices: 6}}", [("categorical", 6, 0, 0)]),
        (
            "actions: {a: {choices: 4}, b: {choices: 2}}",
            [("categorical", 4, 0, 0), ("categorical", 2, 4, 1)],
        ),
        ("actions: {a: {values: q_values}}", [("categorical", 6, 0, 0)]),
        ("actions: {a: {values: normal}}", [("normal", 3, 0, 0)]),
        ("actions: {a: {values: squashed_normal}}", [("squashed_normal", 3, 0, 0)]),
        ("actions: {a: {values: action}}", [("deterministic", 6, 0, 0)]),
        ("actions: {a: {dimensions: 6}}", [("deterministic", 6, 0, 0)]),
        (
            "actions: {a: {dimensions: 4}, b: {dimensions: 2}}",
            [("deterministic", 4, 0, 0), ("deterministic", 2, 4, 4)],
        ),
        (
            "actions: {a: {low: [0, 0, 0, 0, 0, 0], high: [1, 1, 1, 1, 1, 1]}}",
            [("deterministic", 6, 0, 0)],
        ),
    ],
)
def test_schema_states_an_output_that_nothing_else_tells(
    schema: str, expected: list[tuple[str, int, int, int]]
) -> None:
    meaning = read(NetworkOutput("output", 6), schema=schema)

    assert kinds_of(meaning) == expected
    assert meaning.basis == "schema"
    assert meaning.is_value_based == ("q_values" in schema)


@pytest.mark.parametrize(
    ("outputs", "schema", "kind", "message"),
    [
        (
            [NetworkOutput("output", 4)],
            "parameters: {}",
            ModelError,
            "policy.onnx: nothing tells the meaning of its output 'output' (4 wide); write in "
            "schema.yaml 'discrete: True' for the logits of one integer action, 'choices' for "
            "those of several, 'values: q_values' for Q values, or 'dimensions' for continuous "
            "actions",
        ),
        (
            [NetworkOutput("output", 4)],
            "actions: {a: {dimensions: 2}}",
            ModelError,
            "policy.onnx: nothing tells whether the 4 numbers of the output 'output' are the mean "
            "and log of the deviation of a normal distribution, or of one before a tanh; state it "
            "as 'values' under 'actions' of schema.yaml: normal or squashed_normal",
        ),
        (
            [NetworkOutput("output", 4)],
            "parameters: {discrete: False}",
            ModelError,
            "policy.onnx: nothing tells the meaning of its output 'output' (4 wide); state it as "
            "'values' under 'actions' of schema.yaml: action for the action itself, normal or "
            "squashed_normal for means followed by logs of deviations",
        ),
        (
            [NetworkOutput("output", 64, ending="activation")],
            "parameters: {discrete: True}",
            ModelError,
            "policy.onnx: its output 'output' ends with an activation, as a layer of features does "
            "and logits do not; export the network with its last layer",
        ),
        (
            [NetworkOutput("a", 4), NetworkOutput("b", 4)],
            "parameters: {discrete: True}",
            ModelError,
            "policy.onnx: nothing tells which of the outputs 'a', 'b' holds the actions; export "
            "that one alone, or name it logits, q_values, probabilities, mean and log_std, or "
            "actions",
        ),
        (
            [NetworkOutput("value", 1)],
            "parameters: {discrete: True}",
            ModelError,
            "policy.onnx: its outputs ('value') hold no action; export the actor's logits, its "
            "mean or its action",
        ),
        (
            [NetworkOutput("actions", 3)],
            "parameters: {discrete: True}",
            ModelError,
            "policy.onnx: the output 'actions' is an action of 3 continuous numbers by its name, "
            "and schema.yaml says discrete: True; state it as 'values' under 'actions' if it holds "
            "logits or q_values, or set discrete to False",
        ),
        (
            [NetworkOutput("mean", 3), NetworkOutput("sigma", 3)],
            "parameters: {}",
            ModelError,
            "policy.onnx: expected one mean and one deviation of the same width, got the outputs "
            "'mean' (3 wide), 'sigma' (3 wide); name the deviation log_std or std, or export the "
            "mean alone",
        ),
        (
            [NetworkOutput("logits", 3)],
            "parameters: {discrete: False}",
            SchemaError,
            "schema.yaml: parameters.discrete: is False, and the output 'logits' of policy.onnx "
            "holds logits of integer actions; set it to True or leave it out",
        ),
        (
            [NetworkOutput("logits", 6)],
            "parameters: {tuple: True}",
            SchemaError,
            "schema.yaml: actions: the output 'logits' of policy.onnx holds 6 logits and not the "
            "sizes of its actions; expected 'choices' for each of several actions, 6 together",
        ),
        (
            [NetworkOutput("x", 6, ending="softmax")],
            "actions: {a: {values: q_values}}",
            SchemaError,
            "schema.yaml: actions.a.values: is q_values, and the output 'x' of policy.onnx ends "
            "with a softmax: it holds probabilities; mend it or leave it out",
        ),
        (
            [NetworkOutput("x", 3)],
            "actions: {a: {values: normal}}",
            SchemaError,
            "schema.yaml: actions.a.values: the output 'x' has 3 numbers, which can't be a mean "
            "and a deviation for each dimension; mend it",
        ),
        (
            [NetworkOutput("output", 1)],
            "parameters: {discrete: True}",
            ModelError,
            "policy.onnx: the output 'output' is one number, which is no choice among several; "
            "export one for each choice, of a sigmoid for both of two",
        ),
        (
            [NetworkOutput("output", 4)],
            "actions: {a: {values: logits}, b: {choices: 2}}",
            SchemaError,
            "schema.yaml: actions: 'values' differs between the actions, and a network gives all "
            "of them alike; state the same for each",
        ),
    ],
    ids=[
        "nothing told",
        "mean and deviation or action",
        "continuous",
        "layer of features",
        "two outputs",
        "value alone",
        "continuous by name",
        "unknown deviation",
        "logits of a continuous action",
        "sizes missing",
        "softmax stated as values",
        "odd width",
        "one number as a choice",
        "values that differ",
    ],
)
def test_output_whose_meaning_is_not_told_is_refused_with_a_remedy(
    outputs: list[NetworkOutput], schema: str, kind: type[PolicyServerError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        read(*outputs, schema=schema)

    assert caught.value.message == message


def test_one_number_beside_the_logits_is_left_aside_where_schema_states_one_choice() -> None:
    meaning = read(
        NetworkOutput("dense", 4),
        NetworkOutput("dense_1", 1),
        schema="parameters: {discrete: True}",
    )

    assert [one.output.name for one in meaning.read] == ["dense"]
    assert meaning.basis == "schema"


def test_without_schema_names_suffice() -> None:
    assert read_meaning([NetworkOutput("logits", 2)], None, subject="x").basis == "names"


def test_portfolio_of_a_softmax_is_an_action_where_schema_says_so() -> None:
    output = NetworkOutput("weights", 3, ending="softmax")

    meaning = read_meaning([output], ServerSchema(discrete=False), subject="x")

    assert kinds_of(meaning) == [("deterministic", 3, 0, 0)]


def test_portfolio_of_a_softmax_is_an_action_where_schema_states_dimensions() -> None:
    meaning = read(NetworkOutput("x", 3, ending="softmax"), schema="actions: {w: {dimensions: 3}}")

    assert kinds_of(meaning) == [("deterministic", 3, 0, 0)]


@pytest.mark.parametrize(
    ("name", "ending", "form"),
    [
        ("prob", "softmax", "probabilities"),
        ("action_prob", "softmax", "probabilities"),
        ("log_prob", "log_softmax", "logits"),
        ("value", "softmax", "probabilities"),
    ],
)
def test_softmax_of_a_name_for_one_number_is_read_where_it_stands_alone(
    name: str, ending: Ending, form: str
) -> None:
    meaning = read(NetworkOutput(name, 3, ending=ending))

    assert [item.form for item in meaning.read] == [form]


def test_softmax_is_read_beside_the_action_that_it_gives() -> None:
    meaning = read(
        NetworkOutput("action", 1, is_integer=True), NetworkOutput("prob", 3, ending="softmax")
    )

    assert [item.output.name for item in meaning.read] == ["prob"]


def test_softmax_of_a_value_is_left_aside() -> None:
    meaning = read(NetworkOutput("q_values", 3), NetworkOutput("value", 51, ending="softmax"))

    assert [item.output.name for item in meaning.read] == ["q_values"]


ONE_ACTION = (
    "assumed: 'logits' is one action of 8 choices; if it is several, list them under 'actions' of "
    "schema.yaml, each with its 'choices'"
)


@pytest.mark.parametrize(
    ("output", "schema", "is_assumed"),
    [
        (NetworkOutput("logits", 8), "parameters: {}", True),
        (NetworkOutput("logits", 8), "parameters: {discrete: True}", False),
        (NetworkOutput("logits", 8), "actions: {a: {choices: 8}}", False),
        (NetworkOutput("logits", 8), "actions: {a: {choices: 3}, b: {choices: 5}}", False),
        (NetworkOutput("logits", 8, ending="log_softmax"), "parameters: {}", False),
        (NetworkOutput("q_values", 8), "parameters: {}", False),
    ],
)
def test_logits_of_one_action_are_told_as_an_assumption(
    output: NetworkOutput,
    schema: str,
    is_assumed: bool,  # noqa: FBT001 -- a parameter
) -> None:
    assert (ONE_ACTION in read(output, schema=schema).findings) == is_assumed


@pytest.mark.parametrize("name", ["actions", "weights", "portfolio_weights"])
def test_softmax_that_may_be_shares_is_told_as_an_assumption(name: str) -> None:
    meaning = read(NetworkOutput(name, 3, ending="softmax"))

    assert kinds_of(meaning) == [("categorical", 3, 0, 0)]
    assert meaning.findings[-1] == (
        f"assumed: the softmax of {name!r} gives the probabilities of 3 choices; if it gives "
        "shares of a whole, as a portfolio's, write 'discrete: False' under 'parameters' of "
        "schema.yaml"
    )


@pytest.mark.parametrize("name", ["probs", "policy_logits", "dense_2"])
def test_softmax_of_another_name_is_no_assumption(name: str) -> None:
    meaning = read(NetworkOutput(name, 3, ending="softmax"))

    assert not any("assumed" in finding for finding in meaning.findings)


@pytest.mark.parametrize(
    ("output", "bounds", "is_told"),
    [
        (NetworkOutput("actions", 2, rows=np.array([[-3, 0], [1, 2.5]])), "", True),
        (NetworkOutput("actions", 2, rows=np.array([[-1.2, 0], [1, 0.5]])), "", False),
        (
            NetworkOutput("actions", 2, rows=np.array([[-3, 0], [1, 2.5]])),
            ", normalized: False",
            False,
        ),
        (NetworkOutput("actions", 2, ending="tanh", rows=np.array([[-3, 3]])), "", False),
        (NetworkOutput("actions", 2), "", False),
    ],
    ids=["beyond", "within", "clipped", "tanh", "not computed"],
)
def test_bounds_that_rescale_an_action_beyond_its_scale_are_told(
    output: NetworkOutput,
    bounds: str,
    is_told: bool,  # noqa: FBT001 -- a parameter
) -> None:
    findings = read(output, schema=f"actions: {{a: {{low: -2, high: 2{bounds}}}}}").findings

    finding = (
        "assumed: low and high rescale 'actions' from [-1, 1], and on the probes it is between -3 "
        "and 2.5; of a policy that clips, such as stable-baselines3's PPO and A2C, write "
        "'normalized: False' beside them in schema.yaml"
    )
    assert (finding in findings) == is_told


HEADS = [NetworkOutput(f"action{place}", width) for place, width in enumerate((3, 2, 4))]
UNNAMED = [NetworkOutput(str(20 + place), width) for place, width in enumerate((3, 2, 4))]
CHOICES = "a: {choices: 3}, b: {choices: 2}, c: {choices: 4}"
STATED = CHOICES.replace("}", ", values: VALUES}")


@pytest.mark.parametrize("heads", [HEADS, UNNAMED], ids=["named", "unnamed"])
@pytest.mark.parametrize("value", [[], [NetworkOutput("23", 1)]], ids=["alone", "beside a value"])
@pytest.mark.parametrize(
    ("fields", "form"),
    [
        (CHOICES, "logits"),
        (STATED.replace("VALUES", "logits"), "logits"),
        (STATED.replace("VALUES", "q_values"), "q_values"),
    ],
    ids=["choices", "logits", "q values"],
)
def test_output_for_each_action_is_read_in_order(
    fields: str, form: str, heads: list[NetworkOutput], value: list[NetworkOutput]
) -> None:
    meaning = read(*heads, *value, schema=f"actions: {{{fields}}}")

    assert [(one.output, one.form) for one in meaning.read] == [(head, form) for head in heads]
    assert kinds_of(meaning) == [
        ("categorical", 3, 0, 0),
        ("categorical", 2, 3, 1),
        ("categorical", 4, 5, 2),
    ]


@pytest.mark.parametrize("heads", [HEADS, UNNAMED], ids=["named", "unnamed"])
def test_output_for_each_continuous_action_is_read_in_order(heads: list[NetworkOutput]) -> None:
    fields = "a: {dimensions: 3}, b: {low: [0, 0], high: [1, 2]}, c: {dimensions: 4}"

    meaning = read(*heads, schema=f"actions: {{{fields}}}")

    assert [(part.kind, part.size) for part in meaning.components] == [
        ("deterministic", 3),
        ("deterministic", 2),
        ("deterministic", 4),
    ]


def test_heads_that_may_be_logits_as_well_as_actions_are_refused() -> None:
    with pytest.raises(ModelError, match=r"whether its outputs 'action0' \(3 wide\), .* are the"):
        read(*HEADS)
    assert len(read(*HEADS, schema="parameters: {discrete: False}").components) == 3


ACTION, OTHER = NetworkOutput("21", 3), NetworkOutput("22", 1)


@pytest.mark.parametrize(
    ("fields", "family"),
    [
        ("a: {dimensions: 3}", "deterministic"),
        ("a: {low: [0, 0, 0], high: [1, 2, 3]}", "deterministic"),
        ("a: {values: action}", "deterministic"),
        ("a: {choices: 3}", "categorical"),
        ("a: {labels: [x, y, z]}", "categorical"),
        ("a: {choices: 3, values: q_values}", "categorical"),
        ("a: {values: logits}", "categorical"),
        ("a: {dimensions: 1}, b: {dimensions: 2}", "deterministic"),
    ],
)
def test_output_as_wide_as_the_actions_is_theirs(fields: str, family: str) -> None:
    meaning = read(ACTION, OTHER, schema=f"actions: {{{fields}}}")

    assert [one.output for one in meaning.read] == [ACTION]
    assert meaning.components[0].kind == family
    assert any("'22' are left out" in finding for finding in meaning.findings)


def test_normal_of_two_outputs_is_told_by_its_width() -> None:
    outputs = [NetworkOutput("a", 6), NetworkOutput("b", 3)]

    meaning = read(*outputs, schema="actions: {move: {dimensions: 3, values: normal}}")

    assert [one.output.name for one in meaning.read] == ["a"]


def test_outputs_of_the_same_width_tell_no_action() -> None:
    outputs = [NetworkOutput("a", 3), NetworkOutput("b", 3), NetworkOutput("c", 2)]

    with pytest.raises(ModelError, match="nothing tells which of the outputs 'a', 'b', 'c' holds"):
        read(*outputs, schema="actions: {move: {dimensions: 3}}")


def test_outputs_of_choices_and_of_continuous_actions_are_not_read_together() -> None:
    fields = "a: {choices: 3}, b: {dimensions: 2}, c: {choices: 4}"

    with pytest.raises(ModelError, match="for each action, choices and continuous ones"):
        read(*UNNAMED, schema=f"actions: {{{fields}}}")
