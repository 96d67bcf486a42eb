"""The core types: components, the signature in words, and what a call returns."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from policy_server.policy import (
    LARGEST,
    ActionComponent,
    ComponentKind,
    PolicyInputs,
    PolicyOutputs,
)
from tests.support.fakes import components_of, signature_of


@pytest.mark.parametrize(
    ("kind", "inputs", "columns"),
    [("categorical", 3, 1), ("normal", 6, 3), ("squashed_normal", 6, 3), ("deterministic", 3, 3)],
)
def test_component_takes_inputs_and_columns_by_its_family(
    kind: ComponentKind, inputs: int, columns: int
) -> None:
    part = ActionComponent(kind, 3, 0, 0)

    assert (part.inputs, part.columns) == (inputs, columns)


def test_family_is_said_in_words() -> None:
    signature = signature_of(components_of(("normal", 1), ("categorical", 3)))

    assert signature.family == "normal(1) + categorical(3)"
    assert replace(signature, components=None).family == "unknown"
    greedy = replace(signature, components=components_of(("categorical", 2)), is_value_based=True)
    assert greedy.family == "greedy over categorical(2)"


def test_mask_has_the_choices_of_the_integer_actions() -> None:
    signature = signature_of(components_of(("categorical", 3), ("normal", 2), ("categorical", 2)))

    assert signature.mask_sizes == ()
    assert replace(signature, mask_name="action_mask").mask_sizes == (3, 2)


@pytest.mark.parametrize(
    ("dtype", "row"), [("float32", np.float32), ("float64", np.float64), ("int64", np.float64)]
)
def test_rows_travel_in_a_type_that_holds_the_policys(dtype: str, row: type) -> None:
    signature = replace(signature_of(None), observation_dtype=dtype)

    assert signature.row_dtype is row


def test_probability_is_cut_to_float32_and_its_logarithm_is_not() -> None:
    outputs = PolicyOutputs(np.zeros((3, 1)), np.array([1000.0, 0.0, np.nan]), None)

    assert outputs.probability[:2].astype(np.float32).tolist() == [LARGEST, 1.0]
    assert np.isnan(outputs.probability[2])


def test_inputs_and_outputs_cross_to_another_process_whole() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    inputs = PolicyInputs(
        rows,
        np.array([True, False]),
        np.array([-1, 7]),
        wants_distribution=False,
        state=rows * 2,
        masks=np.array([[True, False]] * 2),
    )
    outputs = PolicyOutputs(np.ones((2, 1)), np.zeros(2), rows, rows * 3)

    found, answered = pickle.loads(pickle.dumps((inputs, outputs)))  # noqa: S301 -- written above

    assert (found.observations == rows).all()
    assert found.is_deterministic.tolist() == [True, False]
    assert (found.seeds.tolist(), found.wants_distribution) == ([-1, 7], False)
    assert (found.state == rows * 2).all()
    assert found.masks.tolist() == [[True, False]] * 2
    assert (answered.actions.tolist(), answered.log_probability.tolist()) == ([[1], [1]], [0, 0])
    assert (answered.distribution == rows).all()
    assert (answered.state == rows * 3).all()
