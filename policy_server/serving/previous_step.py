"""The previous action and reward, for policies whose memory has them beside the network's state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from policy_server.errors import ObservationError
from policy_server.observations import problem
from policy_server.policy import LARGEST, Float32Array, Float64Array, PolicySignature

__all__ = ["NOTHING_STATED", "PreviousStep", "StatedStep"]

# Of lists in lists, an action has one or two; orjson and Python's stack have limits of their own.
_DEEPEST = 32
# An answer's numbers are rounded to 32 bits.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class StatedStep:
    """The reward and the action that a client states of the step before.

    Attributes:
        reward: the JSON value of its reward; None where the client states none.
        action: the JSON value of the action that the environment executed, in the form of `actions`
            in an answer; None for the answered one.
    """

    reward: Any = None
    action: Any = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> StatedStep:
        """Return the statements of a request.

        Args:
            headers: the request's, by their names in lower case.

        Raises:
            ObservationError: if a reward is no number, or an action no JSON or none of numbers.
        """
        reward, action = headers.get("x-previous-reward"), headers.get("x-previous-action")
        if reward is None and action is None:
            return NOTHING_STATED
        try:
            known = None if reward is None else float(reward)
        except ValueError as error:
            raise _refusal(
                "float_parsing", "previous-reward", "Input should be a number"
            ) from error
        try:
            executed = None if action is None else orjson.loads(action)
        except orjson.JSONDecodeError as error:
            raise _refusal(
                "json_invalid", "previous-action", f"JSON decode error: {error}"
            ) from error
        _check_action(executed)
        return cls(known, executed)


NOTHING_STATED = StatedStep()


class PreviousStep:
    """The places of the previous action and reward in a policy's memory.

    Attributes:
        takes_action: whether the policy takes the previous action.
        takes_reward: whether it takes the previous reward.
        is_taken: whether it takes either.
    """

    def __init__(self, signature: PolicySignature) -> None:
        """Work out the places.

        Args:
            signature: the policy's.
        """
        self._components = signature.components or ()
        self._columns = sum(item.columns for item in signature.action_outputs)
        self._action = np.array(signature.places_of("previous_action"), np.intp)
        self._reward = np.array(signature.places_of("previous_reward"), np.intp)
        self._is_noted = bool(signature.noted_places)
        self.takes_action = self._action.size > 0
        self.takes_reward = self._reward.size > 0
        self.is_taken = self.takes_action or self.takes_reward

    def check(self, stated: StatedStep) -> None:
        """Refuse a statement that is no reward or action, whether or not the policy takes it.

        Args:
            stated: what a client states of the step before.

        Raises:
            ObservationError: if it is none.
        """
        if stated.reward is not None:
            self._checked_reward(stated.reward)
        _check_action(stated.action)

    def write(self, state: Float32Array, stated: StatedStep, *, has_action: bool) -> Float32Array:
        """Return a memory with what a client states of the step before.

        Args:
            state: float32[memory_width], the memory after that step, which stays as it is.
            stated: what the client states.
            has_action: whether the memory has the action already.

        Raises:
            ObservationError: if what the policy needs is missing, or is no action or reward.
        """
        written = state.copy()
        if self.takes_action:
            if stated.action is not None:
                written[self._action] = self._own_action(
                    self._checked(stated.action), state[self._action], has_action=has_action
                )
            elif not has_action:
                raise _refusal(
                    "missing",
                    "previous-action",
                    "This policy takes the previous action, and none was answered in the step "
                    "before: state the executed one",
                )
        if self.takes_reward:
            written[self._reward] = self._checked_reward(stated.reward)
        return written

    def note_action(self, state: Float32Array, action: Float64Array) -> None:
        """Write the action that was answered into the memory after the step.

        A policy whose actions are cut to bounds has written its own, as RLlib feeds that one back.

        Args:
            state: float32[memory_width], which is changed.
            action: float64[A], in the units that actions are answered in.
        """
        if self.takes_action and not self._is_noted:
            state[self._action] = action

    def can_follow(self, state: Float32Array) -> bool:
        """Return whether the action in a memory is one that `note_action` could have written.

        Args:
            state: float32[memory_width], finite.
        """
        action = state[self._action]
        return not self.takes_action or all(
            action[part.first_column] in range(part.size)
            for part in self._components
            if part.kind == "categorical"
        )

    def _own_action(
        self, action: Float64Array, before: Float32Array, *, has_action: bool
    ) -> Float64Array:
        """Return an executed action in the policy's own space, from the environment's units.

        Args:
            action: float64[A], in the units that actions are answered in.
            before: float32[A], the memory's own action. It stays in a dimension of a single number,
                and where it is the one that was answered, and only cut to the bounds.
            has_action: whether it was answered.
        """
        own = action.copy()
        for part in self._components:
            if part.low is None or part.high is None:
                continue
            columns = slice(part.first_column, part.first_column + part.columns)
            low, high = np.array(part.low), np.array(part.high)
            is_same = low == high
            cut = np.clip(before[columns], low, high)
            if part.is_normalized:
                width = np.where(is_same, 1.0, high - low)
                own[columns] = 2.0 * (action[columns] - low) / width - 1.0
                cut = np.clip(before[columns], -1.0, 1.0)
            if has_action:
                is_same |= np.isclose(own[columns], cut, rtol=0, atol=_ROUNDING)
            own[columns] = np.where(is_same, before[columns], own[columns])
        return own

    def _checked(self, value: object) -> Float64Array:
        numbers = _flat(value)
        if numbers is None or len(numbers) != self._columns:
            raise _refusal(
                "previous_action",
                "previous-action",
                f"Input should be an action in the form of `actions`, of {self._columns} numbers",
            )
        for part in self._components:
            chosen = numbers[part.first_column]
            if part.kind == "categorical" and chosen not in range(part.size):
                raise _refusal(
                    "previous_action",
                    "previous-action",
                    f"Input should have integers from 0 to {part.size - 1}, not {chosen:g}",
                )
        return np.array(numbers)

    @staticmethod
    def _checked_reward(reward: object) -> float:
        if reward is None:
            raise _refusal(
                "missing",
                "previous-reward",
                "This policy takes the reward of the step before: state it",
            )
        numbers = _flat(reward)
        if numbers is None or isinstance(reward, list) or abs(numbers[0]) > LARGEST:
            raise _refusal("finite_number", "previous-reward", "Input should be a finite number")
        return numbers[0]


def _check_action(action: object) -> None:
    """Refuse what is no action of any policy; None states none."""
    if action is not None and _flat(action) is None:
        raise _refusal(
            "previous_action",
            "previous-action",
            "Input should be an action in the form of `actions`",
        )


def _flat(value: object, levels: int = _DEEPEST) -> list[float] | None:
    """Return the numbers of nested lists; None where anything else is in them, or more levels."""
    if not isinstance(value, list):
        number = _finite(value)
        return None if number is None else [number]
    if not levels:
        return None
    numbers: list[float] = []
    for item in value:
        found = _flat(item, levels - 1)
        if found is None:
            return None
        numbers += found
    return numbers


def _finite(value: object) -> float | None:
    """Return the number of a JSON value; None where it is none, or none that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _refusal(kind: str, name: str, message: str) -> ObservationError:
    return ObservationError([problem(kind, ["header", f"x-{name}"], message)])
