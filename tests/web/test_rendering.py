"""Answers as JSON: one by one and in columns alike."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import DistributionError
from policy_server.policy import ActionComponent, ActionOutput, PolicyOutputs
from policy_server.web.rendering import RenderedAnswers

NUMBERS = st.floats(-3.4e38, 3.4e38) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-9, 0.1])
LOGARITHMS = NUMBERS | st.sampled_from([math.nan, -math.inf, 88.73, 700.0, 1e39])


@st.composite
def _outputs(draw: st.DrawFn) -> ActionOutput:
    is_vector = draw(st.booleans())
    columns = draw(st.integers(1, 4)) if is_vector else 1
    is_integer = draw(st.booleans())
    return ActionOutput("actions", is_integer=is_integer, columns=columns, is_vector=is_vector)


@st.composite
def _calls(draw: st.DrawFn) -> tuple[PolicyOutputs, tuple[ActionOutput, ...]]:
    layout = tuple(draw(st.lists(_outputs(), min_size=1, max_size=4)))
    columns = [
        st.integers(0, 10**6) if output.is_integer else NUMBERS
        for output in layout
        for _ in range(output.columns)
    ]
    rows = draw(st.lists(st.tuples(*columns), min_size=1, max_size=4))
    logarithms = [draw(LOGARITHMS) for _ in rows]
    return PolicyOutputs(np.array(rows, float), np.array(logarithms), None), layout


@given(_calls())
def test_predictions_are_the_same_one_by_one_and_in_columns(
    call: tuple[PolicyOutputs, tuple[ActionOutput, ...]],
) -> None:
    outputs, layout = call
    rows = range(len(outputs))

    single = RenderedAnswers(outputs, layout, None)
    in_columns = RenderedAnswers(outputs, layout, None, rows_one_by_one=0)

    found = [single.prediction(row) for row in rows]
    assert found == [in_columns.prediction(row) for row in rows]
    assert [list(json.loads(text)) for text in found] == [
        ["actions", "probability", "log_probability"] for _ in rows
    ]


@pytest.mark.parametrize("rows_one_by_one", [0, 4])
def test_numbers_at_a_bound_are_named_by_their_column(rows_one_by_one: int) -> None:
    bounds: dict[str, Any] = {"low": (-1.0, 0.0), "high": (1.0, 4.0), "is_normalized": False}
    parts = (ActionComponent("categorical", 3, 0, 0), ActionComponent("normal", 2, 3, 1, **bounds))
    layout = (
        ActionOutput("actions_0", is_integer=True, columns=1, is_vector=False),
        ActionOutput("actions_1", is_integer=False, columns=2, is_vector=True),
    )
    actions = np.array([[1, -1.0, 4.0], [0, 0.5, 0.0], [2, 0.25, 1.0]])
    outputs = PolicyOutputs(actions, np.array([-1.0, -2.0, -3.0]), None)

    answers = RenderedAnswers(
        outputs, layout, ActionDistribution(parts), rows_one_by_one=rows_one_by_one
    )

    texts = [answers.prediction(row) for row in range(3)]
    assert [json.loads(text)["at_bound"] for text in texts] == [[1, 2], [2], []]
    assert texts[1] == (
        b'{"actions":[0,[0.5,0.0]],"probability":0.13533528,"log_probability":-2.0,"at_bound":[2]}'
    )


@pytest.mark.parametrize("rows_one_by_one", [0, 4])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf], ids=str)
def test_only_the_row_whose_action_is_not_finite_is_refused(
    number: float, rows_one_by_one: int
) -> None:
    layout = (ActionOutput("actions_0", is_integer=False, columns=2, is_vector=True),)
    outputs = PolicyOutputs(np.array([[0.5, 1.0], [1.0, number]]), np.zeros(2), None)

    answers = RenderedAnswers(outputs, layout, None, rows_one_by_one=rows_one_by_one)

    assert json.loads(answers.prediction(0))["actions"] == [0.5, 1.0]
    with pytest.raises(DistributionError, match="NaN or infinity"):
        answers.prediction(1)


def test_distributions_are_the_same_one_by_one_and_in_columns() -> None:
    bounds: dict[str, Any] = {"low": (-1.0, 0.0), "high": (1.0, 4.0)}
    parts = (
        ActionComponent("categorical", 3, 0, 0, name="100 %", labels=("a", '"b"', "%b")),
        ActionComponent("normal", 2, 3, 1, is_normalized=False, **bounds),
        ActionComponent("categorical", 2, 7, 3, temperature=0.5),
        ActionComponent("squashed_normal", 2, 9, 4, **bounds),
        ActionComponent("deterministic", 2, 13, 6, **bounds),
    )
    inputs = np.random.default_rng(3).normal(0, 2, (2, 15)).astype(np.float32)
    outputs = PolicyOutputs(np.zeros((2, 8)), np.zeros(2), inputs)
    distribution = ActionDistribution(parts)

    single = RenderedAnswers(outputs, (), distribution)
    in_columns = RenderedAnswers(outputs, (), distribution, rows_one_by_one=0)

    found = [single.distribution(row) for row in range(2)]
    assert found == [in_columns.distribution(row) for row in range(2)]
    components = json.loads(found[0])["components"]
    assert [list(component) for component in components] == [
        ["kind", "name", "probabilities", "labels"],
        ["kind", "mean", "std", "mass_at_low", "mass_at_high"],
        ["kind", "probabilities"],
        ["kind", "mean", "std"],
        ["kind", "value"],
    ]


@pytest.mark.parametrize("rows_one_by_one", [0, 4])
def test_only_the_row_that_is_no_distribution_is_refused(rows_one_by_one: int) -> None:
    inputs = np.array([[0.0, 0.0], [0.0, math.nan]], np.float32)
    outputs = PolicyOutputs(np.zeros((2, 1)), np.zeros(2), inputs)
    distribution = ActionDistribution([ActionComponent("categorical", 2, 0, 0)])

    answers = RenderedAnswers(outputs, (), distribution, rows_one_by_one=rows_one_by_one)

    assert json.loads(answers.distribution(0))["components"][0]["probabilities"] == [0.5, 0.5]
    with pytest.raises(DistributionError, match="NaN"):
        answers.distribution(1)
