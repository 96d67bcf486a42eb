"""A server's answers in words: each action by the name and the labels of its component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["describe_actions", "describe_masses", "format_probability", "split_actions"]

_MOST_PERCENT_DIGITS = 0.9995


def split_actions(
    actions: Sequence[Any], components: Sequence[Mapping[str, Any]]
) -> list[list[float]]:
    """Return the values of each component of an answer.

    Args:
        actions: `actions` of an answer: numbers, and lists of numbers.
        components: `policy.components` of /schema; empty where the family is unknown.

    Returns:
        One list a component; of all values where there is none.
    """
    flat: list[float] = []
    for action in actions:
        flat += action if isinstance(action, list) else [action]
    parts: list[list[float]] = []
    for component in components:
        size = 1 if component["kind"] == "categorical" else component["size"]
        parts.append(flat[:size])
        flat = flat[size:]
    return [*parts, flat] if flat else parts


def describe_actions(
    actions: Sequence[Any], components: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Return the name of each component and its action in words.

    Args:
        actions: `actions` of an answer.
        components: `policy.components` of /schema.
    """
    described = []
    for index, values in enumerate(split_actions(actions, components)):
        component = components[index] if index < len(components) else {}
        labels = component.get("labels")
        text = ", ".join(_number(value) for value in values)
        if labels and len(values) == 1:
            text = str(labels[int(values[0])])
        name = component.get("name") or ("action" if index == 0 else f"action {index}")
        described.append((str(name), text))
    return described


def format_probability(answer: Mapping[str, Any], components: Sequence[Mapping[str, Any]]) -> str:
    """Return an answer's probability in words; a density where actions are continuous.

    Numbers that were cut at a bound have a probability of their own.

    Args:
        answer: of `/predict` or `/predict_deterministic`.
        components: `policy.components` of /schema.
    """
    probability = answer.get("probability")
    if probability is None:
        return "probability unknown"
    continuous = sum(part["size"] for part in components if part["kind"] != "categorical")
    cut = len(answer.get("at_bound", ()))
    if not components:
        # The family is not known, and with it whether this is a density.
        return f"probability or density {probability:.4g}"
    where = f", {cut} of {continuous} numbers at a bound" if cut else ""
    if cut < continuous:
        return f"probability density {probability:.4g}{where}"
    return f"probability {_percent(probability)}{where}"


def describe_masses(component: Mapping[str, Any]) -> str:
    """Return how often each dimension is cut at its bounds; empty where none is.

    Args:
        component: an entry of `components` in an answer of /distribution.
    """
    masses = zip(component.get("mass_at_low", ()), component.get("mass_at_high", ()), strict=True)
    parts = [f"{_percent(low)} at the lower, {_percent(high)} at the upper" for low, high in masses]
    return f"Cut at a bound: {'; '.join(parts)}" if parts else ""


def _percent(probability: float) -> str:
    digits = 1 if probability < _MOST_PERCENT_DIGITS else 0
    return f"{probability * 100:.{digits}f} %"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
