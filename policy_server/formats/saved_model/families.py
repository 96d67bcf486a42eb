"""Families by structure: the distribution whose draws the formulas of the actions are.

A family is claimed only where every step between the distribution's inputs and the actions is
accounted for: the split, a temperature, `exp`, `tanh`, and clips that can be stated as constants
of a component. Any other step ends the claim with an error that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from policy_server.formats.saved_model.action_values import (
    ActionValue,
    Center,
    Choice,
    NormalDraw,
    NotRecognizedError,
    read_value,
    terms_of,
    unclipped,
)
from policy_server.formats.saved_model.symbols import (
    PYTHON_CALLBACK,
    Apply,
    Best,
    Draw,
    Formula,
    Input,
    Noise,
    Opaque,
    is_number,
    walk,
)
from policy_server.policy import ActionComponent, ActionOutput

__all__ = ["Exploration", "RecognizedFamily", "recognize"]

_FLOAT32_MIN = float(np.finfo(np.float32).min)

Row = Sequence[Formula]
"""The formulas of one observation's action values, in the order of `PolicyOutputs.actions`."""


@dataclass(frozen=True)
class Exploration:
    """The facts about a graph's exploration that its formulas don't show.

    Attributes:
        has_schedule: it takes a time step, an epsilon or a scale of noise, which a schedule sets.
        has_free_epsilon: its epsilon is a variable, an input or a Python callback, not a constant.
        is_over_q_values: the distribution's inputs are the output `q_values`.
        is_log_probability_zero: the graph calls every action certain.
    """

    has_schedule: bool
    has_free_epsilon: bool
    is_over_q_values: bool
    is_log_probability_zero: bool


@dataclass(frozen=True)
class RecognizedFamily:
    """A distribution, read from a graph's structure.

    Attributes:
        components: its components, ordered by column.
        is_greedy: it takes the largest of Q values.
        exploration: the exploration that the graph puts behind it, in words; None where it has
            none of its own.
        is_mode_comparable: the graph's action with exploration off is the mode; False where it has
            no such action, or RLlib's own is at fault.
        note: a further finding for the log; None for nothing.
    """

    components: tuple[ActionComponent, ...]
    is_greedy: bool = False
    exploration: str | None = None
    is_mode_comparable: bool = True
    note: str | None = None


def recognize(
    outputs: Sequence[ActionOutput],
    drawn: Sequence[Row],
    sure: Sequence[Row] | None,
    exploration: Exploration,
) -> RecognizedFamily:
    """Return the family that actions are drawn from.

    Args:
        outputs: the actions in order.
        drawn: the formulas of each row's actions with exploration on.
        sure: the same with exploration off; None where the graph has no such switch.
        exploration: the facts about its exploration.

    Returns:
        The family; the same for every row.

    Raises:
        NotRecognizedError: naming the step that fits no family.
    """
    _check_noise(drawn)
    try:
        families = {
            _family(outputs, values, None if sure is None else sure[row], row)
            for row, values in enumerate(drawn)
        }
    except NotRecognizedError as error:
        if sure is None and not exploration.has_free_epsilon:
            raise
        families = {
            _explored(outputs, values, None if sure is None else sure[row], row, exploration, error)
            for row, values in enumerate(drawn)
        }
    if len(families) != 1:
        raise NotRecognizedError("the rows of a batch are drawn in different ways")
    return families.pop()


def _check_noise(drawn: Sequence[Row]) -> None:
    """Refuse values that share their noise: they are not independent."""
    seen: set[tuple[str, int]] = set()
    for row in drawn:
        for value in row:
            own = {
                (item.node, item.index) for item in walk(value) if isinstance(item, Noise | Draw)
            }
            if own & seen:
                raise NotRecognizedError("two action values are drawn with the same noise")
            seen |= own


def _family(
    outputs: Sequence[ActionOutput], drawn: Row, sure: Row | None, row: int
) -> RecognizedFamily:
    values = [read_value(formula, row) for formula in drawn]
    components = _components(outputs, values)
    choices = [value for value in values if isinstance(value, Choice)]
    is_greedy = bool(choices) and not any(choice.is_drawn for choice in choices)
    if is_greedy and len(choices) < len(values):
        raise NotRecognizedError(
            "a part of the action is the best of some values, another is drawn"
        )
    if any(choice.is_drawn == is_greedy for choice in choices):
        raise NotRecognizedError("some parts are drawn, others are the best of their values")
    if sure is None:
        return RecognizedFamily(components, is_greedy, is_mode_comparable=is_greedy)
    if _is_best_of_all(sure, components, row):
        note = (
            "the graph's action with exploration off is the largest of all logits at once, a fault "
            "of RLlib 0.8.2; the mode is served part by part"
        )
        return RecognizedFamily(components, is_greedy, is_mode_comparable=False, note=note)
    if len(sure) != len(values):
        raise NotRecognizedError("its action with exploration off has another shape")
    for value, formula in zip(values, sure, strict=True):
        if read_value(formula, row) not in _modes(value):
            raise NotRecognizedError(
                "its action with exploration off is not the mode of what it draws from"
            )
    return RecognizedFamily(components, is_greedy)


def _modes(value: ActionValue) -> tuple[ActionValue, ...]:
    if isinstance(value, Choice):
        # The best of logits is the same at any temperature.
        return tuple(
            Choice(value.first, value.size, temperature, is_drawn=False)
            for temperature in (value.temperature, 1.0)
        )
    if isinstance(value, NormalDraw):
        return (Center(value.mean, value.mean_bounds, value.is_squashed),)
    return (value,)


def _is_best_of_all(sure: Row, components: Sequence[ActionComponent], row: int) -> bool:
    width = sum(part.inputs for part in components)
    if len(components) < 2 or any(part.kind != "categorical" for part in components):
        return False
    return all(
        isinstance(formula, Best) and formula.values == tuple(Input(row, i) for i in range(width))
        for formula in sure
    )


def _explored(
    outputs: Sequence[ActionOutput],
    drawn: Row,
    sure: Row | None,
    row: int,
    exploration: Exploration,
    reason: NotRecognizedError,
) -> RecognizedFamily:
    """Return the family behind RLlib's own exploration, which is not the policy.

    Source: `EpsilonGreedy`, `GaussianNoise` and `OrnsteinUhlenbeckNoise` in
        ray.rllib.utils.exploration; before Ray 0.8, `QLearningPolicy` and `DDPGPolicy`.
    """
    known = [_random_or_best(formula) for formula in drawn]
    has_switch = sure is not None
    if sure is None:
        sure = [best for best in known if best is not None]
    if len(sure) != len(drawn):
        raise reason
    values = [read_value(formula, row) for formula in sure]
    components = _components(outputs, values)
    if all(isinstance(value, Choice) and not value.is_drawn for value in values):
        for best, formula, one in zip(known, drawn, sure, strict=True):
            is_rllibs = exploration.is_over_q_values or _is_of_valid_ones(_random_branch(formula))
            if best != one or not is_rllibs or not exploration.is_log_probability_zero:
                raise reason
        return RecognizedFamily(
            components,
            is_greedy=True,
            exploration="epsilon-greedy",
            is_mode_comparable=has_switch,
        )
    is_noise = exploration.has_schedule and exploration.is_log_probability_zero
    if (
        not is_noise
        or not all(isinstance(value, Center) and not value.is_squashed for value in values)
        or not all(_is_noisy(formula, one) for formula, one in zip(drawn, sure, strict=True))
    ):
        raise reason
    return RecognizedFamily(components, exploration="noise on the action")


def _random_or_best(formula: Formula) -> Best | None:
    """Return the best action of `where(uniform < epsilon, random action, best action)`."""
    if not isinstance(formula, Apply) or formula.operation != "Select":
        return None
    condition, random, best = formula.arguments
    if not isinstance(condition, Apply) or condition.operation not in ("Less", "LessEqual"):
        return None
    chance, epsilon = condition.arguments
    is_chance = isinstance(chance, Noise) and chance.operation == "RandomUniform"
    is_constant = is_number(epsilon) or (
        isinstance(epsilon, Opaque) and not _is_of_the_policy(epsilon)
    )
    is_epsilon_greedy = is_chance and is_constant and _is_any_action(random)
    return best if is_epsilon_greedy and isinstance(best, Best) else None


def _random_branch(formula: Formula) -> Formula:
    return formula.arguments[1] if isinstance(formula, Apply) else formula


def _is_any_action(formula: Formula) -> bool:
    """Return whether an action is drawn from all with one probability, or from all valid ones."""
    if isinstance(formula, Noise):
        return formula.operation.startswith("RandomUniformInt")
    return isinstance(formula, Draw) and (
        (is_number(formula.logits[0]) and len(set(formula.logits)) == 1)
        or _is_of_valid_ones(formula)
    )


def _is_of_valid_ones(formula: Formula) -> bool:
    """Return whether the random action is one of those that are not masked, as RLlib draws it."""
    return isinstance(formula, Draw) and all(
        isinstance(logit, Apply)
        and logit.operation == "Select"
        and isinstance(logit.arguments[0], Apply)
        and logit.arguments[0].operation == "Equal"
        and logit.arguments[0].arguments[1] == _FLOAT32_MIN
        and all(map(is_number, logit.arguments[1:]))
        and logit.arguments[1] == _FLOAT32_MIN
        for logit in formula.logits
    )


def _is_noisy(formula: Formula, center: Formula) -> bool:
    """Return whether a formula is `clip(center + noise)`, with constants as bounds."""
    inner, bounds = unclipped(formula)
    if bounds is None or None in bounds:
        return False
    terms = terms_of(inner)
    rest = [term for term, _ in terms if term != center]
    return len(rest) == len(terms) - 1 and all(map(_is_noise, rest))


def _is_noise(formula: Formula) -> bool:
    """Return whether a formula is made of numbers and standard normal noise alone, times a scale.

    The scale comes from a callback in Ray 0.8.2 to 0.8.5.
    """
    for item in walk(formula):
        if isinstance(item, Apply) and item.operation not in ("Add", "Sub", "Mul", "Div"):
            return False
        if isinstance(item, Noise) and item.operation != "RandomStandardNormal":
            return False
        if isinstance(item, Input | Draw | Best) or (
            isinstance(item, Opaque) and _is_of_the_policy(item)
        ):
            return False
    return True


def _is_of_the_policy(item: Opaque) -> bool:
    return item.source != PYTHON_CALLBACK


def _components(
    outputs: Sequence[ActionOutput], values: Sequence[ActionValue]
) -> tuple[ActionComponent, ...]:
    if sum(output.columns for output in outputs) != len(values):
        raise NotRecognizedError("its action with exploration off has another shape")
    components: list[ActionComponent] = []
    column = 0
    for output in outputs:
        part = values[column : column + output.columns]
        if output.is_integer:
            components += [_categorical(value, column + at) for at, value in enumerate(part)]
        else:
            components.append(_continuous(part, column))
        column += output.columns
    return tuple(components)


def _categorical(value: ActionValue, column: int) -> ActionComponent:
    if not isinstance(value, Choice):
        raise NotRecognizedError("an integer action is no choice among logits")
    return ActionComponent("categorical", value.size, value.first, column, value.temperature)


def _continuous(values: Sequence[ActionValue], column: int) -> ActionComponent:
    """Return the component of one action's dimensions.

    Raises:
        NotRecognizedError: if they are not alike, or their inputs don't lie side by side.
    """
    first = values[0] if values else None
    if first is None or isinstance(first, Choice):
        raise NotRecognizedError("a continuous action is a choice among logits")
    size = len(values)
    for position, value in enumerate(values):
        wanted: ActionValue = replace(first, mean=first.mean + position)
        if isinstance(wanted, NormalDraw):
            # RLlib's halves: all means, then all logs of deviations.
            wanted = replace(wanted, log_std=first.mean + size + position)
        if value != wanted:
            raise NotRecognizedError(
                "the dimensions of an action are drawn in different ways, or their means and "
                "deviations don't lie in two halves"
            )
    if isinstance(first, NormalDraw):
        return ActionComponent(
            "squashed_normal" if first.is_squashed else "normal",
            size,
            first.mean,
            column,
            log_std_bounds=first.log_std_bounds,
            mean_bounds=first.mean_bounds,
            std_floor=first.std_floor,
        )
    if first.is_squashed or first.mean_bounds is not None:
        raise NotRecognizedError("the action is a value that is squashed or clipped behind")
    return ActionComponent("deterministic", size, first.mean, column)
