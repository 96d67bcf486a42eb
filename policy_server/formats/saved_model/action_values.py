"""The meaning of one action value, read from its formula.

It is a choice among logits or Q values, a draw of a normal distribution, squashed or not, or a
computed value. Clips by constants are read as bounds; any other step ends the reading with an error
that names the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from policy_server.formats.saved_model.symbols import (
    Apply,
    Best,
    Draw,
    Formula,
    Input,
    Noise,
    Opaque,
    is_number,
    scaled,
    walk,
)

__all__ = [
    "ActionValue",
    "Center",
    "Choice",
    "NormalDraw",
    "NotRecognizedError",
    "read_value",
    "terms_of",
    "unclipped",
]

_STANDARD_NORMAL = ("RandomStandardNormal",)
# How far from -1 and 1 a clip behind the tanh may stand: RLlib's SMALL_NUMBER is 1e-6.
_SQUASH_MARGIN = 1e-5
_SMALLEST_SCALE, _LARGEST_SCALE = 0.1, 10.0
_MOST_TERMS = 64

Bounds = tuple[float | None, float | None]
"""What a clip limits to; None is an open side."""


class NotRecognizedError(Exception):
    """The formulas are no draws of a known family; the message names the step that is not."""


@dataclass(frozen=True)
class Choice:
    """The index of one of some values.

    Attributes:
        first: the first of the distribution's inputs among them.
        size: how many they are; they lie side by side.
        temperature: the divisor of the values.
        is_drawn: it is drawn from their softmax; otherwise the largest is taken.
    """

    first: int
    size: int
    temperature: float
    is_drawn: bool


@dataclass(frozen=True)
class NormalDraw:
    """A draw of a normal distribution.

    Attributes:
        mean: the index of its mean among the distribution's inputs.
        mean_bounds: the bounds that the mean is clipped to; None for no clip.
        log_std: the index of the log of its deviation among the inputs.
        log_std_bounds: the bounds that the log is clipped to; None for no clip.
        std_floor: the constant that is added to the deviation.
        is_squashed: whether a tanh follows.
    """

    mean: int
    mean_bounds: Bounds | None
    log_std: int
    log_std_bounds: Bounds | None
    std_floor: float
    is_squashed: bool


@dataclass(frozen=True)
class Center:
    """A value that is computed: one of the distribution's inputs.

    Attributes:
        mean: the index of the input.
        mean_bounds: the bounds that it is clipped to; None for no clip.
        is_squashed: whether a tanh follows.
    """

    mean: int
    mean_bounds: Bounds | None
    is_squashed: bool


ActionValue = Choice | NormalDraw | Center


def read_value(formula: Formula, row: int) -> ActionValue:
    """Return the meaning of one action value.

    Args:
        formula: its formula.
        row: the index of the observation.

    Raises:
        NotRecognizedError: if it is a value of no known family.
    """
    if isinstance(formula, Draw):
        return _choice(formula.logits, row, is_drawn=True)
    if isinstance(formula, Best):
        return _choice(formula.values, row, is_drawn=False)
    for item in walk(formula):
        if isinstance(item, Opaque):
            raise NotRecognizedError(f"the actions depend on {item.source}")
        if isinstance(item, Input) and item.row != row:
            raise NotRecognizedError("an action depends on other rows of the batch")
    squashed = _squashed(formula)
    inner = formula if squashed is None else squashed
    if any(isinstance(item, Noise | Draw) for item in walk(inner)):
        return _normal(inner, row, is_squashed=squashed is not None)
    mean, bounds = unclipped(inner)
    return Center(_index(mean, row, "a value"), bounds, squashed is not None)


def _choice(values: Sequence[Formula], row: int, *, is_drawn: bool) -> Choice:
    scales: set[float] = set()
    indices: list[int] = []
    for value in values:
        rest, scale = (value, 1.0) if is_number(value) else scaled(value)
        if scale <= 0.0:
            raise NotRecognizedError("logits change their sign")
        indices.append(_index(rest, row, "a logit"))
        scales.add(scale)
    first = indices[0]
    if indices != list(range(first, first + len(indices))):
        raise NotRecognizedError("the logits of an action don't lie side by side")
    if len(scales) != 1:
        raise NotRecognizedError("logits are divided by different temperatures")
    return Choice(first, len(indices), 1.0 / scales.pop(), is_drawn)


def _index(formula: Formula, row: int, noun: str) -> int:
    """Return the index of the input that a formula is.

    Raises:
        NotRecognizedError: if it is more than one input.
    """
    if isinstance(formula, Input):
        if formula.row != row:
            raise NotRecognizedError("an action depends on other rows of the batch")
        return formula.index
    if isinstance(formula, Opaque):
        raise NotRecognizedError(f"{noun} depends on {formula.source}")
    if is_number(formula):
        raise NotRecognizedError(f"{noun} is a constant, not one of the distribution's inputs")
    name = formula.operation if isinstance(formula, Apply) else type(formula).__name__
    raise NotRecognizedError(f"{noun} goes through {name}, which no family has there")


def _squashed(formula: Formula) -> Formula | None:
    """Return the formula inside the tanh, if the rest only scales to [-1, 1] and clips to it.

    Source: RLlib `SquashedGaussian._squash`.

    Raises:
        NotRecognizedError: if the rest changes values between -1 and 1.
    """
    inner = formula
    while isinstance(inner, Apply) and inner.operation != "Tanh":
        followed = [item for item in inner.arguments if not is_number(item)]
        numbers = [abs(float(item)) for item in inner.arguments if is_number(item)]
        # RLlib scales by 1 and 2; by much more, float32 would lose digits.
        if (
            len(followed) != 1
            or inner.operation not in _MONOTONE
            or not all(_SMALLEST_SCALE <= number <= _LARGEST_SCALE for number in numbers if number)
        ):
            return None
        inner = followed[0]
    if not isinstance(inner, Apply):
        return None
    for value in (-1.0, -0.5, 0.0, 0.5, 1.0):
        if abs(_at(formula, inner, value) - value) > _SQUASH_MARGIN:
            raise NotRecognizedError("what comes out of the tanh is clipped or rescaled")
    return inner.arguments[0]


_MONOTONE: Mapping[str, Callable[[float, float], float]] = {
    "Add": lambda first, second: first + second,
    "Div": lambda first, second: first / second if second else math.nan,
    "Maximum": max,
    "Minimum": min,
    "Mul": lambda first, second: first * second,
    "Neg": lambda first, _: -first,
    "Sub": lambda first, second: first - second,
}


def _at(formula: Formula, atom: Formula, value: float) -> float:
    """Return a formula's value where one formula in it, in which it is monotone, has a value."""
    steps = []
    while formula is not atom:
        followed = next(item for item in formula.arguments if not is_number(item))
        steps.append((formula, formula.arguments[0] is followed))
        formula = followed
    for step, is_first in reversed(steps):
        number = next((float(item) for item in step.arguments if is_number(item)), math.nan)
        first, second = (value, number) if is_first else (number, value)
        value = _MONOTONE[step.operation](first, second)
    return value


def unclipped(formula: Formula) -> tuple[Formula, Bounds | None]:
    """Split clips by constants off a formula.

    Example:
        `Minimum(Maximum(Input(0, 1), -20), 2)` gives `(Input(0, 1), (-20.0, 2.0))`.

    Args:
        formula: any.

    Returns:
        The rest and the bounds; None where there is no clip.
    """
    clips: list[tuple[str, float]] = []
    while isinstance(formula, Apply) and formula.operation in ("Maximum", "Minimum"):
        numbers = [item for item in formula.arguments if is_number(item)]
        others = [item for item in formula.arguments if not is_number(item)]
        if len(numbers) != 1:
            break
        clips.append((formula.operation, float(numbers[0])))
        formula = others[0]
    if not clips:
        return formula, None
    low, high = -math.inf, math.inf
    for name, number in reversed(clips):
        choose = max if name == "Maximum" else min
        low, high = choose(low, number), choose(high, number)
    return formula, (
        None if low == -math.inf else low,
        None if high == math.inf else high,
    )


def terms_of(formula: Formula) -> list[tuple[Formula, float]]:
    """Return the terms of a sum, each with its sign.

    Args:
        formula: any.

    Raises:
        NotRecognizedError: if there are more than a sampler has.
    """
    found: list[tuple[Formula, float]] = []
    waiting = [(formula, 1.0)]
    while waiting:
        if len(found) + len(waiting) > _MOST_TERMS:
            raise NotRecognizedError("its draws are a sum of many terms")
        current, sign = waiting.pop()
        if isinstance(current, Apply) and current.operation in ("Add", "Sub"):
            first, second = current.arguments
            waiting += [(first, sign), (second, sign if current.operation == "Add" else -sign)]
        elif isinstance(current, Apply) and current.operation == "Neg":
            waiting.append((current.arguments[0], -sign))
        else:
            found.append((current, sign))
    return found


def _factors(formula: Formula) -> list[Formula]:
    found: list[Formula] = []
    waiting = [formula]
    while waiting:
        if len(found) + len(waiting) > _MOST_TERMS:
            raise NotRecognizedError("its draws are a product of many factors")
        current = waiting.pop()
        if isinstance(current, Apply) and current.operation == "Mul":
            waiting += current.arguments
        else:
            found.append(current)
    return found


def _normal(formula: Formula, row: int, *, is_squashed: bool) -> NormalDraw:
    terms = terms_of(formula)
    noisy = [term for term, _ in terms if _has_noise(term)]
    calm = [term for term, sign in terms if not _has_noise(term) and sign > 0]
    if len(noisy) != 1 or len(terms) != 2 or len(calm) != 1:
        if unclipped(formula)[1] is not None:
            raise NotRecognizedError("its draws are clipped")
        raise NotRecognizedError("its draws are not mean + deviation x noise")
    mean, mean_bounds = unclipped(calm[0])
    index = _index(mean, row, "the mean")
    factors = _factors(noisy[0])
    noise = [factor for factor in factors if _has_noise(factor)]
    others = [factor for factor in factors if not _has_noise(factor)]
    if len(noise) != 1 or not isinstance(noise[0], Noise):
        raise NotRecognizedError("its noise is not one standard normal number for each value")
    if noise[0].operation not in _STANDARD_NORMAL:
        raise NotRecognizedError(f"its noise is that of {noise[0].operation}, not standard normal")
    if len(others) != 1:
        raise NotRecognizedError("its deviation is not the exp of one of the distribution's inputs")
    log_std, bounds, floor = _deviation(others[0], row)
    return NormalDraw(index, mean_bounds, log_std, bounds, floor, is_squashed)


def _has_noise(formula: Formula) -> bool:
    return any(isinstance(item, Noise | Draw) for item in walk(formula))


def _deviation(formula: Formula, row: int) -> tuple[int, Bounds | None, float]:
    """Return the index of the log of the deviation, its bounds, and the constant added to it."""
    floor = 0.0
    if isinstance(formula, Apply) and formula.operation == "Add":
        numbers = [float(item) for item in formula.arguments if is_number(item)]
        others = [item for item in formula.arguments if not is_number(item)]
        if len(numbers) == 1 and numbers[0] > 0.0:
            floor, formula = numbers[0], others[0]
    formula, outer = unclipped(formula)
    if not isinstance(formula, Apply) or formula.operation != "Exp":
        _index(formula, row, "the deviation")
        raise NotRecognizedError("its deviation is one of the inputs itself, not the exp of one")
    inner, bounds = unclipped(formula.arguments[0])
    index = _index(inner, row, "the log of the deviation")
    if outer is not None:
        if floor or any(bound is not None and bound <= 0.0 for bound in outer):
            raise NotRecognizedError("its deviation is clipped")
        limits = [None if bound is None else math.log(bound) for bound in outer]
        low, high = bounds or (None, None)
        bounds = (
            limits[0] if low is None else low if limits[0] is None else max(low, limits[0]),
            limits[1] if high is None else high if limits[1] is None else min(high, limits[1]),
        )
    return index, bounds, floor
