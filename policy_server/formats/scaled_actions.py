"""Actions that a network has scaled itself, as by a tanh that is multiplied by the largest torque.

schema.yaml's `low` and `high` rescale an action from [-1, 1]. A network that gives numbers in the
environment's units already is not to be rescaled once more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.output_meaning import Meaning
from policy_server.policy import ActionComponent
from policy_server.schema import ActionField, ServerSchema

__all__ = ["TENSORFLOW_CHANGES", "Bounds", "KeptPart", "with_kept_bounds", "without_rescaling"]

_TOLERANCE = 1e-5
# The part of the whole range that a clipping before the scaling leaves out, as one to +-0.999 does.
_MARGIN = 0.01
# The sums of shares of a whole, which float32 rounds.
_SUM_TOLERANCE = 1e-4

Array = NDArray[Any]

TENSORFLOW_CHANGES: Mapping[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "AddV2": np.add,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Mul": np.multiply,
    "RealDiv": np.divide,
    "Sub": np.subtract,
}
"""The operations of TensorFlow by which a constant scales or clips numbers."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """The least and the most that an output's numbers can be.

    Attributes:
        low: the least: one number, or one a dimension; infinite where nothing tells it.
        high: the most, in the same form.
        is_squashed: whether a tanh, a sigmoid or a softmax keeps the numbers within, which then
            fill the bounds, and not a clipping alone.
    """

    low: Array
    high: Array
    is_squashed: bool = False

    @classmethod
    def of(cls, low: float, high: float) -> Bounds:
        """Return the bounds of a function that squashes any number.

        Args:
            low: its least result.
            high: its largest.
        """
        return cls(np.asarray(low, np.float64), np.asarray(high, np.float64), is_squashed=True)

    @classmethod
    def of_none(cls) -> Bounds:
        """Return the bounds of numbers that nothing bounds."""
        return cls(np.asarray(-np.inf), np.asarray(np.inf))

    @classmethod
    def of_shares(cls, rows: Array | None) -> Bounds | None:
        """Return the bounds of numbers that are shares of a whole; None for other numbers.

        A graph may spell its softmax out in other operations.

        Args:
            rows: the numbers for some observations, float[B, width]; None where they are unknown.
        """
        if rows is None or rows.ndim != 2 or rows.shape[1] < 2 or not (rows >= 0).all():
            return None
        is_whole = np.allclose(rows.sum(axis=1), 1, atol=_SUM_TOLERANCE)
        return cls.of(0, 1) if is_whole else None

    def changed(self, change: Callable[[Array], Array]) -> Bounds:
        """Return the bounds behind a change that is monotone; none where its sizes don't fit.

        Args:
            change: gives the number behind it for a number.
        """
        try:
            with np.errstate(all="ignore"):
                one, other = change(self.low), change(self.high)
        except ValueError:
            return Bounds.of_none()
        return Bounds(np.minimum(one, other), np.maximum(one, other), self.is_squashed)

    def part(self, first: int, size: int, width: int) -> Bounds:
        """Return the bounds of some of a row's numbers.

        Args:
            first: the place of the first of them.
            size: how many they are.
            width: how many numbers the row has.
        """
        low, high = (
            np.ravel(side)[first : first + size] if np.size(side) == width else side
            for side in (self.low, self.high)
        )
        return Bounds(low, high, self.is_squashed)

    @staticmethod
    def joined(parts: Sequence[tuple[Bounds, int]]) -> Bounds:
        """Return the bounds of several parts of a row, one after another.

        Args:
            parts: the bounds of each, and how many numbers it has.
        """
        if any({one.low.size, one.high.size} - {1, size} for one, size in parts):
            return Bounds.of_none()
        low, high = (
            np.concatenate([np.broadcast_to(np.ravel(side), size) for side, size in sides])
            for sides in (
                [(one.low, size) for one, size in parts],
                [(one.high, size) for one, size in parts],
            )
        )
        return Bounds(low, high, is_squashed=any(one.is_squashed for one, _ in parts))

    @property
    def is_known(self) -> bool:
        """Return whether all numbers are bounded."""
        return bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())

    @property
    def is_scale(self) -> bool:
        """Return whether these are the bounds of [-1, 1], from which schema.yaml rescales."""
        return _is_close((-1.0,), np.ravel(self.low)) and _is_close((1.0,), np.ravel(self.high))

    @property
    def is_own_scale(self) -> bool:
        """Return whether the numbers fill other bounds than [-1, 1], which are the action's own.

        A clipping that leaves all of [-1, 1] may only cut what is too large, and be rescaled then.
        """
        leaves_all = bool((self.low <= -1).all() and (self.high >= 1).all())
        return not self.is_scale and (self.is_squashed or not leaves_all)


def without_rescaling(
    meaning: Meaning, schema: ServerSchema | None, bounds: Mapping[str, Bounds]
) -> ServerSchema | None:
    """Return schema.yaml, where bounds that the network keeps already rescale nothing.

    Args:
        meaning: the meaning of the network's outputs.
        schema: the contents of schema.yaml; None where there is none.
        bounds: those that its last operations keep an output in, by the output's name.

    Raises:
        ModelError: if schema.yaml would rescale numbers that do not lie in [-1, 1].
    """
    parts = []
    for one in meaning.read:
        found = bounds.get(one.output.name) or Bounds.of_shares(one.output.rows)
        parts.append(KeptPart(one.width, found))
    return with_kept_bounds(meaning.components, parts, schema)


@dataclass(frozen=True)
class KeptPart:
    """A tensor of `action_dist_inputs`.

    Attributes:
        width: how many numbers it has in one row.
        bounds: those that it is kept in; None for none.
    """

    width: int
    bounds: Bounds | None


def with_kept_bounds(
    components: Sequence[ActionComponent], parts: Sequence[KeptPart], schema: ServerSchema | None
) -> ServerSchema | None:
    """Return schema.yaml, where bounds that the network keeps already rescale nothing.

    Args:
        components: the distribution's components.
        parts: the tensors of `action_dist_inputs` in order.
        schema: the contents of schema.yaml; None where there is none.

    Raises:
        ModelError: if schema.yaml would rescale numbers that do not lie in [-1, 1].
    """
    if schema is None or schema.actions is None or len(components) != len(schema.actions):
        return schema
    firsts = [0, *itertools.accumulate(part.width for part in parts)]
    fields = []
    for component, entry in zip(components, schema.actions, strict=True):
        ((part, first),) = (
            (part, first)
            for part, first in zip(parts, firsts, strict=False)
            if first <= component.first_input < first + part.width
        )
        bounds = part.bounds
        # The bounds of what is squashed afterwards are none of the action.
        if bounds is None or not bounds.is_known or component.kind == "squashed_normal":
            fields.append(entry)
            continue
        bounds = bounds.part(component.first_input - first, component.inputs, part.width)
        # A mean's bounds are none of the actions that are drawn around it.
        is_strict = bounds.is_own_scale and component.kind == "deterministic"
        fields.append(_bounded(entry, bounds, schema.source, is_strict=is_strict))
    return replace(schema, actions=tuple(fields))


def _bounded(entry: ActionField, bounds: Bounds, source: str, *, is_strict: bool) -> ActionField:
    low, high = np.ravel(bounds.low), np.ravel(bounds.high)
    if bounds.is_scale or entry.low is None or entry.high is None or not entry.normalized:
        return entry
    if _is_close(entry.low, low) and _is_close(entry.high, high):
        return replace(entry, normalized=False)
    if _lies_just_within((-1.0,), (1.0,), low, high):
        return entry
    if _lies_just_within(entry.low, entry.high, low, high):
        return replace(entry, normalized=False)
    if not is_strict or (set(entry.low), set(entry.high)) == ({-1.0}, {1.0}):
        # From [-1, 1] to [-1, 1] nothing is rescaled.
        return entry
    least, most = next(
        pair for pair in zip(*np.broadcast_arrays(low, high), strict=True) if pair != (-1, 1)
    )
    raise ModelError(
        f"{source}: actions.{entry.name}: low and high rescale numbers in [-1, 1], and the "
        f"network gives numbers in [{least:g}, {most:g}]; write 'normalized: False' to clip "
        "them only, or leave low and high out"
    )


def _lies_just_within(
    least: tuple[float, ...], most: tuple[float, ...], low: Array, high: Array
) -> bool:
    """Return whether bounds are stated ones, but for a clipping that keeps off their very ends."""
    stated_low, stated_high = np.asarray(least), np.asarray(most)
    if len({stated_low.size, stated_high.size, low.size, high.size} - {1}) > 1:
        return False
    margin = _MARGIN * (stated_high - stated_low)
    below, above = low - stated_low, stated_high - high
    return all(
        bool((side >= -_TOLERANCE).all() and (side <= margin).all()) for side in (below, above)
    )


def _is_close(stated: tuple[float, ...], known: Array) -> bool:
    values = np.asarray(stated)
    if 1 not in (len(values), len(known)) and len(values) != len(known):
        return False
    return np.allclose(values, known, rtol=_TOLERANCE, atol=_TOLERANCE)
