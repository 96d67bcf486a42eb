"""Charts of action distributions and of an episode's rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

__all__ = ["component_chart", "density", "reward_chart", "team_return_chart"]

_DETERMINISTIC = "◆ deterministic"
_DRAWN = "● drawn"
_BLUE, _LIGHT_BLUE, _ORANGE = "#2563eb", "#93b4f5", "#f97316"
_AGENT_COLORS = ("#f97316", "#2563eb", "#16a34a", "#9333ea", "#db2777", "#0891b2")
_DARK, _PALE = "#475569", "#cbd5e1"
_MOST_BARS = 24
_BAR_STEP_PX = 30
# Vega makes room for a text beyond the axis, and measures it by another font than the browser's.
_BAR_TEXT_PX = 20
_DASHES = ([1, 0], [8, 8], [2, 4], [12, 4], [4, 8], [8, 2])
_SMALLEST_SHOWN = 0.001
_POINTS = 301
_STANDARD_DEVIATIONS = 4.0
# Beyond it a tanh is 1, even in 64-bit floats.
_LARGEST_ARCTANH = 18.0
_LEAST_SHOWN = 1e-3
# The curve fills the chart, wherever it lies.
_TIGHT = alt.Scale(zero=False, nice=False)

Values = NDArray[np.float64]
Layers = alt.LayerChart | alt.FacetChart


def component_chart(
    component: Mapping[str, Any],
    *,
    bounds: Mapping[str, Any],
    deterministic: Sequence[float],
    drawn: Sequence[float],
    is_dark: bool = False,
) -> Layers:
    """Return the chart of one action component: bars of choices, or curves of densities.

    Args:
        component: an entry of `components` in an answer of /distribution.
        bounds: its `low`, `high` and `normalized` in schema.yaml, or nothing.
        deterministic: the component's values in the deterministic action; empty if unknown.
        drawn: its values in the drawn action.
        is_dark: whether the page is dark; a chart's texts don't follow the page's theme.
    """
    if component["kind"] == "categorical":
        return _bars(component, deterministic, drawn, _PALE if is_dark else _DARK)
    return _curves(component, bounds, deterministic, drawn)


def reward_chart(rewards: Sequence[float]) -> Layers:
    """Return the chart of each step's reward, and of their sum.

    Args:
        rewards: of an episode's steps so far.
    """
    sums = np.cumsum(rewards).tolist()
    rows = [
        {"step": step, "reward": reward, "return": total}
        for step, (reward, total) in enumerate(zip(rewards, sums, strict=True), start=1)
    ]
    data = _chart(rows)
    steps = alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, format="d"))
    bars = data.mark_bar(color=_LIGHT_BLUE, size=3).encode(
        x=steps,
        y=alt.Y("reward:Q", title="reward of the step (bars)"),
        tooltip=["step:Q", "reward:Q"],
    )
    line = data.mark_line(color=_ORANGE, strokeWidth=2.5).encode(
        x=steps, y=alt.Y("return:Q", title="return so far (line)")
    )
    layers: Layers = alt.layer(bars, line).resolve_scale(y="independent").properties(height=300)
    return layers


def team_return_chart(rewards: Mapping[str, Sequence[float]]) -> alt.Chart:
    """Return the chart of each agent's return so far.

    Agents with the same return have one line on top of the other, through whose gaps one sees.

    Args:
        rewards: of an episode's steps so far, by agent.
    """
    rows = [
        {"step": step, "return": total, "agent": agent}
        for agent, gained in rewards.items()
        for step, total in enumerate(np.cumsum(gained).tolist(), start=1)
    ]
    names = list(rewards)
    chart: alt.Chart = (
        _chart(rows)
        .mark_line(strokeWidth=3, point=len(rows) == len(names))
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("return:Q", title="return so far"),
            color=alt.Color(
                "agent:N",
                title=None,
                sort=names,
                scale=alt.Scale(domain=names, range=list(_AGENT_COLORS)),
                legend=alt.Legend(orient="top"),
            ),
            strokeDash=alt.StrokeDash(
                "agent:N", scale=alt.Scale(domain=names, range=list(_DASHES)), legend=None
            ),
            tooltip=["agent:N", "step:Q", "return:Q"],
        )
        .properties(height=300)
    )
    return chart


def density(
    component: Mapping[str, Any], bounds: Mapping[str, Any], index: int
) -> tuple[Values, Values]:
    """Return the density of one dimension of a continuous component.

    Args:
        component: a `normal` or `squashed_normal` one.
        bounds: `low`, `high` and `normalized` of schema.yaml, or nothing.
        index: of the dimension.

    Returns:
        Actions in the units that the server answers in, and the density at each. A normal one that
        is cut at bounds ends there; the masses at them are not in the curve.
    """
    mean, std = component["mean"][index], max(component["std"][index], 1e-9)
    reach = _STANDARD_DEVIATIONS * std
    low, high = _bounds_of(bounds, index)
    if component["kind"] == "normal":
        ends = np.array([mean - reach, mean + reach])
        if low is not None and high is not None:
            ends = np.clip(ends, low, high)
        actions = np.linspace(ends[0], ends[1], _POINTS)
        return actions, _normal_density(actions, mean, std)
    if low is None or high is None or not bounds.get("normalized", True):
        low, high = -1.0, 1.0
    unsquashed = np.linspace(mean - reach, mean + reach, _POINTS)
    unsquashed = unsquashed[np.abs(unsquashed) < _LARGEST_ARCTANH]
    scale = (high - low) / 2.0
    values = _normal_density(unsquashed, mean, std) * np.cosh(unsquashed) ** 2 / scale
    # A tanh stretches the tails over most of its range.
    is_shown = values >= values.max(initial=0.0) * _LEAST_SHOWN
    return (low + (np.tanh(unsquashed) + 1.0) * scale)[is_shown], values[is_shown]


def _bars(
    component: Mapping[str, Any],
    deterministic: Sequence[float],
    drawn: Sequence[float],
    text_color: str,
) -> Layers:
    probabilities = component["probabilities"]
    labels = component.get("labels") or [str(choice) for choice in range(len(probabilities))]
    rows = []
    for choice, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
        marks = [
            mark
            for mark, values in (("◆", deterministic), ("●", drawn))
            if list(values) == [choice]
        ]
        text = " ".join([_percent(probability), *marks])
        is_mode = list(deterministic) == [choice]
        rows.append({"choice": label, "probability": probability, "text": text, "is_mode": is_mode})
    if len(rows) > _MOST_BARS:
        rows = sorted(rows, key=lambda row: -row["probability"])[:_MOST_BARS]
    base = _chart(rows).encode(
        y=alt.Y("choice:N", sort=None, title=None, axis=alt.Axis(labelLimit=160, ticks=False)),
        x=alt.X(
            "probability:Q",
            title=None,
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1]),
        ),
        tooltip=["choice:N", alt.Tooltip("probability:Q", format=".4%")],
    )
    bars = base.mark_bar(cornerRadiusEnd=3, height={"band": 0.7}).encode(
        color=alt.condition("datum.is_mode", alt.value(_BLUE), alt.value(_LIGHT_BLUE))
    )
    texts = base.mark_text(align="left", dx=6, color=text_color, fontSize=13).encode(text="text:N")
    room = {"left": 5, "top": 5, "right": _BAR_TEXT_PX, "bottom": 5}
    return alt.layer(bars, texts).properties(height=alt.Step(_BAR_STEP_PX), padding=room)


def _curves(
    component: Mapping[str, Any],
    bounds: Mapping[str, Any],
    deterministic: Sequence[float],
    drawn: Sequence[float],
) -> Layers:
    size = len(component.get("mean") or component["value"])
    names = [component.get("name") or "action"]
    if size > 1:
        names = [f"{names[0]}[{index}]" for index in range(size)]
    color = alt.Color(
        "dimension:N", sort=names, title=None, legend=None if size == 1 else alt.Legend()
    )
    layers: list[alt.Chart] = []
    if component["kind"] != "deterministic":
        layers.append(_areas(component, bounds, names, color))
    marks = [
        {"action": value, "dimension": name, "what": what}
        for what, values in ((_DETERMINISTIC, deterministic), (_DRAWN, drawn))
        for name, value in zip(names, values, strict=False)
    ]
    layers.append(
        _chart(marks)
        .mark_rule(strokeWidth=2)
        .encode(
            x=alt.X("action:Q", title=names[0] if size == 1 else "action", scale=_TIGHT),
            color=color,
            strokeDash=alt.StrokeDash(
                "what:N",
                title=None,
                scale=alt.Scale(domain=[_DETERMINISTIC, _DRAWN], range=[[1, 0], [4, 4]]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=["what:N", "dimension:N", "action:Q"],
        )
    )
    return alt.layer(*layers).properties(height=240)


def _areas(
    component: Mapping[str, Any],
    bounds: Mapping[str, Any],
    names: Sequence[str],
    color: alt.Color,
) -> alt.Chart:
    rows = [
        {"action": action, "density": value, "dimension": name}
        for index, name in enumerate(names)
        for action, value in zip(
            *(part.tolist() for part in density(component, bounds, index)), strict=True
        )
    ]
    areas: alt.Chart = (
        _chart(rows)
        .mark_area(opacity=0.25, line=True)
        .encode(
            x=alt.X("action:Q", scale=_TIGHT),
            y=alt.Y("density:Q", title="probability density", stack=None),
            color=color,
        )
    )
    return areas


def _bounds_of(bounds: Mapping[str, Any], index: int) -> tuple[float | None, float | None]:
    low, high = bounds.get("low"), bounds.get("high")
    if not low or not high:
        return None, None
    # schema.yaml gives one bound for all dimensions, or one a dimension.
    return low[min(index, len(low) - 1)], high[min(index, len(high) - 1)]


def _normal_density(values: Values, mean: float, std: float) -> Values:
    exponent = -0.5 * ((values - mean) / std) ** 2
    result: Values = np.exp(exponent) / (std * np.sqrt(2.0 * np.pi))
    return result


def _chart(rows: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))


def _percent(probability: float) -> str:
    return "< 0.1 %" if 0.0 < probability < _SMALLEST_SHOWN else f"{probability * 100:.1f} %"
