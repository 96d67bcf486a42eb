"""Outputs beside those of the choices: their mode, values of the action, or a second action."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policy_server.errors import ModelError
from policy_server.formats.network_outputs import NetworkOutput
from policy_server.formats.output_meaning import Meaning, read_meaning
from policy_server.schema import parse_schema

GENERATOR = np.random.default_rng(5)
LOGITS = NetworkOutput("logits", 5, rows=GENERATOR.normal(size=(64, 5)))
Q_VALUES = replace(LOGITS, name="q_values")
NUMBERS = GENERATOR.normal(size=(64, 2))
ACTION = NetworkOutput("action", 2, rows=NUMBERS)
MEAN, LOG_STD = (NetworkOutput(name, 2, rows=ACTION.rows) for name in ("mean", "log_std"))
AIM = NetworkOutput("aim", 2, ending="tanh", rows=np.tanh(NUMBERS))
assert LOGITS.rows is not None
BEST = LOGITS.rows.argmax(axis=1)[:, None]
WORST = LOGITS.rows.argmin(axis=1)[:, None]
CHOICE = NetworkOutput("action", 1, is_integer=True, rows=BEST)
TWO_CHOICES = "actions: {a: {choices: 2}, b: {choices: 3}}"


def read(*outputs: NetworkOutput, schema: str = "parameters: {}") -> Meaning:
    return read_meaning(outputs, parse_schema(schema), subject="policy.onnx")


def names_of(meaning: Meaning) -> list[str]:
    return [one.output.name for one in meaning.read]


@pytest.mark.parametrize(
    ("outputs", "values"),
    [
        ((LOGITS, MEAN, LOG_STD), "normal"),
        ((replace(LOGITS, name="probs"), MEAN, LOG_STD), "normal"),
        ((LOGITS, replace(ACTION, name="continuous_actions")), "action"),
        ((LOGITS, replace(ACTION, rows=None)), "action"),
    ],
    ids=["mean and deviation", "beside probabilities", "action", "action not computed"],
)
def test_continuous_action_beside_a_choice_is_never_dropped(
    outputs: tuple[NetworkOutput, ...], values: str
) -> None:
    with pytest.raises(ModelError) as caught:
        read(*outputs)

    choice, continuous = outputs[:2]
    form = "probabilities" if choice.name == "probs" else "logits"
    assert caught.value.message == (
        f"policy.onnx: its {continuous.name!r} and its {choice.name!r} are two actions, a "
        f"continuous one and a choice, of which one alone would be served; state 'values: {values}'"
        f" or 'values: {form}' under 'actions' of schema.yaml for the one to serve, or describe "
        "both in the metadata of an ONNX file (docs/onnx.md)"
    )
    assert names_of(read(*outputs, schema=f"actions: {{a: {{values: {form}}}}}")) == [choice.name]
    stated = read(*outputs, schema=f"actions: {{a: {{values: {values}}}}}")
    assert names_of(stated)[0] == continuous.name


@pytest.mark.parametrize(
    "beside",
    [
        CHOICE,
        replace(CHOICE, rows=None),
        replace(CHOICE, is_integer=False),
        NetworkOutput("action", 5, ending="one_hot", rows=np.eye(5)[BEST[:, 0]]),
        replace(LOGITS, name="actions"),
    ],
    ids=["mode", "not computed", "mode as floats", "one-hot", "the logits themselves"],
)
@pytest.mark.parametrize("choices", [LOGITS, Q_VALUES], ids=["logits", "q values"])
def test_mode_beside_its_choices_is_left_aside(
    beside: NetworkOutput, choices: NetworkOutput
) -> None:
    assert names_of(read(beside, choices)) == [choices.name]


@pytest.mark.parametrize("choices", [LOGITS, Q_VALUES], ids=["logits", "q values"])
def test_action_that_is_not_the_best_choice_is_refused(choices: NetworkOutput) -> None:
    with pytest.raises(ModelError) as caught:
        read(replace(CHOICE, rows=WORST), choices)

    assert caught.value.message == (
        f"policy.onnx: its action 'action' is not always the best choice of its {choices.name!r}, "
        f"as where a mask lies between them; state 'values: action' or 'values: {choices.name}' "
        "under 'actions' of schema.yaml, for the one to serve"
    )


@pytest.mark.parametrize("numbers", [[1, 2, 3, 4, 5], [0, 2, 1, 4, 3], [10, 20, 5, 7, 8]])
def test_choices_may_have_other_numbers(numbers: list[int]) -> None:
    action = replace(CHOICE, rows=np.array(numbers)[BEST])

    meaning = read(LOGITS, action)

    assert names_of(meaning) == ["logits"]
    assert meaning.findings[-1] == (
        "assumed: the choices are counted from 0, and 'action' gives them other numbers"
    )


def test_worse_of_two_choices_is_no_other_number_for_the_best() -> None:
    logits = replace(LOGITS, width=2, rows=NUMBERS)
    action = replace(CHOICE, rows=NUMBERS.argmin(axis=1)[:, None])

    with pytest.raises(ModelError, match="is not always the best choice"):
        read(logits, action)


def test_action_that_a_table_gives_for_the_choice_is_left_aside_where_schema_says_discrete() -> (
    None
):
    action = replace(ACTION, rows=NUMBERS[:5][BEST[:, 0]])

    for choices in (LOGITS, Q_VALUES):
        meaning = read(choices, action, schema="parameters: {discrete: True}")
        assert names_of(meaning) == [choices.name]
        assert "'action' is made from the choice: it is left out" in meaning.findings
        with pytest.raises(ModelError, match="are two actions"):
            read(choices, ACTION, schema="parameters: {discrete: True}")
    assert names_of(read(Q_VALUES, action)) == ["action"]


def test_choices_that_are_about_alike_are_not_compared() -> None:
    rows = np.zeros((3, 2))
    rows[0, 0] = 1
    outputs = [
        NetworkOutput("action", 1, is_integer=True, rows=np.array([[0], [1], [1]])),
        NetworkOutput("logits", 2, rows=rows),
    ]

    assert names_of(read(*outputs)) == ["logits"]


def test_modes_of_several_choices_are_compared_each() -> None:
    assert LOGITS.rows is not None
    first, second = LOGITS.rows[:, :2].argmax(axis=1), LOGITS.rows[:, 2:].argmax(axis=1)
    action = NetworkOutput("action", 2, is_integer=True, rows=np.stack([first, second], axis=1))

    assert len(read(action, LOGITS, schema=TWO_CHOICES).components) == 2
    with pytest.raises(ModelError, match="is not always the best choice of its 'logits'"):
        read(action, LOGITS)


@pytest.mark.parametrize("name", ["q_values", "log_probs"])
@pytest.mark.parametrize("rows", [ACTION.rows, None], ids=["computed", "not computed"])
def test_values_of_a_continuous_action_are_no_choices(name: str, rows: np.ndarray | None) -> None:
    values = NetworkOutput(name, 2, rows=None if rows is None else -(rows**2))

    meaning = read(replace(ACTION, rows=rows), values)

    assert names_of(meaning) == ["action"]
    assert f"{name!r} of each dimension of the action, and no choices" in meaning.findings[-1]


@pytest.mark.parametrize(
    "beside",
    [
        NetworkOutput("features", 8),
        replace(AIM, name="features", is_inner=True),
        AIM,
        NetworkOutput("outcome", 1, ending="tanh", rows=np.tanh(NUMBERS)[:, :1]),
        MEAN,
        NetworkOutput("steps", 1, is_integer=True, rows=WORST),
    ],
    ids=["features", "features of a tanh", "tanh", "one number", "mean alone", "integer"],
)
def test_other_outputs_are_left_out_with_a_word(beside: NetworkOutput) -> None:
    meaning = read(LOGITS, beside)

    assert names_of(meaning) == ["logits"]
    assert meaning.findings[-1] == (
        f"nothing tells that {beside.name!r} are actions: they are left out"
    )
