"""The curve of a run: memory, files, threads and Ray's folder over time, in SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.plot import label
from benchmarks.progress import number
from benchmarks.soak.record import Record
from benchmarks.soak.samples import Sample

__all__ = ["draw"]

_COLOURS = {"web": "#1f6feb", "replica": "#8250df", "Ray": "#bf8700", "store": "#8c959f"}
_MEANINGS = {
    "web": "web process",
    "replica": "replicas",
    "Ray": "Ray itself, or its folder",
    "store": "Ray's object store",
}
_WIDTH, _LEFT, _RIGHT = 900, 70, 24
_PANEL, _GAP, _TOP, _BOTTOM = 120, 44, 78, 66
_ROOM = 1.15
_GRID = "#d0d7de"

# A curve's figure of a sample; None where the sample has none.
_Figure = Callable[[Sample], float | None]


def draw(record: Record) -> str:
    """Return the picture; a dot is a sample without clients.

    Args:
        record: the run.
    """
    panels = _panels(record)
    height = _TOP + len(panels) * (_PANEL + _GAP) + _BOTTOM - _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="26" font-size="16" font-weight="bold" fill="#1f2328">'
        f"{record.minutes:g} minutes of mixed traffic, backend {record.backend}: "
        f"{record.requests:,} requests, {record.failed} failed</text>",
        label(16, 46, "Lines: under traffic. Dots: without clients.", colour="#57606a"),
    ]
    for index, (title, curves) in enumerate(panels.items()):
        parts += _panel(record, title, curves, _TOP + index * (_PANEL + _GAP))
    return "\n".join([*parts, *_foot(record, panels, height), "</svg>"]) + "\n"


def _panels(record: Record) -> dict[str, dict[str, _Figure]]:
    roles = [role for role in _COLOURS if any(role in each.roles for each in record.samples)]

    def of(name: str) -> dict[str, _Figure]:
        def figure(role: str) -> _Figure:
            return lambda each: getattr(each.roles[role], name) if role in each.roles else None

        return {role: figure(role) for role in roles}

    panels = {
        "memory, MB": of("memory_mb"),
        "open file descriptors": of("files"),
        "threads": of("threads"),
    }
    if record.backend == "ray":
        panels["on disk and in the object store, MB"] = {
            "Ray": lambda each: each.folder_mb,
            "store": lambda each: each.store_mb,
        }
    return panels


def _panel(record: Record, title: str, curves: Mapping[str, _Figure], top: float) -> list[str]:
    figures = [figure(each) or 0.0 for figure in curves.values() for each in record.samples]
    most = max([*figures, 1e-9]) * _ROOM
    whole = record.samples[-1].seconds or 1.0

    def place(sample: Sample, value: float) -> str:
        x = _LEFT + sample.seconds / whole * (_WIDTH - _LEFT - _RIGHT)
        return f"{x:.1f},{top + _PANEL * (1 - value / most):.1f}"

    parts = [label(_LEFT, top - 8, title, weight="bold")]
    for share in (0.0, 0.5, 1.0):
        y = top + _PANEL * (1 - share / _ROOM)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{_GRID}"/>'
        )
        parts.append(label(_LEFT - 8, y + 4.5, number(most / _ROOM * share), anchor="end"))
    for name, figure in curves.items():
        parts += _curve(name, record.samples, figure, place)
    return parts


def _curve(
    name: str,
    samples: Sequence[Sample],
    figure: _Figure,
    place: Callable[[Sample, float], str],
) -> list[str]:
    known = [(each, value) for each in samples if (value := figure(each)) is not None]
    line = " ".join(place(each, value) for each, value in known if not each.is_quiet)
    dots = [place(each, value).split(",") for each, value in known if each.is_quiet]
    return [
        f'<polyline points="{line}" fill="none" stroke="{_COLOURS[name]}" stroke-width="1.5"/>',
        *(f'<circle cx="{x}" cy="{y}" r="3" fill="{_COLOURS[name]}"/>' for x, y in dots),
    ]


def _foot(record: Record, panels: Mapping[str, Mapping[str, _Figure]], height: int) -> list[str]:
    minutes = record.samples[-1].seconds / 60
    parts = [
        label(_LEFT, height - 46, "0 min"),
        label(_WIDTH - _RIGHT, height - 46, f"{minutes:.1f} min", anchor="end"),
    ]
    left = 16
    for name in dict.fromkeys(name for curves in panels.values() for name in curves):
        parts.append(
            f'<rect x="{left}" y="{height - 27}" width="12" height="12" rx="2" '
            f'fill="{_COLOURS[name]}"/>'
        )
        parts.append(label(left + 18, height - 16, _MEANINGS[name]))
        left += 220
    return parts
