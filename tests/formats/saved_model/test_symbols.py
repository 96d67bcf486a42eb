"""Formulas: what is worked out, what is left out, and how sums and scales are split off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from policy_server.formats.saved_model.symbols import (
    ELEMENTWISE,
    Apply,
    Best,
    Draw,
    Input,
    Noise,
    Opaque,
    apply,
    scaled,
    walk,
)

X, Y = Input(0, 0), Input(0, 1)


@pytest.mark.parametrize(
    ("operation", "arguments", "expected"),
    [
        ("AddV2", (2.0, 3.0), 5.0),
        ("Select", (True, X, Y), X),
        ("SelectV2", (np.False_, X, Y), Y),
        ("Add", (X, 0.0), X),
        ("Add", (0, X), X),
        ("Mul", (1.0, X), X),
        ("RealDiv", (X, 1.0), X),
        ("Sub", (X, 0.0), X),
        ("Sub", (0.0, X), Apply("Sub", (0.0, X))),
        ("RealDiv", (1.0, X), Apply("Div", (1.0, X))),
        ("Mul", (X, 0.0), Apply("Mul", (X, 0.0))),
        ("BiasAdd", (X, Y), Apply("Add", (X, Y))),
    ],
)
def test_operation_is_worked_out_where_it_can_be(
    operation: str, arguments: tuple[Any, ...], expected: object
) -> None:
    assert apply(operation, *arguments) == expected


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (X, (X, 1.0)),
        (apply("Mul", apply("RealDiv", X, 4.0), 2.0), (X, 0.5)),
        (apply("Neg", apply("Mul", 3.0, X)), (X, -3.0)),
        (apply("Add", X, 3.0), (Apply("Add", (X, 3.0)), 1.0)),
        (apply("RealDiv", 1.0, X), (Apply("Div", (1.0, X)), 1.0)),
        (apply("RealDiv", X, 0.0), (Apply("Div", (X, 0.0)), 1.0)),
        (apply("Mul", X, 1e30), (Apply("Mul", (X, 1e30)), 1.0)),
        (apply("Add", X, Y), (Apply("Add", (X, Y)), 1.0)),
        (apply("Exp", X), (Apply("Exp", (X,)), 1.0)),
    ],
)
def test_factor_is_split_off_where_float32_bears_it(formula: object, expected: object) -> None:
    assert scaled(formula) == expected


def test_arrays_of_formulas_are_worked_on_number_by_number() -> None:
    values = np.array([[X, 1.0], [Y, -2.0]], object)

    clipped = ELEMENTWISE["ClipByValue"](values, np.float32(-1), np.float32(1))

    assert clipped[0, 1] == 1.0
    assert clipped[1, 1] == -1.0
    assert clipped[0, 0] == Apply("Maximum", (Apply("Minimum", (X, 1.0)), -1.0))
    assert ELEMENTWISE["AddN"](values, values, values)[1, 1] == -6.0
    assert ELEMENTWISE["Exp"](np.array(X, object)).shape == ()


def test_walk_visits_each_part_once() -> None:
    noise = Noise("RandomStandardNormal", "noise", 0)
    shared = apply("Exp", X)
    formula = apply("Add", apply("Mul", shared, noise), Draw((shared, Y), "draw", 0))
    formula = apply("Add", formula, Best((Opaque("the observation"),)))

    found = list(walk(formula))

    assert sum(item is shared for item in found) == 1
    assert {noise, X, Y, Opaque("the observation")} <= set(found)
