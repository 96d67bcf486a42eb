"""schema.yaml held against the signature of a policy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy_server.errors import SchemaError
from policy_server.policy import (
    ActionOutput,
    ComponentKind,
    PolicySignature,
)
from policy_server.schema import ActionField, parse_schema
from policy_server.schema_fit import (
    check_schema_fits,
    describe_components,
    describe_signature,
    settings_without_effect,
)
from tests.support.fakes import components_of, signature_of

LISTS = "observations: {a: {type: 'List[int]', min_items: %s, max_items: %s}}"
INTEGER = ActionOutput("actions_0", is_integer=True, columns=1, is_vector=False)
MULTI_DISCRETE = ActionOutput("actions_0", is_integer=True, columns=3, is_vector=True)
BOX = ActionOutput("actions_0", is_integer=False, columns=2, is_vector=True)


@pytest.mark.parametrize(
    ("text", "width"),
    [
        (LISTS % (2, 2), 2),
        (LISTS % (1, 3), 2),
        ("observations: {a: {type: 'List[int]'}}", 2),
        (LISTS % (9, 9), None),
        ("parameters: {}", 2),
    ],
    ids=["equal", "between", "open", "unknown to the model", "raw only"],
)
def test_fitting_width_passes(text: str, width: int | None) -> None:
    check_schema_fits(parse_schema(text), signature_of(components_of(("normal", 1)), width=width))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            LISTS % (11, 11),
            "gives 11 values, the policy expects 14; list each value of an observation once, in "
            "the order of training",
        ),
        (LISTS % (2, 9), "gives at most 9 values, the policy expects 14; mend the lists' bounds"),
        (
            LISTS % (15, 19),
            "gives at least 15 values, the policy expects 14; mend the lists' bounds",
        ),
        (
            "observations: {a: {type: 'List[int]', min_items: 15}}",
            "gives at least 15 values, the policy expects 14; mend the lists' bounds",
        ),
    ],
    ids=["exact", "too few", "too many", "too many, open"],
)
def test_wrong_width_is_one_line_with_both_figures(text: str, message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        check_schema_fits(parse_schema(text), signature_of(None, width=14))

    assert caught.value.message == f"schema.yaml: {message}"


@pytest.mark.parametrize(
    ("flags", "outputs"),
    [
        ("discrete: True, tuple: False", (INTEGER,)),
        ("discrete: False, tuple: False", (BOX,)),
        ("discrete: True, tuple: True", (INTEGER, INTEGER)),
        ("discrete: True, tuple: True", (INTEGER, BOX)),
        ("discrete: False, tuple: True", (INTEGER, BOX)),
        ("tuple: True", (MULTI_DISCRETE,)),
        ("tuple: False", (MULTI_DISCRETE,)),
        ("url_path: ''", (BOX,)),
    ],
)
def test_fitting_flags_pass(flags: str, outputs: tuple[ActionOutput, ...]) -> None:
    check_schema_fits(parse_schema(f"parameters: {{{flags}}}"), signature_of(None, outputs=outputs))


@pytest.mark.parametrize("flag", ["True", "False"])
def test_tuple_of_one_action_fits_either_flag(flag: str) -> None:
    signature = replace(signature_of(None, outputs=(INTEGER,)), is_tuple_of_one=True)

    check_schema_fits(parse_schema(f"parameters: {{tuple: {flag}}}"), signature)


@pytest.mark.parametrize(
    ("flags", "outputs", "message"),
    [
        (
            "discrete: True",
            (BOX,),
            "discrete: is True, the policy's actions are continuous; set it to False or leave it "
            "out",
        ),
        (
            "discrete: False",
            (INTEGER,),
            "discrete: is False, the policy's actions are integers; set it to True or leave it out",
        ),
        (
            "tuple: False",
            (INTEGER, BOX),
            "tuple: is False, the policy gives 2 actions; set it to True or leave it out",
        ),
    ],
    ids=["discrete", "continuous", "several actions"],
)
def test_wrong_flag_is_one_line(
    flags: str, outputs: tuple[ActionOutput, ...], message: str
) -> None:
    with pytest.raises(SchemaError) as caught:
        check_schema_fits(
            parse_schema(f"parameters: {{{flags}}}"), signature_of(None, outputs=outputs)
        )

    assert caught.value.message == f"schema.yaml: parameters.{message}"


@pytest.mark.parametrize("output", [INTEGER, BOX], ids=["integer", "box"])
def test_tuple_of_a_policy_of_one_action_changes_nothing_and_is_told(output: ActionOutput) -> None:
    schema = parse_schema("parameters: {tuple: True}")
    signature = signature_of(None, outputs=(output,))

    check_schema_fits(schema, signature)

    assert settings_without_effect(schema, signature) == (
        "schema.yaml: parameters.tuple: is True, the policy gives one action; that changes "
        "nothing, as every answer lists its actions",
    )


@pytest.mark.parametrize(
    ("flags", "signature"),
    [
        ("tuple: False", signature_of(None, outputs=(INTEGER,))),
        ("url_path: a", signature_of(None, outputs=(INTEGER,))),
        ("tuple: True", signature_of(None, outputs=(MULTI_DISCRETE,))),
        ("tuple: True", signature_of(None, outputs=(INTEGER, BOX))),
        ("tuple: True", replace(signature_of(None, outputs=(BOX,)), is_tuple_of_one=True)),
    ],
    ids=["no tuple", "nothing stated", "multi-discrete", "several actions", "tuple of one"],
)
def test_nothing_is_told_where_the_flag_fits(flags: str, signature: PolicySignature) -> None:
    assert settings_without_effect(parse_schema(f"parameters: {{{flags}}}"), signature) == ()


def test_components_take_names_labels_and_bounds_of_the_schema() -> None:
    move, force, turn = describe_components(
        components_of(("categorical", 2), ("normal", 3), ("normal", 2)),
        [
            ActionField("move", labels=("up", "down"), choices=2),
            ActionField("force", low=(0.0,), high=(1.0,), dimensions=3),
            ActionField("turn", low=(0.0, 1.0), high=(2.0, 3.0), normalized=False),
        ],
        "schema.yaml",
    )

    assert (move.name, move.labels, move.low) == ("move", ("up", "down"), None)
    assert (force.name, force.low, force.high) == ("force", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (turn.low, turn.high, turn.is_normalized) == ((0.0, 1.0), (2.0, 3.0), False)


@pytest.mark.parametrize(
    ("kind", "field", "message"),
    [
        (
            "categorical",
            ActionField("a", low=(0.0,), high=(1.0,)),
            ".a: low, high and dimensions are for continuous actions, the policy's is an integer; "
            "remove them",
        ),
        (
            "categorical",
            ActionField("a", dimensions=2),
            ".a: low, high and dimensions are for continuous actions, the policy's is an integer; "
            "remove them",
        ),
        (
            "normal",
            ActionField("a", choices=2),
            ".a: labels and choices are for integer actions, the policy's is continuous; remove "
            "them",
        ),
        ("categorical", ActionField("a", choices=3), ".a: gives 3 choices, the policy has 2"),
        ("normal", ActionField("a", dimensions=3), ".a: gives 3 dimensions, the policy has 2"),
        (
            "normal",
            ActionField("a", low=(0.0,) * 3, high=(1.0,) * 3),
            ".a.low: gives 3 numbers, the action has 2 dimensions; give one, or one a dimension",
        ),
    ],
    ids=["bounds", "dimensions of an integer", "choices", "sizes", "dimensions", "lengths"],
)
def test_actions_that_are_not_the_policys_are_one_line(
    kind: ComponentKind, field: ActionField, message: str
) -> None:
    with pytest.raises(SchemaError) as caught:
        describe_components(components_of((kind, 2)), [field], "schema.yaml")

    assert caught.value.message == f"schema.yaml: actions{message}"


@pytest.mark.parametrize(
    ("kind", "right", "wrong", "read"),
    [
        ("categorical", "probabilities", "q_values", "logits"),
        ("categorical", "q_values", "logits", "q_values"),
        ("normal", "normal", "squashed_normal", "normal"),
        ("squashed_normal", "squashed_normal", "action", "squashed_normal"),
        ("deterministic", "action", "normal", "action"),
    ],
)
def test_values_that_are_not_the_files_are_one_line(
    kind: ComponentKind, right: str, wrong: str, read: str
) -> None:
    signature = signature_of(components_of((kind, 2)))
    signature = replace(signature, is_value_based=read == "q_values")

    describe_signature(signature, parse_schema(f"actions: {{a: {{values: {right}}}}}"))
    with pytest.raises(SchemaError) as caught:
        describe_signature(signature, parse_schema(f"actions: {{a: {{values: {wrong}}}}}"))

    assert caught.value.message == (
        f"schema.yaml: actions.a.values: is {wrong}, by the policy's file they are {read}; mend it "
        "or leave it out"
    )


def test_wrong_number_of_actions_is_one_line() -> None:
    with pytest.raises(SchemaError) as caught:
        describe_components(components_of(("normal", 2)), [], "schema.yaml")

    assert caught.value.message == (
        "schema.yaml: actions: names 0 actions, the policy has 1; list each once, in order"
    )


def test_normalization_of_a_policy_that_has_none_apart_is_one_line() -> None:
    schema = parse_schema("parameters: {normalization: none}")

    with pytest.raises(SchemaError) as caught:
        describe_signature(signature_of(None), schema)

    assert caught.value.message == (
        "schema.yaml: parameters.normalization: is for policies of stable-baselines3, whose "
        "VecNormalize is in a file of its own; remove it"
    )


def test_integer_action_that_is_given_alone_takes_labels_of_any_number() -> None:
    (part,) = components_of(("deterministic", 1))

    (move,) = describe_components(
        [replace(part, has_integers=True)],
        [ActionField("move", labels=("left", "stay", "right"), choices=3)],
        "schema.yaml",
    )

    assert (move.name, move.labels) == ("move", ("left", "stay", "right"))
