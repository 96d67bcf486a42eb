"""Outputs beside the draws of a graph: parts of their distributions, or an action of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.mean_actions import mean_action
from policy_server.formats.network_outputs import (
    FEWEST_CHOICES,
    NetworkOutput,
    form_by_name,
    form_of,
)
from policy_server.formats.onnx.drawn_actions import Part
from policy_server.formats.onnx.measured import Measured
from policy_server.formats.second_actions import BestChoices, Told, is_integer, is_second

__all__ = ["refuse_beside_draws"]

Array = NDArray[Any]
_DEVIATIONS = ("log_std", "std")


def refuse_beside_draws(
    subject: str,
    parts: Sequence[Part],
    beside: Sequence[NetworkOutput],
    measure: Callable[[Sequence[str]], Mapping[str, Measured]],
) -> list[str]:
    """Refuse an action beside the draws that is none of theirs; return what is left out in words.

    Args:
        subject: the file's name, for messages.
        parts: the draws.
        beside: the outputs that the graph does not draw, without the draws' own modes.
        measure: runs the graph.

    Raises:
        ModelError: if it would be left out without a word.
    """
    told = [(item, form) for item in beside if (form := form_of(item)) is not None]
    drawn = _Drawn(parts, measure)
    has_deviation = any(form in _DEVIATIONS for _, form in told)
    left: list[str] = []
    for item, form in told:
        if drawn.holds(item, form, has_deviation=has_deviation):
            continue
        if form == "action" and form_by_name(item.name) is None and not is_integer(item):
            left.append(f"nothing tells that {item.name!r} is an action: it is left out")
        else:
            raise ModelError(
                f"{subject}: its output {item.name!r} is an action beside the draw "
                f"{parts[0].output.name!r}, and would be left out; export one of the two alone, "
                "draw both in the graph, or describe both in the file's metadata (docs/onnx.md)"
            )
    return left


class _Drawn:
    def __init__(
        self,
        parts: Sequence[Part],
        measure: Callable[[Sequence[str]], Mapping[str, Measured]],
    ) -> None:
        choices = [part for part in parts if part.output.is_integer]
        tensors = [piece.tensor for part in choices for piece in part.pieces]
        sizes = [one.size for part in choices for one in part.components]
        rows = [measure([tensor])[tensor].rows for tensor in tensors]
        self._best = BestChoices.of(np.concatenate(rows, axis=1), sizes) if rows else None
        means = [part.pieces[0].tensor for part in parts if not part.output.is_integer]
        self._means = [measure([tensor])[tensor].rows for tensor in means]
        self._sizes = sizes

    def holds(self, item: NetworkOutput, form: str, *, has_deviation: bool) -> bool:
        """Return whether an output is none of an action, or one of the draws' own."""
        told: Told
        if form in ("action", "one_hot"):
            told = (item, "one_hot" if form == "one_hot" else "action")
            return not is_second(item) or self._is_mode(told)
        if form == "mean":
            return not has_deviation or item.is_inner or self._is_mean(item)
        if form in ("logits", "probabilities"):
            return item.width < FEWEST_CHOICES or item.is_inner or self._has_numbers(item)
        return True

    def _is_mode(self, told: Told) -> bool:
        item, form = told
        return (self._best is not None and self._best.are(item, form)) or self._is_mean(item)

    def _is_mean(self, item: NetworkOutput) -> bool:
        rows = item.rows
        assert rows is not None, "it was measured"
        has_tanh = item.ending == "tanh"
        return any(mean_action(rows, mean, has_tanh=has_tanh) is not None for mean in self._means)

    def _has_numbers(self, item: NetworkOutput) -> bool:
        """Return whether an output has the draws' choices, or a number for each dimension."""
        assert item.rows is not None, "it was measured"
        if self._best is None:
            return any(mean.shape == item.rows.shape for mean in self._means)
        if item.width != sum(self._sizes):
            return False
        other = BestChoices.of(item.rows, self._sizes)
        is_same = (other.choices == self._best.choices) | ~(other.is_clear & self._best.is_clear)
        return bool(is_same.all())
