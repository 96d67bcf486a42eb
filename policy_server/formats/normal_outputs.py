"""The distribution of a mean and a deviation: with a tanh or not, as the action beside tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.mean_actions import MeanAction, NotTold, mean_action
from policy_server.formats.network_outputs import NetworkOutput, form_by_name
from policy_server.policy import ActionComponent, ComponentKind
from policy_server.schema import ActionValues

__all__ = ["NORMALS", "normal_part"]

NORMALS: Mapping[ActionValues, ComponentKind] = {
    "normal": "normal",
    "squashed_normal": "squashed_normal",
}
"""The distributions of a mean and a deviation, by schema.yaml's words."""


def normal_part(
    mean: NetworkOutput,
    actions: Sequence[NetworkOutput],
    stated: ActionValues | None,
    *,
    subject: str,
    source: str,
) -> tuple[ActionComponent, str]:
    """Return the distribution around a mean, and how it is known; nothing where schema.yaml says.

    SAC's action is the tanh of the draw, and nothing of a mean and a deviation shows it.

    Args:
        mean: the output with the mean.
        actions: the actions beside it, which the graph does not draw.
        stated: the `values` of schema.yaml; None for none.
        subject: the file's name, for messages.
        source: the name of schema.yaml.

    Raises:
        ModelError: if the action beside is none that is known, and schema.yaml states nothing.
    """
    part = ActionComponent("normal" if stated is None else NORMALS[stated], mean.width, 0, 0)
    assumed = (
        f"assumed: no tanh follows a draw around {mean.name!r}; of SAC, whose action is the "
        f"tanh of a draw, state 'values: squashed_normal' under 'actions' of {source}"
    )
    assumed = assumed if stated is None else ""
    if mean.rows is None:
        return part, assumed
    ways = [(item, _way(item, mean)) for item in actions if item.rows is not None]
    for item, way in ways:
        if isinstance(way, MeanAction):
            if stated is not None and stated != way.values:
                return part, ""
            return _part_of(part, way), _finding(way, item.name, mean.name)
    for item, way in ways:
        if stated is None and way is None and form_by_name(item.name) == "action":
            raise ModelError(
                f"{subject}: its action {item.name!r} is neither its {mean.name!r} nor the tanh of "
                "it, clipped or scaled, so that the distribution is not known; state 'values: "
                f"normal' or 'values: squashed_normal' under 'actions' of {source}, or 'values: "
                "action' for the action alone"
            )
    if ways and stated is None:
        assumed += f" (its {ways[0][0].name!r} does not tell it)"
    return part, assumed


def _way(item: NetworkOutput, mean: NetworkOutput) -> MeanAction | NotTold | None:
    """Return the way from a mean to an action; a draw by the client's own noise tells none."""
    assert item.rows is not None, "it was computed"
    assert mean.rows is not None, "it was computed"
    has_tanh = item.ending == "tanh" and mean.ending != "tanh"
    if item.has_noise and not mean.has_noise and not has_tanh:
        return "not told"
    return mean_action(item.rows, mean.rows, has_tanh=has_tanh)


def _part_of(part: ActionComponent, way: MeanAction) -> ActionComponent:
    if way.is_squashed and way.is_scaled:
        low, high = way.offset - way.scale, way.offset + way.scale
        part = replace(part, low=tuple(low.tolist()), high=tuple(high.tolist()))
    return replace(part, kind=NORMALS[way.values])


def _finding(way: MeanAction, action: str, mean: str) -> str:
    if way.is_squashed:
        scaled = ", scaled" if way.is_scaled else ""
        return f"its action {action!r} is the tanh of its {mean!r}{scaled}, on every probe"
    scaled = f", scaled by {_told(way.scale)} and moved by {_told(way.offset)}"
    return (
        f"its action {action!r} is its {mean!r}{scaled if way.is_scaled else ''}, on every probe: "
        "no tanh follows a draw"
    )


def _told(numbers: NDArray[Any]) -> str:
    """Return one number for each dimension in words; one for all where they are alike."""
    return ", ".join(f"{number:g}" for number in (numbers[:1] if np.ptp(numbers) == 0 else numbers))
