"""Outputs beside those that the choices are read from: their mode, or an action of its own.

A policy may give two actions, a choice and a continuous one. Of these one alone is never served
without a word, as if it were the whole policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.network_outputs import (
    FEWEST_CHOICES,
    Form,
    NetworkOutput,
    form_by_name,
)

__all__ = [
    "BestChoices",
    "Told",
    "has_values_of_action",
    "is_integer",
    "is_second",
    "refuse_second_actions",
]

Array = NDArray[Any]
Told = tuple[NetworkOutput, Form]
"""An output and its meaning."""

# Two numbers that are this near to each other make no clear choice.
_GAP = 1e-4


@dataclass(frozen=True, eq=False)
class BestChoices:
    """The best choice of each integer action for some observations.

    Attributes:
        numbers: float[B, K], that the choices are taken from.
        choices: int[B, C], the index of the largest number of each action.
        is_clear: bool[B, C], whether no other number is about as large.
    """

    numbers: Array
    choices: Array
    is_clear: Array

    @classmethod
    def of(cls, numbers: Array, sizes: Sequence[int]) -> BestChoices:
        """Return the best choices of numbers, one action's behind another's.

        Args:
            numbers: float[B, K], logits, probabilities or Q values.
            sizes: how many of them each action has.
        """
        parts = np.split(numbers.astype(np.float64), np.cumsum(sizes)[:-1], axis=1)
        clear = []
        for part in parts:
            largest = np.sort(part, axis=1)[:, -FEWEST_CHOICES:]
            # Numbers that are not known, and two that are infinite, are never far apart.
            with np.errstate(invalid="ignore"):
                gap = largest[:, -1] - largest[:, 0]
                clear.append(gap > _GAP * np.maximum(1, np.abs(largest[:, -1])))
        best = [part.argmax(axis=1) for part in parts]
        return cls(numbers, np.stack(best, axis=1), np.stack(clear, axis=1))

    def are(self, item: NetworkOutput, form: Form) -> bool:
        """Return whether an output holds these choices, or the numbers that they are taken from.

        Args:
            item: the output, with its numbers for the same observations.
            form: its meaning.
        """
        assert item.rows is not None, "it was computed"
        rows = item.rows
        if rows.shape == self.numbers.shape and np.allclose(rows, self.numbers, equal_nan=True):
            return True
        if form == "one_hot":
            rows = rows.argmax(axis=1)[:, None]
        width = rows.shape[1]
        places = range(self.choices.shape[1] - width + 1)
        if any(all(self._are(rows[:, one], at + one) for one in range(width)) for at in places):
            return True
        return is_integer(item) and self.are_numbered(item)

    def _are(self, numbers: Array, column: int) -> bool:
        is_clear = self.is_clear[:, column]
        return bool((numbers == self.choices[:, column])[is_clear].all())

    def are_numbered(self, item: NetworkOutput) -> bool:
        """Return whether an output has a number of its own for each choice, and not its index.

        An environment may count from 1, or give its choices other numbers. Where a mask lies
        between, one choice has several numbers.

        Args:
            item: the output, with its numbers for the same observations.
        """
        rows, is_clear = item.rows, self.is_clear[:, 0]
        if rows is None or rows.shape != self.choices.shape or rows.shape[1] != 1:
            return False
        choices, numbers = self.choices[is_clear, 0].tolist(), rows[is_clear, 0].tolist()
        pairs = len({*zip(choices, numbers, strict=True)})
        # Of two choices the worse one is another index of the two.
        is_swapped = self.numbers.shape[1] == FEWEST_CHOICES and {*numbers} <= {0, 1}
        is_one_each = pairs == len({*choices}) == len({*numbers}) > 1
        return is_one_each and choices != numbers and not is_swapped

    def gives(self, item: NetworkOutput) -> bool:
        """Return whether numbers that are no integers are made from the choice, as by a table.

        Args:
            item: the output, with its numbers for the same observations.
        """
        if item.rows is None or is_integer(item) or self.choices.shape[1] != 1:
            return False
        is_clear = self.is_clear[:, 0]
        choices, rows = self.choices[is_clear, 0], item.rows[is_clear]
        return all(np.ptp(rows[choices == one], axis=0).max() == 0 for one in np.unique(choices))


def has_values_of_action(choices: Sequence[NetworkOutput], form: Form, action: Told) -> bool:
    """Return whether numbers of choices are those of a continuous action beside them.

    TD3's two critics are `q_values` of its action, and `log_probs` may be one a dimension.

    Args:
        choices: the outputs whose names are those of choices.
        form: their meaning.
        action: the action beside them.
    """
    item, form_of_action = action
    are_values = form == "q_values" or all(
        "prob" in one.name.lower() and form_by_name(one.name) == "logits" for one in choices
    )
    if not are_values or is_integer(item) or any(one.ending == "log_softmax" for one in choices):
        return False
    numbers = [one.rows for one in choices]
    if item.rows is None or any(rows is None for rows in numbers):
        return item.width >= FEWEST_CHOICES
    rows = np.concatenate([rows for rows in numbers if rows is not None], axis=1)
    return not BestChoices.of(rows, [one.width for one in choices]).are(item, form_of_action)


def is_integer(item: NetworkOutput) -> bool:
    """Return whether an output holds integer actions.

    Args:
        item: the output.
    """
    return item.is_integer or item.ending in ("arg_max", "one_hot")


def is_second(item: NetworkOutput) -> bool:
    """Return whether an action is the policy's by its name, or a bounded vector that ends there.

    A tanh also ends a layer of features, from which other outputs are computed, and a value.

    Args:
        item: an output that is read as an action.
    """
    is_vector = item.ending == "tanh" and item.width >= FEWEST_CHOICES and not item.is_inner
    return form_by_name(item.name) == "action" or (is_vector and not is_integer(item))


def refuse_second_actions(
    best: BestChoices | None,
    name: str,
    values: str,
    beside: Sequence[Told],
    *,
    subject: str,
    source: str,
) -> None:
    """Refuse actions beside the choices that are read which are not the best of these.

    Args:
        best: the choices that are read; None where their numbers are not known.
        name: the name of the output that they are read from.
        values: its meaning, a word for `values` in schema.yaml.
        beside: the other outputs that tell their meaning.
        subject: the file's name, for messages.
        source: the name of schema.yaml.

    Raises:
        ModelError: if one is an action of its own, or is not always the best choice.
    """
    mean = next((item for item, form in beside if form == "mean"), None)
    if mean is not None and any(form in ("log_std", "std") for _, form in beside):
        raise _two_actions(subject, mean.name, name, ("normal", values), source)
    for item, form in beside:
        # A tanh alone does not tell an action from features.
        if form not in ("action", "one_hot") or form_by_name(item.name) != "action":
            continue
        if best is not None and item.rows is not None:
            if best.are(item, form):
                continue
        elif is_integer(item) or item.width < FEWEST_CHOICES:
            continue
        if is_integer(item):
            raise ModelError(
                f"{subject}: its action {item.name!r} is not always the best choice of its "
                f"{name!r}, as where a mask lies between them; state 'values: action' or "
                f"'values: {values}' under 'actions' of {source}, for the one to serve"
            )
        raise _two_actions(subject, item.name, name, ("action", values), source)


def _two_actions(
    subject: str, continuous: str, choice: str, values: tuple[str, str], source: str
) -> ModelError:
    return ModelError(
        f"{subject}: its {continuous!r} and its {choice!r} are two actions, a continuous one and a "
        f"choice, of which one alone would be served; state 'values: {values[0]}' or 'values: "
        f"{values[1]}' under 'actions' of {source} for the one to serve, or describe both in the "
        "metadata of an ONNX file (docs/onnx.md)"
    )
