"""The arguments that Keras's layers and functions are called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from policy_server.formats.keras.model_config import Part
from policy_server.formats.keras.network_steps import Steps

__all__ = ["Arguments", "Function", "Result"]


@dataclass(frozen=True)
class Result:
    """The result of a layer, as another is called with it.

    Attributes:
        register: the register that holds it.
    """

    register: int


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call of a function.

    Attributes:
        steps: the network.
        part: the function.
        values: results, numbers, and lists of these.
    """

    steps: Steps
    part: Part
    values: Sequence[Any]

    def result(self, index: int = 0) -> int:
        """Return the register of an argument that is a layer's result.

        Args:
            index: its place.

        Raises:
            ModelError: if it is none.
        """
        value = self.values[index] if index < len(self.values) else None
        if not isinstance(value, Result):
            self.part.refuse(f"its argument {index} is no result of a layer")
        return value.register

    def results(self) -> list[int]:
        """Return the registers of a first argument that is a list of layers' results."""
        values = self.values[0] if self.values else None
        if not isinstance(values, list) or not all(isinstance(one, Result) for one in values):
            self.part.refuse("its argument is no list of layers' results")
        return [one.register for one in values]

    def number(self, index: int = 0) -> int:
        """Return the register of an argument in the model's type; a number becomes a constant.

        Args:
            index: its place.
        """
        value = self.constant(index)
        if value is not None:
            return self.steps.numbers(value)
        return self.steps.number(self.result(index))

    def constant(self, index: int) -> float | None:
        """Return an argument that is a number; None for any other.

        Args:
            index: its place.
        """
        value = self.values[index] if index < len(self.values) else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if is_number else None

    def axes(self, x: int) -> tuple[int, ...]:
        """Return the axes of a row that a sum and the like goes over, from 0.

        Args:
            x: the register that it sums.
        """
        if self.part.settings.get("axis") is None:
            self.part.refuse("goes over all observations of a batch; give it an axis")
        return tuple(self.steps.axis(x, axis) for axis in self.part.integers("axis"))


Function = Callable[[Arguments], int | list[int]]
"""A function of `keras.ops`: it returns the register of its result, or of several."""
