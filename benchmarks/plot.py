"""A run's requests a second as bars, in SVG that reads on light and on dark pages."""

from __future__ import annotations

from xml.sax.saxutils import escape

from benchmarks.machine import is_busy
from benchmarks.progress import number
from benchmarks.results import Results

__all__ = ["draw", "label"]

_COLOURS = {"ours": "#1f6feb", "floor": "#8c959f", "ray": "#bf8700", "peer": "#8250df"}
_MEANINGS = {
    "ours": "Policy Server",
    "floor": "floors: constant answers",
    "ray": "one Ray call a request",
    "peer": "other servers",
}
_PANELS = (1, 32, 128)
_LABELS, _PANEL, _GAP = 390, 250, 30
_ROW, _TOP, _BOTTOM = 24, 64, 44
_BAR = 15
_FIGURE = 62
_SHORTEST = 1.5


def draw(results: Results) -> str:
    """Return the picture: a panel for 1, 32 and 128 connections, or those that were measured.

    Args:
        results: what a run measured.
    """
    panels = [count for count in _PANELS if count in results.connections()]
    panels = panels or results.connections()
    names = [name for name in results.subjects() if not name.endswith("-logs")]
    width = _LABELS + len(panels) * (_PANEL + _GAP)
    height = _TOP + len(names) * _ROW + _BOTTOM
    busy = " (on a busy machine: to be run again)" if is_busy(results.machine) else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="26" font-size="16" font-weight="bold" fill="#1f2328">'
        f"Predictions a second, one observation a request{busy}</text>",
        *(
            label(_LABELS - 12, _middle(row), results.titles[name], anchor="end")
            for row, name in enumerate(names)
        ),
    ]
    for index, connections in enumerate(panels):
        parts += _panel(results, names, connections, _LABELS + index * (_PANEL + _GAP))
    parts += _legend(results, height - 16)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(results: Results, names: list[str], connections: int, left: int) -> list[str]:
    rates = {name: results.median_of(name, connections, "requests_per_s") for name in names}
    most = max((rate for rate in rates.values() if rate is not None), default=1.0)
    word = "connection" if connections == 1 else "connections"
    parts = [label(left, _TOP - 12, f"{connections} {word}", weight="bold")]
    for row, name in enumerate(names):
        rate = rates[name]
        if rate is None:
            parts.append(label(left, _middle(row), "not measured", colour="#8c959f"))
            continue
        length = max(_SHORTEST, rate / most * (_PANEL - _FIGURE))
        colour = _COLOURS[results.groups[name]]
        parts.append(
            f'<rect x="{left}" y="{_TOP + row * _ROW + (_ROW - _BAR) / 2:g}" '
            f'width="{length:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>'
        )
        parts.append(label(left + length + 6, _middle(row), number(rate)))
    return parts


def _legend(results: Results, y: int) -> list[str]:
    parts, left = [], 16
    present = {results.groups[name] for name in results.subjects()}
    for group, colour in _COLOURS.items():
        if group in present:
            parts.append(
                f'<rect x="{left}" y="{y - 11}" width="12" height="12" rx="2" fill="{colour}"/>'
            )
            parts.append(label(left + 18, y, _MEANINGS[group]))
            left += 190
    return parts


def _middle(row: int) -> float:
    return _TOP + row * _ROW + _ROW / 2 + 4.5


def label(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    colour: str = "#1f2328",
    weight: str = "normal",
) -> str:
    """Return a line of text.

    Args:
        x: where it begins, or ends, or has its middle, in pixels from the left.
        y: its foot, in pixels from the top.
        text: any.
        anchor: what of it is at x: `start`, `middle` or `end`.
        colour: as SVG writes it.
        weight: `normal` or `bold`.
    """
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}">{escape(text)}</text>'
    )
