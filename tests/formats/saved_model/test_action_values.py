"""One action value, read from its formula."""

from __future__ import annotations

import math

import pytest

from policy_server.formats.saved_model.action_values import (
    Center,
    Choice,
    NormalDraw,
    NotRecognizedError,
    read_value,
)
from policy_server.formats.saved_model.symbols import (
    Best,
    Draw,
    Formula,
    Input,
    Noise,
    Opaque,
    apply,
)

X, Y, OTHER = Input(0, 0), Input(0, 2), Input(1, 0)
Z = Noise("RandomStandardNormal", "z", 0)
STD = apply("Exp", Y)


def clip(value: Formula, low: float, high: float) -> Formula:
    """Return `tf.clip_by_value` as a formula."""
    return apply("Maximum", apply("Minimum", value, high), low)


def draw(mean: Formula = X, std: Formula = STD) -> Formula:
    """Return mean + std x noise."""
    return apply("Add", mean, apply("Mul", std, Z))


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (Draw((X, Input(0, 1)), "d", 0), Choice(0, 2, 1.0, is_drawn=True)),
        (
            Draw((apply("Div", X, 2.0), apply("Div", Input(0, 1), 2.0)), "d", 0),
            Choice(0, 2, 2.0, is_drawn=True),
        ),
        (Best((X, Input(0, 1))), Choice(0, 2, 1.0, is_drawn=False)),
        (X, Center(0, None, is_squashed=False)),
        (clip(X, -1.0, 2.0), Center(0, (-1.0, 2.0), is_squashed=False)),
        (apply("Tanh", X), Center(0, None, is_squashed=True)),
        (draw(), NormalDraw(0, None, 2, None, 0.0, is_squashed=False)),
        (
            draw(std=apply("Exp", clip(Y, -5.0, 2.0))),
            NormalDraw(0, None, 2, (-5.0, 2.0), 0.0, is_squashed=False),
        ),
        (
            draw(std=apply("Exp", apply("Maximum", Y, -3.0))),
            NormalDraw(0, None, 2, (-3.0, None), 0.0, is_squashed=False),
        ),
        (
            draw(std=apply("Maximum", STD, 0.5)),
            NormalDraw(0, None, 2, (math.log(0.5), None), 0.0, is_squashed=False),
        ),
        (
            draw(std=apply("Add", STD, 0.5)),
            NormalDraw(0, None, 2, None, 0.5, is_squashed=False),
        ),
        (
            draw(mean=apply("Minimum", X, 1.0)),
            NormalDraw(0, (None, 1.0), 2, None, 0.0, is_squashed=False),
        ),
        (apply("Tanh", draw()), NormalDraw(0, None, 2, None, 0.0, is_squashed=True)),
        (
            clip(apply("Tanh", draw()), -1 + 1e-6, 1 - 1e-6),
            NormalDraw(0, None, 2, None, 0.0, is_squashed=True),
        ),
        (
            # RLlib's own scaling to [-1, 1].
            apply(
                "Add",
                apply("Mul", apply("Div", apply("Add", apply("Tanh", draw()), 1.0), 2.0), 2.0),
                -1.0,
            ),
            NormalDraw(0, None, 2, None, 0.0, is_squashed=True),
        ),
    ],
)
def test_value_of_a_known_family_is_read(formula: Formula, expected: object) -> None:
    assert read_value(formula, 0) == expected


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        (clip(draw(), -1.0, 1.0), "its draws are clipped"),
        (clip(apply("Tanh", draw()), -0.9, 0.9), "clipped or rescaled"),
        (apply("Mul", apply("Tanh", draw()), 2.0), "clipped or rescaled"),
        (draw(std=apply("Softplus", Y)), "the deviation goes through Softplus"),
        (draw(std=Y), "one of the inputs itself"),
        (draw(std=0.5), "the deviation is a constant"),
        (draw(std=apply("Mul", STD, 1.5)), "its deviation is not the exp"),
        (draw(mean=0.0), "not mean + deviation x noise"),
        (draw(mean=apply("Mul", X, 2.0)), "the mean goes through Mul"),
        (
            apply("Add", X, apply("Mul", STD, Noise("TruncatedNormal", "t", 0))),
            "its noise is that of TruncatedNormal",
        ),
        (apply("Add", X, apply("Mul", STD, apply("Mul", Z, Z))), "not one standard normal"),
        (draw(std=apply("Maximum", STD, -1.0)), "its deviation is clipped"),
        (OTHER, "depends on other rows"),
        (apply("Add", X, OTHER), "depends on other rows"),
        (apply("Add", X, Opaque("the observation")), "the actions depend on the observation"),
        (Draw((X, Opaque("the observation")), "d", 0), "a logit depends on the observation"),
        (Draw((X, 0.0), "d", 0), "a logit is a constant"),
        (Draw((X, apply("Neg", Input(0, 1))), "d", 0), "logits change their sign"),
        (apply("Softplus", X), "a value goes through Softplus"),
    ],
)
def test_value_that_no_family_has_is_told(formula: Formula, reason: str) -> None:
    with pytest.raises(NotRecognizedError, match=reason.replace("+", r"\+")):
        read_value(formula, 0)
