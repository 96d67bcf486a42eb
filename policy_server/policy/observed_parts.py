"""The parts of an observation as the environment gives them, and their columns of the row."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Literal

__all__ = ["ObservationPart", "distinct_names", "part_names", "whole_shape"]

# The name of an observation that has no parts with keys.
_WHOLE = "observation"


@dataclass(frozen=True)
class ObservationPart:
    """One part of an environment's observation, as the policy's file tells it.

    Attributes:
        key: its key in the environment, those of nested spaces joined by dots; empty for an
            observation that is this part alone.
        kind: an array of numbers (`box`), one or several integers that become a one-hot vector
            each (`one_hot`), or zeros and ones (`binary`).
        shape: the dimensions of its value; () for a single number.
        sizes: how many integers there are, from 0 on: one for each item of a `one_hot`.
        is_integer: whether its numbers are whole.
        low: the smallest number; None for no bound.
        high: the largest number; None for no bound.
        is_normalized: whether the policy normalizes it itself.
    """

    key: str
    kind: Literal["box", "one_hot", "binary"]
    shape: tuple[int, ...]
    sizes: tuple[int, ...] = ()
    is_integer: bool = False
    low: float | None = None
    high: float | None = None
    is_normalized: bool = False

    @property
    def items(self) -> int:
        """Return how many numbers its value has."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Return how many columns of the row it takes."""
        return sum(self.sizes) if self.kind == "one_hot" else self.items

    def __str__(self) -> str:
        """Return the part in words, such as `an integer from 0 to 3`."""
        if self.kind == "one_hot":
            ranges = [f"0 to {size - 1}" for size in self.sizes]
            words = f"an integer from {ranges[0]}"
            words = words if not self.shape else f"integers from {', '.join(ranges)}"
        elif not self.shape:
            words = "a number"
        else:
            noun = "zeros and ones" if self.kind == "binary" else "numbers"
            words = f"{' x '.join(map(str, self.shape))} {noun}"
        return f"{words}, normalized by the policy" if self.is_normalized else words


def whole_shape(parts: Sequence[ObservationPart]) -> tuple[int, ...] | None:
    """Return the dimensions of an observation that is one array; None for any other.

    Args:
        parts: an observation's parts in order.
    """
    is_array = len(parts) == 1 and parts[0].kind != "one_hot"
    return parts[0].shape if is_array else None


def part_names(parts: Sequence[ObservationPart]) -> tuple[str, ...]:
    """Return the name in schema.yaml of each part: its key, or one like it.

    Args:
        parts: an observation's parts in order.
    """
    return distinct_names([part.key or _WHOLE for part in parts])


def distinct_names(keys: Sequence[str]) -> tuple[str, ...]:
    """Return for each key of an observation a name of its own that schema.yaml can have.

    Args:
        keys: the keys in order.

    Returns:
        The names in the same order. A key that can be a name is its own; of others that would
        become the same name (`speed x`, `speed-x`) the later ones get a number.
    """
    wanted = [_identifier(key) for key in keys]
    taken = {key for key, name in zip(keys, wanted, strict=True) if key == name}
    names = []
    for key, name in zip(keys, wanted, strict=True):
        chosen = name
        if key != name or name in names:
            numbered = (f"{name}_{number}" for number in count(2))
            chosen = next(found for found in chain([name], numbered) if found not in taken)
            taken.add(chosen)
        names.append(chosen)
    return tuple(names)


def _identifier(key: str) -> str:
    name = re.sub(r"\W", "_", key, flags=re.ASCII)
    return f"_{name}" if not name or name[0].isdigit() else name
