"""Numbers that a file calls logits, and that are probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.probability_checks import refuse_hidden_probabilities
from policy_server.policy import ActionComponent
from policy_server.schema import parse_schema

PARTS = [ActionComponent("categorical", 2, 0, 0), ActionComponent("categorical", 3, 2, 1)]
POWERS = np.exp(np.random.default_rng(1).normal(size=(9, 5)))
CHANCES = np.concatenate(
    [
        POWERS[:, :2] / POWERS[:, :2].sum(axis=1, keepdims=True),
        POWERS[:, 2:] / POWERS[:, 2:].sum(axis=1, keepdims=True),
    ],
    axis=1,
)


def test_logits_that_are_probabilities_of_each_action_are_refused() -> None:
    with pytest.raises(ModelError, match="'values: probabilities' or 'values: logits' under"):
        refuse_hidden_probabilities("policy.onnx", PARTS, CHANCES, None)


@pytest.mark.parametrize(
    "rows",
    [np.log(CHANCES), POWERS / POWERS.sum(axis=1, keepdims=True), CHANCES * 2, CHANCES - 0.1],
    ids=["logarithms", "one of all", "sum to two", "below zero"],
)
def test_numbers_that_are_none_are_logits(rows: NDArray[Any]) -> None:
    refuse_hidden_probabilities("policy.onnx", PARTS, rows, None)


def test_logits_that_schema_states_are_taken() -> None:
    schema = parse_schema("actions: {a: {choices: 2, values: logits}, b: {choices: 3}}")

    refuse_hidden_probabilities("policy.onnx", PARTS, CHANCES, schema)
